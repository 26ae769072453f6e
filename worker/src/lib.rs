//! The worker: takes dispatches, leases their batches, sends to each device within the hub's
//! quota, and records every outcome.
//!
//! ```text
//!  queue ──dispatch──▶ hub loop ──slot──▶ batch run ──message──▶ hub
//!                        │                 │   ▲ permit
//!                        │                 │   └────── pacer ◀──block── store
//!                        ├── one per hub   └──reports, renewal──────▶ store
//!  hub ──feedback──▶ listener ──────────────reports──────────────────▶ store
//! ```
//!
//! * [`Worker::run`] owns one loop per hub, and drains them when it is told to stop;
//! * a hub loop takes a slot first and a dispatch second, so it never holds work it cannot do;
//! * a batch run is where sends, retries and records are woven together;
//! * the pacer turns blocks of permits into an even stream;
//! * the listener merges what the hub says became of messages later, from the first rollout on
//!   that asks for it.
//!
//! Any number of workers may run at once: they share nothing but queue and store.

mod batch;
mod config;
mod feedback;
mod hub_loop;
mod known;
mod later;
mod link;
mod metrics;
mod pace;
mod pacer;
mod patience;
mod shared;
mod status;
mod told;
mod turns;

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
    /// A worker for `hubs`. `clock` is for rollouts that have a schedule.
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

    /// The same, telling `tracer` of batches that were worked on.
    #[must_use]
    pub fn traced_by(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// What the worker is doing, live.
    #[must_use]
    pub fn status(&self) -> Arc<WorkerStatus> {
        Arc::clone(&self.status)
    }

    /// Works until `stop` is cancelled; then takes nothing new, waits for the hub's answers to
    /// what is in flight (at most [`WorkerConfig::drain`]), records them, and lets go of its
    /// batches.
    ///
    /// Cancel safety: if dropped, what was in flight is not recorded, as after a crash.
    ///
    /// # Errors
    /// When the store or the queue is lost for good. What could be recorded has been.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let mut loops = JoinSet::new();
        // Lets the other loops drain when one of them fails.
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
