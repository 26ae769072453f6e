//! A store in a few maps behind a lock: slow, simple, and the model for other stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{Batch, BatchStatus, Held};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::evidence::{ListenerReport, ListenerStatus, Listeners};
use twincast_core::ids::{
    BatchId, BatchVersion, ConcurrencyGroup, Holder, HubHost, HubName, Revision, RolloutId,
    RolloutName, StageIndex, Version,
};
use twincast_core::link::{LinkReport, LinkReports, LinkStatus};
use twincast_core::outcome::Counts;
use twincast_core::permits::{Grant, HubPermits, LimiterState, Links, PermitRequest};
use twincast_core::plan::{self, Checksum, DeviceList};
use twincast_core::ports::{
    Batches, BudgetEntry, Change, Clock, Committed, Created, GroupQueues, Halt, Limiter, Loaded,
    Part, Presence, RegistryEntry, RegistrySnapshot, RolloutRegistry, Rollouts, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Commands, Rollout, StorePrecondition};
use twincast_core::time::Timestamp;

/// A [`Store`](twincast_core::ports::Store) in memory. Sums are computed on request.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

/// A copy of a store, taken by [`MemoryStore::backup`].
pub struct Backup(State);

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").finish_non_exhaustive()
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
    group_queues: BTreeMap<ConcurrencyGroup, GroupQueue>,
    /// The newest version of any batch.
    newest: BatchVersion,
    registry: Registry,
    ignores_stages: bool,
    /// See [`Batches::durable_after`].
    durable_after: Duration,
}

#[derive(Clone, Default)]
struct Registry {
    active: BTreeSet<RolloutName>,
    claims: BTreeMap<RolloutName, (Holder, Timestamp)>,
    published: BTreeMap<RolloutName, Version>,
    halt: Option<Halt>,
}

impl Registry {
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
    /// The time of completing the plan.
    plan_completed_at: Timestamp,
    batches: BTreeMap<BatchId, Slot>,
    /// See [`Loaded::budget_stamp`].
    budget_stamp: u64,
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
    /// Creates an empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Arc::default(),
        }
    }

    /// Sets the time until writes count as durable. Only [`Self::restore`] loses writes.
    pub fn set_durable_after(&self, time: Duration) {
        self.state().durable_after = time;
    }

    /// Takes a backup, to be restored with [`Self::restore`].
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup(self.state().clone())
    }

    /// Restores a backup, and so loses all later writes.
    pub fn restore(&self, to: Backup) {
        let now = self.clock.now();
        let mut state = self.state();
        let newest = state.newest;
        *state = to.0;
        state.newest = newest;
        let durable_after = state.durable_after;
        for permits in state.hubs.values_mut() {
            permits.skip(now, durable_after);
        }
    }

    /// From now on, grants leases on batches of any stage: a defect, for tests of tests.
    pub fn ignore_stages(&self) {
        self.state().ignores_stages = true;
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

    /// Returns a version never used by any batch.
    fn next_version(&mut self) -> BatchVersion {
        self.newest.0 += 1;
        self.newest
    }
}

impl Entry {
    fn load(&self, batch: BatchId, part: Part, all_stages: bool, now: Timestamp) -> Option<Loaded> {
        let slot = self.batches.get(&batch)?;
        let mut control = self.rollout.control();
        if all_stages {
            control.stage = StageIndex(u16::MAX);
        }
        Some(Loaded {
            batch: slot.batch.clone(),
            version: slot.version,
            devices: (part == Part::WithDevices).then(|| slot.devices.clone()),
            rollout: control,
            plan_completed_at: self.plan_completed_at,
            budget_stamp: self.budget_stamp,
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
        match rollout.precondition {
            Some(StorePrecondition::Batches(checksum)) if self.checksum() != checksum => {
                let found = self.checksum();
                regressed(format!("{} has {found}, not {checksum}", rollout.spec.name))
            }
            Some(StorePrecondition::Settled) => {
                let mut unsettled = self.batches.values();
                let unsettled = unsettled.find(|slot| slot.batch.counts().unsettled() > 0);
                unsettled.map_or(Ok(()), |slot| {
                    regressed(format!("batch {} is not settled", slot.batch.header.id))
                })
            }
            _ => Ok(()),
        }
    }

    /// Returns whether a crash can no longer lose the plan or the batch.
    fn is_durable(&self, batch: BatchId, now: Timestamp, durable_after: Duration) -> bool {
        let added_at = self.batches.get(&batch).map(|slot| slot.batch.added_at);
        let since = added_at.unwrap_or_default().max(self.plan_completed_at);
        now >= since.plus(durable_after)
    }

    fn progress(&self, group: &BudgetGroup, now: Timestamp) -> GroupProgress {
        let is_in = |batch: &&Batch| {
            let mut budgets = batch.header.budgets.iter();
            budgets.any(|other| other.group == group.group)
        };
        let members = || self.batches.values().map(|slot| &slot.batch).filter(is_in);
        let devices = members().map(|batch| u64::from(batch.header.devices)).sum();
        let counted = members().map(|batch| (batch.header.id, batch.budget_usage, batch.counts()));
        GroupProgress::of(devices, counted, group.silent_ms, now)
    }

    fn statuses(&self, now: Timestamp) -> impl Iterator<Item = BatchStatus> {
        let version = self.rollout.version;
        self.batches.values().map(move |Slot { batch, .. }| {
            let (lease_state, budget_usage) = (&batch.lease_state, batch.budget_usage);
            BatchStatus::of(
                batch.header.clone(),
                batch.counts(),
                lease_state,
                budget_usage,
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
            plan_completed_at: Timestamp(0),
            budget_stamp: 0,
        };
        state.rollouts.insert(rollout.spec.name.clone(), entry);
        state.registry.active.insert(rollout.spec.name.clone());
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

    async fn save_with_commands(
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
            entry.plan_completed_at = now;
        }
        entry.rollout = rollout.clone();
        if let Some(commands) = commands {
            entry.commands = commands.clone();
        }
        state.registry.active.insert(rollout.spec.name.clone());
        Ok(())
    }

    async fn save_notes(&self, rollout: &Rollout) -> Result<(), StoreError> {
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
        state.registry.published.remove(name);
        state.registry.claims.remove(name);
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
            (header.stage, header.sort_key.clone(), header.id)
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
        let all_stages = state.ignores_stages;
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
        let (version, all_stages) = (state.next_version(), state.ignores_stages);
        let Ok(entry) = state.entry(name) else {
            return Ok(Committed::Overtaken(None));
        };
        let (id, revision) = (from.batch.header.id, entry.rollout.revision());
        let slot = entry.batches.get_mut(&id);
        let slot = slot.filter(|slot| slot.version == from.version);
        let is_taken = |added: &BudgetEntry| added.stamp != entry.budget_stamp;
        let (Some(slot), false, false) = (
            slot,
            change.under.is_some_and(|under| under != revision),
            change.budget_entry.as_ref().is_some_and(is_taken),
        ) else {
            let loaded = entry.load(id, Part::WithoutDevices, all_stages, now);
            return Ok(Committed::Overtaken(loaded.map(Box::new)));
        };
        if change.budget_entry.is_some() {
            entry.budget_stamp = version.0;
        }
        (slot.batch, slot.version) = (change.next.clone(), version);
        Ok(Committed::Done {
            version,
            directive: entry.rollout.directive(),
            now,
        })
    }
}

#[async_trait]
impl GroupQueues for MemoryStore {
    async fn group_queue(&self, group: &ConcurrencyGroup) -> Result<GroupQueue, StoreError> {
        Ok(self
            .state()
            .group_queues
            .get(group)
            .cloned()
            .unwrap_or_default())
    }

    async fn save_group_queue(
        &self,
        group: &ConcurrencyGroup,
        queue: &GroupQueue,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let stored = state.group_queues.entry(group.clone()).or_default();
        if stored.version.0 + 1 != queue.version.0 {
            return Err(superseded(format!(
                "the queue of concurrency group {group}"
            )));
        }
        *stored = queue.clone();
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
impl RolloutRegistry for MemoryStore {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        Ok(self.state().registry.active.iter().cloned().collect())
    }

    async fn deactivate(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let mut state = self.state();
        let current = state.rollouts.get(name).map(|e| e.rollout.version);
        if current == Some(version) {
            state.registry.active.remove(name);
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<RegistrySnapshot, StoreError> {
        let now = self.clock.now();
        let state = self.state();
        let listed = |name: &RolloutName| {
            let rollout = &state.rollouts.get(name)?.rollout;
            let held = state.registry.held(name, now);
            let newest = rollout.version;
            Some((name.clone(), RegistryEntry { newest, held }))
        };
        Ok(RegistrySnapshot {
            active: state.registry.active.iter().filter_map(listed).collect(),
            halt: state.registry.halt.clone(),
        })
    }

    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError> {
        let now = self.clock.now();
        let registry = &mut self.state().registry;
        let mut others = BTreeMap::new();
        for name in names {
            match registry.held(name, now).filter(|held| held.by != *holder) {
                Some(held) => {
                    others.insert(name.clone(), held);
                }
                None => {
                    let claim = (holder.clone(), now.plus(ttl));
                    registry.claims.insert(name.clone(), claim);
                }
            }
        }
        Ok(others)
    }

    async fn release_claim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let mut state = self.state();
        let claim = state.registry.claims.get(name);
        if claim.is_some_and(|(by, _)| by == holder) {
            state.registry.claims.remove(name);
        }
        Ok(())
    }

    async fn published(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let state = self.state();
        Ok(state
            .registry
            .published
            .get(name)
            .copied()
            .unwrap_or_default())
    }

    async fn set_published(
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
        let published = state.registry.published.entry(name.clone()).or_default();
        *published = (*published).max(version);
        Ok(())
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        Ok(self.state().registry.halt.clone())
    }

    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError> {
        self.state().registry.halt = halt.cloned();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;
    use crate::conformance::{RegistrySubject, Subject};

    async fn make() -> Subject {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        Subject::new(store, clock)
    }

    async fn make_registry() -> RegistrySubject {
        let clock = ManualClock::default();
        let store = MemoryStore::new(Arc::new(clock.clone()));
        RegistrySubject::new(Arc::new(store.clone()), Arc::new(store), clock)
    }

    crate::store_conformance!(make);
    crate::registry_conformance!(make_registry);
}
