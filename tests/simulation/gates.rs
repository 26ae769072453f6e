//! A model of stages and gates, built from observations alone.
//!
//! The model merges outcomes from the reports accepted by the store, and judges the gate events of
//! drivers by the model's own rules. A driver reads first and writes later, so an event must have
//! been true at some moment since the last change of the record. The clock of a driver is never
//! ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::Lease;
use twincast_core::ids::{
    Attempt, BatchId, DeviceId, RolloutId, RolloutName, StageIndex, StageName,
};
use twincast_core::message::MessageId;
use twincast_core::outcome::Outcome;
use twincast_core::plan::Batch;
use twincast_core::ports::{FeedbackRecord, Report, Skip};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::spec::{OnFailure, SuccessLevel, Unconfirmed};
use twincast_testkit::RuntimeClock;
use twincast_testkit::sim::Process;

use crate::world::{GatePlan, Plan, RolloutPlan};

/// A violation, as text.
type Check = Result<(), String>;

/// The model of all rollouts.
#[derive(Default)]
pub(crate) struct Gates {
    rollouts: BTreeMap<RolloutName, RolloutModel>,
    /// The feedback sent by hubs.
    sent_feedback: BTreeSet<(String, Outcome)>,
}

/// The progress of a rollout.
#[derive(Default)]
struct RolloutModel {
    batches: BTreeMap<BatchId, BatchModel>,
    /// The stage open for sends.
    current: usize,
    /// States of the current stage since the last change of the record.
    observed: Vec<StageCounts>,
    /// Since when no send is owed in the current stage.
    settled_at: Option<Instant>,
    approved: bool,
    promoted: bool,
    /// The gate has failed, and does not stop the rollout.
    ignored: bool,
    /// The rollout is being aborted.
    aborted: bool,
    /// The attempt being prepared.
    retry: Option<Attempt>,
    /// The number of passed stages.
    passed: usize,
    /// Start of the present run, if running, and earlier running time since the last send of the
    /// stage.
    runs_since: Option<Instant>,
    ran: Duration,
    /// Since when no send is owed in any stage.
    sent_at: Option<Instant>,
}

/// Feedback on a message, sent by the hub at `reported_at`.
#[derive(Debug, Clone, Copy)]
struct SentFeedback {
    attempt: Attempt,
    index: u32,
    outcome: Outcome,
    reported_at: Instant,
}

/// The last verdict of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    Fails,
    TooLittle,
}

struct BatchModel {
    stage: usize,
    devices: Vec<DeviceId>,
    outcomes: Vec<Outcome>,
    /// The newest attempt at any device of the batch, and the newest attempt at silent devices.
    attempts: [u16; 2],
    sent_feedback: Vec<SentFeedback>,
}

impl BatchModel {
    /// Whether feedback on a message of this attempt still applies to the device.
    fn believes(&self, attempt: Attempt, index: u32, outcome: Outcome) -> bool {
        let known = self.outcomes[index as usize];
        let [newest, silent] = self.attempts;
        attempt.0 == newest
            || outcome >= Outcome::Delivered
            || attempt.0 >= silent && known >= Outcome::Enqueued
    }

    /// Returns the outcomes after merging all feedback sent by the hub until `until`.
    fn reported(&self, until: Instant) -> Vec<Outcome> {
        let mut outcomes = self.outcomes.clone();
        for feedback in &self.sent_feedback {
            let SentFeedback {
                attempt,
                index,
                outcome,
                reported_at,
            } = *feedback;
            if reported_at <= until && self.believes(attempt, index, outcome) {
                let known = &mut outcomes[index as usize];
                *known = (*known).max(outcome);
            }
        }
        outcomes
    }
}

/// Counts of a stage's devices by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct StageCounts {
    unsent: u64,
    /// Accepted by the hub, without further feedback.
    silent: u64,
    delivered: u64,
    /// Not accepted by the hub.
    not_sent: u64,
    /// Accepted by the hub, and then rejected, expired or dropped.
    rejected: u64,
    /// Accepted by the hub and not rejected, and the twin fulfils `applied_when`.
    applied: u64,
}

/// The same devices, sorted by the rules of a gate.
#[derive(Debug, Clone, Copy)]
struct GateCounts {
    succeeded: u64,
    failed: u64,
    silent: u64,
    unsent: u64,
}

impl StageCounts {
    fn add(&mut self, outcome: Outcome, applies: bool) {
        let place = match outcome {
            Outcome::Pending | Outcome::Attempting => &mut self.unsent,
            Outcome::Skipped => return,
            Outcome::Unknown | Outcome::NotFound | Outcome::QueueFull | Outcome::Refused => {
                &mut self.not_sent
            }
            Outcome::Enqueued => &mut self.silent,
            Outcome::Expired | Outcome::Rejected | Outcome::Undeliverable | Outcome::Purged => {
                &mut self.rejected
            }
            // No device of the simulation reports a failure.
            Outcome::Delivered | Outcome::Installing | Outcome::Applied | Outcome::Failed => {
                &mut self.delivered
            }
        };
        *place += 1;
        let is_with_device = matches!(outcome, Outcome::Enqueued | Outcome::Delivered);
        self.applied += u64::from(applies && is_with_device);
    }

    fn gate_counts(self, level: SuccessLevel, applied: Option<u64>) -> GateCounts {
        let sent = self.silent + self.delivered;
        let (succeeded, failed) = match (level, applied) {
            (SuccessLevel::Enqueued, _) => (sent + self.rejected, self.not_sent),
            (SuccessLevel::Delivered, _) => (self.delivered, self.not_sent + self.rejected),
            (SuccessLevel::Applied, Some(applied)) => {
                (applied.min(sent), self.not_sent + self.rejected)
            }
            (SuccessLevel::Applied, None) => (sent, self.not_sent + self.rejected),
        };
        GateCounts {
            succeeded,
            failed,
            silent: sent + self.rejected + self.not_sent - succeeded - failed,
            unsent: self.unsent,
        }
    }
}

impl GateCounts {
    fn all(self) -> u64 {
        self.succeeded + self.failed + self.silent + self.unsent
    }

    /// Counts silent devices by the rule for the last verdict.
    fn resolved(self, unconfirmed: Unconfirmed) -> Self {
        let (succeeded, failed, silent) = match unconfirmed {
            Unconfirmed::Neither => return self,
            Unconfirmed::LeftOut => (self.succeeded, self.failed, 0),
            Unconfirmed::AsFailed => (self.succeeded, self.failed + self.silent, 0),
            Unconfirmed::AsSucceeded => (self.succeeded + self.silent, self.failed, 0),
        };
        Self {
            succeeded,
            failed,
            silent,
            ..self
        }
    }

    fn measured(self) -> u64 {
        self.succeeded + self.failed
    }

    /// The failure rule, of `devices`.
    fn too_many_failed_of(self, gate: &GatePlan, devices: u64) -> bool {
        let above = |percent: u64| self.failed * 100 > percent * devices;
        gate.failure_above.is_some_and(above)
    }

    /// The failure rule while answers are pending: on a sample, or once certain.
    fn too_many_failed(self, gate: &GatePlan) -> bool {
        let enough = match gate.is_open {
            true => gate.min_sample,
            false => gate.min_sample.min(self.all()),
        };
        let is_certain = !gate.is_open && self.too_many_failed_of(gate, self.all());
        is_certain || self.measured() >= enough && self.too_many_failed_of(gate, self.measured())
    }

    /// The last verdict, once the wait for answers is over.
    fn end(self, gate: &GatePlan) -> Verdict {
        let counts = self.resolved(gate.unconfirmed);
        if counts.too_many_failed_of(gate, counts.measured()) {
            return Verdict::Fails;
        }
        let is_little = counts.measured() < gate.min_sample.min(self.all()) || self.all() == 0;
        if is_little && !gate.too_little_passes {
            return Verdict::TooLittle;
        }
        match counts.too_few_succeeded(gate) {
            true => Verdict::Fails,
            false => Verdict::Holds,
        }
    }

    fn too_few_succeeded(self, gate: &GatePlan) -> bool {
        let below = |percent: u64| self.succeeded * 100 < percent * self.all();
        gate.success_at_least.is_some_and(below)
    }

    fn cannot_succeed(self, gate: &GatePlan) -> bool {
        let most = Self {
            succeeded: self.all() - self.failed,
            silent: 0,
            unsent: 0,
            ..self
        };
        most.too_few_succeeded(gate)
    }

    /// Whether the gate holds even if all silent devices fail.
    fn holds_at_worst(self, gate: &GatePlan) -> bool {
        let worst = self.resolved(Unconfirmed::AsFailed);
        self.measured() > 0
            && !worst.too_many_failed_of(gate, worst.measured())
            && !worst.too_few_succeeded(gate)
    }
}

impl Gates {
    pub(crate) fn planned(&mut self, plan: &Plan, name: &RolloutName, batches: &[Batch]) -> Check {
        let of = plan.rollout(name).ok_or("nobody started it")?;
        let model = self.rollouts.entry(name.clone()).or_default();
        for batch in batches {
            let stage = usize::from(batch.header.stage.0);
            if stage >= of.stages.len() {
                return Err(format!("a batch of {name} is of stage {stage}"));
            }
            let devices: Vec<_> = batch
                .devices
                .iter()
                .map(|id| DeviceId::new(id).expect("an id"))
                .collect();
            model.batches.entry(batch.header.id).or_insert(BatchModel {
                stage,
                outcomes: vec![Outcome::Pending; devices.len()],
                devices,
                attempts: [1, 1],
                sent_feedback: Vec::new(),
            });
        }
        Ok(())
    }

    pub(crate) fn recorded(&mut self, plan: &Plan, lease: &Lease, reports: &[Report]) -> Check {
        let work = self.batch(&lease.rollout, lease.batch);
        let attempt = work.map_or(Attempt::FIRST, |work| Attempt(work.attempts[0]));
        self.take(plan, &lease.rollout, lease.batch, attempt, reports)
    }

    /// Notes a reopened batch. Returns the devices to be sent to again.
    pub(crate) fn reopened(
        &mut self,
        plan: &Plan,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
        devices: u64,
    ) -> Result<Vec<(u32, DeviceId)>, String> {
        let mut lowered = Vec::new();
        let model = self.rollouts.get_mut(name).ok_or("it is unknown")?;
        if model.retry != Some(attempt) && devices > 0 {
            return Err(format!(
                "{name}/{batch} was reopened for {attempt}, which nobody wants"
            ));
        }
        let work = model.batches.get_mut(&batch).ok_or("it is unknown")?;
        if work.attempts[0] < attempt.0 {
            for (index, outcome) in (0..).zip(&mut work.outcomes) {
                if outcomes.contains(outcome) {
                    *outcome = Outcome::Pending;
                    lowered.push((index, work.devices[index as usize].clone()));
                }
            }
        }
        if lowered.len() as u64 != devices {
            let found = lowered.len();
            return Err(format!(
                "{devices} devices of {name}/{batch} are sent to again, and {found} are meant"
            ));
        }
        if !lowered.is_empty() {
            work.attempts[0] = attempt.0;
            if outcomes.contains(&Outcome::Enqueued) {
                work.attempts[1] = attempt.0;
            }
        }
        self.observe(plan, name);
        Ok(lowered)
    }

    /// Checks that the hub has sent the merged feedback.
    pub(crate) fn merged(
        &mut self,
        plan: &Plan,
        (name, id): (&RolloutName, RolloutId),
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Check {
        let stage = self.batch(name, batch).map_or(0, |work| work.stage);
        let stage = StageIndex(u16::try_from(stage).expect("the stage index fits into a u16"));
        for report in reports {
            let id = MessageId {
                rollout: name.clone(),
                id,
                stage,
                batch,
                index: report.index,
                attempt,
            };
            if !self
                .sent_feedback
                .contains(&(id.to_string(), report.outcome))
            {
                let outcome = report.outcome;
                return Err(format!(
                    "{id} is said to be {outcome}, without feedback of a hub"
                ));
            }
        }
        self.take(plan, name, batch, attempt, reports)
    }

    /// Notes feedback, sent by the hub from `reported_at` on.
    pub(crate) fn feedback_scheduled(&mut self, record: &FeedbackRecord, reported_at: Instant) {
        let id: MessageId = record.message_id.parse().expect("a valid message id");
        if let Some(work) = self.batch(&id.rollout, id.batch) {
            work.sent_feedback.push(SentFeedback {
                attempt: id.attempt,
                index: id.index,
                outcome: record.outcome,
                reported_at,
            });
        }
    }

    pub(crate) fn feedback_handed_out(&mut self, records: &[FeedbackRecord]) {
        let reported = records
            .iter()
            .map(|record| (record.message_id.clone(), record.outcome));
        self.sent_feedback.extend(reported);
    }

    /// Checks that completed feedback, which the hub never sends again, is known.
    pub(crate) fn feedback_completed(&mut self, records: &[FeedbackRecord]) -> Check {
        for record in records {
            // Feedback of other applications is not checked.
            let Ok(id) = record.message_id.parse::<MessageId>() else {
                continue;
            };
            let mut work = self.batch(&id.rollout, id.batch);
            if let Some(work) = &mut work {
                let is_same = |it: &SentFeedback| {
                    (it.attempt, it.index, it.outcome) == (id.attempt, id.index, record.outcome)
                };
                let feedback = work.sent_feedback.iter().position(is_same);
                feedback.map(|at| work.sent_feedback.swap_remove(at));
            }
            let is_old = |work: &&mut BatchModel| {
                id.attempt.0 < work.attempts[0] && record.outcome < Outcome::Delivered
            };
            if work.as_ref().is_some_and(is_old) {
                continue;
            }
            let known = work.and_then(|work| work.outcomes.get(id.index as usize));
            if known.is_none_or(|known| *known < record.outcome) {
                let outcome = record.outcome;
                return Err(format!(
                    "the hub reported {outcome} for {id}, and that was forgotten: it is {known:?}"
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn skipped(
        &mut self,
        plan: &Plan,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Check {
        let Some(work) = self.batch(name, batch) else {
            return Err(format!("{name}/{batch} was skipped and never planned"));
        };
        for (index, outcome) in (0u32..).zip(&mut work.outcomes) {
            *outcome = which.end(index, *outcome).unwrap_or(*outcome);
        }
        self.observe(plan, name);
        Ok(())
    }

    /// Checks that a message is of the newest attempt, and its stage open.
    pub(crate) fn sending(&self, id: &MessageId) -> Check {
        let model = self.rollouts.get(&id.rollout);
        let work = model.and_then(|model| Some((model, model.batches.get(&id.batch)?)));
        let Some((model, work)) = work else {
            return Err(format!("{id} is sent and was never planned"));
        };
        if id.attempt.0 != work.attempts[0] {
            let newest = work.attempts[0];
            return Err(format!("{id} is sent, and attempt {newest} is the newest"));
        }
        if work.stage > model.current {
            return Err(format!(
                "{id} is sent before its time: it is of stage {}, and {} is the current one",
                work.stage, model.current
            ));
        }
        Ok(())
    }

    /// Checks that the store's outcomes of a batch equal the model's outcomes.
    pub(crate) fn agrees(&self, name: &RolloutName, batch: BatchId, outcomes: &[Outcome]) -> Check {
        let model = self.rollouts.get(name);
        let known = model.and_then(|model| model.batches.get(&batch));
        match known {
            Some(work) if work.outcomes == outcomes => Ok(()),
            _ => Err(format!(
                "the outcomes of {name}/{batch} are not what was reported: {outcomes:?}"
            )),
        }
    }

    /// Checks the last event of a changed record.
    pub(crate) fn saved(&mut self, plan: &Plan, by: &Process, rollout: &Rollout) -> Check {
        let name = &rollout.spec.name;
        let of = plan.rollout(name).ok_or("nobody started it")?;
        let model = self.rollouts.entry(name.clone()).or_default();
        let Some(event) = rollout.change_entry().map(|entry| &entry.event) else {
            // A scan for late joiners has begun, or has found no device.
            return Ok(());
        };
        let result = model
            .takes(of, by, event)
            .and_then(|()| check_approval_time(of, rollout, event))
            .and_then(|()| has_scanned(of, rollout, event));
        model.runs(rollout.phase == Phase::Running);
        model.aborted |= matches!(rollout.phase, Phase::Aborting { .. });
        model.retry = rollout.retry.as_ref().map(|retry| retry.attempt);
        // Only the latest state can still be true.
        let latest = model.observed.len().saturating_sub(1);
        model.observed.drain(..latest);
        result
            .map_err(|violation| format!("{by} says that {} of {name}: {violation}", event.name()))
    }

    fn batch(&mut self, name: &RolloutName, batch: BatchId) -> Option<&mut BatchModel> {
        self.rollouts.get_mut(name)?.batches.get_mut(&batch)
    }

    fn take(
        &mut self,
        plan: &Plan,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Check {
        let Some(work) = self.batch(name, batch) else {
            return Err(format!("{name}/{batch} is reported of and never planned"));
        };
        for report in reports {
            if !work.believes(attempt, report.index, report.outcome) {
                continue;
            }
            let outcome = &mut work.outcomes[report.index as usize];
            *outcome = (*outcome).max(report.outcome);
        }
        self.observe(plan, name);
        Ok(())
    }

    fn observe(&mut self, plan: &Plan, name: &RolloutName) {
        if let (Some(of), Some(model)) = (plan.rollout(name), self.rollouts.get_mut(name)) {
            model.observe(of);
        }
    }
}

impl RolloutModel {
    /// Counts the devices of the current stage.
    fn observe(&mut self, of: &RolloutPlan) {
        let mut seen = StageCounts::default();
        for work in self.batches.values() {
            if work.stage == self.current {
                for (device, outcome) in work.devices.iter().zip(&work.outcomes) {
                    seen.add(*outcome, of.applies.contains(device));
                }
            }
        }
        if self.observed.last() != Some(&seen) {
            self.observed.push(seen);
        }
        if seen.unsent == 0 {
            if self.settled_at.is_none() {
                self.settled_at = Some(Instant::now());
                self.ran = Duration::ZERO;
                self.runs_since = self.runs_since.map(|_| Instant::now());
            }
        } else {
            self.settled_at = None;
        }
        let mut outcomes = self.batches.values().flat_map(|work| &work.outcomes);
        match outcomes.all(|outcome| outcome.is_settled()) {
            true => drop(self.sent_at.get_or_insert_with(Instant::now)),
            false => self.sent_at = None,
        }
    }

    /// Notes whether the rollout runs from now on.
    fn runs(&mut self, runs: bool) {
        match (self.runs_since, runs) {
            (None, true) => self.runs_since = Some(Instant::now()),
            (Some(since), false) => {
                self.ran += since.elapsed();
                self.runs_since = None;
            }
            _ => {}
        }
    }

    /// How long the rollout has run since the last send of the current stage.
    fn has_run(&self) -> Duration {
        self.ran
            + self
                .runs_since
                .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The state of the current stage after merging all feedback sent by the deadline and the
    /// batching time.
    fn reported(&self, of: &RolloutPlan, gate: &GatePlan) -> StageCounts {
        let mut seen = StageCounts::default();
        let until = self.settled_at.unwrap_or_else(Instant::now) + gate.deadline + of.batching;
        let until = until.min(Instant::now());
        for work in self.batches.values().filter(|it| it.stage == self.current) {
            let known = work.devices.iter().zip(&work.outcomes);
            for ((device, known), reported) in known.zip(work.reported(until)) {
                let applies = of.applies.contains(device);
                // Feedback on a message does not revoke the state reported by the twin.
                let is_applied = gate.counts == SuccessLevel::Applied && applies;
                let is_with_device = matches!(known, Outcome::Enqueued | Outcome::Delivered);
                let outcome = if is_applied && is_with_device {
                    *known
                } else {
                    reported
                };
                seen.add(outcome, applies);
            }
        }
        seen
    }

    /// Checks that no device with an answer in time counts as silent.
    fn has_all_feedback(&self, of: &RolloutPlan) -> Check {
        let Some((ttl, sent_at)) = of.ttl.zip(self.sent_at) else {
            return Ok(());
        };
        let until = (sent_at + ttl).min(Instant::now());
        for (batch, work) in &self.batches {
            for (index, (known, reported)) in
                (0..).zip(work.outcomes.iter().zip(work.reported(until)))
            {
                let is_silent = matches!(known, Outcome::Enqueued | Outcome::Unknown);
                if is_silent && *known != reported {
                    return Err(format!(
                        "the hub had reported that device {index} of batch {batch} is {reported}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, of: &RolloutPlan, stage: usize) {
        self.current = stage;
        self.observed.clear();
        self.settled_at = None;
        self.ran = Duration::ZERO;
        (self.approved, self.promoted, self.ignored) = (false, false, false);
        self.observe(of);
    }

    fn takes(&mut self, of: &RolloutPlan, by: &Process, event: &Event) -> Check {
        let says_gate = matches!(
            event,
            Event::StageSent { .. }
                | Event::ApprovalAwaited { .. }
                | Event::StagePassed { .. }
                | Event::GateFailed { .. }
                | Event::AllSettled { .. }
        );
        if self.retry.is_some() && !self.aborted && says_gate && is_an_operator(by).is_err() {
            return Err("a retry is being prepared".into());
        }
        match event {
            Event::RetryRequested { stage, .. } => {
                is_an_operator(by)?;
                let current = of.stages[self.current].name;
                let is_open = self.passed < of.stages.len();
                if is_open && stage.as_ref().is_none_or(|stage| stage.as_str() == current) {
                    (self.approved, self.ignored, self.settled_at) = (false, false, None);
                    self.observe(of);
                }
            }
            Event::Accepted { .. } | Event::PlanningStarted => *self = Self::default(),
            Event::PlanCompleted { .. } => {
                self.begin(of, 0);
                return self.is_cut_as_planned(of);
            }
            Event::StageSent { stage } => {
                self.is_current(of, stage)?;
                return self.is_settled();
            }
            Event::Approved { stage, .. } => {
                is_an_operator(by)?;
                self.approved |= self.is_current(of, stage).is_ok();
            }
            Event::Promoted { stage, .. } => {
                is_an_operator(by)?;
                self.promoted |= self.is_current(of, stage).is_ok();
            }
            Event::StagePassed { stage, .. } => {
                self.is_current(of, stage)?;
                self.may_pass(of)?;
                self.passed += 1;
                // The last stage stays the current stage.
                if self.passed < of.stages.len() {
                    self.begin(of, self.passed);
                }
            }
            Event::GateFailed { stage, then, .. } => {
                self.is_current(of, stage)?;
                self.may_fail(of, by, *then)?;
                match then {
                    OnFailure::Continue => self.ignored = true,
                    OnFailure::Pause | OnFailure::Abort => self.approved = false,
                }
            }
            Event::GateUndecided { stage, reason } => {
                self.is_current(of, stage)?;
                self.may_be_undecided(of, by, reason)?;
                self.approved = false;
            }
            Event::AllSettled { .. } if !self.aborted => {
                self.is_settled()?;
                self.has_all_feedback(of)?;
                let last = of.stages.len() - 1;
                let is_over = self.passed == of.stages.len()
                    || self.current == last
                        && of.stages[last].gate.as_ref().is_none_or(|it| it.is_open);
                if !is_over {
                    let stage = self.current;
                    return Err(format!("stage {stage} is not over"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the sizes of stages. In a continuous rollout, sizes depend on the time of planning,
    /// and the last stage is empty.
    fn is_cut_as_planned(&self, of: &RolloutPlan) -> Check {
        let mut found = vec![0; of.stages.len()];
        for work in self.batches.values() {
            found[work.stage] += work.devices.len() as u64;
        }
        let meant: Vec<_> = of.stages.iter().map(|stage| stage.devices).collect();
        let is_right = match of.until {
            Some(_) => found.last() == Some(&0),
            None => found == meant,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!("its stages have {found:?} devices, not {meant:?}")),
        }
    }

    fn is_current(&self, of: &RolloutPlan, stage: &StageName) -> Check {
        let current = of.stages[self.current].name;
        match stage.as_str() == current && self.passed < of.stages.len() {
            true => Ok(()),
            false => Err(format!("{stage} is not the current stage, {current} is")),
        }
    }

    /// Checks that no send is owed up to the current stage.
    fn is_settled(&self) -> Check {
        let mut batches = self.batches.values();
        let left = |work: &BatchModel| {
            let mut outcomes = work.outcomes.iter();
            work.stage <= self.current && outcomes.any(|outcome| !outcome.is_settled())
        };
        match batches.any(left) {
            true => Err("there is something left to send".into()),
            false => Ok(()),
        }
    }

    fn may_pass(&self, of: &RolloutPlan) -> Check {
        self.is_settled()?;
        let Some(gate) = &of.stages[self.current].gate else {
            return Ok(());
        };
        if self.promoted || self.ignored {
            return Ok(());
        }
        let age = self.settled_at.map_or(Duration::ZERO, |at| at.elapsed());
        let ran = self.has_run();
        if ran < gate.bake {
            return Err(format!("it baked for {ran:?} only"));
        }
        if gate.approval.is_some() && !self.approved {
            return Err("nobody approved".into());
        }
        let measures = gate.success_at_least.is_some() || gate.failure_above.is_some();
        if !measures {
            return Ok(());
        }
        if !self.ever(|seen| self.holds(gate, seen, age)) {
            return Err(format!("it did not hold: {:?}, {gate:?}", self.observed));
        }
        let reported = self.reported(of, gate);
        let counts = reported.gate_counts(gate.counts, Some(self.applied()[1]));
        match counts.holds_at_worst(gate) || counts.end(gate) == Verdict::Holds {
            true => Ok(()),
            false => Err(format!(
                "the hub had reported that it does not hold: {reported:?}, {gate:?}"
            )),
        }
    }

    fn may_be_undecided(&self, of: &RolloutPlan, by: &Process, reason: &str) -> Check {
        is_an_operator(by)
            .err()
            .map_or(Err("by an operator".to_owned()), |_| Ok(()))?;
        let Some(gate) = &of.stages[self.current].gate else {
            return Err("it has no gate".into());
        };
        if reason.starts_with("not measured: ") {
            return Ok(());
        }
        self.is_settled()?;
        let reported = self.reported(of, gate);
        let [least, _] = self.applied();
        let is_little = |seen: StageCounts| {
            seen.gate_counts(gate.counts, Some(least)).end(gate) == Verdict::TooLittle
        };
        match self.ever(is_little) && is_little(reported) {
            true => Ok(()),
            false => Err(format!("it has measured enough: {reported:?}, {gate:?}")),
        }
    }

    /// Whether the condition held at any moment since the record changed.
    fn ever(&self, so: impl Fn(StageCounts) -> bool) -> bool {
        self.observed.iter().any(|seen| so(*seen))
    }

    /// The least and the most devices that hubs may have counted.
    fn applied(&self) -> [u64; 2] {
        let applied = || self.observed.iter().map(|seen| seen.applied);
        [applied().min().unwrap_or(0), applied().max().unwrap_or(0)]
    }

    fn holds(&self, gate: &GatePlan, seen: StageCounts, age: Duration) -> bool {
        let counts = seen.gate_counts(gate.counts, Some(self.applied()[1]));
        let is_over = age >= gate.bake.max(gate.deadline) || counts.silent == 0;
        counts.holds_at_worst(gate) || is_over && counts.end(gate) == Verdict::Holds
    }

    fn may_fail(&self, of: &RolloutPlan, by: &Process, then: OnFailure) -> Check {
        let Some(gate) = &of.stages[self.current].gate else {
            return Err("it has no gate".into());
        };
        if is_an_operator(by).is_ok() {
            let meant = match gate.on_failure {
                OnFailure::Abort => OnFailure::Abort,
                OnFailure::Pause | OnFailure::Continue => OnFailure::Pause,
            };
            return is_meant(then, meant);
        }
        is_meant(then, gate.on_failure)?;
        if self.promoted || self.ignored {
            return Err("it is not to be judged any more".into());
        }
        let age = self.settled_at.map_or(Duration::ZERO, |at| at.elapsed());
        let within = gate.approval.flatten();
        let is_late = within.is_some_and(|within| age >= gate.bake + within);
        let reported = self.reported(of, gate);
        if is_late && !self.approved || self.ever(|seen| self.fails(gate, seen, reported, age)) {
            return Ok(());
        }
        Err(format!(
            "it did not: {:?}, reported {reported:?}, {gate:?}",
            self.observed
        ))
    }

    fn fails(
        &self,
        gate: &GatePlan,
        seen: StageCounts,
        reported: StageCounts,
        age: Duration,
    ) -> bool {
        let queried = [None, Some(self.applied()[0])];
        let has_failed = |applied: &Option<u64>| {
            let counts = seen.gate_counts(gate.counts, *applied);
            counts.too_many_failed(gate) || counts.cannot_succeed(gate)
        };
        let counts = seen.gate_counts(gate.counts, queried[1]);
        let is_over = age >= gate.bake.max(gate.deadline) || counts.silent == 0;
        let is_settled = self.settled_at.is_some();
        let has_end = is_settled && is_over && !gate.is_open;
        let ends = |seen: StageCounts| {
            seen.gate_counts(gate.counts, queried[1]).end(gate) == Verdict::Fails
        };
        queried.iter().any(has_failed) || has_end && ends(seen) && ends(reported)
    }
}

/// Checks that the approval of a passed stage was in time.
fn check_approval_time(of: &RolloutPlan, rollout: &Rollout, event: &Event) -> Check {
    let Event::StagePassed { stage, .. } = event else {
        return Ok(());
    };
    let planned = of.stages.iter().find(|of| of.name == stage.as_str());
    let gate = planned.and_then(|of| of.gate.as_ref());
    let within = gate.and_then(|gate| gate.approval.flatten());
    let progress = rollout.stages.iter().find(|of| of.name == *stage);
    let Some(((within, progress), approval_awaited_at)) = within
        .zip(progress)
        .zip(progress.and_then(|it| it.approval_awaited_at))
    else {
        return Ok(());
    };
    let is_bound = progress.promoted.is_none() && progress.ignored_failure.is_none();
    match &progress.approved {
        Some(approval) if is_bound && approval.at >= approval_awaited_at.plus(within) => {
            Err(format!(
                "it was approved at {}, and within {within:?} of {approval_awaited_at} was required",
                approval.at
            ))
        }
        _ => Ok(()),
    }
}

/// Checks that a continuous rollout ends only after the last scan.
fn has_scanned(of: &RolloutPlan, rollout: &Rollout, event: &Event) -> Check {
    let (Some(until), Event::AllSettled { .. }) = (of.until, event) else {
        return Ok(());
    };
    let last = rollout.scans.map(|scans| scans.last);
    let is_aborted = matches!(rollout.phase, Phase::Aborted { .. });
    match is_aborted || last >= Some(RuntimeClock::start().plus(until)) {
        true => Ok(()),
        false => Err(format!("its last look was at {last:?}")),
    }
}

fn is_meant(then: OnFailure, meant: OnFailure) -> Check {
    match then == meant {
        true => Ok(()),
        false => Err(format!("it is to {meant:?}, and will {then:?}")),
    }
}

/// Checks that an event came from a person, through the executor.
fn is_an_operator(by: &Process) -> Check {
    let name = by.name();
    match name.starts_with("executor") || name.starts_with("operator") {
        true => Ok(()),
        false => Err(format!("{by} is no operator")),
    }
}
