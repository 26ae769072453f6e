//! All that a worker asks the store about a batch.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::Lease;
use twincast_core::ids::{BatchId, Epoch, Holder, RolloutName};
use twincast_core::ports::{
    BatchWork, LeaseReply, LeaseRequest, Leased, Part, Report, Store, StoreError,
};
use twincast_core::rollout::Wanted;
use twincast_core::time::{Timestamp, ms};
use uuid::Uuid;

/// A batch that this worker has a lease of.
pub(crate) struct HeldBatch {
    store: Arc<dyn Store>,
    leased: Leased,
    /// When the lease was asked for: what the store said then of the rollout is not older.
    pub(crate) leased_at: Instant,
}

/// A wish for a batch. Every lease has a holder of its own below the `worker`, so that a second dispatch of a batch that
/// we hold is seen for what it is.
pub(crate) fn wish(
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
    /// Asks for a batch. The same wish may be made again when its answer was lost.
    ///
    /// Cancel safety: if dropped, it may be held until the lease lapses.
    pub(crate) async fn take(
        store: &Arc<dyn Store>,
        wish: &LeaseRequest,
    ) -> Result<Result<Self, LeaseReply>, StoreError> {
        let leased_at = Instant::now();
        let taken = store.take(wish, Part::Whole).await?;
        Ok(taken.map(|leased| Self {
            store: Arc::clone(store),
            leased,
            leased_at,
        }))
    }

    /// Which lease of the batch it is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.leased.lease().epoch
    }

    /// The batch, with what is known of it.
    pub(crate) fn work(&mut self) -> BatchWork {
        self.leased.take_work()
    }

    /// Records outcomes, renews the lease, and says what the rollout wants.
    pub(crate) async fn record(
        &mut self,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let now = self.now();
        let leased = &mut self.leased;
        self.store.record_taken(leased, reports, ttl, now).await
    }

    /// Lets go of it. If that fails, the lease lapses by itself; that costs time only.
    pub(crate) async fn release(mut self) {
        let now = self.now();
        if let Err(error) = self.store.release_taken(&mut self.leased, now).await {
            let Lease { rollout, batch, .. } = self.leased.lease();
            tracing::warn!(%rollout, %batch, ?error, "batch not released");
        }
    }

    /// A time of our own, for what the store's time has become since its last answer.
    fn now(&self) -> Timestamp {
        Timestamp(ms(self.leased_at.elapsed()))
    }
}
