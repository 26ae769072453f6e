//! The batches of rollouts.
//!
//! A store keeps batches, and decides nothing about them: it [reads](Batches::batch) one and [commits](Batches::commit) what
//! [`Batch`] has made of it, if it is still as it was read. The operations are on top of these two, the same for every store.

mod leased;

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::batch::{
    Batch, BatchStatus, Held, Lease, LeaseReply, LeaseRequest, Reopened, Report, Skip, Surroundings,
};
use crate::budget::{BudgetGroup, GroupProgress};
use crate::ids::{
    Attempt, BatchId, BatchVersion, HubName, Revision, RolloutId, RolloutName, StageIndex,
};
use crate::outcome::{Outcome, OutcomeList, Tally};
use crate::plan::{self, BatchHeader, Checksum, DeviceList};
use crate::rollout::{Adding, Stance, Wanted};
use crate::time::Timestamp;

pub use leased::Leased;

/// A batch as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The batch.
    pub batch: Batch,
    /// Its state in the store; what is made of it is committed only if the store is still in this state.
    pub version: BatchVersion,
    /// The ids of its devices, if they were asked for.
    pub devices: Option<DeviceList>,
    /// How its rollout stood.
    pub rollout: Stance,
    /// When its plan was completed.
    pub whole_at: Timestamp,
    /// Another number whenever a budget of its rollout has begun to count a batch.
    pub begun: u64,
    /// The store's time at which it was read.
    pub now: Timestamp,
}

/// What is read of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but the ids of its devices.
    State,
    /// All.
    Whole,
}

/// What is to become of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What is done.
    pub operation: Operation,
    /// The batch as it is to be.
    pub next: Batch,
    /// The revision that the rollout must still have, if the operation depends on how it stands.
    pub under: Option<Revision>,
    /// The batch's budgets are to count it.
    pub begins: Option<Begins>,
}

/// Budgets are to count a batch from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begins {
    /// [`Loaded::begun`] as of when the budgets had room: another batch that has begun since may have taken it.
    pub seen: u64,
    /// Batches that a group's budget counts no longer, because none of their devices is in progress any more.
    pub over: Vec<(String, BatchId)>,
}

/// What can be done to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// [`Batch::lease`].
    Lease(LeaseRequest),
    /// [`Batch::record`].
    Record(Lease, Vec<Report>),
    /// [`Batch::merge`].
    Merge(Attempt, Vec<Report>),
    /// [`Batch::release`].
    Release(Lease),
    /// [`Batch::skip`].
    Skip(Skip),
    /// [`Batch::reopen`].
    Reopen(Attempt, Vec<Outcome>),
}

impl Operation {
    /// What is done to the batch, for "cannot …".
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Lease(_) => "lease",
            Self::Record(..) => "record outcomes in",
            Self::Merge(..) => "merge reports into",
            Self::Release(_) => "release",
            Self::Skip(_) => "skip devices of",
            Self::Reopen(..) => "retry devices of",
        }
    }
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// It is stored.
    Done {
        /// The batch's state now.
        version: BatchVersion,
        /// What the rollout wants of a worker.
        wanted: Wanted,
        /// The store's time.
        now: Timestamp,
    },
    /// Batch or rollout have changed since they were read, or are gone. Nothing was changed.
    Overtaken,
}

/// A batch with all that is known of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWork {
    /// The rollout.
    pub rollout: RolloutId,
    /// The manifest.
    pub batch: plan::Batch,
    /// Their outcomes, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The hub's codes for the devices that it refused, by position, ascending.
    pub codes: Vec<(u32, u32)>,
    /// Which attempt is made at those that are pending.
    pub attempt: Attempt,
}

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
    /// [added by](Stance::adding) now.
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
                Committed::Overtaken => {}
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

    /// [`Batch::record`], and says what the rollout wants. See [`Leased`] for whoever has the batch.
    /// [`StoreError::Superseded`] when the lease no longer holds; then nothing was recorded.
    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let loaded = self.batch(&lease.rollout, lease.batch, Part::State).await;
        let loaded = loaded.map_err(|error| leased::gone(error, lease))?;
        let now = loaded.now;
        let mut leased = Leased::new(lease.clone(), loaded);
        leased.record(self, reports, ttl, now).await
    }

    /// [`Batch::merge`]. Under no lease.
    /// [`StoreError::NotFound`] when there is no such batch (any more), or the rollout of that name is another one.
    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), StoreError> {
        let operation = Operation::Merge(attempt, reports.to_vec());
        let merged = alter(self, name, batch, operation, |next, loaded| {
            if loaded.rollout.id != id {
                let what = format!("rollout {name} with the id {id}");
                return Err(StoreError::NotFound { what });
            }
            next.merge(attempt, reports)
                .map_err(|refused| StoreError::NotFound {
                    what: format!("batch {batch} of rollout {name}: {refused}"),
                })
        });
        merged.await.map(|_| ())
    }

    /// [`Batch::release`]. See [`Leased`] for whoever has the batch.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        match self.batch(&lease.rollout, lease.batch, Part::State).await {
            Ok(loaded) => {
                let now = loaded.now;
                Leased::new(lease.clone(), loaded).release(self, now).await
            }
            Err(StoreError::NotFound { .. }) => Ok(()),
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

/// Reads a batch, changes it, and commits that; again, when it was overtaken. Also gives what the rollout wants.
async fn alter<S: Batches + ?Sized, T: Send>(
    store: &S,
    name: &RolloutName,
    batch: BatchId,
    operation: Operation,
    change: impl Fn(&mut Batch, &Loaded) -> Result<T, StoreError> + Send,
) -> Result<(T, Wanted), StoreError> {
    // What depends on how the rollout stands is refused when it has moved on.
    let depends = matches!(operation, Operation::Skip(_) | Operation::Reopen(..));
    for _ in 0..TRIES {
        let loaded = store.batch(name, batch, Part::State).await?;
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
            Committed::Overtaken => {}
        }
    }
    Err(contended(operation.verb(), name, batch))
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

impl Loaded {
    /// Neither the batch nor its plan can be lost in a crash any more.
    fn is_durable(&self, durable_after: Duration) -> bool {
        self.now >= self.batch.added_at.max(self.whole_at).plus(durable_after)
    }

    /// The same with its devices, for those who only look.
    fn into_work(self) -> BatchWork {
        BatchWork {
            rollout: self.rollout.id,
            batch: plan::Batch {
                header: self.batch.header,
                devices: self.devices.unwrap_or_default(),
            },
            outcomes: self.batch.outcomes,
            codes: self.batch.codes.into_iter().collect(),
            attempt: self.batch.attempts.newest,
        }
    }
}

/// One device of a batch, with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDevice<'a> {
    /// Its position in the manifest.
    pub index: u32,
    /// Its id.
    pub id: &'a str,
    /// What became of it.
    pub outcome: Outcome,
    /// The hub's code, if it refused it.
    pub code: Option<u32>,
}

impl BatchWork {
    /// Its devices, in the manifest's order.
    pub fn devices(&self) -> impl Iterator<Item = KnownDevice<'_>> {
        let mut codes = self.codes.iter().peekable();
        let outcomes = (0u32..).zip(self.outcomes.iter());
        let devices = outcomes.zip(self.batch.devices.iter());
        devices.map(move |((index, outcome), id)| {
            let code = codes.next_if(|(at, _)| *at == index);
            KnownDevice {
                index,
                id,
                outcome,
                code: code.map(|(_, code)| *code),
            }
        })
    }

    /// The header, for brevity.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.batch.header
    }
}
