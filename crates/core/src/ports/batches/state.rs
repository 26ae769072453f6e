//! What is read of a batch, and what is committed.

use std::time::Duration;

use super::work::BatchWork;
use crate::batch::{Batch, Lease, LeaseRequest, Report, Skip};
use crate::ids::{Attempt, BatchId, BatchVersion, Revision};
use crate::outcome::Outcome;
use crate::plan::{self, DeviceList};
use crate::rollout::{Stance, Wanted};
use crate::time::Timestamp;

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

impl Loaded {
    /// Neither the batch nor its plan can be lost in a crash any more.
    pub(super) fn is_durable(&self, durable_after: Duration) -> bool {
        self.now >= self.batch.added_at.max(self.whole_at).plus(durable_after)
    }

    /// The same with its devices, for those who only look.
    pub(super) fn into_work(self) -> BatchWork {
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Batch or rollout have changed since they were read, or are gone. Nothing was changed. With the [state](Part::State)
    /// of the batch as it is now, if it is there and the store gives it in the same step.
    Overtaken(Option<Box<Loaded>>),
}
