//! Stages for people: how far each is, and what the current one waits for.

use serde::Serialize;
use twincast_core::gate::metric::MetricTally;
use twincast_core::ids::StageName;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Clock as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;
use twincast_orchestrator::standing;

use crate::output::{table, thousands};

/// One stage of a rollout.
#[derive(Debug, Serialize)]
pub(crate) struct StageSummary {
    name: StageName,
    counts: Counts,
    /// What is to be said about it.
    state: String,
    /// What is known of its gate's metrics.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<MetricTally>,
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

/// The stages of a rollout; none if its spec has none.
pub(crate) fn of(rollout: &Rollout, tallies: &[Tally]) -> Vec<StageSummary> {
    if rollout.spec.stages.is_empty() {
        return Vec::new();
    }
    let now = SystemClock::start().now();
    let stages = (0u16..).zip(&rollout.stages);
    let stages = stages.map(|(index, progress)| {
        let of = tallies.iter().filter(|tally| tally.stage.0 == index);
        StageSummary {
            name: progress.name.clone(),
            counts: Tally::sum(of),
            state: standing::of_stage(rollout, index, progress, tallies, now),
            metrics: progress.metrics.clone(),
            dates: Dates {
                started_at: progress.started_at,
                sent_at: progress.sent_at,
                passed_at: progress.passed_at,
            },
        }
    });
    stages.collect()
}

/// The same at the system's time, with the stage's name.
pub(crate) fn standstill(rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let waits = standing::waits_for(rollout, tallies, SystemClock::start().now())?;
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
