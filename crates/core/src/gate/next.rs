//! The next step of a running rollout, according to the gate of its current stage.

use std::time::Duration;

use super::judge::{StageView, answered_within, behind_resume, judge};
use super::shares::{AppliedCount, open_stage_failure};
use super::verdict::{Verdict, missing_evidence};
use crate::account::Activity;
use crate::evidence::{Evidence, silent_devices, unanswered_devices};
use crate::message::Ack;
use crate::outcome::{Counts, Outcome};
use crate::rollout::{Event, Rollout, StageProgress};
use crate::spec::EVIDENCE_WITHIN;
use crate::time::Timestamp;
use crate::waiting::Waiting;

/// The next step of a running rollout in its current stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send to the remaining devices.
    Send,
    /// Apply an event to the rollout.
    Apply(Event),
    /// Query the hub for how many devices have applied the change.
    QueryTwins,
    /// Record the answer of each device.
    Record,
    /// Wait.
    Wait(Waiting),
    /// No step is left: all stages are over.
    Over,
}

impl Next {
    /// Returns the rollout's activity during this step; `sending` is the activity while sends are
    /// owed. `None` for an event, because the event itself determines the activity, and at the end
    /// of the rollout.
    #[must_use]
    pub fn activity(&self, sending: Activity) -> Option<Activity> {
        Some(match self {
            Self::Send | Self::Wait(Waiting::Sends { .. }) => sending,
            Self::Wait(Waiting::Retry) => Activity::Sending,
            Self::Wait(Waiting::LateJoiners { .. }) => Activity::LateJoiners,
            Self::Wait(Waiting::Evidence { .. }) => Activity::Evidence,
            Self::Wait(Waiting::Bake { .. } | Waiting::Metric { .. }) => Activity::Baking,
            Self::Wait(Waiting::Approval { .. } | Waiting::ApprovalToBeNoted) => Activity::Approval,
            // Answers of devices: a gate waits for nothing else.
            Self::QueryTwins | Self::Record | Self::Wait(_) => Activity::Feedback,
            Self::Apply(_) | Self::Over => return None,
        })
    }
}

/// The observed state of a running rollout.
#[derive(Debug, Clone, Copy)]
pub struct ObservedState<'a> {
    /// The outcomes of the current stage.
    pub stage: &'a Counts,
    /// The outcomes of all devices.
    pub all: &'a Counts,
    /// Whether a send is owed in the current or an earlier stage.
    pub sends_owed: bool,
    /// The newest measurement, with `counts: applied`.
    pub applied_count: Option<AppliedCount>,
    /// Devices that may have the message, without a final answer. Counted only where devices answer
    /// in their twins.
    pub unanswered: u64,
    /// Whether the answer of each device was recorded after the last answer, or after the end of
    /// the wait for answers.
    pub recorded: bool,
    /// How far the feedback of the [relevant hubs](Rollout::hubs_needed) was received.
    pub evidence: &'a Evidence,
}

/// Decides the next step of a running rollout.
#[must_use]
pub fn next(rollout: &Rollout, seen: ObservedState<'_>, now: Timestamp) -> Next {
    match next_of_stage(rollout, seen, now) {
        Next::Over => end(rollout, seen, now),
        next => next,
    }
}

/// Decides the end of a rollout with everything sent and all gates passed. The rollout waits for
/// answers of devices until the fate of their messages is certain. Where devices answer in their
/// twins, the rollout also waits for the time given to devices to fulfil the message's request.
fn end(rollout: &Rollout, seen: ObservedState<'_>, now: Timestamp) -> Next {
    let is_answered = rollout.spec.convention().is_some();
    let devices = match is_answered {
        true => seen.unanswered,
        false if rollout.spec.message.ack == Ack::None => 0,
        false => unanswered_devices(seen.all),
    };
    if devices == 0 {
        return over(rollout, seen, 0);
    }
    let Some(sent_at) = rollout.sent_at else {
        return Next::Apply(Event::AllSent);
    };
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let life = answered_within(ttl, Duration::ZERO);
    let expired_at = sent_at.plus(life);
    let until = expired_at.plus(rollout.spec.answered_within());
    if now < until {
        return Next::Wait(Waiting::Answers { devices, until });
    }
    let obstacles = if !seen.evidence.covers(expired_at) {
        seen.evidence.obstacles().to_owned()
    } else if is_answered && !rollout.notes.answers.covers(until) {
        // The hub's queries show these reports after a lag.
        let shown = until.plus(rollout.notes.answers.lag());
        match rollout.notes.clock.query_failure() {
            Some(why) => why.to_owned(),
            None if now < shown => {
                return Next::Wait(Waiting::Answers {
                    devices,
                    until: shown,
                });
            }
            None => return Next::QueryTwins,
        }
    } else {
        return over(rollout, seen, devices);
    };
    await_evidence(rollout, devices, obstacles)
}

/// Waits up to [`EVIDENCE_WITHIN`] for new evidence, and then pauses the rollout.
fn await_evidence(rollout: &Rollout, devices: u64, obstacles: String) -> Next {
    if rollout.notes.clock.without_evidence() < EVIDENCE_WITHIN {
        return Next::Wait(Waiting::Evidence { devices, obstacles });
    }
    Next::Apply(Event::AnswersUnavailable {
        reason: missing_evidence(devices, EVIDENCE_WITHIN, &obstacles),
    })
}

/// Ends the wait for answers. The answer of each device is recorded first; `devices` devices have
/// not answered.
fn over(rollout: &Rollout, seen: ObservedState<'_>, devices: u64) -> Next {
    if rollout.spec.convention().is_none() || seen.recorded {
        return Next::Over;
    }
    match rollout.notes.clock.query_failure() {
        Some(why) => await_evidence(rollout, devices, why.to_owned()),
        None => Next::Record,
    }
}

/// Returns the measurement for the gate of the current stage, with `counts: applied`: the devices'
/// answers, unless the gate has a condition of its own. Before the first query, no device has
/// answered.
fn applied_count(rollout: &Rollout, seen: ObservedState<'_>) -> Option<AppliedCount> {
    let stage = rollout.stage();
    if !rollout.counts_answers() {
        return seen.applied_count;
    }
    let answered = rollout.notes.answers.of(stage).copied();
    Some(answered.unwrap_or_default().into())
}

fn next_of_stage(rollout: &Rollout, seen: ObservedState<'_>, now: Timestamp) -> Next {
    let ObservedState {
        stage: counts,
        sends_owed,
        ..
    } = seen;
    if rollout.retry.is_some() {
        // The outcomes are about to change.
        return Next::Wait(Waiting::Retry);
    }
    if rollout.is_at_late_stage() {
        let answered = rollout.notes.answers.of(rollout.stage()).copied();
        let answers = rollout
            .spec
            .convention()
            .map(|_| answered.unwrap_or_default());
        return next_at_late_stage(rollout, seen, answers.map(AppliedCount::from));
    }
    let index = rollout.stage();
    let is_last = usize::from(index.0) + 1 == rollout.stages.len();
    let progress = rollout.stage_progress();
    let Some(progress) = progress.filter(|progress| progress.passed_at.is_none()) else {
        return if sends_owed { Next::Send } else { Next::Over };
    };
    let stage = progress.name.clone();
    let passed = |reason: String| {
        let stage = stage.clone();
        if sends_owed {
            Next::Send
        } else {
            Next::Apply(Event::StagePassed { stage, reason })
        }
    };
    let Some(gate) = rollout.spec.gate_of(index) else {
        return match (sends_owed, is_last) {
            (false, true) => Next::Over,
            _ => passed("everything was sent".into()),
        };
    };
    if let Some(reason) = overridden(progress) {
        return passed(reason);
    }
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let view = StageView {
        gate,
        counts,
        sends_owed,
        progress,
        applied_count: applied_count(rollout, seen),
        ttl,
        by_answers: rollout.gate_counts_answers(),
        answer_time: rollout.spec.answered_within(),
        evidence: seen.evidence,
        clock: &rollout.notes.clock,
    };
    match judge(view, now) {
        Verdict::Failed { reason } => Next::Apply(Event::GateFailed {
            stage,
            reason: with_device_error(rollout, counts, reason),
            then: gate.on_failure,
        }),
        Verdict::Undecided { reason } => Next::Apply(Event::GateUndecided { stage, reason }),
        // The gate fails unless the missing reports change the verdict.
        Verdict::Waiting(waits @ Waiting::Evidence { .. }) if sends_owed => Next::Wait(waits),
        _ if sends_owed => Next::Send,
        _ if progress.sent_at.is_none() => Next::Apply(Event::StageSent { stage }),
        Verdict::Passed { reason } => passed(reason),
        Verdict::Waiting(Waiting::ApprovalToBeNoted) => {
            Next::Apply(Event::ApprovalAwaited { stage })
        }
        Verdict::Waiting(waits) => Next::Wait(waits),
        Verdict::QueryTwins => Next::QueryTwins,
    }
}

/// Returns why a gate has failed, with the most frequent error of the devices.
fn with_device_error(rollout: &Rollout, counts: &Counts, reason: String) -> String {
    let most_frequent = rollout.notes.answers.most_frequent_error();
    match most_frequent.filter(|_| counts.get(Outcome::Failed) > 0) {
        Some(error) => format!("{reason}; most frequent error of the devices: {error}"),
        None => reason,
    }
}

/// Returns why a stage passes regardless of the gate, if so.
fn overridden(progress: &StageProgress) -> Option<String> {
    let promoted = progress.promoted.as_ref();
    let promoted = promoted.map(|attribution| format!("promoted by {attribution}"));
    promoted.or_else(|| {
        let reason = progress.ignored_failure.as_ref()?;
        Some(format!(
            "the gate failed, and does not stop the rollout (on_failure: continue): {reason}"
        ))
    })
}

/// Decides the next step in the stage of late joiners. This stage has no end and therefore no gate:
/// only a failure rule, until the last scan of the target.
fn next_at_late_stage(
    rollout: &Rollout,
    seen: ObservedState<'_>,
    applied_count: Option<AppliedCount>,
) -> Next {
    let armed = rollout.stage_progress();
    let armed = armed.filter(|it| it.promoted.is_none() && it.ignored_failure.is_none());
    let gate = rollout.spec.late_stage_gate();
    if let Some((progress, gate)) = armed.zip(gate)
        && let Some(reason) = open_stage_failure(gate, seen.stage, applied_count)
    {
        let silent = silent_devices(seen.stage);
        let clock = &rollout.notes.clock;
        if let Some(waits) = behind_resume(gate, clock, seen.evidence, silent) {
            return Next::Wait(waits);
        }
        return Next::Apply(Event::GateFailed {
            stage: progress.name.clone(),
            reason,
            then: gate.on_failure,
        });
    }
    let is_scanning = rollout.scans.is_some_and(|scans| scans.under_way.is_some());
    let trouble = rollout.search_trouble().cloned();
    match rollout.next_scan() {
        _ if seen.sends_owed => Next::Send,
        None if !is_scanning => Next::Over,
        next_scan => Next::Wait(Waiting::LateJoiners {
            next_scan: next_scan.filter(|_| !is_scanning),
            trouble,
        }),
    }
}

/// Returns the next step when all expected feedback was received.
#[cfg(test)]
pub(crate) fn next_with_complete_evidence(
    rollout: &Rollout,
    counts: &Counts,
    sends_owed: bool,
    now: Timestamp,
) -> Next {
    let seen = ObservedState {
        stage: counts,
        all: counts,
        sends_owed,
        applied_count: None,
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
    fn next_step_determines_activity() {
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
                    obstacles: String::new(),
                }),
                [A::Evidence; 5],
            ),
            (Next::QueryTwins, [A::Feedback; 5]),
            (waits(Waiting::Bake { until }), [A::Baking; 5]),
            (waits(Waiting::Approval { until: None }), [A::Approval; 5]),
            (
                waits(Waiting::LateJoiners {
                    next_scan: None,
                    trouble: None,
                }),
                [A::LateJoiners; 5],
            ),
        ];
        for (next, expected) in table {
            let done = ways.map(|way| next.activity(way).unwrap());
            assert_eq!(done, expected, "{next:?}");
        }
        assert_eq!(Next::Over.activity(A::Sending), None);
    }
}
