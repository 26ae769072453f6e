//! The booking of a rollout's time.

use super::event::Event;
use super::phase::Phase;
use super::record::Rollout;
use crate::account::{Activity, TimeSpent};
use crate::time::Timestamp;
use crate::waiting::Waiting;

impl Rollout {
    /// Returns the time spent up to `now`, or up to the rollout's end.
    #[must_use]
    pub fn time_spent(&self, now: Timestamp) -> TimeSpent {
        self.notes.account.at(now)
    }

    /// Returns the rollout with a note of its current activity and of the reason for holding back
    /// sends; `None` if the observation is noted already or the last note is too recent.
    #[must_use]
    pub fn with_activity(
        &self,
        doing: Activity,
        hold: Option<Waiting>,
        now: Timestamp,
    ) -> Option<Self> {
        if self.phase != Phase::Running {
            return None;
        }
        let account = self.notes.account.clone().with_note(doing, hold, now)?;
        let mut noted = self.clone();
        noted.notes.account = account;
        Some(noted)
    }

    /// Books the time before an event. The event led from the phase `before` to the current phase.
    pub(super) fn book(&mut self, before: &Phase, event: &Event, now: Timestamp) {
        let account = &mut self.notes.account;
        let is_new_phase = before.as_str() != self.phase.as_str();
        let doing = match event {
            Event::ApprovalAwaited { .. } => Activity::Approval,
            Event::StagePassed { .. } => doing_in(&self.phase),
            _ if is_new_phase => doing_in(&self.phase),
            _ => account.doing(),
        };
        account.book_transition(doing, now);
    }
}

/// Returns the activity of a rollout in a phase, as far as the phase decides.
fn doing_in(phase: &Phase) -> Activity {
    match phase {
        Phase::Accepted => Activity::Queued,
        Phase::Planning => Activity::Planning,
        Phase::Running => Activity::Sending,
        Phase::Paused { .. } => Activity::Paused,
        Phase::Halted { .. } => Activity::Halted,
        Phase::Aborting { .. } => Activity::Aborting,
        Phase::Aborted { .. }
        | Phase::Succeeded
        | Phase::FinishedWithFailures
        | Phase::Failed { .. } => Activity::Over,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::StageName;
    use crate::outcome::{Counts, Outcome};
    use crate::rollout::tests::plan;
    use crate::rollout::{Attribution, Notes};
    use crate::spec::{Closed, OnFailure, RolloutSpec};

    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn accepted() -> Rollout {
        let spec = "{name: a, target: {all: true}, message: {body: {text: x}}, \
                    stages: [{name: canary, percent: 10%, gate: {approval: {}}}]}";
        let spec = RolloutSpec::read("x", spec).unwrap();
        Rollout::accepted(spec, BTreeMap::default(), START)
    }

    fn stage() -> StageName {
        StageName::new("canary").unwrap()
    }

    fn happens(rollout: &mut Rollout, event: Event, seconds: u64) {
        *rollout = rollout.after(event, at(seconds)).unwrap().unwrap();
    }

    /// Returns the non-zero parts, in seconds.
    fn parts(rollout: &Rollout, seconds: u64) -> Vec<(&'static str, u64)> {
        let spent = rollout.time_spent(at(seconds)).seconds();
        let spent = spent.into_iter().filter(|(_, seconds)| *seconds > 0);
        spent
            .map(|(activity, seconds)| (activity.as_str(), seconds))
            .collect()
    }

    #[test]
    fn time_is_booked_to_activities() {
        let mut rollout = accepted();
        happens(&mut rollout, Event::PlanningStarted, 1);
        happens(&mut rollout, plan(10), 11);
        rollout = rollout
            .with_activity(Activity::Throttled, None, at(12))
            .unwrap();
        assert_eq!(
            rollout.with_activity(Activity::Throttled, None, at(13)),
            None,
            "unchanged"
        );
        assert_eq!(
            rollout.with_activity(Activity::Sending, None, at(16)),
            None,
            "too soon"
        );
        rollout = rollout
            .with_activity(Activity::Sending, None, at(17))
            .unwrap();
        let stage = stage();
        let sent = Event::StageSent {
            stage: stage.clone(),
        };
        happens(&mut rollout, sent, 20);
        // At once, because a transition came before.
        rollout = rollout
            .with_activity(Activity::Baking, None, at(20))
            .unwrap();
        let ripe = Event::ApprovalAwaited {
            stage: stage.clone(),
        };
        happens(&mut rollout, ripe, 50);
        let pause = Event::PauseRequested {
            reason: "lunch".into(),
        };
        happens(&mut rollout, pause, 60);
        assert_eq!(
            rollout.with_activity(Activity::Sending, None, at(61)),
            None,
            "the rollout is paused"
        );
        happens(
            &mut rollout,
            Event::ResumeRequested {
                attribution: Attribution::default(),
            },
            90,
        );
        rollout = rollout
            .with_activity(Activity::Approval, None, at(90))
            .unwrap();
        let reason = "approved".to_owned();
        happens(&mut rollout, Event::StagePassed { stage, reason }, 100);
        let before_its_end = [
            ("queued", 1),
            ("planning", 10),
            ("sending", 14),
            ("throttled", 5),
            ("baking", 30),
            ("approval", 20),
            ("paused", 30),
        ];
        assert_eq!(parts(&rollout, 110), before_its_end);
        let mut counts = Counts::pending(1);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        happens(&mut rollout, Event::AllSettled { counts }, 110);
        assert_eq!(
            parts(&rollout, 9_999),
            before_its_end,
            "the rollout has ended"
        );

        let json = serde_json::to_value(rollout.time_spent(at(0))).unwrap();
        assert_eq!((&json["total"], &json["halted"]), (&110.into(), &0.into()));
        let text = serde_json::to_string(&rollout.notes).unwrap();
        assert_eq!(serde_json::from_str::<Notes>(&text).unwrap(), rollout.notes);
    }

    #[test]
    fn send_hold_is_recorded_until_over() {
        let hold = |seconds: Option<u64>| Waiting::Closed {
            until: seconds.map(at),
            why: Closed::OutsideWindow,
        };
        let mut rollout = accepted();
        happens(&mut rollout, Event::PlanningStarted, 1);
        happens(&mut rollout, plan(10), 11);
        let closed = |until| Some(hold(Some(until)));
        rollout = rollout
            .with_activity(Activity::OutsideWindow, closed(60), at(12))
            .unwrap();
        let again =
            |until, now| rollout.with_activity(Activity::OutsideWindow, closed(until), at(now));
        assert_eq!(again(60, 30), None, "unchanged");
        assert_eq!(again(50, 14), None, "too soon");
        let earlier = again(50, 17).unwrap();
        assert_eq!(earlier.notes.account.held_back(at(49)), closed(50).as_ref());
        assert_eq!(rollout.notes.account.held_back(at(59)), closed(60).as_ref());
        assert_eq!(rollout.notes.account.held_back(at(60)), None, "expired");
        assert_eq!(parts(&earlier, 20), parts(&rollout, 20));
        let text = serde_json::to_string(&rollout.notes).unwrap();
        assert_eq!(serde_json::from_str::<Notes>(&text).unwrap(), rollout.notes);
        let reason = "lunch".to_owned();
        happens(&mut rollout, Event::PauseRequested { reason }, 20);
        assert_eq!(
            rollout.notes.account.held_back(at(21)),
            None,
            "the rollout is paused"
        );

        let (first, last, never) = (hold(Some(1)), hold(Some(2)), hold(None));
        assert_eq!(last.clone().sooner(first.clone()), first);
        assert_eq!(never.clone().sooner(last.clone()), last);
        assert_eq!(last.clone().sooner(never), last);
    }

    /// Any possible event.
    fn event(number: usize) -> Event {
        let reason = || "r".to_owned();
        let mut counts = Counts::pending(1);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        let events = [
            Event::PlanningStarted,
            plan(10),
            Event::PauseRequested { reason: reason() },
            Event::ResumeRequested {
                attribution: Attribution::default(),
            },
            Event::HaltRequested { reason: reason() },
            Event::HaltLifted {
                attribution: Attribution::default(),
            },
            Event::StageSent { stage: stage() },
            Event::ApprovalAwaited { stage: stage() },
            Event::Approved {
                stage: stage(),
                attribution: Attribution::default(),
            },
            Event::GateFailed {
                stage: stage(),
                reason: reason(),
                then: OnFailure::Pause,
            },
            Event::StagePassed {
                stage: stage(),
                reason: reason(),
            },
            Event::AbortRequested { reason: reason() },
            Event::AllSettled { counts },
        ];
        events[number % events.len()].clone()
    }

    proptest! {
        /// Applies events and notes at any times, ignores illegal events, loses records (a driver
        /// overwrites another driver's notes with an older record), and sets the clock back. The
        /// parts add up from the first to the latest time seen.
        #[test]
        fn activity_times_always_add_up(
            steps in prop::collection::vec((0u64..20_000, 0usize..30, 0usize..Activity::ALL.len() - 1, 0u64..40), 0..120), end in 0u64..100_000,
        ) {
            let mut rollout = accepted();
            let (mut now, mut latest) = (START, START);
            let mut ended = None;
            let mut older = (rollout.clone(), latest);
            for (later, number, doing, back) in steps {
                now = if back == 0 { Timestamp(now.0 - later.min(now.0 - START.0)) } else { Timestamp(now.0 + later) };
                let next = if number < 18 {
                    rollout.after(event(number), now).ok().flatten()
                } else if number < 28 {
                    older = (rollout.clone(), latest);
                    // All but `Over`, which only the end of a rollout sets.
                    rollout.with_activity(Activity::ALL[doing], None, now)
                } else {
                    if older.0.version == rollout.version {
                        (rollout, latest) = older.clone();
                    }
                    None
                };
                if let Some(next) = next {
                    latest = latest.max(now);
                    rollout = next;
                }
                if rollout.phase.is_ended() {
                    ended.get_or_insert(latest);
                }
            }
            let until = now.max(latest).plus(Duration::from_millis(end));
            let spent = rollout.time_spent(until);
            let until = ended.unwrap_or(until);
            prop_assert_eq!(spent.total(), until.since(START));
            let sum: Duration = Activity::ALL.iter().map(|activity| spent.on(*activity)).sum();
            prop_assert_eq!(sum, spent.total());
            let seconds: u64 = spent.seconds().iter().map(|(_, seconds)| seconds).sum();
            prop_assert_eq!(seconds, spent.total().as_secs());
        }
    }
}
