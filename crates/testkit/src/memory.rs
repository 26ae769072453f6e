//! A store in a few maps behind a lock: slow, simple, and the model for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{Attempts, BatchStatus, Held, Lease, LeaseRefused, Reopened, Tenancy};
use twincast_core::budget::{Begun, BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus, Listeners};
use twincast_core::group::Line;
use twincast_core::ids::{
    Attempt, BatchId, Epoch, GroupName, Holder, HubHost, HubName, Revision, RolloutId, RolloutName,
    StageIndex, Version,
};
use twincast_core::link::{LinkReport, LinkReports, LinkStatus};
use twincast_core::outcome::{Counts, Outcome, OutcomeList};
use twincast_core::permits::{Grant, HubPermits, LimiterState, Links, PermitRequest};
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{
    BatchWork, Clock, Created, Halt, LeaseReply, LeaseRequest, Report, Roster, Skip, Store,
    StoreError, Tally,
};
use twincast_core::rollout::{Adding, Reliance, Rollout, Wanted};
use twincast_core::time::Timestamp;

/// A [`Store`] in memory. Everything that is a sum is summed up when it is asked for.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

/// A store at an earlier moment.
pub struct AsItWas(State);

impl std::fmt::Debug for AsItWas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsItWas").finish_non_exhaustive()
    }
}

#[derive(Clone, Default)]
struct State {
    rollouts: BTreeMap<RolloutName, Entry>,
    hubs: BTreeMap<HubName, HubPermits>,
    hosts: BTreeMap<HubName, HubHost>,
    links: BTreeMap<HubName, Links>,
    listeners: Listeners,
    link_reports: LinkReports,
    lines: BTreeMap<GroupName, Line>,
    last_epoch: u64,
    roster: Roll,
    knows_no_stages: bool,
    /// See [`Store::durable_after`].
    durable_after: Duration,
}

#[derive(Clone, Default)]
struct Roll {
    active: BTreeSet<RolloutName>,
    claims: BTreeMap<RolloutName, (Holder, Timestamp)>,
    announced: BTreeMap<RolloutName, Version>,
    halt: Option<Halt>,
}

#[derive(Clone)]
struct Entry {
    rollout: Rollout,
    /// When its plan was completed.
    whole_at: Timestamp,
    batches: BTreeMap<BatchId, Slot>,
}

#[derive(Clone)]
struct Slot {
    batch: Batch,
    added_at: Timestamp,
    outcomes: OutcomeList,
    codes: BTreeMap<u32, u32>,
    attempts: Attempts,
    tenancy: Tenancy,
    begun: Begun,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Arc::default(),
        }
    }

    /// Counts writes as durable after this time. Only [`Self::go_back`] loses any.
    pub fn set_durable_after(&self, time: Duration) {
        self.state().durable_after = time;
    }

    /// The store as it is now, to be [gone back to](Self::go_back).
    #[must_use]
    pub fn as_it_is(&self) -> AsItWas {
        AsItWas(self.state().clone())
    }

    /// Loses all writes since.
    pub fn go_back(&self, to: AsItWas) {
        let now = self.clock.now();
        let mut state = self.state();
        *state = to.0;
        let durable_after = state.durable_after;
        for permits in state.hubs.values_mut() {
            permits.lost(now, durable_after);
        }
    }

    /// Gives leases on batches of any stage from here on: a defect, for tests of tests.
    pub fn forget_stages(&self) {
        self.state().knows_no_stages = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn superseded(what: impl Into<String>) -> StoreError {
    StoreError::Superseded { what: what.into() }
}

fn not_found(what: impl Into<String>) -> StoreError {
    StoreError::NotFound { what: what.into() }
}

impl State {
    fn entry(&mut self, name: &RolloutName) -> Result<&mut Entry, StoreError> {
        let entry = self.rollouts.get_mut(name);
        entry.ok_or_else(|| not_found(format!("rollout {name}")))
    }

    /// The slot that `lease` is or was on.
    fn leased(&mut self, lease: &Lease) -> Option<(Wanted, &mut Slot)> {
        let entry = self.rollouts.get_mut(&lease.rollout)?;
        let slot = entry.batches.get_mut(&lease.batch)?;
        Some((entry.rollout.wanted(), slot))
    }
}

impl Entry {
    fn slot(&mut self, batch: BatchId) -> Result<&mut Slot, StoreError> {
        let slot = self.batches.get_mut(&batch);
        slot.ok_or_else(|| not_found(format!("batch {batch}")))
    }

    fn checksum(&self) -> Checksum {
        self.batches.values().map(|slot| &slot.batch).collect()
    }

    /// Refuses a new record if the entry does not hold what the record relies on.
    fn holds(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let regressed = |what: String| Err(StoreError::Regressed { what });
        match rollout.relies_on {
            Some(Reliance::Batches(checksum)) if self.checksum() != checksum => {
                let found = self.checksum();
                regressed(format!("{} has {found}, not {checksum}", rollout.spec.name))
            }
            Some(Reliance::Settled) => {
                let mut unsettled = self.batches.values();
                let unsettled = unsettled.find(|slot| slot.outcomes.counts().unsettled() > 0);
                unsettled.map_or(Ok(()), |slot| {
                    regressed(format!("batch {} is not settled", slot.batch.header.id))
                })
            }
            _ => Ok(()),
        }
    }

    /// Neither the plan nor the batch can be lost in a crash any more.
    fn is_durable(&self, batch: BatchId, now: Timestamp, durable_after: Duration) -> bool {
        let added_at = self.batches.get(&batch).map(|slot| slot.added_at);
        let since = added_at.unwrap_or_default().max(self.whole_at);
        now >= since.plus(durable_after)
    }

    fn progress(&self, group: &BudgetGroup, now: Timestamp) -> GroupProgress {
        let is_in = |slot: &&Slot| {
            let mut budgets = slot.batch.header.budgets.iter();
            budgets.any(|other| other.group == group.group)
        };
        let mut progress = GroupProgress {
            devices: 0,
            in_progress: 0,
        };
        for slot in self.batches.values().filter(is_in) {
            let counts = slot.outcomes.counts();
            progress.devices += counts.total();
            progress.in_progress += slot.begun.in_progress(&counts, group.silent_ms, now);
        }
        progress
    }

    fn has_room(&self, batch: BatchId, now: Timestamp) -> bool {
        let Some(slot) = self.batches.get(&batch).filter(|slot| !slot.begun.is_open) else {
            return true;
        };
        let counts = slot.outcomes.counts();
        slot.batch.header.budgets.iter().all(|group| {
            let room = self.progress(group, now).room(group.limit);
            room >= counts.unsettled()
        })
    }

    fn statuses(&self, now: Timestamp) -> impl Iterator<Item = BatchStatus> {
        let version = self.rollout.version;
        self.batches.values().map(move |slot| BatchStatus {
            header: slot.batch.header.clone(),
            counts: slot.outcomes.counts(),
            held: slot.tenancy.held_at(now),
            lapsed: slot.tenancy.has_lapsed_at(now),
            quarantined: slot.tenancy.is_quarantined(version),
            begun: slot.begun.is_open && !slot.batch.header.budgets.is_empty(),
        })
    }
}

impl Slot {
    fn new(batch: Batch, added_at: Timestamp) -> Self {
        Self {
            added_at,
            outcomes: OutcomeList::pending(batch.devices.len()),
            batch,
            codes: BTreeMap::new(),
            attempts: Attempts::default(),
            tenancy: Tenancy::default(),
            begun: Begun::default(),
        }
    }

    /// `attempt` is that of the messages which the reports are about.
    fn merge(&mut self, attempt: Attempt, reports: &[Report]) -> Result<(), StoreError> {
        let devices = self.outcomes.len();
        let beyond = |report: &&Report| report.index as usize >= devices;
        if let Some(bad) = reports.iter().find(beyond) {
            return Err(not_found(format!("device {}", bad.index)));
        }
        for report in reports {
            let known = self.outcomes.get(report.index as usize);
            if !self.attempts.admits(attempt, known, report.outcome) {
                continue;
            }
            let (_, new) = self.outcomes.merge(report.index as usize, report.outcome);
            if (new, report.outcome) == (Outcome::Refused, Outcome::Refused) && report.code != 0 {
                self.codes.entry(report.index).or_insert(report.code);
            }
        }
        self.begun.settled(&self.outcomes.counts());
        Ok(())
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn durable_after(&self) -> Duration {
        self.state().durable_after
    }

    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let mut state = self.state();
        if let Some(existing) = state.rollouts.get(&rollout.spec.name) {
            return Ok(Created::Existing(Box::new(existing.rollout.clone())));
        }
        let entry = Entry {
            rollout: rollout.clone(),
            batches: BTreeMap::new(),
            whole_at: Timestamp(0),
        };
        state.rollouts.insert(rollout.spec.name.clone(), entry);
        state.roster.active.insert(rollout.spec.name.clone());
        Ok(Created::New)
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        Ok(self.state().rollouts.get(name).map(|e| e.rollout.clone()))
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        let state = self.state();
        Ok(state.rollouts.get(name).map(|e| e.rollout.revision()))
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        Ok(self.state().rollouts.keys().cloned().collect())
    }

    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(&rollout.spec.name)?;
        if entry.rollout.revision() != from {
            return Err(superseded(format!("rollout {}", rollout.spec.name)));
        }
        if entry.rollout.plan_id != rollout.plan_id {
            entry.batches.clear();
        }
        entry.holds(rollout)?;
        if entry.rollout.plan.is_none() && rollout.plan.is_some() {
            entry.whole_at = now;
        }
        entry.rollout = rollout.clone();
        state.roster.active.insert(rollout.spec.name.clone());
        Ok(())
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        let mut state = self.state();
        let stored = state.rollouts.get(name);
        if stored.is_some_and(|entry| entry.rollout.revision() != revision) {
            return Err(superseded(format!("rollout {name}")));
        }
        state.rollouts.remove(name);
        state.roster.announced.remove(name);
        state.roster.claims.remove(name);
        Ok(())
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<Batch>,
    ) -> Result<Checksum, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(name)?;
        if entry.rollout.adding() != Some(by) {
            return Err(superseded(format!("{by} of rollout {name}")));
        }
        for batch in batches {
            let slot = entry.batches.entry(batch.header.id);
            slot.or_insert_with(|| Slot::new(batch, now));
        }
        Ok(entry.checksum())
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let all = state.entry(name)?.statuses(now);
        Ok(all
            .filter(|status| after.is_none_or(|after| status.header.id > after))
            .take(limit)
            .collect())
    }

    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let durable_after = state.durable_after;
        let entry = state.entry(name)?;
        let mut open: Vec<_> = entry
            .statuses(now)
            .filter(|status| status.header.hub == *hub && !status.is_done())
            .filter(|status| status.header.stage <= through)
            .filter(|status| entry.is_durable(status.header.id, now, durable_after))
            .collect();
        open.sort_by_key(|BatchStatus { header, .. }| {
            (header.stage, header.place.clone(), header.id)
        });
        open.truncate(limit);
        Ok(open)
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        // Higher than all that were given before a crash that the state forgets.
        let next = Epoch(now.0.max(state.last_epoch + 1));
        let durable_after = state.durable_after;
        let all_stages = state.knows_no_stages;
        let entry = state.entry(&request.rollout)?;
        let wanted = entry.rollout.wanted();
        let version = entry.rollout.version;
        let stage = entry.rollout.stage();
        let has_room = entry.has_room(request.batch, now);
        let is_durable = entry.is_durable(request.batch, now, durable_after);
        let slot = entry.slot(request.batch)?;
        if slot.outcomes.counts().unsettled() == 0 {
            return Ok(LeaseReply::Done);
        }
        let is_early = slot.batch.header.stage > stage && !all_stages;
        if wanted == Wanted::Stop || is_early || !has_room || !is_durable {
            return Ok(LeaseReply::NotWanted);
        }
        let granted = slot
            .tenancy
            .lease(&request.holder, next, version, now, request.ttl);
        match granted {
            Ok(()) => slot.begun.given(),
            Err(LeaseRefused::Held(held)) => return Ok(LeaseReply::Held(held)),
            Err(LeaseRefused::Quarantined) => return Ok(LeaseReply::Quarantined),
        }
        state.last_epoch = next.0;
        Ok(LeaseReply::Granted(Lease {
            rollout: request.rollout.clone(),
            batch: request.batch,
            holder: request.holder.clone(),
            epoch: next,
        }))
    }

    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError> {
        let mut state = self.state();
        let entry = state.entry(name)?;
        let rollout = entry.rollout.id;
        let slot = entry.slot(batch)?;
        let refused =
            |(index, _): &(u32, u32)| slot.outcomes.get(*index as usize) == Outcome::Refused;
        Ok(BatchWork {
            rollout,
            batch: slot.batch.clone(),
            outcomes: slot.outcomes.clone(),
            codes: slot
                .codes
                .iter()
                .map(|(index, code)| (*index, *code))
                .filter(refused)
                .collect(),
            attempt: slot.attempts.newest,
        })
    }

    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let now = self.clock.now();
        let gone = || superseded(format!("the lease on batch {}", lease.batch));
        let mut state = self.state();
        let (wanted, slot) = state.leased(lease).ok_or_else(gone)?;
        let mut tenancy = slot.tenancy.clone();
        let renewed = tenancy.renew(lease.epoch, !reports.is_empty(), now, ttl);
        renewed.map_err(|_| gone())?;
        slot.merge(slot.attempts.newest, reports)?;
        if !reports.is_empty() {
            slot.begun.recorded(&slot.outcomes.counts(), now);
        }
        slot.tenancy = tenancy;
        Ok(wanted)
    }

    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state.entry(name)?;
        if entry.rollout.id != id {
            return Err(not_found(format!("rollout {name} with the id {id}")));
        }
        entry.slot(batch)?.merge(attempt, reports)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        if let Some((_, slot)) = self.state().leased(lease) {
            slot.tenancy.release(lease.epoch);
        }
        Ok(())
    }

    async fn skip(
        &self,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Result<Option<Held>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(name)?;
        if !which.is_allowed(&entry.rollout) {
            return Err(superseded(format!("rollout {name}")));
        }
        let slot = entry.slot(batch)?;
        let held = slot.tenancy.held_at(now);
        if held.is_some() {
            return Ok(held);
        }
        for index in 0..slot.outcomes.len() {
            let known = slot.outcomes.get(index);
            let place = u32::try_from(index).expect("batches are small");
            if let Some(end) = which.end(place, known) {
                slot.outcomes.merge(index, end);
            }
        }
        slot.begun.settled(&slot.outcomes.counts());
        Ok(None)
    }

    async fn reopen(
        &self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
    ) -> Result<Reopened, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(name)?;
        if !entry.rollout.prepares(attempt) {
            return Err(superseded(format!("rollout {name}")));
        }
        let slot = entry.slot(batch)?;
        if slot.attempts.newest >= attempt {
            return Ok(Reopened::Devices(0));
        }
        if let Some(held) = slot.tenancy.held_at(now) {
            return Ok(Reopened::Held(held));
        }
        let chosen = |outcome: Outcome| outcome.can_be_retried() && outcomes.contains(&outcome);
        let mut devices = 0;
        for index in 0..slot.outcomes.len() {
            if chosen(slot.outcomes.get(index)) {
                slot.outcomes.reopen(index);
                slot.codes.retain(|at, _| *at as usize != index);
                devices += 1;
            }
        }
        if devices > 0 {
            slot.attempts.reopen(attempt, outcomes);
            slot.tenancy.vacate();
        }
        Ok(Reopened::Devices(devices))
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(name)?;
        let progress = groups.iter().map(|group| entry.progress(group, now));
        Ok(progress.collect())
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let mut state = self.state();
        let mut sums = BTreeMap::<_, Counts>::new();
        for slot in state.entry(name)?.batches.values() {
            let header = &slot.batch.header;
            let sum = sums.entry((header.stage, header.hub.clone())).or_default();
            sum.add(&slot.outcomes.counts());
        }
        Ok(sums
            .into_iter()
            .map(|((stage, hub), counts)| Tally { stage, hub, counts })
            .collect())
    }

    async fn line(&self, group: &GroupName) -> Result<Line, StoreError> {
        Ok(self.state().lines.get(group).cloned().unwrap_or_default())
    }

    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError> {
        let mut state = self.state();
        let stored = state.lines.entry(group.clone()).or_default();
        if stored.version.0 + 1 != line.version.0 {
            return Err(superseded(format!("the line of group {group}")));
        }
        *stored = line.clone();
        Ok(())
    }

    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let mut state = self.state();
        let bound = state.hosts.entry(hub.clone());
        Ok(bound.or_insert_with(|| host.clone()).clone())
    }

    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let hub = state.hubs.entry(request.hub.clone()).or_default();
        Ok(hub.take(now, request))
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let limiter = state.hubs.entry(hub.clone()).or_default();
        limiter.throttled(now, retry_after);
        Ok(())
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let now = self.clock.now();
        let state = self.state();
        let permits = state.hubs.get(hub);
        Ok(permits
            .map(|permits| permits.state(now))
            .unwrap_or_default())
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.state().listeners.report(hub, report, now);
        Ok(())
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        let now = self.clock.now();
        Ok(self.state().listeners.of(hub, now))
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.state().link_reports.report(hub, report, now);
        Ok(())
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        let now = self.clock.now();
        Ok(self.state().link_reports.of(hub, now))
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        Ok(state.links.entry(hub.clone()).or_default().open(now))
    }
}

#[async_trait]
impl Roster for MemoryStore {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        Ok(self.state().roster.active.iter().cloned().collect())
    }

    async fn retire(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let mut state = self.state();
        let current = state.rollouts.get(name).map(|e| e.rollout.version);
        if current == Some(version) {
            state.roster.active.remove(name);
        }
        Ok(())
    }

    async fn claim(
        &self,
        name: &RolloutName,
        holder: &Holder,
        ttl: Duration,
    ) -> Result<Option<Held>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some((by, until)) = state.roster.claims.get(name)
            && by != holder
            && *until > now
        {
            return Ok(Some(Held {
                by: by.clone(),
                until: *until,
            }));
        }
        let claim = (holder.clone(), now.plus(ttl));
        state.roster.claims.insert(name.clone(), claim);
        Ok(None)
    }

    async fn disclaim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let mut state = self.state();
        let claim = state.roster.claims.get(name);
        if claim.is_some_and(|(by, _)| by == holder) {
            state.roster.claims.remove(name);
        }
        Ok(())
    }

    async fn announced(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let state = self.state();
        Ok(state
            .roster
            .announced
            .get(name)
            .copied()
            .unwrap_or_default())
    }

    async fn set_announced(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state.rollouts.get(name);
        if entry.is_none_or(|entry| entry.rollout.id != id) {
            return Ok(());
        }
        let announced = state.roster.announced.entry(name.clone()).or_default();
        *announced = (*announced).max(version);
        Ok(())
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        Ok(self.state().roster.halt.clone())
    }

    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError> {
        self.state().roster.halt = halt.cloned();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;
    use crate::conformance::{RosterSubject, Subject};

    async fn make() -> Subject {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        Subject::new(store, clock)
    }

    async fn make_roster() -> RosterSubject {
        let clock = ManualClock::default();
        let store = MemoryStore::new(Arc::new(clock.clone()));
        RosterSubject::new(Arc::new(store.clone()), Arc::new(store), clock)
    }

    crate::store_conformance!(make);
    crate::roster_conformance!(make_roster);
}
