//! A batch in the hands of its holder.

use super::state::Loaded;
use super::work::BatchWork;
use crate::batch::Lease;
use crate::plan::BatchHeader;
use crate::time::Timestamp;

/// A batch that its holder has leased, as the holder knows it: a [record](super::Batches::record_taken) need not read it
/// first, so it is one call.
///
/// Leases go by the store's time, which comes with each answer. In between, the holder's own clock carries it on, so only
/// how evenly that clock runs matters, not what it shows.
#[derive(Debug, Clone)]
pub struct Leased {
    pub(super) lease: Lease,
    pub(super) loaded: Loaded,
    /// The holder's time of the newest answer.
    pub(super) answered_at: Option<Timestamp>,
}

impl Leased {
    pub(super) fn new(lease: Lease, loaded: Loaded) -> Self {
        Self {
            lease,
            loaded,
            answered_at: None,
        }
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What the batch is.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.loaded.batch.header
    }

    /// The batch with what is known of its devices, if it was taken [whole](super::Part::Whole). Their ids are given once.
    #[must_use]
    pub fn take_work(&mut self) -> BatchWork {
        let devices = self.loaded.devices.take();
        let mut loaded = self.loaded.clone();
        loaded.devices = devices;
        loaded.into_work()
    }
}
