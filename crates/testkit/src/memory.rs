//! A store in a few maps behind a lock: slow, simple, and the model for the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{BatchStatus, Held, Lease, Tenancy};
use twincast_core::ids::{BatchId, Epoch, HubName, RolloutName, Version};
use twincast_core::outcome::{Counts, Outcome, OutcomeList};
use twincast_core::permits::{Grant, Limiter, take_within};
use twincast_core::plan::Batch;
use twincast_core::ports::{
    BatchWork, Clock, Created, LeaseReply, LeaseRequest, PermitRequest, Report, Store, StoreError,
    Tally,
};
use twincast_core::rollout::{Owed, Phase, PlanId, Rollout, Wanted};

/// A [`Store`] in memory. Everything that is a sum is summed up when it is asked for.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rollouts: BTreeMap<RolloutName, Entry>,
    hubs: BTreeMap<HubName, Limiter>,
    limits: BTreeMap<(RolloutName, HubName), Limiter>,
    last_epoch: u64,
}

struct Entry {
    rollout: Rollout,
    batches: BTreeMap<BatchId, Slot>,
}

struct Slot {
    batch: Batch,
    outcomes: OutcomeList,
    codes: BTreeMap<u32, u32>,
    tenancy: Tenancy,
    /// What the tenancy calls its newest lease.
    inner: Epoch,
    /// What it is called outside: unique in the store, as batches can come anew.
    outer: Epoch,
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

    /// The slot that `lease` holds.
    fn leased(&mut self, lease: &Lease) -> Option<(Wanted, &mut Slot)> {
        let entry = self.rollouts.get_mut(&lease.rollout)?;
        let slot = entry.batches.get_mut(&lease.batch)?;
        (slot.outer == lease.epoch).then(|| (entry.rollout.phase.wanted(), slot))
    }
}

impl Entry {
    fn slot(&mut self, batch: BatchId) -> Result<&mut Slot, StoreError> {
        let slot = self.batches.get_mut(&batch);
        slot.ok_or_else(|| not_found(format!("batch {batch}")))
    }
}

impl Slot {
    fn new(batch: Batch) -> Self {
        Self {
            outcomes: OutcomeList::pending(batch.devices.len()),
            batch,
            codes: BTreeMap::new(),
            tenancy: Tenancy::default(),
            inner: Epoch(0),
            outer: Epoch(0),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let mut state = self.state();
        if let Some(existing) = state.rollouts.get(&rollout.spec.name) {
            return Ok(Created::Existing(Box::new(existing.rollout.clone())));
        }
        let entry = Entry {
            rollout: rollout.clone(),
            batches: BTreeMap::new(),
        };
        state.rollouts.insert(rollout.spec.name.clone(), entry);
        Ok(Created::New)
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        Ok(self.state().rollouts.get(name).map(|e| e.rollout.clone()))
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        Ok(self.state().rollouts.keys().cloned().collect())
    }

    async fn save(&self, rollout: &Rollout, from: Version) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state.entry(&rollout.spec.name)?;
        if entry.rollout.version != from {
            return Err(superseded(format!("rollout {}", rollout.spec.name)));
        }
        if entry.rollout.plan_id != rollout.plan_id {
            entry.batches.clear();
        }
        entry.rollout = rollout.clone();
        Ok(())
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        plan: PlanId,
        batches: Vec<Batch>,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let entry = state.entry(name)?;
        let rollout = &entry.rollout;
        let is_planning = rollout.phase.owed() == Owed::Plan && rollout.plan.is_none();
        if rollout.plan_id != plan || !is_planning {
            return Err(superseded(format!("the plan of rollout {name}")));
        }
        for batch in batches {
            let slot = entry.batches.entry(batch.header.id);
            slot.or_insert_with(|| Slot::new(batch));
        }
        Ok(())
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
        open_only: bool,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let all = state.entry(name)?.batches.values().map(|slot| BatchStatus {
            header: slot.batch.header.clone(),
            counts: slot.outcomes.counts(),
            held: slot.tenancy.held_at(now),
        });
        Ok(all
            .filter(|status| after.is_none_or(|after| status.header.id > after))
            .filter(|status| !open_only || !status.is_done())
            .take(limit)
            .collect())
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let next = Epoch(state.last_epoch + 1);
        let entry = state.entry(&request.rollout)?;
        let wanted = entry.rollout.phase.wanted();
        let slot = entry.slot(request.batch)?;
        if slot.outcomes.counts().unsettled() == 0 {
            return Ok(LeaseReply::Done);
        }
        if wanted == Wanted::Stop {
            return Ok(LeaseReply::NotWanted);
        }
        let granted = slot
            .tenancy
            .lease(&request.holder, now, request.ttl, request.takeover);
        match granted {
            Ok(inner) => (slot.inner, slot.outer) = (inner, next),
            Err(held) => return Ok(LeaseReply::Held(held)),
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
        let slot = state.entry(name)?.slot(batch)?;
        let refused =
            |(index, _): &(u32, u32)| slot.outcomes.get(*index as usize) == Outcome::Refused;
        Ok(BatchWork {
            batch: slot.batch.clone(),
            outcomes: slot.outcomes.clone(),
            codes: slot
                .codes
                .iter()
                .map(|(index, code)| (*index, *code))
                .filter(refused)
                .collect(),
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
        let renewed = slot.tenancy.renew(slot.inner, now, ttl);
        renewed.map_err(|_| gone())?;
        if let Some(bad) = reports
            .iter()
            .find(|report| report.index as usize >= slot.outcomes.len())
        {
            return Err(not_found(format!("device {}", bad.index)));
        }
        for report in reports {
            let (_, new) = slot.outcomes.merge(report.index as usize, report.outcome);
            if (new, report.outcome) == (Outcome::Refused, Outcome::Refused) && report.code != 0 {
                slot.codes.entry(report.index).or_insert(report.code);
            }
        }
        Ok(wanted)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        if let Some((_, slot)) = self.state().leased(lease) {
            slot.tenancy.release(slot.inner);
        }
        Ok(())
    }

    async fn skip_remaining(
        &self,
        name: &RolloutName,
        batch: BatchId,
    ) -> Result<Option<Held>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let entry = state.entry(name)?;
        if !matches!(entry.rollout.phase, Phase::Aborting { .. }) {
            return Err(superseded(format!("rollout {name}")));
        }
        let slot = entry.slot(batch)?;
        let held = slot.tenancy.held_at(now);
        if held.is_some() {
            return Ok(held);
        }
        for index in 0..slot.outcomes.len() {
            let end = match slot.outcomes.get(index) {
                Outcome::Pending => Outcome::Skipped,
                Outcome::Attempting => Outcome::Unknown,
                other => other,
            };
            slot.outcomes.merge(index, end);
        }
        Ok(None)
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

    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let State { hubs, limits, .. } = &mut *state;
        let hub = hubs.entry(request.hub.clone()).or_default();
        let rollout = request.rollout.as_ref().map(|(name, per_minute)| {
            let key = (name.clone(), request.hub.clone());
            (limits.entry(key).or_default(), *per_minute)
        });
        let hub = (hub, request.per_minute);
        Ok(take_within(hub, rollout, now, request.wanted))
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;
    use crate::conformance::Subject;

    async fn make() -> Subject {
        let clock = ManualClock::default();
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        Subject::new(store, clock)
    }

    crate::store_conformance!(make);
}
