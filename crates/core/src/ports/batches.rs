//! The batches of rollouts.
//!
//! A store keeps batches, and decides nothing about them: it [reads](Batches::batch) one and [commits](Batches::commit) what
//! [`Batch`] has made of it, if it is still as it was read. The operations are on top of these two, the same for every store.

mod leased;
mod state;
mod work;

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::batch::{
    Batch, BatchStatus, Held, Lease, LeaseReply, LeaseRequest, Refused, Reopened, Report, Skip,
    Surroundings,
};
use crate::budget::{BudgetGroup, GroupProgress};
use crate::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName, StageIndex};
use crate::outcome::{Outcome, Tally};
use crate::plan::{self, Checksum};
use crate::rollout::{Adding, Wanted};
use crate::time::Timestamp;

pub use leased::Leased;
pub use state::{Begins, Change, Committed, Loaded, Operation, Part};
pub use work::{BatchWork, KnownDevice};

/// Keeps batches.
///
/// Cancel safety: a dropped call may or may not have taken effect, as after
/// [`StoreError::Unavailable`]; every call may be repeated.
#[async_trait]
pub trait Batches: Send + Sync + 'static {
    /// The time after which an acknowledged write is durable: until then a crash of the store may undo the write. Zero when
    /// `Ok` means durable.
    fn durable_after(&self) -> Duration {
        Duration::ZERO
    }

    /// Adds batches, all devices pending. Repeating a batch changes nothing. Gives the checksum of all batches that the
    /// rollout has then.
    /// [`StoreError::Superseded`] when that is not what the rollout's batches are
    /// [added by](crate::rollout::Stance::adding) now.
    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError>;

    /// Batches in the order of their numbers, `limit` at the most, after the number `after`.
    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// A hub's batches of the stages up to `through` on which something is left to do, the first
    /// `limit` in the order of stages, places and numbers. Cheap, however many there are besides. A batch that a crash
    /// of the store may still undo is left out.
    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError>;

    /// Groups of a rollout as they are now, in their order.
    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError>;

    /// A rollout's counters by stage and hub: always the sum of its outcomes.
    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError>;

    /// A batch as it is now.
    /// [`StoreError::NotFound`] when there is no such batch (any more).
    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError>;

    /// Stores what was made of a batch, and moves the tallies by what that changed, in one step; unless batch or rollout
    /// have changed since the batch was read as `from`.
    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError>;

    /// Asks for a batch: [`Batch::lease`]. No batch is given that a crash of the store may still undo, so no message of a
    /// plan is sent that may be made again in another way.
    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let leased = self.take(request, Part::State).await?;
        Ok(leased.map_or_else(
            |reply| reply,
            |leased| LeaseReply::Granted(leased.lease().clone()),
        ))
    }

    /// The same, for whoever goes on to work on the batch.
    async fn take(
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
            let around = Surroundings {
                rollout: &loaded.rollout,
                budgets: &budgets,
                durable: loaded.is_durable(self.durable_after()),
                now: loaded.now,
            };
            let reply = next.lease(request, &around);
            if next == loaded.batch {
                return Ok(Err(reply));
            }
            let begins = (next.begun.is_open && !loaded.batch.begun.is_open).then(|| Begins {
                seen: loaded.begun,
                over: over(&next.header.budgets, budgets),
            });
            let change = Change {
                operation: Operation::Lease(request.clone()),
                next,
                under: Some(loaded.rollout.revision),
                begins,
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

    /// A batch with its devices.
    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError> {
        let loaded = self.batch(name, batch, Part::Whole).await?;
        Ok(loaded.into_work())
    }

    /// [`Batch::record`], and says what the rollout wants. See [`record_taken`](Self::record_taken) for whoever has the batch.
    /// [`StoreError::Superseded`] when the lease no longer holds; then nothing was recorded.
    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let loaded = self.batch(&lease.rollout, lease.batch, Part::State).await;
        let loaded = loaded.map_err(|error| gone(error, lease))?;
        let now = loaded.now;
        let mut leased = Leased::new(lease.clone(), loaded);
        self.record_taken(&mut leased, reports, ttl, now).await
    }

    /// Merges what the holder of a batch reports, renews the lease until `ttl` from now, and says what the rollout wants.
    /// With no reports it is a heartbeat. `now` is the holder's own time. Idempotent.
    /// [`StoreError::Superseded`] when the lease no longer holds; then nothing was recorded.
    async fn record_taken(
        &self,
        leased: &mut Leased,
        reports: &[Report],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Wanted, StoreError> {
        let lease = leased.lease().clone();
        let operation = Operation::Record(lease.clone(), reports.to_vec());
        let record = |batch: &mut Batch, at| batch.record(&lease, reports, ttl, at);
        alter_taken(self, leased, operation, now, record).await
    }

    /// [`Batch::merge`], and gives what it gives. Under no lease.
    /// [`StoreError::NotFound`] when there is no such batch (any more), or the rollout of that name is another one.
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

    /// [`Batch::release`]. See [`release_taken`](Self::release_taken) for whoever has the batch.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        match self.batch(&lease.rollout, lease.batch, Part::State).await {
            Ok(loaded) => {
                let now = loaded.now;
                let mut leased = Leased::new(lease.clone(), loaded);
                self.release_taken(&mut leased, now).await
            }
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a batch back; does nothing if the lease does not hold any more. `now` is the holder's own time.
    async fn release_taken(&self, leased: &mut Leased, now: Timestamp) -> Result<(), StoreError> {
        let lease = leased.lease().clone();
        let operation = Operation::Release(lease.clone());
        let release = |batch: &mut Batch, _| batch.release(&lease);
        match alter_taken(self, leased, operation, now, release).await {
            Ok(_) | Err(StoreError::Superseded { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// [`Batch::skip`]: gives the holder if somebody works on the batch; then it can be asked again later.
    /// [`StoreError::Superseded`] when the rollout is not being aborted, or no longer at that look.
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

    /// [`Batch::reopen`]. A driver that died may do all of it again. Nothing is sent meanwhile, so none of it fails again in
    /// between.
    /// [`StoreError::Superseded`] when the rollout does not prepare this attempt.
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

/// How often a change is made anew that was overtaken.
const TRIES: usize = 32;

/// Reads a batch, changes it, and commits that; changes it again as it is now when it was overtaken. Also gives what the
/// rollout wants.
async fn alter<S: Batches + ?Sized, T: Send>(
    store: &S,
    name: &RolloutName,
    batch: BatchId,
    operation: Operation,
    change: impl Fn(&mut Batch, &Loaded) -> Result<T, StoreError> + Send,
) -> Result<(T, Wanted), StoreError> {
    // What depends on how the rollout stands is refused when it has moved on.
    let depends = matches!(operation, Operation::Skip(_) | Operation::Reopen(..));
    let mut told = None;
    for _ in 0..TRIES {
        let loaded = as_it_is(store, name, batch, told).await?;
        let mut next = loaded.batch.clone();
        let result = change(&mut next, &loaded)?;
        if next == loaded.batch {
            return Ok((result, loaded.rollout.wanted));
        }
        let change = Change {
            operation: operation.clone(),
            next,
            under: depends.then_some(loaded.rollout.revision),
            begins: None,
        };
        match store.commit(name, &loaded, &change).await? {
            Committed::Done { wanted, .. } => return Ok((result, wanted)),
            Committed::Overtaken(now) => told = now,
        }
    }
    Err(contended(operation.verb(), name, batch))
}

/// Changes a batch as its holder knows it, and commits that; changes it again as it is now when it was overtaken, by feedback
/// or by whoever has taken the batch over. `change` gets the store's time.
async fn alter_taken<S: Batches + ?Sized>(
    store: &S,
    leased: &mut Leased,
    operation: Operation,
    now: Timestamp,
    change: impl Fn(&mut Batch, Timestamp) -> Result<(), Refused> + Send,
) -> Result<Wanted, StoreError> {
    let Leased {
        lease,
        loaded,
        answered_at,
    } = leased;
    let mut made = Change {
        operation,
        next: loaded.batch.clone(),
        under: None,
        begins: None,
    };
    for _ in 0..TRIES {
        let since = now.since(answered_at.unwrap_or(now));
        let changed = change(&mut made.next, loaded.now.plus(since));
        changed.map_err(|why| refused(why, lease))?;
        match store.commit(&lease.rollout, loaded, &made).await? {
            Committed::Done {
                version,
                wanted,
                now: told,
            } => {
                loaded.batch = made.next;
                (loaded.version, loaded.now) = (version, told);
                *answered_at = Some(now);
                return Ok(wanted);
            }
            Committed::Overtaken(told) => {
                let read = as_it_is(store, &lease.rollout, lease.batch, told).await;
                *loaded = read.map_err(|error| gone(error, lease))?;
                *answered_at = Some(now);
                made.next = loaded.batch.clone();
            }
        }
    }
    let verb = made.operation.verb();
    Err(contended(verb, &lease.rollout, lease.batch))
}

/// What it means for the holder of a lease that its reports are refused.
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

/// A lease on a batch that is gone does not hold.
fn gone(error: StoreError, lease: &Lease) -> StoreError {
    match error {
        StoreError::NotFound { .. } => StoreError::Superseded {
            what: lease.to_string(),
        },
        other => other,
    }
}

/// A batch as it is now: read, if it was not just `told` by [`Committed::Overtaken`].
async fn as_it_is<S: Batches + ?Sized>(
    store: &S,
    name: &RolloutName,
    batch: BatchId,
    told: Option<Box<Loaded>>,
) -> Result<Loaded, StoreError> {
    match told {
        Some(told) => Ok(*told),
        None => store.batch(name, batch, Part::State).await,
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
        source: format!("others have changed it each time, {TRIES} times").into(),
    }
}

/// The batches that groups' budgets count no longer.
fn over(budgets: &[BudgetGroup], progress: Vec<GroupProgress>) -> Vec<(String, BatchId)> {
    let groups = budgets.iter().zip(progress);
    let over = groups.flat_map(|(group, progress)| {
        let batches = progress.over.into_iter();
        batches.map(|batch| (group.group.clone(), batch))
    });
    over.collect()
}
