//! The looks of a continuous rollout for devices that have joined its target, or left it.
//!
//! A look is noted when it begins, and that gives it a number, under which the store takes its batches and nobody else's. So a driver
//! that was superseded in the middle of a look cannot add anything to the next one: what it has added by then, that one finds.

use super::adding::{Adding, Found};
use super::phase::Phase;
use super::record::Rollout;
use crate::time::Timestamp;

impl Rollout {
    /// By what batches may be added now.
    #[must_use]
    pub fn adding(&self) -> Option<Adding> {
        match &self.phase {
            Phase::Accepted | Phase::Planning if self.plan.is_none() => {
                Some(Adding::Plan(self.plan_id))
            }
            Phase::Running if self.retry.is_none() => {
                let looks = self.looks.filter(|looks| looks.under_way.is_some())?;
                Some(Adding::Look(looks.newest))
            }
            _ => None,
        }
    }

    /// When the next look is to begin; `None` when there is none.
    #[must_use]
    pub fn next_look(&self) -> Option<Timestamp> {
        let continuous = self.spec.continuous.as_ref()?;
        continuous.next_look(self.looks?.last)
    }

    /// Where the devices are that have joined later, once it is their turn.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.spec.continuous.is_some() && usize::from(self.stage().0) + 1 == self.stages.len()
    }

    pub(super) fn start_look(&mut self, now: Timestamp) {
        if let Some(looks) = &mut self.looks {
            looks.newest.0 += 1;
            looks.under_way = Some(now);
        }
    }

    pub(super) fn end_look(&mut self, found: &Found) {
        if let Some(looks) = &mut self.looks {
            looks.last = looks.under_way.take().unwrap_or(looks.last);
        }
        let Some(plan) = &mut self.plan else {
            return;
        };
        plan.hubs.clone_from(&found.hubs);
        plan.repeated += found.repeated;
        // A look asks for the whole target, so it meets what earlier ones have met.
        plan.not_understood.clone_from(&found.not_understood);
        plan.devices = plan.hubs.iter().map(|hub| hub.devices).sum();
        plan.batches = plan.hubs.iter().map(|hub| hub.batches).sum();
        if let Some((late, others)) = plan.stages.split_last_mut() {
            let (devices, batches) = others.iter().fold((0, 0), |(devices, batches), it| {
                (devices + it.devices, batches + it.batches)
            });
            late.devices = plan.devices.saturating_sub(devices);
            late.batches = plan.batches.saturating_sub(batches);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gate::{Next, next_when_heard};
    use crate::ids::{HubHost, HubName};
    use crate::outcome::{Counts, Outcome};
    use crate::plan::{Checksum, HubPlan, NotUnderstood, PlanSummary, StagePlan};
    use crate::rollout::{Event, LookId, Word};
    use crate::spec::RolloutSpec;
    use crate::waiting::Waiting;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn at(hours: u32) -> Timestamp {
        START.plus(HOUR * hours)
    }

    fn accepted(more: &str) -> Rollout {
        let text =
            format!("{{name: r, target: {{all: true}}, message: {{body: {{text: x}}}}, {more}}}");
        let spec = RolloutSpec::read("x", &text).unwrap();
        Rollout::accepted(spec, Default::default(), START)
    }

    fn after(rollout: &Rollout, event: Event, now: Timestamp) -> Rollout {
        rollout.after(event, now).unwrap().expect("it changes")
    }

    fn hub(name: &str, devices: u64, batches: u32) -> HubPlan {
        HubPlan {
            hub: HubName::new(name).unwrap(),
            host: HubHost::new(name).unwrap(),
            devices,
            batches,
        }
    }

    fn odd(rows: u64) -> NotUnderstood {
        let mut odd = NotUnderstood::default();
        for _ in 0..rows {
            let row = crate::ports::OddRow::new("x y", "its id is not valid");
            odd.add(&HubName::new("a").unwrap(), row);
        }
        odd
    }

    /// One that runs since the first hour, with a plan of 10 devices.
    fn running(more: &str) -> Rollout {
        let accepted = accepted(more);
        let planning = after(&accepted, Event::PlanningStarted, at(0));
        let stages = accepted.spec.all_stages().into_iter().enumerate();
        let plan = PlanSummary {
            devices: 10,
            batches: 2,
            digest: String::new(),
            checksum: Checksum::default(),
            hubs: vec![hub("a", 10, 2)],
            stages: stages
                .map(|(index, stage)| StagePlan {
                    name: stage.name,
                    devices: if index == 0 { 10 } else { 0 },
                    batches: if index == 0 { 2 } else { 0 },
                })
                .collect(),
            excluded: Vec::new(),
            repeated: 0,
            not_understood: Default::default(),
            unknown_zones: Default::default(),
        };
        after(&planning, Event::PlanCompleted { plan }, at(1))
    }

    fn passed(rollout: &Rollout, now: Timestamp) -> Rollout {
        let stage = rollout.stage_progress().unwrap().name.clone();
        let reason = String::new();
        after(rollout, Event::StagePassed { stage, reason }, now)
    }

    fn counts(outcomes: &[(Outcome, u64)]) -> Counts {
        let mut counts = Counts::default();
        for (outcome, many) in outcomes {
            for _ in 0..*many {
                let mut one = Counts::pending(1);
                one.shift(Outcome::Pending, *outcome);
                counts.add(&one);
            }
        }
        counts
    }

    #[test]
    fn the_first_look_is_reckoned_from_the_planning() {
        let rollout = running("continuous: true");
        assert_eq!(rollout.next_look(), Some(at(1)));
        assert_eq!(running("rate: 1/min").next_look(), None);
        let names: Vec<_> = rollout.stages.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["all", "late"]);
    }

    #[test]
    fn a_look_has_a_number_and_an_end() {
        let rollout = running("continuous: {every: 2h}");
        assert_eq!(rollout.adding(), None);
        let first = after(&rollout, Event::LookStarted, at(2));
        assert_eq!(first.adding(), Some(Adding::Look(LookId(1))));
        assert_eq!(first.history, rollout.history, "it is nothing to tell");
        let again = after(&first, Event::LookStarted, at(3));
        assert_eq!(again.adding(), Some(Adding::Look(LookId(2))));
        let found = Found {
            joined: 5,
            left: 0,
            hubs: vec![hub("a", 12, 3), hub("b", 3, 1)],
            repeated: 2,
            not_understood: odd(1),
            ..Found::default()
        };
        let looked = after(&again, Event::Looked { found }, at(4));
        assert_eq!(looked.adding(), None);
        // Whoever joins while it looks is for the next one.
        assert_eq!(looked.next_look(), Some(at(5)));
        let plan = looked.plan.as_ref().unwrap();
        assert_eq!((plan.devices, plan.batches), (15, 4));
        assert_eq!((plan.stages[0].devices, plan.stages[0].batches), (10, 2));
        assert_eq!((plan.stages[1].devices, plan.stages[1].batches), (5, 2));
        assert_eq!(looked.history.len(), rollout.history.len() + 1);
        assert_eq!((plan.repeated, &plan.not_understood), (2, &odd(1)));

        // The next look meets the same rows, and counts others that are repeated.
        let next = after(&looked, Event::LookStarted, at(5));
        let found = Found {
            repeated: 3,
            not_understood: odd(1),
            ..Found::default()
        };
        let next = after(&next, Event::Looked { found }, at(6));
        let plan = next.plan.as_ref().unwrap();
        assert_eq!((plan.repeated, &plan.not_understood), (5, &odd(1)));
        assert_eq!(
            next.history.len(),
            looked.history.len(),
            "it is nothing to tell"
        );

        let paused = after(&again, Event::PauseRequested { reason: "x".into() }, at(4));
        assert_eq!(paused.adding(), None);
        assert!(paused.after(Event::LookStarted, at(5)).is_err());
    }

    #[test]
    fn it_is_over_when_the_last_look_is() {
        let until = at(4);
        let rollout = running(&format!("continuous: {{every: 2h, until: '{until}'}}"));
        let rollout = passed(&rollout, at(2));
        let none = Counts::default();
        let waits = |look| {
            let trouble = None;
            Next::Wait(Waiting::Joiners { look, trouble })
        };
        let judge = |rollout: &Rollout, left| next_when_heard(rollout, &none, left, at(9));
        assert_eq!(judge(&rollout, false), waits(Some(at(2))));
        assert_eq!(judge(&rollout, true), Next::Send);
        let look = |rollout: &Rollout, began| {
            let looking = after(rollout, Event::LookStarted, began);
            assert_eq!(judge(&looking, false), waits(None));
            assert_eq!(judge(&looking, true), Next::Send);
            let found = Found::default();
            after(&looking, Event::Looked { found }, began)
        };
        let rollout = look(&rollout, at(3));
        assert_eq!(judge(&rollout, false), waits(Some(at(4))));
        let rollout = look(&rollout, at(4));
        assert_eq!(judge(&rollout, true), Next::Send);
        assert_eq!(judge(&rollout, false), Next::Over);
        let counts = counts(&[(Outcome::Enqueued, 10), (Outcome::Skipped, 2)]);
        let over = after(&rollout, Event::AllSettled { counts }, at(9));
        assert_eq!(over.phase, Phase::Succeeded, "who has left is no failure");
    }

    #[test]
    fn the_failure_rule_is_armed_for_those_that_join() {
        let gate = "gate: {failure_above: 10%, min_sample: 4, success_at_least: 50%}";
        let stages = format!("stages: [{{name: canary, percent: 1%, {gate}}}, {{name: others}}]");
        let rollout = running(&format!("continuous: true, {stages}"));
        let rollout = passed(&passed(&rollout, at(1)), at(1));
        assert!(rollout.is_late());
        let judge = |rollout: &Rollout, sent, failed| {
            let counts = counts(&[(Outcome::Enqueued, sent), (Outcome::NotFound, failed)]);
            next_when_heard(rollout, &counts, false, at(1))
        };
        let fails = |next| matches!(next, Next::Happened(Event::GateFailed { .. }));
        // Three that failed are no sample yet, though there are no others.
        assert!(!fails(judge(&rollout, 0, 3)));
        assert!(fails(judge(&rollout, 0, 4)));
        assert!(fails(judge(&rollout, 8, 1)));
        assert!(!fails(judge(&rollout, 9, 1)));
        let Next::Happened(event) = judge(&rollout, 0, 4) else {
            panic!("it has failed");
        };
        let paused = after(&rollout, event, at(1));
        assert_eq!(
            paused.phase.reason(),
            Some(
                "the gate of stage late failed: 4 of 4 measured devices failed (100.0%), more than 10%"
            )
        );
        let word = Word::default();
        let stage = paused.stage_progress().unwrap().name.clone();
        let promoted = after(&paused, Event::Promoted { stage, word }, at(1));
        assert!(!fails(judge(&promoted, 0, 9)));
    }
}
