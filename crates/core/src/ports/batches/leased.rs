//! A batch, as known to its holder.

use super::state::Loaded;
use super::work::BatchWork;
use crate::batch::Lease;
use crate::plan::BatchHeader;
use crate::time::Timestamp;

/// A leased batch, as known to its holder. A [record](super::Batches::record_leased) need not read
/// the batch first, so a record is a single call.
///
/// Leases follow the store's time, which comes with each answer. Between two answers, the holder
/// advances the store's time by its own clock, so only the rate of the holder's clock matters, not
/// its absolute time.
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

    /// Returns the lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns the header of the batch.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.loaded.batch.header
    }

    /// Returns the batch with its devices, if the batch was leased [with
    /// them](super::Part::WithDevices). Only the first call returns the ids of the devices.
    #[must_use]
    pub fn take_work(&mut self) -> BatchWork {
        let devices = self.loaded.devices.take();
        let mut loaded = self.loaded.clone();
        loaded.devices = devices;
        loaded.into_work()
    }
}
