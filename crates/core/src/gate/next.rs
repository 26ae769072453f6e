//! What a rollout that runs does next, by its current stage's gate.

use super::{Measured, Verdict, View, WaitsFor, has_failed_so_far, judge};
use crate::outcome::Counts;
use crate::rollout::{Event, Rollout};
use crate::time::Timestamp;

/// What a rollout that runs does next about its current stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send to what is left.
    Send,
    /// This has happened.
    Happened(Event),
    /// Ask the hub how many devices have applied the change.
    Measure,
    /// Wait.
    Wait(WaitsFor),
    /// Nothing: all stages are over.
    Over,
}

/// Decides what a rollout that runs does next. `counts` are the outcomes of its current stage; `left` says
/// that something is to be sent in this stage or one before it.
#[must_use]
pub fn next(
    rollout: &Rollout,
    counts: &Counts,
    left: bool,
    measured: Option<Measured>,
    now: Timestamp,
) -> Next {
    if rollout.retry.is_some() {
        // The outcomes are about to change.
        return Next::Wait(WaitsFor::Retry);
    }
    if rollout.is_late() {
        return next_of_late(rollout, counts, left);
    }
    let index = rollout.stage();
    let is_last = usize::from(index.0) + 1 == rollout.stages.len();
    let progress = rollout.stage_progress();
    let Some(progress) = progress.filter(|progress| progress.passed_at.is_none()) else {
        return if left { Next::Send } else { Next::Over };
    };
    let stage = progress.name.clone();
    let passed = |reason: String| {
        let stage = stage.clone();
        if left {
            Next::Send
        } else {
            Next::Happened(Event::StagePassed { stage, reason })
        }
    };
    let Some(gate) = rollout.spec.gate_of(index) else {
        return match (left, is_last) {
            (false, true) => Next::Over,
            _ => passed("all of it was sent".into()),
        };
    };
    if let Some(word) = &progress.promoted {
        return passed(format!("promoted by {word}"));
    }
    if let Some(reason) = &progress.ignored {
        return passed(format!(
            "its gate failed, and is not to stop the rollout: {reason}"
        ));
    }
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let view = View {
        gate,
        counts,
        progress,
        measured,
        ttl,
    };
    match judge(view, now) {
        Verdict::Failed { because } => Next::Happened(Event::GateFailed {
            stage,
            reason: because,
            then: gate.on_failure,
        }),
        Verdict::Undecided { because } => Next::Happened(Event::GateUndecided {
            stage,
            reason: because,
        }),
        _ if left => Next::Send,
        _ if progress.sent_at.is_none() => Next::Happened(Event::StageSent { stage }),
        Verdict::Passed { because } => passed(because),
        Verdict::Waits(WaitsFor::ApprovalToBeNoted) => {
            Next::Happened(Event::ApprovalAwaited { stage })
        }
        Verdict::Waits(waits) => Next::Wait(waits),
        Verdict::Measure => Next::Measure,
    }
}

/// The stage of devices that join later has no gate, for it has no end: only a failure rule, until the last look.
fn next_of_late(rollout: &Rollout, counts: &Counts, left: bool) -> Next {
    let armed = rollout.stage_progress();
    let armed = armed.filter(|it| it.promoted.is_none() && it.ignored.is_none());
    let gate = rollout.spec.late_gate();
    if let Some((progress, gate)) = armed.zip(gate)
        && let Some(reason) = has_failed_so_far(gate, counts)
    {
        return Next::Happened(Event::GateFailed {
            stage: progress.name.clone(),
            reason,
            then: gate.on_failure,
        });
    }
    let is_looking = rollout.looks.is_some_and(|looks| looks.under_way.is_some());
    match rollout.next_look() {
        _ if left => Next::Send,
        _ if is_looking => Next::Wait(WaitsFor::Joiners { look: None }),
        Some(look) => Next::Wait(WaitsFor::Joiners { look: Some(look) }),
        None => Next::Over,
    }
}
