//! Stages for people: how far each is, and what the current one waits for.

use twincast_core::answer::Answered;
use twincast_core::ids::StageName;
use twincast_core::outcome::{Class, Ends};
use twincast_core::ports::{Clock as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_embedded::SystemClock;
use twincast_orchestrator::standing;
use twincast_orchestrator::view::StageView;

use crate::output::{one_line, table, thousands};

/// What a rollout waits for at the system's time, with the stage's name.
pub(crate) fn standstill(rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let waits = standing::waits_for(rollout, tallies, SystemClock::start().now())?;
    let stage = &rollout.stage_progress()?.name;
    Some(waiting(
        stage,
        rollout.sent_at.is_some(),
        &waits.to_string(),
    ))
}

/// What is waited for: by a stage, or by the rollout when it is all sent.
pub(crate) fn waiting(stage: &StageName, is_all_sent: bool, waits: &str) -> String {
    if is_all_sent {
        format!("the rollout waits for {}", one_line(waits))
    } else {
        format!("stage {stage} waits for {}", one_line(waits))
    }
}

/// The stages as a table.
pub(crate) fn as_table(stages: &[StageView]) -> String {
    let classes = classes(stages.iter().map(|stage| &stage.ends));
    let rows = stages.iter().map(|stage| {
        let mut row = vec![stage.progress.name.to_string()];
        row.extend(cells(&stage.ends, &classes));
        row.push(stage.state.clone());
        row
    });
    let mut headings = vec!["stage"];
    headings.extend(heads(&classes));
    headings.push("");
    table(&headings, &rows.collect::<Vec<_>>())
}

/// What the devices of all stages have answered, in words; `None` before one has.
pub(crate) fn answers(stages: &[StageView]) -> Option<String> {
    let all = stages.iter().filter_map(|stage| stage.answers.as_ref());
    let mut sum = Answered::default();
    for answers in all {
        sum.applied += answers.applied;
        sum.installing += answers.installing;
        sum.failed += answers.failed;
    }
    sum.in_words()
}

/// The classes that any of these have devices in.
pub(crate) fn classes<'a>(ends: impl Iterator<Item = &'a Ends>) -> Vec<Class> {
    let ends: Vec<_> = ends.collect();
    let all = Class::ALL.into_iter();
    all.filter(|class| ends.iter().any(|ends| ends.get(*class) > 0))
        .collect()
}

/// The headings of a table's columns: all devices, and those of each class.
pub(crate) fn heads(classes: &[Class]) -> impl Iterator<Item = &'static str> {
    let words = classes.iter().map(|class| class.in_words());
    std::iter::once("devices").chain(words)
}

/// A row's cells below these headings.
pub(crate) fn cells(ends: &Ends, classes: &[Class]) -> impl Iterator<Item = String> {
    let numbers = classes.iter().map(|class| ends.get(*class));
    std::iter::once(ends.total()).chain(numbers).map(thousands)
}
