//! Who works on which batch, for as long as this process lives, and which state each batch is in.
//!
//! Neither is on disk. The file is locked, so whoever held a lease under an earlier process is gone with it; a lease that
//! outlived it would only make the next one wait.

use std::collections::HashMap;

use twincast_core::batch::Tenancy;
use twincast_core::ids::{BatchId, BatchVersion};

use super::tables::Series;

/// Versions of batches that have changed are above it; those of the others are their series, which is below.
const ABOVE_ALL_SERIES: u64 = 1 << 32;

/// What of batches is in memory only.
#[derive(Debug, Default)]
pub(super) struct Tenancies {
    changes: u64,
    plans: HashMap<Series, Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    batches: HashMap<BatchId, (Tenancy, BatchVersion)>,
    begun: u64,
}

impl Tenancies {
    /// Who works on a batch, and the state that the batch is in.
    pub(super) fn of(&self, series: Series, batch: BatchId) -> (Tenancy, BatchVersion) {
        let plan = self.plans.get(&series);
        let known = plan.and_then(|plan| plan.batches.get(&batch)).cloned();
        known.unwrap_or_else(|| (Tenancy::default(), BatchVersion(u64::from(series))))
    }

    /// Another number whenever a budget has begun to count one of the plan's batches.
    pub(super) fn begun(&self, series: Series) -> u64 {
        self.plans.get(&series).map_or(0, |plan| plan.begun)
    }

    /// Notes a change of a batch; gives the state that the batch is in now. `begins`: its budgets count it from now on.
    pub(super) fn put(
        &mut self,
        series: Series,
        batch: BatchId,
        tenancy: Tenancy,
        begins: bool,
    ) -> BatchVersion {
        self.changes += 1;
        let version = BatchVersion(ABOVE_ALL_SERIES + self.changes);
        let plan = self.plans.entry(series).or_default();
        plan.batches.insert(batch, (tenancy, version));
        if begins {
            plan.begun = version.0;
        }
        version
    }

    /// Forgets a plan that is gone.
    pub(super) fn forget(&mut self, series: Series) {
        self.plans.remove(&series);
    }
}
