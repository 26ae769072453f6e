//! All that a worker asks the store about a batch.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::Lease;
use twincast_core::ids::{BatchId, Epoch, Holder, RolloutName};
use twincast_core::ports::{BatchWork, LeaseReply, LeaseRequest, Report, Store, StoreError};
use twincast_core::rollout::Wanted;
use uuid::Uuid;

/// A batch that this worker has a lease of.
pub(crate) struct HeldBatch {
    store: Arc<dyn Store>,
    lease: Lease,
    /// When the lease was asked for: what the store said then of the rollout is not older.
    pub(crate) leased_at: Instant,
}

/// What became of the wish to work on a batch.
pub(crate) enum Taken {
    /// Here it is.
    Held(HeldBatch),
    /// It is not ours.
    Not(LeaseReply),
}

impl HeldBatch {
    /// Asks for a batch. Every lease has a holder of its own below the `worker`, so that a second dispatch of a batch that
    /// we hold is seen for what it is.
    ///
    /// Cancel safety: if dropped, it may be held until the lease lapses.
    pub(crate) async fn take(
        store: &Arc<dyn Store>,
        worker: Uuid,
        rollout: &RolloutName,
        batch: BatchId,
        ttl: Duration,
    ) -> Result<Taken, StoreError> {
        let holder = format!("{}-{}", worker.simple(), Uuid::new_v4().simple());
        let request = LeaseRequest {
            rollout: rollout.clone(),
            batch,
            holder: Holder::new(holder).expect("hexadecimal digits"),
            ttl,
        };
        let leased_at = Instant::now();
        Ok(match store.lease(&request).await? {
            LeaseReply::Granted(lease) => Taken::Held(Self {
                store: Arc::clone(store),
                lease,
                leased_at,
            }),
            not => Taken::Not(not),
        })
    }

    /// Which lease of the batch it is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.lease.epoch
    }

    /// The batch, with what is known of it.
    pub(crate) async fn load(&self) -> Result<BatchWork, StoreError> {
        self.store.load(&self.lease.rollout, self.lease.batch).await
    }

    /// Records outcomes, renews the lease, and says what the rollout wants.
    pub(crate) async fn record(
        &mut self,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        self.store.record(&self.lease, reports, ttl).await
    }

    /// Lets go of it. If that fails, the lease lapses by itself; that costs time only.
    pub(crate) async fn release(self) {
        if let Err(error) = self.store.release(&self.lease).await {
            let Lease { rollout, batch, .. } = &self.lease;
            tracing::warn!(%rollout, %batch, ?error, "batch not released");
        }
    }
}
