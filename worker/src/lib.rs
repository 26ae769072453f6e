//! The worker: takes dispatches, leases the batches, sends to each device within the hub's quota,
//! and records every outcome.
//!
//! ```text
//!  queue ──dispatch──▶ hub loop ──slot──▶ batch run ──message──▶ hub
//!                        │                 │   ▲ permit
//!                        │                 │   └────── pacer ◀──block── store
//!                        ├── one per hub   └──reports, renewal──────▶ store
//!  hub ──feedback──▶ listener ──────────────reports──────────────────▶ store
//! ```
//!
//! * [`Worker::run`] runs a loop for each hub, and drains the loops on stop;
//! * a hub loop acquires a slot before a dispatch, so the worker never holds a dispatch without a
//!   free slot;
//! * a batch run interleaves sends, retries and records;
//! * the pacer spreads blocks of permits into an even stream of permits;
//! * the listener merges the hub's later feedback on messages into outcomes, from the first rollout
//!   with feedback enabled on.
//!
//! Any number of workers may run at once: workers share only the queue and the store.

mod batch;
mod batch_span;
mod config;
mod feedback;
mod hub_loop;
mod link;
mod metrics;
mod pace;
mod pacer;
mod retry_queue;
mod rollout_cache;
mod send_lock;
mod shared;
mod status;
mod store_retry;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twincast_core::ports::{Clock, Queue, Store};
use twincast_core::trace::Tracer;

pub use config::{WorkerConfig, WorkerError, WorkerHub};
pub use metrics::HubMetrics;
pub use status::{HubState, HubStatus, WorkerStatus};

/// A worker.
pub struct Worker {
    config: WorkerConfig,
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    hubs: Vec<WorkerHub>,
    clock: Arc<dyn Clock>,
    status: Arc<WorkerStatus>,
    tracer: Tracer,
}

impl Worker {
    /// Creates a worker for `hubs`. `clock` serves rollouts with a schedule.
    #[must_use]
    pub fn new(
        config: WorkerConfig,
        store: Arc<dyn Store>,
        queue: Arc<dyn Queue>,
        hubs: Vec<WorkerHub>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let status = Arc::new(WorkerStatus::new(&hubs));
        Self {
            config,
            store,
            queue,
            hubs,
            clock,
            status,
            tracer: Tracer::default(),
        }
    }

    /// Emits a span for every traced batch run to `tracer`.
    #[must_use]
    pub fn traced_by(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Returns the live status of the worker.
    #[must_use]
    pub fn status(&self) -> Arc<WorkerStatus> {
        Arc::clone(&self.status)
    }

    /// Works until `stop` is cancelled. Then takes no new dispatches, waits for the hub's answers
    /// to sends in flight (at most [`WorkerConfig::drain`]), records the answers, and releases the
    /// batches.
    ///
    /// Cancel safety: if dropped, outcomes of sends in flight are not recorded, as after a crash.
    ///
    /// # Errors
    /// When the store or the queue fails permanently. All outcomes that could be recorded are
    /// recorded.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let mut loops = JoinSet::new();
        // Lets the other loops drain when a loop fails.
        let stop = stop.child_token();
        for hub in self.hubs {
            let status = self.status.hub(&hub.name);
            let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
            let tracer = self.tracer.clone();
            let hub_loop = hub_loop::HubLoop::new(self.config, store, hub, clock, status, tracer);
            loops.spawn(hub_loop.run(Arc::clone(&self.queue), stop.clone()));
        }
        let mut result = Ok(());
        while let Some(ended) = loops.join_next().await {
            let ended = ended.map_err(WorkerError::Panicked).and_then(|ended| ended);
            if let Err(error) = ended {
                stop.cancel();
                result = result.and(Err(error));
            }
        }
        result
    }
}
