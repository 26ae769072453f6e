//! A store in a few maps behind a lock: slow, simple, and the model for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{Batch, BatchStatus, Held};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus, Listeners};
use twincast_core::group::Line;
use twincast_core::ids::{
    BatchId, BatchVersion, GroupName, Holder, HubHost, HubName, Revision, RolloutId, RolloutName,
    StageIndex, Version,
};
use twincast_core::link::{LinkReport, LinkReports, LinkStatus};
use twincast_core::outcome::Counts;
use twincast_core::permits::{Grant, HubPermits, LimiterState, Links, PermitRequest};
use twincast_core::plan::{self, Checksum, DeviceList};
use twincast_core::ports::{
    Batches, Begins, Change, Clock, Committed, Created, Halt, Limiter, Lines, Listed, Loaded, Part,
    Presence, Rollouts, Roster, RosterLook, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Commands, Reliance, Rollout};
use twincast_core::time::Timestamp;

/// A [`Store`](twincast_core::ports::Store) in memory. Everything that is a sum is summed up when it is asked for.
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
    /// The newest version of any batch.
    newest: BatchVersion,
    roster: Roll,
    knows_no_stages: bool,
    /// See [`Batches::durable_after`].
    durable_after: Duration,
}

#[derive(Clone, Default)]
struct Roll {
    active: BTreeSet<RolloutName>,
    claims: BTreeMap<RolloutName, (Holder, Timestamp)>,
    announced: BTreeMap<RolloutName, Version>,
    halt: Option<Halt>,
}

impl Roll {
    fn held(&self, name: &RolloutName, now: Timestamp) -> Option<Held> {
        let (by, until) = self.claims.get(name)?;
        let by = by.clone();
        (*until > now).then_some(Held { by, until: *until })
    }
}

#[derive(Clone)]
struct Entry {
    rollout: Rollout,
    commands: Commands,
    /// When its plan was completed.
    whole_at: Timestamp,
    batches: BTreeMap<BatchId, Slot>,
    /// See [`Loaded::begun`].
    begun: u64,
}

#[derive(Clone)]
struct Slot {
    batch: Batch,
    version: BatchVersion,
    devices: DeviceList,
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
        let newest = state.newest;
        *state = to.0;
        state.newest = newest;
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

    /// A version that no batch has had.
    fn next_version(&mut self) -> BatchVersion {
        self.newest.0 += 1;
        self.newest
    }
}

impl Entry {
    fn load(&self, batch: BatchId, part: Part, all_stages: bool, now: Timestamp) -> Option<Loaded> {
        let slot = self.batches.get(&batch)?;
        let mut stance = self.rollout.stance();
        if all_stages {
            stance.stage = StageIndex(u16::MAX);
        }
        Some(Loaded {
            batch: slot.batch.clone(),
            version: slot.version,
            devices: (part == Part::Whole).then(|| slot.devices.clone()),
            rollout: stance,
            whole_at: self.whole_at,
            begun: self.begun,
            now,
        })
    }

    fn checksum(&self) -> Checksum {
        let mut checksum = Checksum::default();
        for slot in self.batches.values() {
            checksum.add(&plan::Batch {
                header: slot.batch.header.clone(),
                devices: slot.devices.clone(),
            });
        }
        checksum
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
                let unsettled = unsettled.find(|slot| slot.batch.counts().unsettled() > 0);
                unsettled.map_or(Ok(()), |slot| {
                    regressed(format!("batch {} is not settled", slot.batch.header.id))
                })
            }
            _ => Ok(()),
        }
    }

    /// Neither the plan nor the batch can be lost in a crash any more.
    fn is_durable(&self, batch: BatchId, now: Timestamp, durable_after: Duration) -> bool {
        let added_at = self.batches.get(&batch).map(|slot| slot.batch.added_at);
        let since = added_at.unwrap_or_default().max(self.whole_at);
        now >= since.plus(durable_after)
    }

    fn progress(&self, group: &BudgetGroup, now: Timestamp) -> GroupProgress {
        let is_in = |batch: &&Batch| {
            let mut budgets = batch.header.budgets.iter();
            budgets.any(|other| other.group == group.group)
        };
        let members = || self.batches.values().map(|slot| &slot.batch).filter(is_in);
        let devices = members().map(|batch| u64::from(batch.header.devices)).sum();
        let counted = members().map(|batch| (batch.header.id, batch.begun, batch.counts()));
        GroupProgress::of(devices, counted, group.silent_ms, now)
    }

    fn statuses(&self, now: Timestamp) -> impl Iterator<Item = BatchStatus> {
        let version = self.rollout.version;
        self.batches.values().map(move |Slot { batch, .. }| {
            let (tenancy, begun) = (&batch.tenancy, batch.begun);
            BatchStatus::of(
                batch.header.clone(),
                batch.counts(),
                tenancy,
                begun,
                version,
                now,
            )
        })
    }
}

#[async_trait]
impl Rollouts for MemoryStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let mut state = self.state();
        if let Some(existing) = state.rollouts.get(&rollout.spec.name) {
            return Ok(Created::Existing(Box::new(existing.rollout.clone())));
        }
        let entry = Entry {
            rollout: rollout.clone(),
            commands: Commands::default(),
            batches: BTreeMap::new(),
            whole_at: Timestamp(0),
            begun: 0,
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

    async fn save_with(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError> {
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
        if let Some(commands) = commands {
            entry.commands = commands.clone();
        }
        state.roster.active.insert(rollout.spec.name.clone());
        Ok(())
    }

    async fn note(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state.entry(&rollout.spec.name)?;
        if entry.rollout.revision() != rollout.revision() {
            return Err(superseded(format!("rollout {}", rollout.spec.name)));
        }
        entry.rollout.notes = rollout.notes.clone();
        Ok(())
    }

    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError> {
        let state = self.state();
        let entry = state.rollouts.get(name);
        Ok(entry
            .map(|entry| entry.commands.clone())
            .unwrap_or_default())
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
}

#[async_trait]
impl Batches for MemoryStore {
    fn durable_after(&self) -> Duration {
        self.state().durable_after
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let version = state.next_version();
        let entry = state.entry(name)?;
        if entry.rollout.adding() != Some(by) {
            return Err(superseded(format!("{by} of rollout {name}")));
        }
        for plan::Batch { header, devices } in batches {
            let slot = entry.batches.entry(header.id);
            slot.or_insert_with(|| Slot {
                batch: Batch::new(header, now),
                version,
                devices,
            });
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
            sum.add(&slot.batch.counts());
        }
        Ok(sums
            .into_iter()
            .map(|((stage, hub), counts)| Tally { stage, hub, counts })
            .collect())
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let all_stages = state.knows_no_stages;
        let loaded = state.entry(name)?.load(batch, part, all_stages, now);
        loaded.ok_or_else(|| not_found(format!("batch {batch} of rollout {name}")))
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let (version, all_stages) = (state.next_version(), state.knows_no_stages);
        let Ok(entry) = state.entry(name) else {
            return Ok(Committed::Overtaken(None));
        };
        let (id, revision) = (from.batch.header.id, entry.rollout.revision());
        let slot = entry.batches.get_mut(&id);
        let slot = slot.filter(|slot| slot.version == from.version);
        let is_taken = |begins: &Begins| begins.seen != entry.begun;
        let (Some(slot), false, false) = (
            slot,
            change.under.is_some_and(|under| under != revision),
            change.begins.as_ref().is_some_and(is_taken),
        ) else {
            let told = entry.load(id, Part::State, all_stages, now);
            return Ok(Committed::Overtaken(told.map(Box::new)));
        };
        if change.begins.is_some() {
            entry.begun = version.0;
        }
        (slot.batch, slot.version) = (change.next.clone(), version);
        Ok(Committed::Done {
            version,
            wanted: entry.rollout.wanted(),
            now,
        })
    }
}

#[async_trait]
impl Lines for MemoryStore {
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
}

#[async_trait]
impl Limiter for MemoryStore {
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

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        Ok(state.links.entry(hub.clone()).or_default().open(now))
    }
}

#[async_trait]
impl Presence for MemoryStore {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let mut state = self.state();
        let bound = state.hosts.entry(hub.clone());
        Ok(bound.or_insert_with(|| host.clone()).clone())
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

    async fn look(&self) -> Result<RosterLook, StoreError> {
        let now = self.clock.now();
        let state = self.state();
        let listed = |name: &RolloutName| {
            let rollout = &state.rollouts.get(name)?.rollout;
            let held = state.roster.held(name, now);
            let newest = rollout.version;
            Some((name.clone(), Listed { newest, held }))
        };
        Ok(RosterLook {
            active: state.roster.active.iter().filter_map(listed).collect(),
            halt: state.roster.halt.clone(),
        })
    }

    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError> {
        let now = self.clock.now();
        let roster = &mut self.state().roster;
        let mut others = BTreeMap::new();
        for name in names {
            match roster.held(name, now).filter(|held| held.by != *holder) {
                Some(held) => {
                    others.insert(name.clone(), held);
                }
                None => {
                    let claim = (holder.clone(), now.plus(ttl));
                    roster.claims.insert(name.clone(), claim);
                }
            }
        }
        Ok(others)
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
