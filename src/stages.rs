//! Stages as text: the progress of each stage, and the condition awaited by the current stage.

use twincast_core::answer::Answered;
use twincast_core::ids::StageName;
use twincast_core::outcome::{ClassCounts, OutcomeClass};
use twincast_core::ports::{Clock as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_embedded::SystemClock;
use twincast_orchestrator::rollout_text;
use twincast_orchestrator::view::StageView;

use crate::output::{escape_line, table, thousands};

/// Describes the condition awaited by a rollout at the system's time, with the stage's name.
pub(crate) fn waiting_reason(rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let waits = rollout_text::waits_for(rollout, tallies, SystemClock::start().now())?;
    let stage = &rollout.stage_progress()?.name;
    Some(waiting(
        stage,
        rollout.sent_at.is_some(),
        &waits.to_string(),
    ))
}

/// Describes an awaited condition: of a stage, or of the rollout once everything is sent.
pub(crate) fn waiting(stage: &StageName, is_all_sent: bool, waits: &str) -> String {
    if is_all_sent {
        format!("the rollout waits for {}", escape_line(waits))
    } else {
        format!("stage {stage} waits for {}", escape_line(waits))
    }
}

/// Formats the stages as a table.
pub(crate) fn as_table(stages: &[StageView]) -> String {
    let classes = classes(stages.iter().map(|stage| &stage.by_class));
    let rows = stages.iter().map(|stage| {
        let mut row = vec![stage.progress.name.to_string()];
        row.extend(cells(&stage.by_class, &classes));
        row.push(stage.state.clone());
        row
    });
    let mut headings = vec!["stage"];
    headings.extend(heads(&classes));
    headings.push("");
    table(&headings, &rows.collect::<Vec<_>>())
}

/// Describes the answers of the devices in all stages; `None` before the first answer.
pub(crate) fn answers(stages: &[StageView]) -> Option<String> {
    let all = stages.iter().filter_map(|stage| stage.answers.as_ref());
    let mut sum = Answered::default();
    for answers in all {
        sum.applied += answers.applied;
        sum.installing += answers.installing;
        sum.failed += answers.failed;
    }
    sum.describe()
}

/// Returns the classes with devices in any of `by_class`.
pub(crate) fn classes<'a>(by_class: impl Iterator<Item = &'a ClassCounts>) -> Vec<OutcomeClass> {
    let by_class: Vec<_> = by_class.collect();
    let all = OutcomeClass::ALL.into_iter();
    all.filter(|class| by_class.iter().any(|by_class| by_class.get(*class) > 0))
        .collect()
}

/// Returns the headings of a table's columns: all devices, then each class.
pub(crate) fn heads(classes: &[OutcomeClass]) -> impl Iterator<Item = &'static str> {
    let words = classes.iter().map(|class| class.describe());
    std::iter::once("devices").chain(words)
}

/// Returns the cells of a row below these headings.
pub(crate) fn cells(
    by_class: &ClassCounts,
    classes: &[OutcomeClass],
) -> impl Iterator<Item = String> {
    let numbers = classes.iter().map(|class| by_class.get(*class));
    std::iter::once(by_class.total())
        .chain(numbers)
        .map(thousands)
}
