//! The scans of a continuous rollout for devices that have joined or left the target.
//!
//! The start of a scan is recorded and gives the scan a number. The store accepts a scan's batches
//! only under the number of the current scan. So a driver superseded during a scan cannot add
//! batches to the next scan; the next scan finds the batches added before.

use super::adding::{Adding, ScanResult};
use super::phase::Phase;
use super::record::Rollout;
use crate::time::Timestamp;

impl Rollout {
    /// Returns the operation allowed to add batches now.
    #[must_use]
    pub fn adding(&self) -> Option<Adding> {
        match &self.phase {
            Phase::Accepted | Phase::Planning if self.plan.is_none() => {
                Some(Adding::Plan(self.plan_id))
            }
            Phase::Running if self.retry.is_none() => {
                let scans = self.scans.filter(|scans| scans.under_way.is_some())?;
                Some(Adding::Scan(scans.newest))
            }
            _ => None,
        }
    }

    /// Returns the start of the next scan; `None` if there is no next scan.
    #[must_use]
    pub fn next_scan(&self) -> Option<Timestamp> {
        let continuous = self.spec.continuous.as_ref()?;
        continuous.next_scan(self.scans?.last)
    }

    /// Returns whether the current stage is the stage of late joiners.
    #[must_use]
    pub fn is_at_late_stage(&self) -> bool {
        self.spec.continuous.is_some() && usize::from(self.stage().0) + 1 == self.stages.len()
    }

    pub(super) fn start_scan(&mut self, now: Timestamp) {
        if let Some(scans) = &mut self.scans {
            scans.newest.0 += 1;
            scans.under_way = Some(now);
        }
    }

    pub(super) fn end_scan(&mut self, found: &ScanResult) {
        if let Some(scans) = &mut self.scans {
            scans.last = scans.under_way.take().unwrap_or(scans.last);
        }
        let Some(plan) = &mut self.plan else {
            return;
        };
        plan.hubs.clone_from(&found.hubs);
        plan.repeated += found.repeated;
        // A scan covers the whole target, so its result includes the rows met by earlier scans.
        plan.malformed_rows.clone_from(&found.malformed_rows);
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
    use crate::gate::{Next, next_with_complete_evidence};
    use crate::ids::{HubHost, HubName};
    use crate::outcome::{Counts, Outcome};
    use crate::plan::{Checksum, HubPlan, MalformedRows, PlanSummary, StagePlan};
    use crate::rollout::{Attribution, Event, ScanId};
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
        rollout
            .after(event, now)
            .unwrap()
            .expect("the event changes the rollout")
    }

    fn hub(name: &str, devices: u64, batches: u32) -> HubPlan {
        HubPlan {
            hub: HubName::new(name).unwrap(),
            host: HubHost::new(name).unwrap(),
            devices,
            batches,
        }
    }

    fn malformed(rows: u64) -> MalformedRows {
        let mut malformed = MalformedRows::default();
        for _ in 0..rows {
            let row = crate::ports::MalformedRow::new("x y", "its id is not valid");
            malformed.add(&HubName::new("a").unwrap(), row);
        }
        malformed
    }

    /// A rollout running since the first hour, with a plan of 10 devices.
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
            malformed_rows: Default::default(),
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
    fn first_scan_interval_starts_at_planning() {
        let rollout = running("continuous: true");
        assert_eq!(rollout.next_scan(), Some(at(1)));
        assert_eq!(running("rate: 1/min").next_scan(), None);
        let names: Vec<_> = rollout.stages.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["all", "late"]);
    }

    #[test]
    fn a_scan_has_a_number_and_an_end() {
        let rollout = running("continuous: {every: 2h}");
        assert_eq!(rollout.adding(), None);
        let first = after(&rollout, Event::ScanStarted, at(2));
        assert_eq!(first.adding(), Some(Adding::Scan(ScanId(1))));
        assert_eq!(first.history, rollout.history, "the history is unchanged");
        let again = after(&first, Event::ScanStarted, at(3));
        assert_eq!(again.adding(), Some(Adding::Scan(ScanId(2))));
        let found = ScanResult {
            joined: 5,
            departed: 0,
            hubs: vec![hub("a", 12, 3), hub("b", 3, 1)],
            repeated: 2,
            malformed_rows: malformed(1),
            ..ScanResult::default()
        };
        let scanned = after(&again, Event::ScanCompleted { found }, at(4));
        assert_eq!(scanned.adding(), None);
        // Devices joining during a scan are left to the next scan.
        assert_eq!(scanned.next_scan(), Some(at(5)));
        let plan = scanned.plan.as_ref().unwrap();
        assert_eq!((plan.devices, plan.batches), (15, 4));
        assert_eq!((plan.stages[0].devices, plan.stages[0].batches), (10, 2));
        assert_eq!((plan.stages[1].devices, plan.stages[1].batches), (5, 2));
        assert_eq!(scanned.history.len(), rollout.history.len() + 1);
        assert_eq!((plan.repeated, &plan.malformed_rows), (2, &malformed(1)));

        // The next scan meets the same rows, and counts other repeated devices.
        let next = after(&scanned, Event::ScanStarted, at(5));
        let found = ScanResult {
            repeated: 3,
            malformed_rows: malformed(1),
            ..ScanResult::default()
        };
        let next = after(&next, Event::ScanCompleted { found }, at(6));
        let plan = next.plan.as_ref().unwrap();
        assert_eq!((plan.repeated, &plan.malformed_rows), (5, &malformed(1)));
        assert_eq!(
            next.history.len(),
            scanned.history.len(),
            "the history is unchanged"
        );

        let paused = after(&again, Event::PauseRequested { reason: "x".into() }, at(4));
        assert_eq!(paused.adding(), None);
        assert!(paused.after(Event::ScanStarted, at(5)).is_err());
    }

    #[test]
    fn rollout_ends_after_last_scan() {
        let until = at(4);
        let rollout = running(&format!("continuous: {{every: 2h, until: '{until}'}}"));
        let rollout = passed(&rollout, at(2));
        let none = Counts::default();
        let waits = |next_scan| {
            let trouble = None;
            Next::Wait(Waiting::LateJoiners { next_scan, trouble })
        };
        let judge =
            |rollout: &Rollout, owed| next_with_complete_evidence(rollout, &none, owed, at(9));
        assert_eq!(judge(&rollout, false), waits(Some(at(2))));
        assert_eq!(judge(&rollout, true), Next::Send);
        let scan = |rollout: &Rollout, started_at| {
            let scanning = after(rollout, Event::ScanStarted, started_at);
            assert_eq!(judge(&scanning, false), waits(None));
            assert_eq!(judge(&scanning, true), Next::Send);
            let found = ScanResult::default();
            after(&scanning, Event::ScanCompleted { found }, started_at)
        };
        let rollout = scan(&rollout, at(3));
        assert_eq!(judge(&rollout, false), waits(Some(at(4))));
        let rollout = scan(&rollout, at(4));
        assert_eq!(judge(&rollout, true), Next::Send);
        assert_eq!(judge(&rollout, false), Next::Over);
        let counts = counts(&[(Outcome::Enqueued, 10), (Outcome::Skipped, 2)]);
        let over = after(&rollout, Event::AllSettled { counts }, at(9));
        assert_eq!(over.phase, Phase::Succeeded, "a departure is no failure");
    }

    #[test]
    fn failure_rule_applies_to_late_joiners() {
        let gate = "gate: {failure_above: 10%, min_sample: 4, success_at_least: 50%}";
        let stages = format!("stages: [{{name: canary, percent: 1%, {gate}}}, {{name: others}}]");
        let rollout = running(&format!("continuous: true, {stages}"));
        let rollout = passed(&passed(&rollout, at(1)), at(1));
        assert!(rollout.is_at_late_stage());
        let judge = |rollout: &Rollout, sent, failed| {
            let counts = counts(&[(Outcome::Enqueued, sent), (Outcome::NotFound, failed)]);
            next_with_complete_evidence(rollout, &counts, false, at(1))
        };
        let fails = |next| matches!(next, Next::Apply(Event::GateFailed { .. }));
        // Three failed devices are no sample yet, even without other devices.
        assert!(!fails(judge(&rollout, 0, 3)));
        assert!(fails(judge(&rollout, 0, 4)));
        assert!(fails(judge(&rollout, 8, 1)));
        assert!(!fails(judge(&rollout, 9, 1)));
        let Next::Apply(event) = judge(&rollout, 0, 4) else {
            panic!("expected an event of the failed gate");
        };
        let paused = after(&rollout, event, at(1));
        assert_eq!(
            paused.phase.reason(),
            Some(
                "the gate of stage late failed: 4 of 4 measured devices failed (100.0%), more than 10%"
            )
        );
        let attribution = Attribution::default();
        let stage = paused.stage_progress().unwrap().name.clone();
        let promoted = after(&paused, Event::Promoted { stage, attribution }, at(1));
        assert!(!fails(judge(&promoted, 0, 9)));
    }
}
