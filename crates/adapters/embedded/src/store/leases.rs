//! Who works on which batch, for as long as this process lives.
//!
//! Leases are not on disk. The file is locked, so whoever held a lease under an earlier process
//! is gone with it; a lease that outlived it would only make the next one wait. Epochs do
//! outlive it: they go on from a number that is on disk and grows with every opening, so a
//! lease of an earlier opening is never mistaken for one of this.

use std::collections::HashMap;
use std::time::Duration;

use twincast_core::batch::{Held, Lease, Tenancy};
use twincast_core::ids::{BatchId, Epoch, Holder};
use twincast_core::time::Timestamp;

use super::tables::Series;

/// How many leases an opening can give before it would reach the next one's numbers.
const LEASES_PER_OPENING: u64 = 1 << 32;

/// The leases of this opening.
#[derive(Debug)]
pub(super) struct Leases {
    last: u64,
    claims: HashMap<Series, HashMap<BatchId, Claim>>,
}

/// One batch's. A [`Tenancy`] counts from 0 for each batch; `outer` is what its newest lease is
/// called outside.
#[derive(Debug, Default)]
struct Claim {
    tenancy: Tenancy,
    inner: Epoch,
    outer: Epoch,
}

impl Leases {
    pub(super) fn new(opening: u64) -> Self {
        Self {
            last: opening.saturating_mul(LEASES_PER_OPENING),
            claims: HashMap::new(),
        }
    }

    pub(super) fn lease(
        &mut self,
        series: Series,
        batch: BatchId,
        holder: &Holder,
        now: Timestamp,
        ttl: Duration,
        takeover: bool,
    ) -> Result<Epoch, Held> {
        let claim = self
            .claims
            .entry(series)
            .or_default()
            .entry(batch)
            .or_default();
        claim.inner = claim.tenancy.lease(holder, now, ttl, takeover)?;
        self.last += 1;
        claim.outer = Epoch(self.last);
        Ok(claim.outer)
    }

    /// Renews `lease`; `false` when it no longer holds.
    pub(super) fn renew(
        &mut self,
        series: Series,
        lease: &Lease,
        now: Timestamp,
        ttl: Duration,
    ) -> bool {
        self.claim(series, lease)
            .is_some_and(|claim| claim.tenancy.renew(claim.inner, now, ttl).is_ok())
    }

    pub(super) fn release(&mut self, series: Series, lease: &Lease) {
        if let Some(claim) = self.claim(series, lease) {
            claim.tenancy.release(claim.inner);
        }
    }

    pub(super) fn held(&self, series: Series, batch: BatchId, now: Timestamp) -> Option<Held> {
        let claim = self.claims.get(&series)?.get(&batch)?;
        claim.tenancy.held_at(now)
    }

    /// Forgets the leases of a plan that is gone.
    pub(super) fn forget(&mut self, series: Series) {
        self.claims.remove(&series);
    }

    fn claim(&mut self, series: Series, lease: &Lease) -> Option<&mut Claim> {
        let claim = self.claims.get_mut(&series)?.get_mut(&lease.batch)?;
        (claim.outer == lease.epoch).then_some(claim)
    }
}
