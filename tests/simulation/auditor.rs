//! The auditor of a simulated world: the real events, and whether each event is permitted.
//!
//! The auditor observes every effect in the store and every message accepted by a hub, and checks
//! the engine's promises: some at the moment of a possible breach, others periodically and at the
//! end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::Value;
use tokio::time::Instant;
use twincast_core::batch::Lease;
use twincast_core::ids::{Attempt, BatchId, DeviceId, Epoch, HubName, RolloutName};
use twincast_core::message::{MessageId, Outbound};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    Batches as _, LeaseRequest, NotSent, Report, RolloutRegistry as _, Rollouts as _, SendResult,
    Tally,
};
use twincast_core::rollout::{Event, Phase, Rollout, transition};
use twincast_testkit::MemoryStore;
use twincast_testkit::sim::{Effect, Observer, Process};

use crate::gates::Gates;
use crate::world::Plan;

/// The time limit for a command or a takeover to take effect.
const EFFECT_LIMIT: Duration = Duration::from_secs(1);
/// The period of the hubs' and the rollouts' limits.
const MINUTE: Duration = Duration::from_secs(60);

/// The auditor.
pub(crate) struct Auditor {
    plan: Plan,
    /// The store loses the last writes now and then. The auditor then checks only promises
    /// independent of lost writes: targets, quotas, message ids, sums, and the end.
    loses_writes: bool,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    violations: Vec<String>,
    rollouts: BTreeMap<RolloutName, Record>,
    batches: BTreeMap<(RolloutName, BatchId), BatchRecord>,
    devices: BTreeMap<(RolloutName, DeviceId), Sends>,
    /// The periods of lost writes.
    lost_periods: Vec<(Instant, Instant)>,
    /// The time of the last acceptance, by message id.
    accepted_at: BTreeMap<String, Instant>,
    /// The messages accepted in the last minute: time and rollout.
    minutes: BTreeMap<HubName, VecDeque<(Instant, RolloutName)>>,
    /// Marked messages, sent after a late answer of the store: their permits had expired.
    marked: BTreeSet<String>,
    /// The start of an answered stop-all in force.
    halted_since: Option<Instant>,
    published: BTreeMap<String, Value>,
    /// Processes asked to stop; such processes may leave work undone.
    stopping: BTreeSet<String>,
    /// The outcomes at the last check.
    outcomes: BTreeMap<(RolloutName, BatchId), Vec<Outcome>>,
    gates: Gates,
    tally: Figures,
}

/// Counts of events.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) sends: u64,
    pub(crate) accepted: u64,
    pub(crate) repeats: u64,
    pub(crate) takeovers: u64,
    pub(crate) crashes: u64,
    pub(crate) excused: u64,
    pub(crate) feedback: u64,
    pub(crate) gates_failed: u64,
    pub(crate) gates_passed: u64,
}

impl Figures {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sends += other.sends;
        self.accepted += other.accepted;
        self.repeats += other.repeats;
        self.takeovers += other.takeovers;
        self.crashes += other.crashes;
        self.excused += other.excused;
        self.feedback += other.feedback;
        self.gates_failed += other.gates_failed;
        self.gates_passed += other.gates_passed;
    }
}

/// A rollout's record.
struct Record {
    latest: Rollout,
    /// The time from which the rollout must not send.
    stopped_since: Option<Instant>,
    /// The time of the last change, notes excluded.
    moved_at: Instant,
    versions: BTreeSet<u64>,
}

/// The observed facts about a batch.
#[derive(Default)]
struct BatchRecord {
    /// The newest lease, unless released: the process, the lease, and the start.
    holder: Option<(Process, Lease, Instant)>,
    /// The positions with a recorded outcome.
    recorded: BTreeSet<u32>,
    /// All leases.
    leases: BTreeMap<Epoch, LeaseRecord>,
    /// The newest lease of each process. A process may have lost a lease and acquired another.
    newest: BTreeMap<String, Newest>,
}

/// The sends under a single lease.
#[derive(Default)]
struct LeaseRecord {
    /// The recorded positions at the start of the lease.
    recorded_before: BTreeSet<u32>,
    /// Positions possibly at the hub, and not recorded under this lease.
    open: BTreeSet<u32>,
    /// The positions of `open` acknowledged by the hub.
    taken: BTreeSet<u32>,
}

struct Newest {
    epoch: Epoch,
    /// The number of leases in possible use by the process for sends; all count as the newest.
    runs: usize,
}

/// The sends to a device for a rollout.
#[derive(Default)]
struct Sends {
    id: String,
    /// The newest attempt at the device.
    attempt: u16,
    /// The messages of this attempt or a later attempt accepted by the hub.
    accepted: u32,
    /// All messages accepted by the hub.
    ever: u32,
    /// The leases of the sends, and whether the holder of the lease knows about the acceptance.
    under: BTreeMap<Epoch, bool>,
    /// The lease of the last send of each process.
    by: BTreeMap<String, Epoch>,
    /// Tries counting against the engine's limit.
    failed: u32,
    refused: Option<(Outcome, u32)>,
}

impl Auditor {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            loses_writes: !plan.faults.store_forgets.is_empty(),
            plan,
            ledger: Mutex::default(),
        }
    }

    /// Returns all violations.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.ledger().violations.clone()
    }

    pub(crate) fn figures(&self) -> Figures {
        self.ledger().tally
    }

    /// Records a request to a process to stop.
    pub(crate) fn stopping(&self, process: &str) {
        self.ledger().stopping.insert(process.to_owned());
    }

    pub(crate) fn crashed(&self) {
        self.ledger().tally.crashes += 1;
    }

    /// Records a violation.
    pub(crate) fn add_violation(&self, what: String) {
        self.ledger().violations.push(what);
    }

    /// Records an answered stop-all in force.
    pub(crate) fn halted(&self) {
        self.ledger().halted_since.get_or_insert_with(Instant::now);
    }

    /// Records a loss of the store's writes of this period.
    pub(crate) async fn lost_writes(&self, store: &MemoryStore, lost: Duration) {
        let names = store.rollouts().await.expect("memory does not fail");
        let mut stored = Vec::new();
        for name in names {
            stored.extend(store.rollout(&name).await.expect("memory does not fail"));
        }
        let mut ledger = self.ledger();
        ledger.rollouts.clear();
        for rollout in &stored {
            ledger.is_now(rollout);
        }
        let now = Instant::now();
        ledger.lost_periods.push((now - lost, now));
        let halted = store.halted().now_or_never().and_then(Result::ok).flatten();
        if halted.is_none() {
            ledger.halted_since = None;
        }
    }

    /// Returns true if the store has lost writes since this time.
    pub(crate) fn has_lost_writes_since(&self, since: Instant) -> bool {
        let ledger = self.ledger();
        let mut periods = ledger.lost_periods.iter();
        periods.any(|(_, lost_at)| *lost_at >= since)
    }

    /// Returns a rollout as stored.
    pub(crate) fn stored(&self, name: &RolloutName) -> Option<Rollout> {
        let ledger = self.ledger();
        ledger
            .rollouts
            .get(name)
            .map(|record| record.latest.clone())
    }

    /// Checks a published event.
    pub(crate) fn published(&self, by: &Process, topic: &str, event: &Value) {
        if !self.loses_writes {
            self.ledger().published(by, topic, event);
        }
    }

    /// Checks the promises valid at any time, against the store.
    pub(crate) async fn check_now(&self, store: &MemoryStore, age: Duration) {
        for name in store.rollouts().await.expect("memory does not fail") {
            let rollout = store.rollout(&name).await.expect("memory does not fail");
            let rollout = rollout.expect("the listed rollout exists");
            self.check_rollout(store, &rollout, age, false).await;
        }
    }

    /// Checks the promises valid at the end.
    pub(crate) async fn check_end(&self, store: &MemoryStore, age: Duration) {
        let active = store.active().await.expect("memory does not fail");
        if !active.is_empty() {
            self.add_violation(format!("{active:?} are still in the registry"));
        }
        for of in &self.plan.rollouts {
            let rollout = store.rollout(&of.name).await.expect("memory does not fail");
            match rollout {
                Some(rollout) => self.check_rollout(store, &rollout, age, true).await,
                None => self.add_violation(format!("{} was never created", of.name)),
            }
        }
        self.ledger().all_published();
    }

    async fn check_rollout(
        &self,
        store: &MemoryStore,
        rollout: &Rollout,
        age: Duration,
        at_end: bool,
    ) {
        let name = &rollout.spec.name;
        let batches = store.batches(name, None, usize::MAX).await;
        let batches = batches.expect("memory does not fail");
        let tallies = store.tallies(name).await.expect("memory does not fail");
        let mut counts = Counts::default();
        let mut planned = BTreeMap::<HubName, BTreeSet<DeviceId>>::new();
        let mut twice = 0;
        for batch in &batches {
            let work = store.load(name, batch.header.id).await;
            let work = work.expect("the listed batch exists");
            let outcomes: Vec<_> = work.outcomes.iter().collect();
            let devices: Vec<_> = work
                .batch
                .devices
                .iter()
                .map(|id| DeviceId::new(id).expect("an id"))
                .collect();
            let mut recount = Counts::default();
            for outcome in &outcomes {
                let mut one = Counts::pending(1);
                one.shift(Outcome::Pending, *outcome);
                recount.add(&one);
            }
            if recount != batch.counts {
                self.add_violation(format!(
                    "the counts of {name}/{} have drifted",
                    batch.header.id
                ));
            }
            counts.add(&recount);
            let id = batch.header.id;
            self.ledger()
                .agrees(&self.plan, rollout, id, age, &devices, &outcomes);
            let set = planned.entry(batch.header.hub.clone()).or_default();
            for device in devices {
                twice += usize::from(!set.insert(device));
            }
        }
        let untouched = |tally: &Tally| {
            // A hub may still report on a send forgotten by the store.
            let is_untouched = |outcome: Outcome| match outcome {
                Outcome::Pending | Outcome::Skipped => true,
                reported => self.loses_writes && reported > Outcome::Enqueued,
            };
            tally.counts.sum_of(is_untouched) == tally.counts.total()
        };
        let early = tallies
            .iter()
            .find(|tally| tally.stage > rollout.stage() && !untouched(tally));
        if let Some(tally) = early
            && !matches!(
                rollout.phase,
                Phase::Aborting { .. } | Phase::Aborted { .. }
            )
        {
            let stage = tally.stage;
            self.add_violation(format!(
                "stage {stage} of {name} was sent to before its time"
            ));
        }
        if Tally::sum(&tallies) != counts {
            self.add_violation(format!("the tallies of {name} have drifted"));
        }
        if rollout.plan.is_some() {
            // A rollout without devices at the start fails.
            let is_over = matches!(rollout.phase, Phase::Aborted { .. } | Phase::Failed { .. });
            let is_whole = at_end && !is_over;
            self.is_target(name, &planned, twice, is_whole);
        }
        if at_end {
            self.has_ended(rollout, &counts);
        }
    }

    /// Checks a complete plan: exactly the devices of the target, each once. With devices that come
    /// and go, the plan has no other devices, and at the end all devices that joined before the
    /// last scan and stayed.
    fn is_target(
        &self,
        name: &RolloutName,
        planned: &BTreeMap<HubName, BTreeSet<DeviceId>>,
        twice: usize,
        is_whole: bool,
    ) {
        let of = self.plan.rollout(name);
        let of = of.expect("only planned rollouts are started");
        let target = &of.target;
        let meant = target.iter().filter(|(_, devices)| !devices.is_empty());
        let is_right = match of.until {
            None => meant.eq(planned.iter()),
            Some(until) => {
                let is_in = |devices: &BTreeMap<HubName, BTreeSet<DeviceId>>, hub, device| {
                    devices.get(hub).is_some_and(|on| on.contains(device))
                };
                let from = if is_whole { until } else { Duration::ZERO };
                let others = planned.iter().any(|(hub, devices)| {
                    let mut devices = devices.iter();
                    devices.any(|device| !is_in(target, hub, device))
                });
                let missing = target.iter().any(|(hub, devices)| {
                    let mut devices = devices.iter();
                    devices.any(|device| {
                        self.plan.stays(hub, device, from) && !is_in(planned, hub, device)
                    })
                });
                !others && !missing
            }
        };
        if twice > 0 || !is_right {
            self.add_violation(format!(
                "the plan of {name} has {planned:?}, {twice} of them twice, and means {target:?}"
            ));
        }
    }

    fn has_ended(&self, rollout: &Rollout, counts: &Counts) {
        let name = &rollout.spec.name;
        let untouched = counts.get(Outcome::Pending);
        let has_failed = matches!(rollout.phase, Phase::Failed { .. });
        let sent_or_skipped = counts.unsettled() == 0 || has_failed;
        // Feedback after the end changes counts, but not the phase.
        let mut events = rollout.history.iter().rev().map(|entry| &entry.event);
        let at_its_end = events.find_map(|event| match event {
            Event::AllSettled { counts } => Some(*counts),
            _ => None,
        });
        let then = at_its_end.unwrap_or(*counts);
        let as_it_should = match &rollout.phase {
            Phase::Succeeded => {
                let moves = rollout.spec.continuous.is_some();
                then.failed() == 0 && (moves || then.get(Outcome::Skipped) == 0)
            }
            Phase::FinishedWithFailures => then.failed() > 0,
            Phase::Aborted { .. } => true,
            // An abandoned planning try may leave batches.
            Phase::Failed { .. } => untouched == counts.total(),
            _ => false,
        };
        if !sent_or_skipped || !as_it_should {
            let phase = rollout.phase.as_str();
            self.add_violation(format!("{name} is {phase} at the end, with {counts:?}"));
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Auditor {
    fn observe(&self, by: &Process, what: &Effect<'_>) {
        let mut ledger = self.ledger();
        let window = self.plan.worker.window;
        if self.loses_writes {
            match what {
                Effect::Saved(rollout) => return ledger.is_now(rollout),
                Effect::Planned(..)
                | Effect::Merged(..)
                | Effect::Reopened(..)
                | Effect::Skipped(..)
                | Effect::FeedbackScheduled(..)
                | Effect::FeedbackHandedOut(..)
                | Effect::FeedbackCompleted(..)
                | Effect::Released(..) => return,
                Effect::Recorded(lease, reports) => return ledger.recorded(lease, reports),
                _ => {}
            }
        }
        match what {
            Effect::Saved(rollout) if ledger.is_note(rollout) => {}
            Effect::Saved(rollout) => {
                ledger.saved(by, rollout);
                ledger.counts_gates(rollout);
                let saved = ledger.gates.saved(&self.plan, by, rollout);
                ledger.check(saved);
            }
            Effect::Planned(name, batches) => {
                let planned = ledger.gates.planned(&self.plan, name, batches);
                ledger.check(planned);
            }
            Effect::Merged(name, id, batch, attempt, reports) => {
                ledger.tally.feedback += reports.len() as u64;
                let of = (*name, *id);
                let merged = ledger
                    .gates
                    .merged(&self.plan, of, *batch, *attempt, reports);
                ledger.check(merged);
            }
            Effect::Reopened(name, batch, attempt, outcomes, devices) => {
                let lowered = ledger
                    .gates
                    .reopened(&self.plan, name, *batch, *attempt, outcomes, *devices);
                match lowered {
                    Ok(lowered) => ledger.reopened(name, *batch, *attempt, &lowered),
                    Err(violation) => ledger.add_violation(violation),
                }
            }
            Effect::Skipped(name, batch, which) => {
                let skipped = ledger.gates.skipped(&self.plan, name, *batch, which);
                ledger.check(skipped);
            }
            Effect::FeedbackScheduled(_, record, reported_at) => {
                ledger.gates.feedback_scheduled(record, *reported_at);
            }
            Effect::FeedbackHandedOut(_, records) => ledger.gates.feedback_handed_out(records),
            Effect::FeedbackCompleted(_, records) => {
                let completed = ledger.gates.feedback_completed(records);
                ledger.check(completed);
            }
            Effect::Leased(request, lease) => ledger.leased(by, request, lease),
            Effect::Recorded(lease, reports) => {
                ledger.recorded(lease, reports);
                let recorded = ledger.gates.recorded(&self.plan, lease, reports);
                ledger.check(recorded);
            }
            Effect::Released(lease) => {
                ledger.released(by, lease, self.plan.worker.give_up.is_some());
            }
            Effect::Halted(true) => {}
            Effect::Halted(false) => ledger.halted_since = None,
            Effect::Sending(hub, message) => ledger.sending(&self.plan, by, hub, message),
            Effect::Accepted(hub, message) => ledger.accepted(&self.plan, hub, message),
            Effect::Answered(_, message, result) => ledger.answered(by, message, result),
            Effect::InFlight(hub, many) => {
                let most = self.plan.worker.slots * window;
                if *many > most {
                    ledger.add_violation(format!(
                        "{by} has {many} sends under way to {hub}, of {most}"
                    ));
                }
            }
            Effect::Waiting(hub, many) => {
                if *many > self.plan.queue_capacity() {
                    ledger.add_violation(format!("{many} dispatches wait on the queue of {hub}"));
                }
            }
        }
    }
}

impl Ledger {
    fn add_violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn check(&mut self, result: Result<(), String>) {
        self.violations.extend(result.err());
    }

    fn counts_gates(&mut self, rollout: &Rollout) {
        match rollout.change_entry().map(|entry| &entry.event) {
            Some(Event::GateFailed { .. }) => self.tally.gates_failed += 1,
            Some(Event::StagePassed { .. }) => self.tally.gates_passed += 1,
            _ => {}
        }
    }

    /// Returns true if a save changed only the notes on a rollout: no event happened.
    fn is_note(&mut self, rollout: &Rollout) -> bool {
        let name = &rollout.spec.name;
        let Some(before) = self.rollouts.get_mut(name) else {
            return false;
        };
        if before.latest.version != rollout.version {
            return false;
        }
        before.latest.notes = rollout.notes.clone();
        if before.latest != *rollout {
            self.violations
                .push(format!("{name} changed, and its version did not"));
        }
        true
    }

    /// Accepts a rollout's record without comparing the earlier record.
    fn is_now(&mut self, rollout: &Rollout) {
        let before = self.rollouts.get(&rollout.spec.name);
        let stopped_since = match rollout.phase {
            Phase::Running if rollout.retry.is_none() => None,
            _ => before
                .and_then(|before| before.stopped_since)
                .or_else(|| Some(Instant::now())),
        };
        let record = Record {
            latest: rollout.clone(),
            stopped_since,
            moved_at: Instant::now(),
            versions: BTreeSet::new(),
        };
        self.rollouts.insert(rollout.spec.name.clone(), record);
    }

    fn saved(&mut self, by: &Process, rollout: &Rollout) {
        let name = &rollout.spec.name;
        let phase = rollout.phase.as_str();
        by.sim().note(format_args!(
            "{by} moves {name} to {phase}, version {}",
            rollout.version
        ));
        let spent = rollout.time_spent(rollout.changed_at).total();
        if spent < rollout.changed_at.since(rollout.created_at) {
            self.violations.push(format!(
                "{name} has spent {spent:?} from {} to {}",
                rollout.created_at, rollout.changed_at
            ));
        }
        let before = self.rollouts.get(name);
        let expected = before.map_or(1, |before| before.latest.version.0 + 1);
        if rollout.version.0 != expected {
            let found = rollout.version;
            self.violations
                .push(format!("{name} went to version {found}, not {expected}"));
        }
        let replaced = before.is_some_and(|before| {
            let failed = matches!(before.latest.phase, Phase::Failed { .. });
            failed && rollout.phase == Phase::Accepted
        });
        if let Some(before) = before
            && !replaced
        {
            let is_resumed = matches!(before.latest.phase, Phase::Paused { .. })
                && rollout.phase == Phase::Running;
            if is_resumed && self.halted_since.is_some_and(|since| by.started() > since) {
                self.violations
                    .push(format!("{by} resumes {name} while all is stopped"));
            }
            if before.latest.spec != rollout.spec {
                self.violations.push(format!("the spec of {name} changed"));
            }
            let led_to = match rollout.change_entry() {
                Some(entry) => transition(&before.latest.phase, &entry.event),
                None => Ok(before.latest.phase.clone()),
            };
            // A pause requested before planning takes effect once the plan is complete.
            let led_to = match (led_to, &before.latest.pause_after_planning) {
                (Ok(Phase::Running), Some(reason)) if before.latest.plan.is_none() => {
                    let reason = reason.clone();
                    Ok(Phase::Paused { reason })
                }
                (led_to, _) => led_to,
            };
            if led_to.as_ref() != Ok(&rollout.phase) {
                let from = before.latest.phase.as_str();
                self.violations
                    .push(format!("{name} went from {from} to {phase}"));
            }
        }
        let stopped_since = match rollout.phase {
            Phase::Running if rollout.retry.is_none() => None,
            _ => before
                .and_then(|before| before.stopped_since)
                .or_else(|| Some(Instant::now())),
        };
        let mut versions = before.map_or_else(BTreeSet::new, |before| before.versions.clone());
        if rollout.change_entry().is_some() {
            versions.insert(rollout.version.0);
        }
        let record = Record {
            latest: rollout.clone(),
            stopped_since,
            moved_at: Instant::now(),
            versions,
        };
        self.rollouts.insert(name.clone(), record);
    }

    fn leased(&mut self, by: &Process, request: &LeaseRequest, lease: &Lease) {
        let key = (lease.rollout.clone(), lease.batch);
        let work = self.batches.entry(key).or_default();
        let again = work
            .holder
            .as_ref()
            .is_some_and(|(_, held, _)| held.holder == request.holder);
        if work.holder.is_some() && !again {
            self.tally.takeovers += 1;
        }
        let still_running = work
            .holder
            .as_ref()
            .is_some_and(|(process, ..)| process.name() == by.name() && !again);
        let newest = work.newest.entry(by.name().to_owned()).or_insert(Newest {
            epoch: lease.epoch,
            runs: 0,
        });
        newest.epoch = lease.epoch;
        newest.runs = if still_running { newest.runs + 1 } else { 1 };
        let lease_record = LeaseRecord {
            recorded_before: work.recorded.clone(),
            ..LeaseRecord::default()
        };
        work.leases.insert(lease.epoch, lease_record);
        work.holder = Some((by.clone(), lease.clone(), Instant::now()));
    }

    fn recorded(&mut self, lease: &Lease, reports: &[Report]) {
        let Some(work) = self.batches.get_mut(&(lease.rollout.clone(), lease.batch)) else {
            return;
        };
        let lease_record = work.leases.entry(lease.epoch).or_default();
        for report in reports.iter().filter(|report| report.outcome.is_settled()) {
            work.recorded.insert(report.index);
            lease_record.open.remove(&report.index);
            lease_record.taken.remove(&report.index);
        }
    }

    /// Records a reopened batch, with the devices to be sent to again.
    fn reopened(
        &mut self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        lowered: &[(u32, DeviceId)],
    ) {
        if lowered.is_empty() {
            return;
        }
        // The outcomes may be lower now.
        self.outcomes.remove(&(name.clone(), batch));
        let work = self.batches.entry((name.clone(), batch)).or_default();
        work.holder = None;
        for (index, device) in lowered {
            work.recorded.remove(index);
            for lease_record in work.leases.values_mut() {
                lease_record.open.remove(index);
                lease_record.taken.remove(index);
            }
            let sends = self.devices.entry((name.clone(), device.clone()));
            let sends = sends.or_default();
            *sends = Sends {
                attempt: attempt.0,
                ever: sends.ever,
                ..Sends::default()
            };
        }
    }

    fn released(&mut self, by: &Process, lease: &Lease, gives_up: bool) {
        let Some(work) = self.batches.get_mut(&(lease.rollout.clone(), lease.batch)) else {
            return;
        };
        let taken = work
            .leases
            .get(&lease.epoch)
            .map(|lease_record| &lease_record.taken);
        // With two runs in a process, the run behind each send is unknown.
        let runs = work.newest.get(by.name()).map_or(0, |newest| newest.runs);
        if let Some(taken) = taken.filter(|taken| !taken.is_empty())
            && runs == 1
            && !self.stopping.contains(by.name())
            && !gives_up
        {
            let batch = format!("{}/{}", lease.rollout, lease.batch);
            self.violations.push(format!(
                "{by} lets go of {batch} with {taken:?} not recorded"
            ));
        }
        work.holder
            .take_if(|(_, held, _)| held.epoch == lease.epoch);
    }

    fn sending(&mut self, plan: &Plan, by: &Process, hub: &HubName, message: &Outbound) {
        self.tally.sends += 1;
        let id: MessageId = message.id.parse().expect("a valid message id");
        let about = format!("{}/{}", id.rollout, id.batch);
        let Some(of) = plan.rollouts.iter().find(|of| of.name == id.rollout) else {
            return self.add_violation(format!(
                "a message for {}, which nobody started",
                id.rollout
            ));
        };
        let loses_writes = !plan.faults.store_forgets.is_empty();
        if !loses_writes {
            let in_time = self.gates.sending(&id);
            self.check(in_time);
        }
        let (late, notes) = self.is_late(by, of.at_most_once, &id);
        if late {
            self.violations.push(format!(
                "{by} sends {} to {}: {notes}",
                message.id, message.device
            ));
        }
        let meant = of.target.get(hub);
        if !meant.is_some_and(|meant| meant.contains(&message.device)) {
            self.violations.push(format!(
                "{} is sent to {}, which is not meant",
                id.rollout, message.device
            ));
        }
        if message.content.body != of.name.as_str() {
            self.violations
                .push(format!("{} is sent something else", message.device));
        }
        let window = plan.worker.window;
        let Some(work) = self.batches.get_mut(&(id.rollout.clone(), id.batch)) else {
            return self.add_violation(format!("{by} sends {about} and never leased it"));
        };
        let Some(newest) = work.newest.get(by.name()) else {
            return self.add_violation(format!("{by} sends {about} and never leased it"));
        };
        let (epoch, runs) = (newest.epoch, newest.runs);
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        let is_newer = |old: &str| {
            let old: MessageId = old.parse().expect("a valid message id");
            let same = MessageId {
                attempt: id.attempt,
                ..old.clone()
            };
            same == id && old.attempt < id.attempt
        };
        if !sends.id.is_empty() && sends.id != message.id && !is_newer(&sends.id) {
            let (old, new) = (&sends.id, &message.id);
            self.violations
                .push(format!("{} was sent {old} and now {new}", message.device));
        }
        sends.id.clone_from(&message.id);
        let lease_record = work.leases.entry(epoch).or_default();
        let is_known = sends.under.get(&epoch).copied().unwrap_or(false) && runs == 1
            || lease_record.recorded_before.contains(&id.index);
        if sends.accepted > 0 && (is_known || of.at_most_once) && !loses_writes {
            self.violations.push(format!(
                "{by} sends {} again, which {} is known to have",
                message.id, message.device
            ));
        }
        sends.under.entry(epoch).or_insert(false);
        sends.by.insert(by.name().to_owned(), epoch);
        lease_record.open.insert(id.index);
        let open = lease_record.open.len();
        if open > window * runs && !loses_writes {
            self.violations.push(format!(
                "{by} has {open} devices of {about} sent and not recorded"
            ));
        }
    }

    /// Returns whether a send comes too late, and the reason.
    fn is_late(&mut self, by: &Process, once: bool, id: &MessageId) -> (bool, String) {
        let now = Instant::now();
        let mut since = Vec::new();
        match self.rollouts.get(&id.rollout) {
            None => return (true, "there is no such rollout".into()),
            Some(record) => {
                let phase = record.latest.phase.as_str();
                since.extend(record.stopped_since.map(|since| (since, phase.to_owned())));
                // A move to running during a stop-all is detected only afterwards, so the limit
                // counts from the move.
                let halted_since = self.halted_since.map(|since| since.max(record.moved_at));
                since.extend(halted_since.map(|since| (since, "all is stopped".to_owned())));
            }
        }
        let work = self.batches.get(&(id.rollout.clone(), id.batch));
        if let Some((holder, _, at)) = work.and_then(|work| work.holder.as_ref())
            && holder.name() != by.name()
            && self.lost_periods.is_empty()
        {
            since.push((*at, format!("{holder} has the batch")));
        }
        // A marked message is sent however long the store took to confirm the mark; without the
        // send, the message would be lost.
        let about = format!("{}/{}", id.rollout, id.batch);
        let marked = by.troubled_until(&[("batch", &about), ("record outcomes in", &about)]);
        let is_marked = once && marked.is_some_and(|until| now <= until + EFFECT_LIMIT);
        if is_marked {
            self.marked.insert(id.to_string());
        }
        for (since, why) in since {
            if now <= since + EFFECT_LIMIT {
                continue;
            }
            if !is_marked {
                return (true, format!("{why} for {:?}", now - since));
            }
            self.tally.excused += 1;
        }
        (false, String::new())
    }

    fn accepted(&mut self, plan: &Plan, hub: &HubName, message: &Outbound) {
        let now = Instant::now();
        self.tally.accepted += 1;
        let id: MessageId = message.id.parse().expect("a valid message id");
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        sends.ever += 1;
        // A message of an earlier attempt may still be in transit.
        if id.attempt.0 >= sends.attempt {
            sends.accepted += 1;
        }
        if sends.accepted > 1 {
            self.tally.repeats += 1;
        }
        if let Some(before) = self.accepted_at.insert(message.id.clone(), now)
            && !plan.faults.store_forgets.is_empty()
            && !self.may_be_lost(before)
        {
            let (id, device) = (&message.id, &message.device);
            self.violations.push(format!(
                "{device} was sent {id} twice, and nothing was forgotten"
            ));
        }
        if self.marked.contains(&message.id) {
            return;
        }
        let minute = self.minutes.entry(hub.clone()).or_default();
        minute.push_back((now, id.rollout.clone()));
        while minute.front().is_some_and(|(at, _)| *at + MINUTE <= now) {
            minute.pop_front();
        }
        let all = minute.len() as f64;
        let own = minute.iter().filter(|(_, of)| *of == id.rollout).count() as f64;
        let quota = plan.quota(hub);
        if all > quota {
            self.violations.push(format!(
                "{hub} took {all} messages in a minute, of {quota}: {:?}",
                minute
                    .iter()
                    .map(|m| m.0.duration_since(minute[0].0).as_secs_f64())
                    .collect::<Vec<_>>()
            ));
        }
        let rate = plan.rate(&id.rollout);
        if own > rate {
            let name = &id.rollout;
            self.violations.push(format!(
                "{hub} took {own} messages of {name} in a minute, of {rate}"
            ));
        }
    }

    /// Returns true if the record of a message accepted at this moment may be lost.
    fn may_be_lost(&self, accepted_at: Instant) -> bool {
        // A record follows within moments.
        const RECORDED_WITHIN: Duration = Duration::from_secs(2);
        let mut periods = self.lost_periods.iter();
        periods.any(|(from, to)| {
            (*from - RECORDED_WITHIN..=*to + RECORDED_WITHIN).contains(&accepted_at)
        })
    }

    fn answered(&mut self, by: &Process, message: &Outbound, result: &SendResult) {
        let id: MessageId = message.id.parse().expect("a valid message id");
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        let work = self.batches.entry((id.rollout, id.batch)).or_default();
        let Some(epoch) = sends.by.get(by.name()) else {
            return;
        };
        let lease_record = work.leases.entry(*epoch).or_default();
        match result {
            SendResult::Enqueued => {
                sends.under.insert(*epoch, true);
                if lease_record.open.contains(&id.index) {
                    lease_record.taken.insert(id.index);
                }
            }
            SendResult::Unknown { .. } => sends.failed += 1,
            SendResult::Final { outcome, code, .. } => sends.refused = Some((*outcome, *code)),
            SendResult::NotSent { cause, .. } => {
                sends.failed += u32::from(matches!(cause, NotSent::Refused(_)));
            }
            SendResult::HubUnavailable { .. } => {}
        }
    }

    /// Checks that the stored outcomes of a batch only rise, and agree with the hub.
    fn agrees(
        &mut self,
        plan: &Plan,
        rollout: &Rollout,
        batch: BatchId,
        age: Duration,
        devices: &[DeviceId],
        outcomes: &[Outcome],
    ) {
        let name = &rollout.spec.name;
        let loses_writes = !plan.faults.store_forgets.is_empty();
        if !loses_writes {
            let agreed = self.gates.agrees(name, batch, outcomes);
            self.check(agreed);
        }
        let before = self
            .outcomes
            .insert((name.clone(), batch), outcomes.to_vec())
            .filter(|before| before.len() == outcomes.len())
            .unwrap_or_default();
        let tries = u32::from(plan.worker.tries);
        let once = plan
            .rollouts
            .iter()
            .any(|of| of.name == *name && of.at_most_once);
        let none = Sends::default();
        for (index, (device, outcome)) in devices.iter().zip(outcomes).enumerate() {
            let sends = self.devices.get(&(name.clone(), device.clone()));
            let sends = sends.unwrap_or(&none);
            let work = self.batches.get(&(name.clone(), batch));
            let is_open = work.is_some_and(|work| {
                let index = index as u32;
                work.leases
                    .values()
                    .any(|lease_record| lease_record.open.contains(&index))
            });
            let agrees = match outcome {
                Outcome::Pending | Outcome::Attempting => {
                    sends.accepted == 0 || is_open || loses_writes
                }
                Outcome::Skipped if loses_writes => true,
                Outcome::Skipped => {
                    let is_aborted = matches!(
                        rollout.phase,
                        Phase::Aborting { .. } | Phase::Aborted { .. }
                    );
                    let has_left = plan.hubs.iter().any(|of| !of.hub.has(device, age));
                    (is_aborted || has_left) && (sends.accepted == 0 || is_open)
                }
                Outcome::Unknown => once || sends.failed >= tries,
                Outcome::NotFound | Outcome::QueueFull => sends.refused == Some((*outcome, 0)),
                Outcome::Refused => sends.refused.is_some() || sends.failed >= tries,
                _ => sends.ever > 0,
            };
            let fell = !loses_writes && before.get(index).is_some_and(|before| before > outcome);
            if !agrees || fell {
                let accepted = sends.accepted;
                self.violations.push(format!(
                    "{device} of {name}/{batch} is {outcome}, and the hub has {accepted} messages for it"
                ));
            }
        }
    }

    fn published(&mut self, by: &Process, topic: &str, event: &Value) {
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        // Events of an earlier rollout of the same name are published in the trace of the present
        // rollout.
        let mut event = event.clone();
        event.as_object_mut().map(|it| it.remove("traceparent"));
        let event = &event;
        by.sim().note(format_args!("{by} publishes {topic} {id}"));
        if self
            .published
            .get(&id)
            .is_some_and(|before| before != event)
        {
            self.violations.push(format!(
                "there are two events {id}: {event}, {:?}",
                self.published[&id]
            ));
        }
        let Some((name, version)) = id.rsplit_once('/') else {
            return self.add_violation(format!("an event without an id: {event}"));
        };
        let version: u64 = version.parse().unwrap_or_default();
        let name = twincast_testkit::build::name(name);
        if topic
            != format!(
                "rollout.{}",
                event["data"]["phase"].as_str().unwrap_or_default()
            )
        {
            self.violations
                .push(format!("the topic of {id} is {topic}"));
        }
        let stored = self.rollouts.get(&name);
        if !stored.is_some_and(|stored| stored.versions.contains(&version)) {
            self.violations
                .push(format!("{id} was published and never happened"));
        }
        let earlier = stored
            .into_iter()
            .flat_map(|stored| stored.versions.range(..version));
        for earlier in earlier {
            let earlier = format!("{name}/{earlier}");
            if !self.published.contains_key(&earlier) {
                self.violations
                    .push(format!("{id} was published before {earlier}"));
            }
        }
        self.published.insert(id, event.clone());
    }

    fn all_published(&mut self) {
        let mut unpublished = Vec::new();
        for (name, record) in &self.rollouts {
            for version in &record.versions {
                let id = format!("{name}/{version}");
                if !self.published.contains_key(&id) {
                    unpublished.push(id);
                }
            }
        }
        if !unpublished.is_empty() {
            self.add_violation(format!("not published: {unpublished:?}"));
        }
    }
}
