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
mod feedback;
mod hub_loop;
mod known;
mod later;
mod link;
mod metrics;
mod pace;
mod pacer;
mod patience;
mod status;
mod told;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubHost, HubName};
use twincast_core::ports::{Clock, Hub, Queue, QueueError, Store, StoreError};
use twincast_core::trace::Tracer;

pub use metrics::HubMetrics;
pub use status::{HubState, HubStatus, WorkerStatus};

/// How a worker works. The defaults are for one process; none of them limits the speed of a hub
/// with a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Batches worked on at once for each hub. With more than one, the next window is on its
    /// way while another one is being recorded; with many, a rollout that comes later finds a
    /// free one.
    pub slots: usize,
    /// Devices of a batch that may have been sent to and not be recorded yet. After a crash this
    /// many sends a batch can repeat, at the most.
    pub window: usize,
    /// For how long a lease holds when it is not renewed: how long a crashed worker's batch
    /// waits. Much longer than a heartbeat, or a busy machine looks like a crashed one.
    pub lease: Duration,
    /// How often a batch on which nothing happens asks what the rollout wants. Pause and abort
    /// take hold within this time and one store call; when the store does not answer, nothing
    /// new is sent after twice this time.
    pub heartbeat: Duration,
    /// How long an outcome may wait for others to be recorded with.
    pub linger: Duration,
    /// How often a message is tried that the hub refuses for a passing reason of its own, or
    /// whose answer does not come.
    pub tries: u8,
    /// How long a worker that is told to stop waits for the hub's answers. What is unanswered
    /// then counts as after a crash.
    pub drain: Duration,
    /// How long the store may be silent before the worker gives up; `None` is for ever. With a limit the store is taken for
    /// one of this machine: one that cannot be written is given up at once.
    pub give_up: Option<Duration>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: 16,
            window: 256,
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_millis(400),
            linger: Duration::from_millis(50),
            tries: 8,
            drain: Duration::from_secs(15),
            give_up: None,
        }
    }
}

/// A hub that a worker sends through.
#[derive(Clone)]
pub struct WorkerHub {
    /// Its name.
    pub name: HubName,
    /// Its host name. Batches that were planned for another host are not sent.
    pub host: HubHost,
    /// The way to it.
    pub hub: Arc<dyn Hub>,
    /// How fast it may be used by all workers together.
    pub limits: HubLimits,
}

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store does not take what happened, so nothing more may be sent.
    #[error("cannot go on with batch {batch} of rollout {rollout}")]
    Store {
        /// The rollout.
        rollout: twincast_core::ids::RolloutName,
        /// The batch.
        batch: twincast_core::ids::BatchId,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// The queue cannot be consumed.
    #[error("cannot take dispatches of hub {hub}")]
    Queue {
        /// The hub.
        hub: HubName,
        /// What the queue says.
        #[source]
        source: QueueError,
    },
    /// A task of ours panicked: a defect.
    #[error("a task of the worker ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

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
