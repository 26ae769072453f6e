//! Stages for people: how far each is, and what the current one waits for.

use serde::Serialize;
use twincast_core::gate::{self, Next};
use twincast_core::ids::StageName;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::Group;
use twincast_core::ports::{Clock as _, Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout, StageProgress};
use twincast_core::spec::{Opening, Rate};
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;

use crate::output::{table, thousands};

/// One stage of a rollout.
#[derive(Debug, Serialize)]
pub(crate) struct StageSummary {
    name: StageName,
    counts: Counts,
    /// What is to be said about it.
    state: String,
    #[serde(flatten)]
    dates: Dates,
}

/// When what happened to a stage.
#[derive(Debug, Serialize)]
struct Dates {
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passed_at: Option<Timestamp>,
}

/// The rate through each hub now, if the rollout has one.
pub(crate) fn rate_of(rollout: &Rollout, tallies: &[Tally]) -> Option<Rate> {
    let pace = rollout.spec.pace_of(rollout.stage());
    pace.rate_at(pace.counted(tallies))
}

/// Reads the stages of a rollout; none if its spec has none.
pub(crate) async fn read(
    store: &dyn Store,
    rollout: &Rollout,
) -> Result<Vec<StageSummary>, StoreError> {
    if rollout.spec.stages.is_empty() {
        return Ok(Vec::new());
    }
    let tallies = store.tallies(&rollout.spec.name).await?;
    let now = SystemClock::start().now();
    let stages = (0u16..).zip(&rollout.stages);
    let stages = stages.map(|(index, progress)| {
        let of = tallies.iter().filter(|tally| tally.stage.0 == index);
        StageSummary {
            name: progress.name.clone(),
            counts: Tally::sum(of),
            state: state(rollout, index, progress, &tallies, now),
            dates: Dates {
                started_at: progress.started_at,
                sent_at: progress.sent_at,
                passed_at: progress.passed_at,
            },
        }
    });
    Ok(stages.collect())
}

fn state(
    rollout: &Rollout,
    index: u16,
    progress: &StageProgress,
    tallies: &[Tally],
    now: Timestamp,
) -> String {
    if let Some(at) = progress.passed_at {
        let how = match (&progress.promoted, &progress.ignored, &progress.approved) {
            (Some(word), _, _) => format!(", promoted by {word}"),
            (_, Some(_), _) => ", its gate failed".to_owned(),
            (_, _, Some(word)) => format!(", approved by {word}"),
            _ => String::new(),
        };
        return format!("passed at {at}{how}");
    }
    if rollout.stage().0 != index {
        return "to come".to_owned();
    }
    match &rollout.phase {
        Phase::Running => match waits_for(rollout, tallies, now) {
            Some(waits) => format!("waits for {waits}"),
            None => "under way".to_owned(),
        },
        // Its last stage needs no gate to be over.
        Phase::Succeeded | Phase::FinishedWithFailures => "sent".to_owned(),
        phase => phase.as_str().replace('_', " "),
    }
}

/// What a rollout that runs waits for: its schedule, or its current stage's gate when all of it is sent.
pub(crate) fn waits_for(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Option<String> {
    if rollout.phase != Phase::Running {
        return None;
    }
    let stage = rollout.stage();
    let here = tallies.iter().filter(|tally| tally.stage == stage);
    let left = tallies
        .iter()
        .any(|tally| tally.stage <= stage && tally.counts.unsettled() > 0);
    match gate::next(rollout, &Tally::sum(here), left, None, now) {
        Next::Wait(waits) => Some(waits.to_string()),
        Next::Measure => Some("the hub's word on how many devices have applied it".to_owned()),
        Next::Send => match rollout.spec.opening(&Group::default(), now) {
            // With zones of their own, some devices may be sent to when others are not.
            Opening::Closed {
                until: Some(until),
                why,
            } if !has_zones(rollout) => Some(format!("{until}: it is {why}")),
            Opening::Closed { until: None, why } if !has_zones(rollout) => {
                Some(format!("ever: it is {why}"))
            }
            _ => None,
        },
        Next::Happened(_) | Next::Over => None,
    }
}

fn has_zones(rollout: &Rollout) -> bool {
    let schedule = rollout.spec.schedule.as_ref();
    schedule.is_some_and(|schedule| schedule.zone_tag.is_some())
}

/// The same at the system's time, with the stage's name.
pub(crate) fn standstill(rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let waits = waits_for(rollout, tallies, SystemClock::start().now())?;
    let stage = rollout.stage_progress()?;
    Some(format!("stage {} waits for {waits}", stage.name))
}

/// The stages as a table.
pub(crate) fn as_table(stages: &[StageSummary]) -> String {
    let rows = stages.iter().map(|stage| {
        vec![
            stage.name.to_string(),
            thousands(stage.counts.total()),
            thousands(stage.counts.sum_of(Outcome::was_enqueued)),
            thousands(stage.counts.get(Outcome::Delivered)),
            thousands(stage.counts.failed()),
            stage.state.clone(),
        ]
    });
    let headings = ["stage", "devices", "sent", "delivered", "failed", ""];
    table(&headings, &rows.collect::<Vec<_>>())
}
