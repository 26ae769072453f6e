//! A batch in the hands of its holder.

use std::time::Duration;

use super::{BatchWork, Batches, Change, Committed, Loaded, Operation, Part, TRIES, contended};
use crate::batch::{Batch, Lease, Refused, Report};
use crate::plan::BatchHeader;
use crate::ports::StoreError;
use crate::rollout::Wanted;
use crate::time::Timestamp;

/// A batch that its holder has leased, as the holder knows it: a record need not read it first, so it is one call.
///
/// Leases go by the store's time, which comes with each answer. In between, the holder's own clock carries it on, so only
/// how evenly that clock runs matters, not what it shows.
#[derive(Debug, Clone)]
pub struct Leased {
    lease: Lease,
    loaded: Loaded,
    /// The holder's time of the newest answer.
    answered_at: Option<Timestamp>,
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

    /// The batch with what is known of its devices, if it was taken [whole](Part::Whole). Their ids are given once.
    #[must_use]
    pub fn take_work(&mut self) -> BatchWork {
        let devices = self.loaded.devices.take();
        let mut loaded = self.loaded.clone();
        loaded.devices = devices;
        loaded.into_work()
    }

    /// Merges reports, renews the lease until `ttl` from now, and says what the rollout wants. With no reports it is a
    /// heartbeat. `now` is the holder's own time. Idempotent.
    ///
    /// Cancel safety: the reports may or may not be recorded; they can be recorded again.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the lease no longer holds; then nothing was recorded. Others as the store has them.
    pub async fn record(
        &mut self,
        store: &(impl Batches + ?Sized),
        reports: &[Report],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Wanted, StoreError> {
        let operation = Operation::Record(self.lease.clone(), reports.to_vec());
        let lease = self.lease.clone();
        let record = |batch: &mut Batch, at| batch.record(&lease, reports, ttl, at);
        self.alter(store, operation, now, record).await
    }

    /// Gives the batch back; does nothing if the lease does not hold any more. `now` is the holder's own time.
    ///
    /// Cancel safety: the batch may or may not be given back; it can be given back again.
    ///
    /// # Errors
    /// As the store has them.
    pub async fn release(
        &mut self,
        store: &(impl Batches + ?Sized),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lease = self.lease.clone();
        let operation = Operation::Release(lease.clone());
        let release = |batch: &mut Batch, _| batch.release(&lease);
        match self.alter(store, operation, now, release).await {
            Ok(_) | Err(StoreError::Superseded { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes the batch as it is known, and commits that; reads it first when it was overtaken, by feedback or by whoever
    /// has taken the batch over. `change` gets the store's time.
    async fn alter(
        &mut self,
        store: &(impl Batches + ?Sized),
        operation: Operation,
        now: Timestamp,
        change: impl Fn(&mut Batch, Timestamp) -> Result<(), Refused> + Send,
    ) -> Result<Wanted, StoreError> {
        let (name, id) = (&self.lease.rollout, self.lease.batch);
        let mut made = Change {
            operation,
            next: self.loaded.batch.clone(),
            under: None,
            begins: None,
        };
        for _ in 0..TRIES {
            let since = now.since(self.answered_at.unwrap_or(now));
            let changed = change(&mut made.next, self.loaded.now.plus(since));
            changed.map_err(|why| refused(why, &self.lease))?;
            match store.commit(name, &self.loaded, &made).await? {
                Committed::Done {
                    version,
                    wanted,
                    now: told,
                } => {
                    self.loaded.batch = made.next;
                    (self.loaded.version, self.loaded.now) = (version, told);
                    self.answered_at = Some(now);
                    return Ok(wanted);
                }
                Committed::Overtaken => {
                    let loaded = store.batch(name, id, Part::State).await;
                    self.loaded = loaded.map_err(|error| gone(error, &self.lease))?;
                    self.answered_at = Some(now);
                    made.next = self.loaded.batch.clone();
                }
            }
        }
        Err(contended(made.operation.verb(), name, id))
    }
}

/// What it means for the holder of a lease that its reports are refused.
fn refused(why: Refused, lease: &Lease) -> StoreError {
    match why {
        Refused::Fenced(_) => StoreError::Superseded {
            what: lease.to_string(),
        },
        Refused::NoDevice(index) => StoreError::NotFound {
            what: format!(
                "device {index} of batch {} of rollout {}",
                lease.batch, lease.rollout
            ),
        },
    }
}

/// A lease on a batch that is gone does not hold.
pub(super) fn gone(error: StoreError, lease: &Lease) -> StoreError {
    match error {
        StoreError::NotFound { .. } => StoreError::Superseded {
            what: lease.to_string(),
        },
        other => other,
    }
}
