//! What a rollout that runs does next, by its current stage's gate.

use std::time::Duration;

use super::{
    Measured, Verdict, View, WaitsFor, answered_within, has_failed_so_far, judge, not_measured,
};
use crate::evidence::{Evidence, unanswered};
use crate::message::Ack;
use crate::outcome::Counts;
use crate::rollout::{Event, Rollout};
use crate::spec::EVIDENCE_WITHIN;
use crate::time::{Timestamp, friendly};

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

/// What is seen of a rollout that runs.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The outcomes of its current stage.
    pub stage: &'a Counts,
    /// The outcomes of all its devices.
    pub all: &'a Counts,
    /// Something is to be sent in the current stage or one before it.
    pub left: bool,
    /// What was measured last, with `counts: applied`.
    pub measured: Option<Measured>,
    /// How far the hubs were heard that are [to be heard](Rollout::hubs_to_hear).
    pub evidence: &'a Evidence,
}

/// Decides what a rollout that runs does next.
#[must_use]
pub fn next(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    match next_of_stage(rollout, seen, now) {
        Next::Over => end(rollout, seen, now),
        next => next,
    }
}

/// All is sent, and all gates have passed: devices that are to answer are waited for, until their messages are over.
fn end(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    let devices = unanswered(seen.all);
    if rollout.spec.message.ack == Ack::None || devices == 0 {
        return Next::Over;
    }
    let Some(sent_at) = rollout.sent_at else {
        return Next::Happened(Event::AllSent);
    };
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let life = answered_within(ttl, Duration::ZERO);
    let until = sent_at.plus(life);
    if now < until {
        return Next::Wait(WaitsFor::Answers { devices, until });
    }
    if seen.evidence.covers(until) {
        return Next::Over;
    }
    let in_the_way = seen.evidence.in_the_way().to_owned();
    if rollout.clock.unheard() < EVIDENCE_WITHIN {
        return Next::Wait(WaitsFor::Evidence {
            devices,
            in_the_way,
        });
    }
    Next::Happened(Event::NotHeard {
        reason: not_measured(devices, friendly(EVIDENCE_WITHIN), &in_the_way),
    })
}

fn next_of_stage(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    let Seen {
        stage: counts,
        left,
        measured,
        ..
    } = seen;
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
        evidence: seen.evidence,
        clock: &rollout.clock,
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

/// What is next when all that there is to be heard was heard.
#[cfg(test)]
pub(crate) fn next_when_heard(
    rollout: &Rollout,
    counts: &Counts,
    left: bool,
    now: Timestamp,
) -> Next {
    let seen = Seen {
        stage: counts,
        all: counts,
        left,
        measured: None,
        evidence: &Evidence::complete(),
    };
    next(rollout, seen, now)
}
