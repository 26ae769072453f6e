//! Describes the state of a rollout as text.

use twincast_core::gate::{self, Next, ObservedState, metric};
use twincast_core::plan::TagGroup;
use twincast_core::ports::Tally;
use twincast_core::rollout::{Phase, Rollout, StageProgress};
use twincast_core::time::Timestamp;
use twincast_core::waiting::Waiting;

/// Describes the state of a stage: passed, under way, not started, or the reason for waiting.
#[must_use]
pub fn stage_state(
    rollout: &Rollout,
    index: u16,
    progress: &StageProgress,
    tallies: &[Tally],
    now: Timestamp,
) -> String {
    if let Some(at) = progress.passed_at {
        let how = match (
            &progress.promoted,
            &progress.ignored_failure,
            &progress.approved,
        ) {
            (Some(attribution), _, _) => format!(", promoted by {attribution}"),
            (_, Some(_), _) => ", its gate failed".to_owned(),
            (_, _, Some(approval)) => format!(", approved by {}", approval.attribution),
            _ => String::new(),
        };
        return format!("passed at {at}{how}");
    }
    if rollout.stage().0 != index {
        return "not started".to_owned();
    }
    match &rollout.phase {
        Phase::Running => {
            let state = match waits_for(rollout, tallies, now) {
                Some(waits) => format!("waits for {waits}"),
                None => "under way".to_owned(),
            };
            let gate = rollout.spec.gate_of(rollout.stage());
            match gate.filter(|gate| !gate.metrics.is_empty()) {
                Some(gate) => format!("{state}; {}", metric::describe(gate, progress)),
                None => state,
            }
        }
        // The last stage may end without a gate.
        Phase::Succeeded | Phase::FinishedWithFailures => "done".to_owned(),
        phase => phase.as_str().replace('_', " "),
    }
}

/// Returns the valid tallies of a rollout: none before its plan is complete, because batches of a
/// planning try may belong to no plan.
pub(crate) fn valid_tallies<'a>(rollout: &Rollout, tallies: &'a [Tally]) -> &'a [Tally] {
    match rollout.plan {
        Some(_) => tallies,
        None => &[],
    }
}

/// Returns the reason why a rollout waits. Before planning: the turn in the concurrency group, or
/// the search for devices. While running: the schedule, room in the budgets, or the gate of a
/// completely sent stage.
#[must_use]
pub fn waits_for(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Option<Waiting> {
    if rollout.phase != Phase::Running {
        return rollout.waits_to_be_planned();
    }
    let stage = rollout.stage();
    let here = tallies.iter().filter(|tally| tally.stage == stage);
    let sends_owed = rollout.unsettled(tallies).next().is_some();
    // The driver has noted the evidence about the hubs' feedback.
    let mut rollout = rollout.clone();
    let evidence = rollout.notes.clock.evidence().clone();
    rollout.advance_clock(&evidence, now);
    let seen = ObservedState {
        stage: &Tally::sum(here),
        all: &Tally::sum(tallies),
        sends_owed,
        applied_count: None,
        unanswered: rollout.notes.answers.unanswered(tallies),
        recorded: false,
        evidence: &evidence,
    };
    match gate::next(&rollout, seen, now) {
        Next::Wait(waits) => Some(waits),
        Next::QueryTwins | Next::Record => {
            let query_failure = rollout.notes.clock.query_failure();
            Some(Waiting::Applied(query_failure.map(str::to_owned)))
        }
        Next::Send => {
            let schedule = rollout.spec.schedule_state(&TagGroup::default(), now);
            // Only the driver knows the time zones of the remaining devices.
            let closed = Waiting::of_schedule(&schedule).filter(|_| !rollout.spec.has_zones());
            closed.or_else(|| rollout.notes.account.held_back(now).cloned())
        }
        Next::Apply(_) | Next::Over => None,
    }
}
