//! Stages for people: how far each is, and what the current one waits for.

use twincast_core::outcome::Outcome;
use twincast_core::ports::{Clock as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_embedded::SystemClock;
use twincast_orchestrator::standing;
use twincast_orchestrator::view::StageView;

use crate::output::{table, thousands};

/// What a rollout waits for at the system's time, with the stage's name.
pub(crate) fn standstill(rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let waits = standing::waits_for(rollout, tallies, SystemClock::start().now())?;
    let stage = rollout.stage_progress()?;
    Some(format!("stage {} waits for {waits}", stage.name))
}

/// The stages as a table.
pub(crate) fn as_table(stages: &[StageView]) -> String {
    let rows = stages.iter().map(|stage| {
        vec![
            stage.progress.name.to_string(),
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
