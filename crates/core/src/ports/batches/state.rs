//! The loaded state of a batch, and the change to commit.

use std::time::Duration;

use super::work::BatchWork;
use crate::batch::{Batch, Lease, LeaseRequest, Report, Skip};
use crate::ids::{Attempt, BatchId, BatchVersion, Revision};
use crate::outcome::Outcome;
use crate::plan::{self, DeviceList};
use crate::rollout::{Directive, RolloutControl};
use crate::time::Timestamp;

/// A batch as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The batch.
    pub batch: Batch,
    /// The version of the stored batch. A change is committed only if the stored batch still has
    /// this version.
    pub version: BatchVersion,
    /// The ids of the devices, if requested.
    pub devices: Option<DeviceList>,
    /// The state of the rollout at the read.
    pub rollout: RolloutControl,
    /// When the plan was completed.
    pub plan_completed_at: Timestamp,
    /// A number that changes whenever a budget of the rollout begins to count a batch.
    pub budget_stamp: u64,
    /// The store's time of the read.
    pub now: Timestamp,
}

impl Loaded {
    /// Returns whether neither the batch nor its plan can be lost in a crash any more.
    pub(super) fn is_durable(&self, durable_after: Duration) -> bool {
        self.now
            >= self
                .batch
                .added_at
                .max(self.plan_completed_at)
                .plus(durable_after)
    }

    /// Converts the batch for readers of its devices.
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

/// The part of a batch to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the ids of the devices.
    WithoutDevices,
    /// Everything.
    WithDevices,
}

/// A change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The operation behind the change.
    pub operation: Operation,
    /// The batch after the change.
    pub next: Batch,
    /// The required revision of the rollout, for an operation that depends on the rollout's state.
    pub under: Option<Revision>,
    /// The change in budget usage, if the budgets begin to count the batch.
    pub budget_entry: Option<BudgetEntry>,
}

/// The begin of a batch's budget usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetEntry {
    /// [`Loaded::budget_stamp`] at the time of the check for room: another batch counted since may
    /// have taken the room.
    pub stamp: u64,
    /// Batches that the budget of a group no longer counts, because none of their devices is in
    /// progress.
    pub finished: Vec<(String, BatchId)>,
}

/// The operations on a batch.
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
    /// Returns a verb to follow "cannot".
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

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The change is stored.
    Done {
        /// The new version of the batch.
        version: BatchVersion,
        /// The rollout's directive to workers.
        directive: Directive,
        /// The store's time.
        now: Timestamp,
    },
    /// Nothing was changed, because the batch or the rollout was changed or deleted since the read,
    /// or because the budgets have begun to count another batch. Contains the current
    /// [state](Part::WithoutDevices) of the batch, if the batch exists and the store returns the
    /// state in the same step.
    Overtaken(Option<Box<Loaded>>),
}
