//! A process's connection to the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use twincast_core::batch::{Batch, BatchStatus, Lease};
use twincast_core::evidence::ListenerStatus;
use twincast_core::ids::{BatchId, HubName, Revision, RolloutName, StageIndex};
use twincast_core::outcome::Outcome;
use twincast_core::permits::{Grant, PermitRequest};
use twincast_core::plan::{self, Checksum};
use twincast_core::ports::{
    Batches, Change, Committed, Created, Halt, Limiter, Loaded, Operation, Part, Presence,
    RolloutRegistry, Rollouts, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Commands, Directive, Rollout};

use super::process::FaultRates;
use super::{Bug, Effect, Process, Sim};
use crate::MemoryStore;
use crate::interposed::{Call, Interposed, Interposer};

/// A [`Store`](twincast_core::ports::Store) and [`RolloutRegistry`] of a single process, with data
/// shared by all processes.
pub type SimStore = Interposed<ProcessInterposer>;

/// The interposer between a process and the store: faults, planted defects, and the
/// [`Observer`](super::Observer).
#[derive(Debug, Clone)]
pub struct ProcessInterposer {
    process: Process,
    checksums: Arc<Mutex<BTreeMap<(RolloutName, String), Checksum>>>,
}

impl SimStore {
    /// Connects `process` to the store `truth`.
    #[must_use]
    pub fn of(process: &Process, truth: &MemoryStore) -> Self {
        let interposer = ProcessInterposer {
            process: process.clone(),
            checksums: Arc::default(),
        };
        Self::on(truth, interposer)
    }
}

impl ProcessInterposer {
    /// Returns the checksum of all batches added by the process so far.
    fn add_to_checksum(
        &self,
        name: &RolloutName,
        adding: Adding,
        batches: &[plan::Batch],
    ) -> Checksum {
        let mut checksums = self.checksums.lock().expect("the lock is not poisoned");
        let checksum = checksums.entry((name.clone(), adding.to_string()));
        let checksum = checksum.or_default();
        checksum.join(&batches.iter().collect());
        *checksum
    }

    fn has(&self, bug: Bug) -> bool {
        self.process.sim().has(bug)
    }
}

/// Removes a report from a change, for some planted defects.
fn forget_report(sim: &Sim, from: &Loaded, change: &mut Change) {
    let mut next = from.batch.clone();
    match &mut change.operation {
        Operation::Record(lease, reports) if sim.has(Bug::ForgetsReports) && reports.len() > 2 => {
            reports.pop();
            let renewed = &change.next.lease_state.current;
            let until = renewed.as_ref().map_or(from.now, |(_, until)| *until);
            let recorded = next.record(lease, reports, until.since(from.now), from.now);
            recorded.expect("the change is based on the same batch");
        }
        Operation::Merge(attempt, reports)
            if sim.has(Bug::ForgetsFeedback) && reports.len() > 1 =>
        {
            reports.pop();
            next.merge(*attempt, reports);
        }
        _ => return,
    }
    change.next = next;
}

/// Reports a change of a batch to the [`Observer`](super::Observer).
fn observe(by: &Process, name: &RolloutName, from: &Loaded, change: &Change) {
    let id = from.batch.header.id;
    match &change.operation {
        Operation::Lease(request) => {
            let lease_state = &change.next.lease_state;
            if let Some((holder, _)) = &lease_state.current {
                let lease = Lease {
                    rollout: name.clone(),
                    batch: id,
                    holder: holder.clone(),
                    epoch: lease_state.epoch,
                };
                by.observe(&Effect::Leased(request, &lease));
            }
        }
        Operation::Record(lease, reports) => by.observe(&Effect::Recorded(lease, reports)),
        Operation::Merge(attempt, reports) => {
            let rollout = from.rollout.id;
            by.observe(&Effect::Merged(name, rollout, id, *attempt, reports));
        }
        Operation::Release(lease) => by.observe(&Effect::Released(lease)),
        Operation::Skip(which) => by.observe(&Effect::Skipped(name, id, which)),
        Operation::Reopen(attempt, outcomes) => {
            let pending = |batch: &Batch| batch.counts().get(Outcome::Pending);
            let devices = pending(&change.next) - pending(&from.batch);
            by.observe(&Effect::Reopened(name, id, *attempt, outcomes, devices));
        }
    }
}

impl Interposer for ProcessInterposer {
    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let sim = self.process.sim();
        let (faults, age) = (sim.faults(), sim.age());
        let away = |(from, to): &(Duration, Duration)| (*from..*to).contains(&age);
        let rates = FaultRates {
            fails: faults.store_fails,
            slow: faults.store_slow,
            away: faults.store_away.iter().any(away),
        };
        let Call { name, about } = call;
        let answered = self.process.call(rates, name, about, effect).await;
        answered.unwrap_or_else(|lost| {
            Err(StoreError::Unavailable {
                doing: name.to_owned(),
                source: Box::new(lost),
            })
        })
    }

    async fn create(&self, truth: MemoryStore, rollout: Rollout) -> Result<Created, StoreError> {
        let created = truth.create(&rollout).await?;
        if created == Created::New {
            self.process.observe(&Effect::Saved(&rollout));
        }
        Ok(created)
    }

    async fn rollout(
        &self,
        truth: MemoryStore,
        name: RolloutName,
    ) -> Result<Option<Rollout>, StoreError> {
        let rollout = truth.rollout(&name).await?;
        Ok(match self.process.sim().bug() {
            Some(bug) => rollout.map(|rollout| bug.shows(rollout)),
            None => rollout,
        })
    }

    async fn save(
        &self,
        truth: MemoryStore,
        mut rollout: Rollout,
        mut from: Revision,
        commands: Option<Commands>,
    ) -> Result<(), StoreError> {
        if let Some(bug) = self.process.sim().bug() {
            if bug.forgets(&rollout) {
                return Ok(());
            }
            // Restore the stored spec: the process was shown a spec changed by the defect.
            if let Some(stored) = truth.rollout(&rollout.spec.name).await?
                && bug.shows(stored.clone()).spec == rollout.spec
            {
                rollout.spec = stored.spec;
            }
        }
        if self.has(Bug::ForgetsLateJoiners) || self.has(Bug::RefusesNothing) {
            rollout.precondition = None;
        }
        if self.has(Bug::NoVersions)
            && let Some(current) = truth.revision(&rollout.spec.name).await?
        {
            from = current;
        }
        truth
            .save_with_commands(&rollout, from, commands.as_ref())
            .await?;
        self.process.observe(&Effect::Saved(&rollout));
        Ok(())
    }

    async fn add_batches(
        &self,
        truth: MemoryStore,
        name: RolloutName,
        adding: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let checksum = self.add_to_checksum(&name, adding, &batches);
        if matches!(adding, Adding::Scan(_)) && self.has(Bug::ForgetsLateJoiners) {
            let mut held = truth.add_batches(&name, adding, Vec::new()).await?;
            held.join(&batches.iter().collect());
            return Ok(held);
        }
        let mut added = truth.add_batches(&name, adding, batches.clone()).await?;
        if self.has(Bug::RefusesNothing) && matches!(adding, Adding::Plan(_)) {
            added = checksum;
        }
        self.process.observe(&Effect::Planned(&name, &batches));
        Ok(added)
    }

    async fn open_batches(
        &self,
        truth: MemoryStore,
        name: RolloutName,
        hub: HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let through = match self.has(Bug::NoStages) {
            true => StageIndex(u16::MAX),
            false => through,
        };
        truth.open_batches(&name, &hub, through, limit).await
    }

    async fn tallies(
        &self,
        truth: MemoryStore,
        name: RolloutName,
    ) -> Result<Vec<Tally>, StoreError> {
        let mut tallies = truth.tallies(&name).await?;
        if self.has(Bug::CountsSilent) {
            for tally in &mut tallies {
                for _ in 0..tally.counts.get(Outcome::Enqueued) {
                    tally.counts.shift(Outcome::Enqueued, Outcome::Delivered);
                }
            }
        }
        Ok(tallies)
    }

    async fn batch(
        &self,
        truth: MemoryStore,
        name: RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let mut loaded = truth.batch(&name, batch, part).await?;
        if self.has(Bug::NeverStops) {
            loaded.rollout.directive = Directive::Continue;
        }
        Ok(loaded)
    }

    async fn commit(
        &self,
        truth: MemoryStore,
        name: RolloutName,
        from: Loaded,
        mut change: Change,
    ) -> Result<Committed, StoreError> {
        if self.has(Bug::SkipsOvertaken) && matches!(change.operation, Operation::Skip(_)) {
            return Ok(Committed::Overtaken(None));
        }
        forget_report(self.process.sim(), &from, &mut change);
        let mut committed = truth.commit(&name, &from, &change).await?;
        if matches!(committed, Committed::Overtaken(_))
            && self.has(Bug::NoFence)
            && let Operation::Record(lease, reports) = &change.operation
        {
            let (id, attempt) = (from.rollout.id, from.batch.attempts.newest);
            truth
                .merge(&name, id, lease.batch, attempt, reports)
                .await?;
            committed = Committed::Done {
                version: from.version,
                directive: Directive::Continue,
                now: from.now,
            };
        }
        if let Committed::Done { directive, .. } = &mut committed {
            observe(&self.process, &name, &from, &change);
            if self.has(Bug::NeverStops) {
                *directive = Directive::Continue;
            }
        }
        Ok(committed)
    }

    async fn take_permits(
        &self,
        truth: MemoryStore,
        request: PermitRequest,
    ) -> Result<Grant, StoreError> {
        let grant = truth.take_permits(&request).await?;
        match self.has(Bug::NoQuota) {
            true => Ok(Grant {
                permits: request.max_permits,
                wait: Duration::ZERO,
            }),
            false => Ok(grant),
        }
    }

    async fn listeners(
        &self,
        truth: MemoryStore,
        hub: HubName,
    ) -> Result<Vec<ListenerStatus>, StoreError> {
        let listeners = truth.listeners(&hub).await?;
        Ok(match self.process.sim().bug() {
            Some(bug) => bug.shows_listeners(listeners),
            None => listeners,
        })
    }

    async fn set_halted(&self, truth: MemoryStore, halt: Option<Halt>) -> Result<(), StoreError> {
        truth.set_halted(halt.as_ref()).await?;
        self.process.observe(&Effect::Halted(halt.is_some()));
        Ok(())
    }
}
