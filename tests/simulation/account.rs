//! The account of a simulated world: what really happened, and whether it may.
//!
//! The account sees every effect in the store and every message that a hub takes. The promises of
//! the engine are checked against it: some at the moment in which they could be broken, the others
//! now and then, and at the end.

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
    Batches as _, LeaseRequest, NotSent, Report, Rollouts as _, Roster as _, SendResult, Tally,
};
use twincast_core::rollout::{Event, Phase, Rollout, transition};
use twincast_testkit::MemoryStore;
use twincast_testkit::sim::{Process, Watch, Witnessed};

use crate::gates::Gates;
use crate::world::Plan;

/// What is to have taken hold takes hold within this time.
const TAKES_HOLD: Duration = Duration::from_secs(1);
/// The hubs' and the rollouts' limits are per this time.
const MINUTE: Duration = Duration::from_secs(60);

/// The account.
pub(crate) struct Account {
    plan: Plan,
    /// The store forgets its last writes, now and then. Then the account checks what must hold all the same: targets,
    /// quotas, message ids, sums, and the end.
    forgetful: bool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    wrong: Vec<String>,
    rollouts: BTreeMap<RolloutName, Record>,
    batches: BTreeMap<(RolloutName, BatchId), Work>,
    devices: BTreeMap<(RolloutName, DeviceId), Sends>,
    /// When the store has lost its writes: from when on, and at which moment.
    forgotten: Vec<(Instant, Instant)>,
    /// When a message was last accepted.
    accepted_at: BTreeMap<String, Instant>,
    /// When which rollout's messages were accepted in the last minute.
    minutes: BTreeMap<HubName, VecDeque<(Instant, RolloutName)>>,
    /// Messages that were marked, and sent when the store had answered at last: what their permits stood for was over.
    marked: BTreeSet<String>,
    /// Since when a stop-all is in force that was answered.
    halted_since: Option<Instant>,
    told: BTreeMap<String, Value>,
    /// Processes that were told to stop: they may leave things undone.
    stopping: BTreeSet<String>,
    /// The outcomes when they were looked at last.
    outcomes: BTreeMap<(RolloutName, BatchId), Vec<Outcome>>,
    gates: Gates,
    tally: Figures,
}

/// How much happened.
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
    /// Since when nothing of it is to be sent.
    stopped_since: Option<Instant>,
    /// When it was last moved.
    moved_at: Instant,
    versions: BTreeSet<u64>,
}

/// What is known of a batch.
#[derive(Default)]
struct Work {
    /// The newest lease, unless it was given back: whose, which, since when.
    holder: Option<(Process, Lease, Instant)>,
    /// The positions of which it is recorded what became of them.
    recorded: BTreeSet<u32>,
    /// Every lease that there was.
    terms: BTreeMap<Epoch, Term>,
    /// The newest lease of each process. A process may have lost one and got another.
    newest: BTreeMap<String, Newest>,
}

/// What was done under one lease.
#[derive(Default)]
struct Term {
    /// What was recorded when it began.
    recorded_before: BTreeSet<u32>,
    /// What the hub may have and is not recorded under this lease.
    open: BTreeSet<u32>,
    /// What the hub has said to have, of that.
    taken: BTreeSet<u32>,
}

struct Newest {
    epoch: Epoch,
    /// How many leases it may be sending under, all counted as the newest.
    runs: usize,
}

/// What was sent to a device for a rollout.
#[derive(Default)]
struct Sends {
    id: String,
    /// The attempt that it was chosen for last.
    attempt: u16,
    /// Messages of that attempt, or a later one, that the hub has.
    accepted: u32,
    /// All messages that the hub has.
    ever: u32,
    /// The leases under which it was sent, and whether it is known there that the hub has it.
    under: BTreeMap<Epoch, bool>,
    /// The lease under which each process sent it last.
    by: BTreeMap<String, Epoch>,
    /// Tries that count against the engine's limit.
    failed: u32,
    refused: Option<(Outcome, u32)>,
}

impl Account {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            forgetful: !plan.faults.store_forgets.is_empty(),
            plan,
            books: Mutex::default(),
        }
    }

    /// Whatever was found to be wrong.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.books().wrong.clone()
    }

    pub(crate) fn figures(&self) -> Figures {
        self.books().tally
    }

    /// A process was told to stop.
    pub(crate) fn stopping(&self, process: &str) {
        self.books().stopping.insert(process.to_owned());
    }

    pub(crate) fn crashed(&self) {
        self.books().tally.crashes += 1;
    }

    /// Notes that something is not as promised.
    pub(crate) fn accuse(&self, what: String) {
        self.books().wrong.push(what);
    }

    /// A stop-all was answered, and is in force.
    pub(crate) fn halted(&self) {
        self.books().halted_since.get_or_insert_with(Instant::now);
    }

    /// The store has lost the writes of this time.
    pub(crate) async fn forgot(&self, store: &MemoryStore, lost: Duration) {
        let names = store.rollouts().await.expect("memory does not fail");
        let mut stored = Vec::new();
        for name in names {
            stored.extend(store.rollout(&name).await.expect("memory does not fail"));
        }
        let mut books = self.books();
        books.rollouts.clear();
        for rollout in &stored {
            books.is_now(rollout);
        }
        let now = Instant::now();
        books.forgotten.push((now - lost, now));
        let halted = store.halted().now_or_never().and_then(Result::ok).flatten();
        if halted.is_none() {
            books.halted_since = None;
        }
    }

    /// The spec of a rollout as it is stored.
    pub(crate) fn stored(&self, name: &RolloutName) -> Option<Rollout> {
        let books = self.books();
        books.rollouts.get(name).map(|record| record.latest.clone())
    }

    /// An event was published.
    pub(crate) fn told(&self, by: &Process, topic: &str, event: &Value) {
        if !self.forgetful {
            self.books().told(by, topic, event);
        }
    }

    /// What may be checked at any time, against the store.
    pub(crate) async fn look(&self, store: &MemoryStore, age: Duration) {
        for name in store.rollouts().await.expect("memory does not fail") {
            let rollout = store.rollout(&name).await.expect("memory does not fail");
            let rollout = rollout.expect("it was listed");
            self.look_at(store, &rollout, age, false).await;
        }
    }

    /// What must hold at the end.
    pub(crate) async fn close(&self, store: &MemoryStore, age: Duration) {
        let active = store.active().await.expect("memory does not fail");
        if !active.is_empty() {
            self.accuse(format!("{active:?} are still on the roster"));
        }
        for of in &self.plan.rollouts {
            let rollout = store.rollout(&of.name).await.expect("memory does not fail");
            match rollout {
                Some(rollout) => self.look_at(store, &rollout, age, true).await,
                None => self.accuse(format!("{} was never created", of.name)),
            }
        }
        self.books().all_told();
    }

    async fn look_at(&self, store: &MemoryStore, rollout: &Rollout, age: Duration, at_end: bool) {
        let name = &rollout.spec.name;
        let batches = store.batches(name, None, usize::MAX).await;
        let batches = batches.expect("memory does not fail");
        let tallies = store.tallies(name).await.expect("memory does not fail");
        let mut counts = Counts::default();
        let mut planned = BTreeMap::<HubName, BTreeSet<DeviceId>>::new();
        let mut twice = 0;
        for batch in &batches {
            let work = store.load(name, batch.header.id).await;
            let work = work.expect("it was listed");
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
                self.accuse(format!(
                    "the counts of {name}/{} have drifted",
                    batch.header.id
                ));
            }
            counts.add(&recount);
            let id = batch.header.id;
            self.books()
                .agrees(&self.plan, rollout, id, age, &devices, &outcomes);
            let set = planned.entry(batch.header.hub.clone()).or_default();
            for device in devices {
                twice += usize::from(!set.insert(device));
            }
        }
        let untouched = |tally: &Tally| {
            // What was sent before the store forgot it may be heard of all the same.
            let is_untouched = |outcome: Outcome| match outcome {
                Outcome::Pending | Outcome::Skipped => true,
                heard => self.forgetful && heard > Outcome::Enqueued,
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
            self.accuse(format!(
                "stage {stage} of {name} was sent to before its time"
            ));
        }
        if Tally::sum(&tallies) != counts {
            self.accuse(format!("the tallies of {name} have drifted"));
        }
        if rollout.plan.is_some() {
            // One without any device at its start fails.
            let is_over = matches!(rollout.phase, Phase::Aborted { .. } | Phase::Failed { .. });
            let is_whole = at_end && !is_over;
            self.is_target(name, &planned, twice, is_whole);
        }
        if at_end {
            self.has_ended(rollout, &counts);
        }
    }

    /// A whole plan has the devices that the spec means, each once. Of those that come and go it has no others, and in the end all
    /// that came before the last look and stayed.
    fn is_target(
        &self,
        name: &RolloutName,
        planned: &BTreeMap<HubName, BTreeSet<DeviceId>>,
        twice: usize,
        is_whole: bool,
    ) {
        let of = self.plan.rollout(name).expect("no others are started");
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
            self.accuse(format!(
                "the plan of {name} has {planned:?}, {twice} of them twice, and means {target:?}"
            ));
        }
    }

    fn has_ended(&self, rollout: &Rollout, counts: &Counts) {
        let name = &rollout.spec.name;
        let untouched = counts.get(Outcome::Pending);
        let has_failed = matches!(rollout.phase, Phase::Failed { .. });
        let sent_or_skipped = counts.unsettled() == 0 || has_failed;
        // Devices may be heard of when all is over, and the phase stays.
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
            // A try at planning that was given up may be left.
            Phase::Failed { .. } => untouched == counts.total(),
            _ => false,
        };
        if !sent_or_skipped || !as_it_should {
            let phase = rollout.phase.as_str();
            self.accuse(format!("{name} is {phase} at the end, with {counts:?}"));
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Account {
    fn witness(&self, by: &Process, what: &Witnessed<'_>) {
        let mut books = self.books();
        let window = self.plan.worker.window;
        if self.forgetful {
            match what {
                Witnessed::Saved(rollout) => return books.is_now(rollout),
                Witnessed::Planned(..)
                | Witnessed::Merged(..)
                | Witnessed::Reopened(..)
                | Witnessed::Skipped(..)
                | Witnessed::Posted(..)
                | Witnessed::Reported(..)
                | Witnessed::Completed(..)
                | Witnessed::Released(..) => return,
                Witnessed::Recorded(lease, reports) => return books.recorded(lease, reports),
                _ => {}
            }
        }
        match what {
            Witnessed::Saved(rollout) if books.is_note(rollout) => {}
            Witnessed::Saved(rollout) => {
                books.saved(by, rollout);
                books.counts_gates(rollout);
                let saved = books.gates.saved(&self.plan, by, rollout);
                books.is_right(saved);
            }
            Witnessed::Planned(name, batches) => {
                let planned = books.gates.planned(&self.plan, name, batches);
                books.is_right(planned);
            }
            Witnessed::Merged(name, id, batch, attempt, reports) => {
                books.tally.feedback += reports.len() as u64;
                let of = (*name, *id);
                let merged = books
                    .gates
                    .merged(&self.plan, of, *batch, *attempt, reports);
                books.is_right(merged);
            }
            Witnessed::Reopened(name, batch, attempt, outcomes, devices) => {
                let lowered = books
                    .gates
                    .reopened(&self.plan, name, *batch, *attempt, outcomes, *devices);
                match lowered {
                    Ok(lowered) => books.reopened(name, *batch, *attempt, &lowered),
                    Err(wrong) => books.accuse(wrong),
                }
            }
            Witnessed::Skipped(name, batch, which) => {
                let skipped = books.gates.skipped(&self.plan, name, *batch, which);
                books.is_right(skipped);
            }
            Witnessed::Posted(_, record, told_at) => books.gates.posted(record, *told_at),
            Witnessed::Reported(_, records) => books.gates.reported(records),
            Witnessed::Completed(_, records) => {
                let completed = books.gates.completed(records);
                books.is_right(completed);
            }
            Witnessed::Leased(request, lease) => books.leased(by, request, lease),
            Witnessed::Recorded(lease, reports) => {
                books.recorded(lease, reports);
                let recorded = books.gates.recorded(&self.plan, lease, reports);
                books.is_right(recorded);
            }
            Witnessed::Released(lease) => {
                books.released(by, lease, self.plan.worker.give_up.is_some());
            }
            Witnessed::Halted(true) => {}
            Witnessed::Halted(false) => books.halted_since = None,
            Witnessed::Sending(hub, message) => books.sending(&self.plan, by, hub, message),
            Witnessed::Accepted(hub, message) => books.accepted(&self.plan, hub, message),
            Witnessed::Answered(_, message, result) => books.answered(by, message, result),
            Witnessed::UnderWay(hub, many) => {
                let most = self.plan.worker.slots * window;
                if *many > most {
                    books.accuse(format!(
                        "{by} has {many} sends under way to {hub}, of {most}"
                    ));
                }
            }
            Witnessed::Waiting(hub, many) => {
                if *many > self.plan.longest_line() {
                    books.accuse(format!("{many} dispatches wait on the queue of {hub}"));
                }
            }
        }
    }
}

impl Books {
    fn accuse(&mut self, what: String) {
        self.wrong.push(what);
    }

    fn is_right(&mut self, result: Result<(), String>) {
        self.wrong.extend(result.err());
    }

    fn counts_gates(&mut self, rollout: &Rollout) {
        match rollout.happened().map(|entry| &entry.event) {
            Some(Event::GateFailed { .. }) => self.tally.gates_failed += 1,
            Some(Event::StagePassed { .. }) => self.tally.gates_passed += 1,
            _ => {}
        }
    }

    /// What a rollout does was noted: nothing has happened to it.
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
            self.wrong
                .push(format!("{name} changed, and its version did not"));
        }
        true
    }

    /// Takes a rollout's record as it is, whatever it was before.
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
            self.wrong.push(format!(
                "{name} has spent {spent:?} from {} to {}",
                rollout.created_at, rollout.changed_at
            ));
        }
        let before = self.rollouts.get(name);
        let expected = before.map_or(1, |before| before.latest.version.0 + 1);
        if rollout.version.0 != expected {
            let found = rollout.version;
            self.wrong
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
                self.wrong
                    .push(format!("{by} resumes {name} while all is stopped"));
            }
            if before.latest.spec != rollout.spec {
                self.wrong.push(format!("the spec of {name} changed"));
            }
            let led_to = match rollout.happened() {
                Some(entry) => transition(&before.latest.phase, &entry.event),
                None => Ok(before.latest.phase.clone()),
            };
            // What was to be paused before it had a plan is paused when it has one.
            let led_to = match (led_to, &before.latest.pause) {
                (Ok(Phase::Running), Some(reason)) if before.latest.plan.is_none() => {
                    let reason = reason.clone();
                    Ok(Phase::Paused { reason })
                }
                (led_to, _) => led_to,
            };
            if led_to.as_ref() != Ok(&rollout.phase) {
                let from = before.latest.phase.as_str();
                self.wrong
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
        if rollout.happened().is_some() {
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
        let term = Term {
            recorded_before: work.recorded.clone(),
            ..Term::default()
        };
        work.terms.insert(lease.epoch, term);
        work.holder = Some((by.clone(), lease.clone(), Instant::now()));
    }

    fn recorded(&mut self, lease: &Lease, reports: &[Report]) {
        let Some(work) = self.batches.get_mut(&(lease.rollout.clone(), lease.batch)) else {
            return;
        };
        let term = work.terms.entry(lease.epoch).or_default();
        for report in reports.iter().filter(|report| report.outcome.is_settled()) {
            work.recorded.insert(report.index);
            term.open.remove(&report.index);
            term.taken.remove(&report.index);
        }
    }

    /// A batch is worked on anew, and these devices are sent to again.
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
        // What was seen of it may be lower now.
        self.outcomes.remove(&(name.clone(), batch));
        let work = self.batches.entry((name.clone(), batch)).or_default();
        work.holder = None;
        for (index, device) in lowered {
            work.recorded.remove(index);
            for term in work.terms.values_mut() {
                term.open.remove(index);
                term.taken.remove(index);
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
        let taken = work.terms.get(&lease.epoch).map(|term| &term.taken);
        // Of two runs in one process it is not known which one sent what.
        let runs = work.newest.get(by.name()).map_or(0, |newest| newest.runs);
        if let Some(taken) = taken.filter(|taken| !taken.is_empty())
            && runs == 1
            && !self.stopping.contains(by.name())
            && !gives_up
        {
            let batch = format!("{}/{}", lease.rollout, lease.batch);
            self.wrong.push(format!(
                "{by} lets go of {batch} with {taken:?} not recorded"
            ));
        }
        work.holder
            .take_if(|(_, held, _)| held.epoch == lease.epoch);
    }

    fn sending(&mut self, plan: &Plan, by: &Process, hub: &HubName, message: &Outbound) {
        self.tally.sends += 1;
        let id: MessageId = message.id.parse().expect("an id of ours");
        let about = format!("{}/{}", id.rollout, id.batch);
        let Some(of) = plan.rollouts.iter().find(|of| of.name == id.rollout) else {
            return self.accuse(format!(
                "a message for {}, which nobody started",
                id.rollout
            ));
        };
        let forgetful = !plan.faults.store_forgets.is_empty();
        if !forgetful {
            let in_time = self.gates.sending(&id);
            self.is_right(in_time);
        }
        let (late, notes) = self.is_late(by, of.at_most_once, &id);
        if late {
            self.wrong.push(format!(
                "{by} sends {} to {}: {notes}",
                message.id, message.device
            ));
        }
        let meant = of.target.get(hub);
        if !meant.is_some_and(|meant| meant.contains(&message.device)) {
            self.wrong.push(format!(
                "{} is sent to {}, which is not meant",
                id.rollout, message.device
            ));
        }
        if message.content.body != of.name.as_str() {
            self.wrong
                .push(format!("{} is sent something else", message.device));
        }
        let window = plan.worker.window;
        let Some(work) = self.batches.get_mut(&(id.rollout.clone(), id.batch)) else {
            return self.accuse(format!("{by} sends {about} and never leased it"));
        };
        let Some(newest) = work.newest.get(by.name()) else {
            return self.accuse(format!("{by} sends {about} and never leased it"));
        };
        let (epoch, runs) = (newest.epoch, newest.runs);
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        let is_newer = |old: &str| {
            let old: MessageId = old.parse().expect("an id of ours");
            let same = MessageId {
                attempt: id.attempt,
                ..old.clone()
            };
            same == id && old.attempt < id.attempt
        };
        if !sends.id.is_empty() && sends.id != message.id && !is_newer(&sends.id) {
            let (old, new) = (&sends.id, &message.id);
            self.wrong
                .push(format!("{} was sent {old} and now {new}", message.device));
        }
        sends.id.clone_from(&message.id);
        let term = work.terms.entry(epoch).or_default();
        let is_known = sends.under.get(&epoch).copied().unwrap_or(false) && runs == 1
            || term.recorded_before.contains(&id.index);
        if sends.accepted > 0 && (is_known || of.at_most_once) && !forgetful {
            self.wrong.push(format!(
                "{by} sends {} again, which {} is known to have",
                message.id, message.device
            ));
        }
        sends.under.entry(epoch).or_insert(false);
        sends.by.insert(by.name().to_owned(), epoch);
        term.open.insert(id.index);
        let open = term.open.len();
        if open > window * runs && !forgetful {
            self.wrong.push(format!(
                "{by} has {open} devices of {about} sent and not recorded"
            ));
        }
    }

    /// Whether a send is one that should not be made any more.
    fn is_late(&mut self, by: &Process, once: bool, id: &MessageId) -> (bool, String) {
        let now = Instant::now();
        let mut since = Vec::new();
        match self.rollouts.get(&id.rollout) {
            None => return (true, "there is no such rollout".into()),
            Some(record) => {
                let phase = record.latest.phase.as_str();
                since.extend(record.stopped_since.map(|since| (since, phase.to_owned())));
                // What was on its way to run when all was stopped is found out after that.
                let halted_since = self.halted_since.map(|since| since.max(record.moved_at));
                since.extend(halted_since.map(|since| (since, "all is stopped".to_owned())));
            }
        }
        let work = self.batches.get(&(id.rollout.clone(), id.batch));
        if let Some((holder, _, at)) = work.and_then(|work| work.holder.as_ref())
            && holder.name() != by.name()
            && self.forgotten.is_empty()
        {
            since.push((*at, format!("{holder} has the batch")));
        }
        // What is marked is sent, however long the store took to say that it is marked: it
        // would be lost.
        let about = format!("{}/{}", id.rollout, id.batch);
        let marked = by.troubled_until(&[("batch", &about), ("record outcomes in", &about)]);
        let is_marked = once && marked.is_some_and(|until| now <= until + TAKES_HOLD);
        if is_marked {
            self.marked.insert(id.to_string());
        }
        for (since, why) in since {
            if now <= since + TAKES_HOLD {
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
        let id: MessageId = message.id.parse().expect("an id of ours");
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        sends.ever += 1;
        // One of an attempt before the device was chosen again may be on its way still.
        if id.attempt.0 >= sends.attempt {
            sends.accepted += 1;
        }
        if sends.accepted > 1 {
            self.tally.repeats += 1;
        }
        if let Some(before) = self.accepted_at.insert(message.id.clone(), now)
            && !plan.faults.store_forgets.is_empty()
            && !self.is_forgotten(before)
        {
            let (id, device) = (&message.id, &message.device);
            self.wrong.push(format!(
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
            self.wrong.push(format!(
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
            self.wrong.push(format!(
                "{hub} took {own} messages of {name} in a minute, of {rate}"
            ));
        }
    }

    /// Whether the record of a message may be lost that was accepted at that moment.
    fn is_forgotten(&self, accepted_at: Instant) -> bool {
        // A record follows within moments.
        const RECORDED_WITHIN: Duration = Duration::from_secs(2);
        let mut forgotten = self.forgotten.iter();
        forgotten.any(|(from, to)| {
            (*from - RECORDED_WITHIN..=*to + RECORDED_WITHIN).contains(&accepted_at)
        })
    }

    fn answered(&mut self, by: &Process, message: &Outbound, result: &SendResult) {
        let id: MessageId = message.id.parse().expect("an id of ours");
        let device = (id.rollout.clone(), message.device.clone());
        let sends = self.devices.entry(device).or_default();
        let work = self.batches.entry((id.rollout, id.batch)).or_default();
        let Some(epoch) = sends.by.get(by.name()) else {
            return;
        };
        let term = work.terms.entry(*epoch).or_default();
        match result {
            SendResult::Enqueued => {
                sends.under.insert(*epoch, true);
                if term.open.contains(&id.index) {
                    term.taken.insert(id.index);
                }
            }
            SendResult::Unknown { .. } => sends.failed += 1,
            SendResult::Final { outcome, code, .. } => sends.refused = Some((*outcome, *code)),
            SendResult::NotSent { cause, .. } => {
                sends.failed += u32::from(matches!(cause, NotSent::Refused(_)));
            }
            SendResult::HubShut { .. } => {}
        }
    }

    /// The stored outcomes of a batch only rise, and are what the hub knows, too.
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
        let forgetful = !plan.faults.store_forgets.is_empty();
        if !forgetful {
            let as_told = self.gates.agrees(name, batch, outcomes);
            self.is_right(as_told);
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
                work.terms.values().any(|term| term.open.contains(&index))
            });
            let agrees = match outcome {
                Outcome::Pending | Outcome::Attempting => {
                    sends.accepted == 0 || is_open || forgetful
                }
                Outcome::Skipped if forgetful => true,
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
            let fell = !forgetful && before.get(index).is_some_and(|before| before > outcome);
            if !agrees || fell {
                let accepted = sends.accepted;
                self.wrong.push(format!(
                    "{device} of {name}/{batch} is {outcome}, and the hub has {accepted} messages for it"
                ));
            }
        }
    }

    fn told(&mut self, by: &Process, topic: &str, event: &Value) {
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        // What a name was used for before is told in the trace of who uses it now.
        let mut event = event.clone();
        event.as_object_mut().map(|it| it.remove("traceparent"));
        let event = &event;
        by.sim().note(format_args!("{by} tells {topic} {id}"));
        if self.told.get(&id).is_some_and(|before| before != event) {
            self.wrong.push(format!(
                "there are two events {id}: {event}, {:?}",
                self.told[&id]
            ));
        }
        let Some((name, version)) = id.rsplit_once('/') else {
            return self.accuse(format!("an event without an id: {event}"));
        };
        let version: u64 = version.parse().unwrap_or_default();
        let name = twincast_testkit::build::name(name);
        if topic
            != format!(
                "rollout.{}",
                event["data"]["phase"].as_str().unwrap_or_default()
            )
        {
            self.wrong.push(format!("the topic of {id} is {topic}"));
        }
        let stored = self.rollouts.get(&name);
        if !stored.is_some_and(|stored| stored.versions.contains(&version)) {
            self.wrong.push(format!("{id} was told and never happened"));
        }
        let earlier = stored
            .into_iter()
            .flat_map(|stored| stored.versions.range(..version));
        for earlier in earlier {
            let earlier = format!("{name}/{earlier}");
            if !self.told.contains_key(&earlier) {
                self.wrong.push(format!("{id} was told before {earlier}"));
            }
        }
        self.told.insert(id, event.clone());
    }

    fn all_told(&mut self) {
        let mut untold = Vec::new();
        for (name, record) in &self.rollouts {
            for version in &record.versions {
                let id = format!("{name}/{version}");
                if !self.told.contains_key(&id) {
                    untold.push(id);
                }
            }
        }
        if !untold.is_empty() {
            self.accuse(format!("nobody was told of {untold:?}"));
        }
    }
}
