//! The batches of rollouts.
//!
//! A store keeps batches and decides nothing about them. It [reads](Batches::batch) a batch, and
//! [commits](Batches::commit) the changed [`Batch`] if the stored batch is still in the state of
//! the read. The operations build on these two methods, in the same way for every store.

mod leased;
mod state;
mod work;

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::batch::{
    Batch, BatchStatus, Held, Lease, LeaseContext, LeaseReply, LeaseRequest, Refused, Reopened,
    Report, Skip,
};
use crate::budget::{BudgetGroup, GroupProgress};
use crate::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName, StageIndex};
use crate::outcome::{Outcome, Tally};
use crate::plan::{self, Checksum};
use crate::rollout::{Adding, Directive};
use crate::time::Timestamp;

pub use leased::Leased;
pub use state::{BudgetEntry, Change, Committed, Loaded, Operation, Part};
pub use work::{BatchWork, KnownDevice};

/// Keeps batches.
///
/// # Cancel safety
/// A dropped call may or may not have taken effect, as after [`StoreError::Unavailable`]; every
/// call may be repeated.
#[async_trait]
pub trait Batches: Send + Sync + 'static {
    /// Returns the time after which an acknowledged write is durable: until then, a crash of the
    /// store may undo the write. Zero when `Ok` means durable.
    fn durable_after(&self) -> Duration {
        Duration::ZERO
    }

    /// Adds batches with all devices pending, and returns the checksum of all batches of the
    /// rollout. A repeated batch changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when `by` is not the operation that may [add
    /// batches](crate::rollout::RolloutControl::adding) to the rollout now.
    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError>;

    /// Returns at most `limit` batches in the order of their numbers, beginning after the number
    /// `after`.
    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// Returns the first `limit` unfinished batches of a hub, of the stages up to `through`, in the
    /// order of stages, sort keys and numbers. The cost does not depend on the number of other
    /// batches. Omits batches that a crash of the store may still undo.
    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// Returns the current progress of a rollout's budget groups, in the given order.
    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError>;

    /// Returns a rollout's counters by stage and hub: always the sum of the outcomes.
    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError>;

    /// Returns the current state of a batch.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the batch does not exist, or no longer exists.
    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError>;

    /// Stores a changed batch and moves the tallies by the difference, in one step.
    ///
    /// Nothing is stored if the batch has changed since the read of `from`, if the rollout no
    /// longer has the revision required by [`Change::under`], or if the budgets have begun to count
    /// another batch since [`BudgetEntry::stamp`].
    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError>;

    /// Requests the lease on a batch, see [`Batch::lease`]. A batch is not leased while a crash of
    /// the store may still undo it, so no message is sent from a plan that may be made again with
    /// another result.
    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let leased = self.lease_for_work(request, Part::WithoutDevices).await?;
        Ok(leased.map_or_else(
            |reply| reply,
            |leased| LeaseReply::Granted(leased.lease().clone()),
        ))
    }

    /// Requests the lease on a batch, for a worker about to work on the batch.
    async fn lease_for_work(
        &self,
        request: &LeaseRequest,
        part: Part,
    ) -> Result<Result<Leased, LeaseReply>, StoreError> {
        for _ in 0..TRIES {
            let loaded = self.batch(&request.rollout, request.batch, part).await?;
            let mut next = loaded.batch.clone();
            let budgets = match next.needs_room() {
                true => {
                    self.in_progress(&request.rollout, &next.header.budgets)
                        .await?
                }
                false => Vec::new(),
            };
            let context = LeaseContext {
                rollout: &loaded.rollout,
                budgets: &budgets,
                durable: loaded.is_durable(self.durable_after()),
                now: loaded.now,
            };
            let reply = next.lease(request, &context);
            if next == loaded.batch {
                return Ok(Err(reply));
            }
            let budget_entry = (next.budget_usage.is_open && !loaded.batch.budget_usage.is_open)
                .then(|| BudgetEntry {
                    stamp: loaded.budget_stamp,
                    finished: finished(&next.header.budgets, budgets),
                });
            let change = Change {
                operation: Operation::Lease(request.clone()),
                next,
                under: Some(loaded.rollout.revision),
                budget_entry,
            };
            match self.commit(&request.rollout, &loaded, &change).await? {
                Committed::Overtaken(_) => {}
                Committed::Done { version, now, .. } => {
                    let LeaseReply::Granted(lease) = reply else {
                        return Ok(Err(reply));
                    };
                    let loaded = Loaded {
                        batch: change.next,
                        version,
                        now,
                        ..loaded
                    };
                    return Ok(Ok(Leased::new(lease, loaded)));
                }
            }
        }
        Err(contended("lease", &request.rollout, request.batch))
    }

    /// Returns a batch with its devices.
    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError> {
        let loaded = self.batch(name, batch, Part::WithDevices).await?;
        Ok(loaded.into_work())
    }

    /// Merges reports, see [`Batch::record`], and returns the rollout's directive. The holder of
    /// the batch uses [`record_leased`](Self::record_leased).
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the lease no longer holds; nothing was recorded then.
    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Directive, StoreError> {
        let loaded = self
            .batch(&lease.rollout, lease.batch, Part::WithoutDevices)
            .await;
        let loaded = loaded.map_err(|error| superseded_if_not_found(error, lease))?;
        let now = loaded.now;
        let mut leased = Leased::new(lease.clone(), loaded);
        self.record_leased(&mut leased, reports, ttl, now).await
    }

    /// Merges the reports of a batch's holder, renews the lease until `ttl` from now, and returns
    /// the rollout's directive. Without reports, the call is a heartbeat. `now` is the holder's own
    /// time. Idempotent.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the lease no longer holds; nothing was recorded then.
    async fn record_leased(
        &self,
        leased: &mut Leased,
        reports: &[Report],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Directive, StoreError> {
        let lease = leased.lease().clone();
        let operation = Operation::Record(lease.clone(), reports.to_vec());
        let record = |batch: &mut Batch, at| batch.record(&lease, reports, ttl, at);
        alter_leased(self, leased, operation, now, record).await
    }

    /// Merges reports without a lease, see [`Batch::merge`], and returns the result of the merge.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the batch does not exist, or no longer exists, or when the
    /// rollout with this name has another id.
    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<usize, StoreError> {
        let operation = Operation::Merge(attempt, reports.to_vec());
        let merged = alter(self, name, batch, operation, |next, loaded| {
            if loaded.rollout.id != id {
                let what = format!("rollout {name} with the id {id}");
                return Err(StoreError::NotFound { what });
            }
            Ok(next.merge(attempt, reports))
        });
        Ok(merged.await?.0)
    }

    /// Releases a lease, see [`Batch::release`]. The holder of the batch uses
    /// [`release_leased`](Self::release_leased).
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        match self
            .batch(&lease.rollout, lease.batch, Part::WithoutDevices)
            .await
        {
            Ok(loaded) => {
                let now = loaded.now;
                let mut leased = Leased::new(lease.clone(), loaded);
                self.release_leased(&mut leased, now).await
            }
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Releases a batch; does nothing if the lease no longer holds. `now` is the holder's own time.
    async fn release_leased(&self, leased: &mut Leased, now: Timestamp) -> Result<(), StoreError> {
        let lease = leased.lease().clone();
        let operation = Operation::Release(lease.clone());
        let release = |batch: &mut Batch, _| batch.release(&lease);
        match alter_leased(self, leased, operation, now, release).await {
            Ok(_) | Err(StoreError::Superseded { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Settles devices excluded from sending, see [`Batch::skip`]. Returns the holder if a worker
    /// holds the batch; the call can be repeated later.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the rollout is not being aborted, or the scan is no longer
    /// the current scan.
    async fn skip(
        &self,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Result<Option<Held>, StoreError> {
        let operation = Operation::Skip(which.clone());
        let skipped = alter(self, name, batch, operation, |next, loaded| {
            match which.is_allowed(&loaded.rollout) {
                true => Ok(next.skip(which, loaded.now)),
                false => Err(moved_on(name)),
            }
        });
        Ok(skipped.await?.0)
    }

    /// Makes devices pending again, see [`Batch::reopen`]. The driver after a crashed driver may
    /// repeat all calls: nothing is sent during the preparation, so no device fails again in
    /// between.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the rollout is not preparing this attempt.
    async fn reopen(
        &self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
    ) -> Result<Reopened, StoreError> {
        let operation = Operation::Reopen(attempt, outcomes.to_vec());
        let reopened = alter(self, name, batch, operation, |next, loaded| {
            match loaded.rollout.preparing == Some(attempt) {
                true => Ok(next.reopen(attempt, outcomes, loaded.now)),
                false => Err(moved_on(name)),
            }
        });
        Ok(reopened.await?.0)
    }
}

/// The most tries of a change that is overtaken each time.
const TRIES: usize = 32;

/// Reads a batch, changes it, and commits the change; repeats the change on the newer state after
/// being overtaken. Also returns the rollout's directive.
async fn alter<S: Batches + ?Sized, T: Send>(
    store: &S,
    name: &RolloutName,
    batch: BatchId,
    operation: Operation,
    change: impl Fn(&mut Batch, &Loaded) -> Result<T, StoreError> + Send,
) -> Result<(T, Directive), StoreError> {
    // The store refuses an operation that depends on the rollout's state if that state has changed.
    let depends = matches!(operation, Operation::Skip(_) | Operation::Reopen(..));
    let mut newer = None;
    for _ in 0..TRIES {
        let loaded = reload(store, name, batch, newer).await?;
        let mut next = loaded.batch.clone();
        let result = change(&mut next, &loaded)?;
        if next == loaded.batch {
            return Ok((result, loaded.rollout.directive));
        }
        let change = Change {
            operation: operation.clone(),
            next,
            under: depends.then_some(loaded.rollout.revision),
            budget_entry: None,
        };
        match store.commit(name, &loaded, &change).await? {
            Committed::Done { directive, .. } => return Ok((result, directive)),
            Committed::Overtaken(now) => newer = now,
        }
    }
    Err(contended(operation.verb(), name, batch))
}

/// Changes a batch in the state known to its holder, and commits the change; repeats the change on
/// the newer state after being overtaken, by feedback or by the next holder. `change` gets the
/// store's time.
async fn alter_leased<S: Batches + ?Sized>(
    store: &S,
    leased: &mut Leased,
    operation: Operation,
    now: Timestamp,
    change: impl Fn(&mut Batch, Timestamp) -> Result<(), Refused> + Send,
) -> Result<Directive, StoreError> {
    let Leased {
        lease,
        loaded,
        answered_at,
    } = leased;
    let mut made = Change {
        operation,
        next: loaded.batch.clone(),
        under: None,
        budget_entry: None,
    };
    for _ in 0..TRIES {
        let since = now.since(answered_at.unwrap_or(now));
        let changed = change(&mut made.next, loaded.now.plus(since));
        changed.map_err(|why| refused(why, lease))?;
        match store.commit(&lease.rollout, loaded, &made).await? {
            Committed::Done {
                version,
                directive,
                now: store_now,
            } => {
                loaded.batch = made.next;
                (loaded.version, loaded.now) = (version, store_now);
                *answered_at = Some(now);
                return Ok(directive);
            }
            Committed::Overtaken(newer) => {
                let read = reload(store, &lease.rollout, lease.batch, newer).await;
                *loaded = read.map_err(|error| superseded_if_not_found(error, lease))?;
                *answered_at = Some(now);
                made.next = loaded.batch.clone();
            }
        }
    }
    let verb = made.operation.verb();
    Err(contended(verb, &lease.rollout, lease.batch))
}

/// Converts a refusal into the error for the holder of the lease.
fn refused(why: Refused, lease: &Lease) -> StoreError {
    match why {
        Refused::Fenced(_) => StoreError::Superseded {
            what: lease.to_string(),
        },
        Refused::NoDevice(index) => StoreError::NotFound {
            what: format!(
                "device {index} of batch {} of rollout {}",
                lease.batch, lease.rollout
            ),
        },
    }
}

/// Converts the absence of a batch into the loss of the lease.
fn superseded_if_not_found(error: StoreError, lease: &Lease) -> StoreError {
    match error {
        StoreError::NotFound { .. } => StoreError::Superseded {
            what: lease.to_string(),
        },
        other => other,
    }
}

/// Returns the current state of a batch: `newer`, as just returned by [`Committed::Overtaken`], or
/// a new read.
async fn reload<S: Batches + ?Sized>(
    store: &S,
    name: &RolloutName,
    batch: BatchId,
    newer: Option<Box<Loaded>>,
) -> Result<Loaded, StoreError> {
    match newer {
        Some(newer) => Ok(*newer),
        None => store.batch(name, batch, Part::WithoutDevices).await,
    }
}

fn moved_on(name: &RolloutName) -> StoreError {
    StoreError::Superseded {
        what: format!("rollout {name}"),
    }
}

fn contended(verb: &str, name: &RolloutName, batch: BatchId) -> StoreError {
    StoreError::Unavailable {
        doing: format!("{verb} batch {batch} of rollout {name}"),
        source: format!("other processes changed it during each of {TRIES} attempts").into(),
    }
}

/// Returns the batches that the budgets of the groups no longer count.
fn finished(budgets: &[BudgetGroup], progress: Vec<GroupProgress>) -> Vec<(String, BatchId)> {
    let groups = budgets.iter().zip(progress);
    let finished = groups.flat_map(|(group, progress)| {
        let batches = progress.finished.into_iter();
        batches.map(|batch| (group.group.clone(), batch))
    });
    finished.collect()
}
