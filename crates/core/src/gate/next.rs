//! The next step of a running rollout, according to the gate of its current stage.

use std::time::Duration;

use super::judge::{View, answered_within, judge};
use super::shares::{Measured, has_failed_so_far};
use super::verdict::{Verdict, not_measured};
use crate::account::Activity;
use crate::evidence::{Evidence, unanswered};
use crate::message::Ack;
use crate::outcome::{Counts, Outcome};
use crate::rollout::{Event, Rollout, StageProgress};
use crate::spec::{EVIDENCE_WITHIN, Rung};
use crate::time::Timestamp;
use crate::waiting::Waiting;

/// The next step of a running rollout in its current stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send to the remaining devices.
    Send,
    /// Apply an event to the rollout.
    Happened(Event),
    /// Ask the hub how many devices have applied the change.
    Measure,
    /// Record for each device what it has answered.
    Record,
    /// Wait.
    Wait(Waiting),
    /// No step is left: all stages are over.
    Over,
}

impl Next {
    /// What the rollout does meanwhile, if it does that while something is to be sent. `None` when it is an event, which
    /// says that itself.
    #[must_use]
    pub fn activity(&self, sending: Activity) -> Option<Activity> {
        Some(match self {
            Self::Send | Self::Wait(Waiting::Sends { .. }) => sending,
            Self::Wait(Waiting::Retry) => Activity::Sending,
            Self::Wait(Waiting::Joiners { .. }) => Activity::Joiners,
            Self::Wait(Waiting::Evidence { .. }) => Activity::Evidence,
            Self::Wait(Waiting::Bake { .. } | Waiting::Metric { .. }) => Activity::Baking,
            Self::Wait(Waiting::Approval { .. } | Waiting::ApprovalToBeNoted) => Activity::Approval,
            // For answers of devices: a gate waits for nothing else.
            Self::Measure | Self::Record | Self::Wait(_) => Activity::Feedback,
            Self::Happened(_) | Self::Over => return None,
        })
    }
}

/// The observed state of a running rollout.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The outcomes of the current stage.
    pub stage: &'a Counts,
    /// The outcomes of all devices.
    pub all: &'a Counts,
    /// Whether a send is owed in the current or an earlier stage.
    pub left: bool,
    /// The newest measurement, with `counts: applied`.
    pub measured: Option<Measured>,
    /// Devices that may have the message and have not answered for good, where devices answer in their twins.
    pub unanswered: u64,
    /// Whether what each device has answered was recorded once all had, or no more answers were waited for.
    pub recorded: bool,
    /// How far the feedback of the [relevant hubs](Rollout::hubs_to_hear) was received.
    pub evidence: &'a Evidence,
}

/// Decides the next step of a running rollout.
#[must_use]
pub fn next(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    match next_of_stage(rollout, seen, now) {
        Next::Over => end(rollout, seen, now),
        next => next,
    }
}

/// Everything is sent, and all gates have passed: waits for answers of devices until the fate of their messages is
/// certain and, where devices answer what became of the message, for as long again as they have for that.
fn end(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    let is_answered = rollout.spec.convention().is_some();
    let devices = match is_answered {
        true => seen.unanswered,
        false if rollout.spec.message.ack == Ack::None => 0,
        false => unanswered(seen.all),
    };
    if devices == 0 {
        return over(rollout, seen, 0);
    }
    let Some(sent_at) = rollout.sent_at else {
        return Next::Happened(Event::AllSent);
    };
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let life = answered_within(ttl, Duration::ZERO);
    let heard_until = sent_at.plus(life);
    let until = heard_until.plus(rollout.spec.answered_within());
    if now < until {
        return Next::Wait(Waiting::Answers { devices, until });
    }
    let in_the_way = if !seen.evidence.covers(heard_until) {
        seen.evidence.in_the_way().to_owned()
    } else if is_answered && !rollout.notes.answers.covers(until) {
        // What was reported by then is shown so much later.
        let shown = until.plus(rollout.notes.answers.lag());
        match rollout.notes.clock.not_asked() {
            Some(why) => why.to_owned(),
            None if now < shown => {
                return Next::Wait(Waiting::Answers {
                    devices,
                    until: shown,
                });
            }
            None => return Next::Measure,
        }
    } else {
        return over(rollout, seen, devices);
    };
    not_heard(rollout, devices, in_the_way)
}

/// What is heard no more is waited for, and then pauses the rollout.
fn not_heard(rollout: &Rollout, devices: u64, in_the_way: String) -> Next {
    if rollout.notes.clock.unheard() < EVIDENCE_WITHIN {
        return Next::Wait(Waiting::Evidence {
            devices,
            in_the_way,
        });
    }
    Next::Happened(Event::NotHeard {
        reason: not_measured(devices, EVIDENCE_WITHIN, &in_the_way),
    })
}

/// Nothing is waited for any more. What each device has answered is recorded first; `devices` have not answered.
fn over(rollout: &Rollout, seen: Seen<'_>, devices: u64) -> Next {
    if rollout.spec.convention().is_none() || seen.recorded {
        return Next::Over;
    }
    match rollout.notes.clock.not_asked() {
        Some(why) => not_heard(rollout, devices, why.to_owned()),
        None => Next::Record,
    }
}

/// What the gate of the current stage goes by, with `counts: applied`: the devices' answers, unless it has a condition of its
/// own. Before the first question nobody has answered.
fn measured(rollout: &Rollout, seen: Seen<'_>) -> Option<Measured> {
    let stage = rollout.stage();
    if !rollout.goes_by_answers() {
        return seen.measured;
    }
    let answered = rollout.notes.answers.of(stage).copied();
    Some(answered.unwrap_or_default().into())
}

fn next_of_stage(rollout: &Rollout, seen: Seen<'_>, now: Timestamp) -> Next {
    let Seen {
        stage: counts,
        left,
        ..
    } = seen;
    if rollout.retry.is_some() {
        // The outcomes are about to change.
        return Next::Wait(Waiting::Retry);
    }
    if rollout.is_late() {
        let answered = rollout.notes.answers.of(rollout.stage()).copied();
        let answers = rollout
            .spec
            .convention()
            .map(|_| answered.unwrap_or_default());
        return next_of_late(rollout, counts, left, answers.map(Measured::from));
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
    if let Some(reason) = overridden(progress) {
        return passed(reason);
    }
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let view = View {
        gate,
        counts,
        left,
        progress,
        measured: measured(rollout, seen),
        ttl,
        by_answers: gate.counts == Rung::Applied && rollout.goes_by_answers(),
        within: rollout.spec.answered_within(),
        evidence: seen.evidence,
        clock: &rollout.notes.clock,
    };
    match judge(view, now) {
        Verdict::Failed { because } => Next::Happened(Event::GateFailed {
            stage,
            reason: with_words(rollout, counts, because),
            then: gate.on_failure,
        }),
        Verdict::Undecided { because } => Next::Happened(Event::GateUndecided {
            stage,
            reason: because,
        }),
        _ if left => Next::Send,
        _ if progress.sent_at.is_none() => Next::Happened(Event::StageSent { stage }),
        Verdict::Passed { because } => passed(because),
        Verdict::Waits(Waiting::ApprovalToBeNoted) => {
            Next::Happened(Event::ApprovalAwaited { stage })
        }
        Verdict::Waits(waits) => Next::Wait(waits),
        Verdict::Measure => Next::Measure,
    }
}

/// Why a gate has failed, with what devices say of it.
fn with_words(rollout: &Rollout, counts: &Counts, because: String) -> String {
    let told = rollout.notes.answers.most_told();
    match told.filter(|_| counts.get(Outcome::Failed) > 0) {
        Some(error) => format!("{because}; devices say most often: {error}"),
        None => because,
    }
}

/// Why a stage passes whatever its gate says, if it does.
fn overridden(progress: &StageProgress) -> Option<String> {
    let promoted = progress.promoted.as_ref();
    let promoted = promoted.map(|word| format!("promoted by {word}"));
    promoted.or_else(|| {
        let reason = progress.ignored.as_ref()?;
        Some(format!(
            "its gate failed, and is not to stop the rollout: {reason}"
        ))
    })
}

/// The stage of devices that join later has no end, and so no gate: only a failure rule, until the last look.
fn next_of_late(
    rollout: &Rollout,
    counts: &Counts,
    left: bool,
    measured: Option<Measured>,
) -> Next {
    let armed = rollout.stage_progress();
    let armed = armed.filter(|it| it.promoted.is_none() && it.ignored.is_none());
    let gate = rollout.spec.late_gate();
    if let Some((progress, gate)) = armed.zip(gate)
        && let Some(reason) = has_failed_so_far(gate, counts, measured)
    {
        return Next::Happened(Event::GateFailed {
            stage: progress.name.clone(),
            reason,
            then: gate.on_failure,
        });
    }
    let is_looking = rollout.looks.is_some_and(|looks| looks.under_way.is_some());
    let trouble = rollout.search_trouble().cloned();
    match rollout.next_look() {
        _ if left => Next::Send,
        None if !is_looking => Next::Over,
        look => Next::Wait(Waiting::Joiners {
            look: look.filter(|_| !is_looking),
            trouble,
        }),
    }
}

/// The next step when all expected feedback was received.
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
        unanswered: 0,
        recorded: true,
        evidence: &Evidence::complete(),
    };
    next(rollout, seen, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_next_says_what_is_done() {
        use Activity as A;
        let until = Timestamp(1);
        let waits = |waits| Next::Wait(waits);
        let ways = [
            A::Sending,
            A::Throttled,
            A::Blocked,
            A::OutsideWindow,
            A::Feedback,
        ];
        let table = [
            (Next::Send, ways),
            (
                waits(Waiting::Silent { devices: 1, until }),
                [A::Feedback; 5],
            ),
            (
                waits(Waiting::Evidence {
                    devices: 1,
                    in_the_way: String::new(),
                }),
                [A::Evidence; 5],
            ),
            (Next::Measure, [A::Feedback; 5]),
            (waits(Waiting::Bake { until }), [A::Baking; 5]),
            (waits(Waiting::Approval { until: None }), [A::Approval; 5]),
            (
                waits(Waiting::Joiners {
                    look: None,
                    trouble: None,
                }),
                [A::Joiners; 5],
            ),
        ];
        for (next, expected) in table {
            let done = ways.map(|way| next.activity(way).unwrap());
            assert_eq!(done, expected, "{next:?}");
        }
        assert_eq!(Next::Over.activity(A::Sending), None);
    }
}
