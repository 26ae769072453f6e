//! State shared by all tasks of a hub.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::error::describe;
use twincast_core::ids::RolloutName;
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::trace::Tracer;
use twincast_retry::Policy;
use uuid::Uuid;

use crate::config::{WorkerConfig, WorkerHub};
use crate::rollout_cache::RolloutCache;
use crate::send_lock::SendLock;
use crate::status::HubStatus;
use crate::store_retry::{StoreRetryLimit, Tries};

/// State shared by all tasks of a hub.
pub(crate) struct Shared {
    pub(crate) config: WorkerConfig,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hub: WorkerHub,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<HubStatus>,
    pub(crate) tracer: Tracer,
    pub(crate) rollout_cache: RolloutCache,
    /// Rollouts left to other workers; logged once for each rollout.
    pub(crate) skipped: Mutex<BTreeSet<RolloutName>>,
    /// Held by every send through the hub.
    pub(crate) send_lock: Arc<SendLock>,
    /// Notified when a rollout that asks for feedback is read.
    pub(crate) feedback_requested: Notify,
    /// Random id of this run of the worker.
    pub(crate) id: Uuid,
}

impl Shared {
    pub(crate) fn new(
        config: WorkerConfig,
        store: Arc<dyn Store>,
        hub: WorkerHub,
        clock: Arc<dyn Clock>,
        status: Arc<HubStatus>,
        tracer: Tracer,
    ) -> Self {
        Self {
            config,
            store,
            hub,
            clock,
            status,
            tracer,
            rollout_cache: RolloutCache::default(),
            skipped: Mutex::default(),
            send_lock: Arc::default(),
            feedback_requested: Notify::new(),
            id: Uuid::new_v4(),
        }
    }

    /// Repeats a call for as long as the store does not answer. Returns `None` if `stop` is
    /// cancelled.
    pub(crate) async fn retry_until_stop<T, F>(
        &self,
        stop: &CancellationToken,
        call: impl Fn() -> F,
    ) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = Tries::new(self.retry_limit(), &Policy::send_retry());
        loop {
            let called = tokio::select! {
                biased;
                called = call() => called,
                () = stop.cancelled() => return Ok(None),
            };
            let error = match called {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => error,
            };
            let description = describe(&error);
            let is_news = !tries.is_failing();
            let wait = tries.failed(error, Instant::now())?;
            if is_news {
                tracing::warn!(hub = %self.hub.name, error = description, "the store does not answer");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    pub(crate) fn retry_limit(&self) -> StoreRetryLimit {
        StoreRetryLimit(self.config.give_up)
    }
}
