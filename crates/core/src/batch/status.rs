//! The status of a batch, for lists.

use crate::batch::{Held, LeaseState};
use crate::budget::BudgetUsage;
use crate::ids::Version;
use crate::outcome::Counts;
use crate::plan::BatchHeader;
use crate::time::Timestamp;

/// A batch without its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatus {
    /// The immutable description of the batch.
    pub header: BatchHeader,
    /// The number of devices with each outcome.
    pub counts: Counts,
    /// The current holder.
    pub held: Option<Held>,
    /// Whether the last lease has lapsed without being released, and no worker holds the batch now.
    pub lapsed: bool,
    /// Whether the batch is quarantined: see [`MAX_FAILED_LEASES`](super::MAX_FAILED_LEASES).
    pub quarantined: bool,
    /// Whether the budgets count the batch already, so a new lease needs no room. `false` without
    /// budgets.
    pub is_counted: bool,
}

impl BatchStatus {
    /// Returns the status of a batch at `now`, by the store's clock. `version` is the version of
    /// the rollout's record.
    #[must_use]
    pub fn of(
        header: BatchHeader,
        counts: Counts,
        lease_state: &LeaseState,
        budget_usage: BudgetUsage,
        version: Version,
        now: Timestamp,
    ) -> Self {
        Self {
            header,
            counts,
            held: lease_state.held_at(now),
            lapsed: lease_state.has_lapsed_at(now),
            quarantined: lease_state.is_quarantined(version),
            is_counted: budget_usage.is_open,
        }
    }

    /// Returns whether no device of the batch is owed a send.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.counts.unsettled() == 0
    }
}
