//! A batch as it is listed.

use crate::batch::{Held, Tenancy};
use crate::budget::Begun;
use crate::ids::Version;
use crate::outcome::Counts;
use crate::plan::BatchHeader;
use crate::time::Timestamp;

/// A batch without its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatus {
    /// What it is.
    pub header: BatchHeader,
    /// Its outcomes, counted.
    pub counts: Counts,
    /// Who works on it.
    pub held: Option<Held>,
    /// Nobody holds it now, but somebody did who has not let go of it.
    pub lapsed: bool,
    /// Nobody is to work on it: see [`MAX_STRIKES`](super::MAX_STRIKES).
    pub quarantined: bool,
    /// Its budgets count it already, so it is always given again. `false` without budgets.
    pub begun: bool,
}

impl BatchStatus {
    /// A batch at `now`, by the store's clock. `version` is that of its rollout's record.
    #[must_use]
    pub fn of(
        header: BatchHeader,
        counts: Counts,
        tenancy: &Tenancy,
        begun: Begun,
        version: Version,
        now: Timestamp,
    ) -> Self {
        Self {
            header,
            counts,
            held: tenancy.held_at(now),
            lapsed: tenancy.has_lapsed_at(now),
            quarantined: tenancy.is_quarantined(version),
            begun: begun.is_open,
        }
    }

    /// Nothing is owed to any of its devices.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.counts.unsettled() == 0
    }
}
