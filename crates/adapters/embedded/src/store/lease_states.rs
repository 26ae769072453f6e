//! The leases and versions of batches, kept in memory.
//!
//! Neither is on disk. The file is locked, so the holders of leases under an earlier process ended
//! with that process. A stored lease would only delay the next holder.

use std::collections::HashMap;

use twincast_core::batch::LeaseState;
use twincast_core::ids::{BatchId, BatchVersion};

use super::tables::Series;

/// Versions of changed batches are above this number; the version of an unchanged batch is the
/// batch's series, which is below.
const ABOVE_ALL_SERIES: u64 = 1 << 32;

/// The parts of batches kept in memory only.
#[derive(Debug, Default)]
pub(super) struct LeaseStates {
    changes: u64,
    plans: HashMap<Series, Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    batches: HashMap<BatchId, (LeaseState, BatchVersion)>,
    budget_stamp: u64,
}

impl LeaseStates {
    /// Returns the lease state and the version of a batch.
    pub(super) fn of(&self, series: Series, batch: BatchId) -> (LeaseState, BatchVersion) {
        let plan = self.plans.get(&series);
        let known = plan.and_then(|plan| plan.batches.get(&batch)).cloned();
        known.unwrap_or_else(|| (LeaseState::default(), BatchVersion(u64::from(series))))
    }

    /// Returns a number that changes whenever a budget begins to count a batch of the plan.
    pub(super) fn budget_stamp(&self, series: Series) -> u64 {
        self.plans.get(&series).map_or(0, |plan| plan.budget_stamp)
    }

    /// Stores a change of a batch, and returns the new version. `enters_budgets` means that budgets
    /// count the batch from now on.
    pub(super) fn put(
        &mut self,
        series: Series,
        batch: BatchId,
        lease_state: LeaseState,
        enters_budgets: bool,
    ) -> BatchVersion {
        self.changes += 1;
        let version = BatchVersion(ABOVE_ALL_SERIES + self.changes);
        let plan = self.plans.entry(series).or_default();
        plan.batches.insert(batch, (lease_state, version));
        if enters_budgets {
            plan.budget_stamp = version.0;
        }
        version
    }

    /// Forgets a removed plan.
    pub(super) fn forget(&mut self, series: Series) {
        self.plans.remove(&series);
    }
}
