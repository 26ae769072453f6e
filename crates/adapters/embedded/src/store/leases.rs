//! Who works on which batch, for as long as this process lives.
//!
//! Leases are not on disk. The file is locked, so whoever held a lease under an earlier process
//! is gone with it; a lease that outlived it would only make the next one wait. Epochs do
//! outlive it: they go on from a number that is on disk and grows with every opening, so a
//! lease of an earlier opening is never mistaken for one of this.

use std::collections::HashMap;
use std::time::Duration;

use twincast_core::batch::{Held, Lease, LeaseRefused, Tenancy};
use twincast_core::ids::{BatchId, Epoch, Version};
use twincast_core::ports::LeaseRequest;
use twincast_core::time::Timestamp;

use super::tables::Series;

/// How many leases an opening can give before it would reach the next one's numbers.
const LEASES_PER_OPENING: u64 = 1 << 32;

/// The leases of this opening.
#[derive(Debug)]
pub(super) struct Leases {
    last: u64,
    claims: HashMap<Series, HashMap<BatchId, Tenancy>>,
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
        version: Version,
        request: &LeaseRequest,
        now: Timestamp,
    ) -> Result<Epoch, LeaseRefused> {
        let batches = self.claims.entry(series).or_default();
        let tenancy = batches.entry(request.batch).or_default();
        let next = Epoch(self.last + 1);
        tenancy.lease(&request.holder, next, version, now, request.ttl)?;
        self.last = next.0;
        Ok(next)
    }

    pub(super) fn holds(&self, series: Series, lease: &Lease) -> bool {
        let tenancy = self
            .claims
            .get(&series)
            .and_then(|batches| batches.get(&lease.batch));
        tenancy.is_some_and(|tenancy| tenancy.holds(lease.epoch))
    }

    /// Renews `lease`; `false` when it no longer holds.
    pub(super) fn renew(
        &mut self,
        series: Series,
        lease: &Lease,
        progress: bool,
        now: Timestamp,
        ttl: Duration,
    ) -> bool {
        self.tenancy(series, lease.batch)
            .is_some_and(|tenancy| tenancy.renew(lease.epoch, progress, now, ttl).is_ok())
    }

    pub(super) fn release(&mut self, series: Series, lease: &Lease) {
        if let Some(tenancy) = self.tenancy(series, lease.batch) {
            tenancy.release(lease.epoch);
        }
    }

    pub(super) fn held(&self, series: Series, batch: BatchId, now: Timestamp) -> Option<Held> {
        self.claims.get(&series)?.get(&batch)?.held_at(now)
    }

    /// Takes a batch from whoever had it last.
    pub(super) fn vacate(&mut self, series: Series, batch: BatchId) {
        if let Some(tenancy) = self.tenancy(series, batch) {
            tenancy.vacate();
        }
    }

    pub(super) fn has_lapsed(&self, series: Series, batch: BatchId, now: Timestamp) -> bool {
        let batches = self.claims.get(&series);
        let tenancy = batches.and_then(|batches| batches.get(&batch));
        tenancy.is_some_and(|tenancy| tenancy.has_lapsed_at(now))
    }

    pub(super) fn is_quarantined(&self, series: Series, batch: BatchId, version: Version) -> bool {
        let tenancy = self
            .claims
            .get(&series)
            .and_then(|batches| batches.get(&batch));
        tenancy.is_some_and(|tenancy| tenancy.is_quarantined(version))
    }

    /// Forgets the leases of a plan that is gone.
    pub(super) fn forget(&mut self, series: Series) {
        self.claims.remove(&series);
    }

    fn tenancy(&mut self, series: Series, batch: BatchId) -> Option<&mut Tenancy> {
        self.claims.get_mut(&series)?.get_mut(&batch)
    }
}
