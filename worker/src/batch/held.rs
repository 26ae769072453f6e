//! The store calls of a worker about a batch.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::Lease;
use twincast_core::error::describe;
use twincast_core::ids::{BatchId, Epoch, Holder, RolloutName};
use twincast_core::ports::{
    BatchWork, LeaseReply, LeaseRequest, Leased, Part, Report, Store, StoreError,
};
use twincast_core::rollout::Directive;
use twincast_core::time::{Timestamp, ms};
use uuid::Uuid;

/// A batch leased by this worker.
pub(crate) struct HeldBatch {
    store: Arc<dyn Store>,
    leased: Leased,
    /// When the lease was requested: the rollout's directive in the store's answer is not older.
    pub(crate) leased_at: Instant,
}

/// Builds a lease request for a batch. Each request has a holder id of its own below the id of the
/// `worker`, so that a second dispatch of a batch already leased by this worker is recognized.
pub(crate) fn lease_request(
    worker: Uuid,
    rollout: &RolloutName,
    batch: BatchId,
    ttl: Duration,
) -> LeaseRequest {
    let holder = format!("{}-{}", worker.simple(), Uuid::new_v4().simple());
    LeaseRequest {
        rollout: rollout.clone(),
        batch,
        holder: Holder::new(holder).expect("hexadecimal digits"),
        ttl,
    }
}

impl HeldBatch {
    /// Requests the lease of a batch. The same request may be repeated when the answer was lost.
    ///
    /// Cancel safety: if dropped, the batch may stay leased until the lease lapses.
    pub(crate) async fn take(
        store: &Arc<dyn Store>,
        request: &LeaseRequest,
    ) -> Result<Result<Self, LeaseReply>, StoreError> {
        let leased_at = Instant::now();
        let taken = store.lease_for_work(request, Part::WithDevices).await?;
        Ok(taken.map(|leased| Self {
            store: Arc::clone(store),
            leased,
            leased_at,
        }))
    }

    /// Returns the epoch of the lease.
    pub(crate) fn epoch(&self) -> Epoch {
        self.leased.lease().epoch
    }

    /// Takes out the batch with the known outcomes.
    pub(crate) fn work(&mut self) -> BatchWork {
        self.leased.take_work()
    }

    /// Records outcomes, renews the lease, and returns the rollout's directive.
    pub(crate) async fn record(
        &mut self,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Directive, StoreError> {
        let now = self.now();
        let leased = &mut self.leased;
        self.store.record_leased(leased, reports, ttl, now).await
    }

    /// Releases the lease. After a failure the lease lapses by itself, which costs time only.
    pub(crate) async fn release(mut self) {
        let now = self.now();
        if let Err(error) = self.store.release_leased(&mut self.leased, now).await {
            let Lease { rollout, batch, .. } = self.leased.lease();
            tracing::warn!(%rollout, %batch, error = describe(&error), "batch not released");
        }
    }

    /// Returns the worker's own time, by which the store's time since the last answer is estimated.
    fn now(&self) -> Timestamp {
        Timestamp(ms(self.leased_at.elapsed()))
    }
}
