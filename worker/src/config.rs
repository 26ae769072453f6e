//! Configuration, hubs and errors of a worker.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{BatchId, HubHost, HubName, RolloutName};
use twincast_core::ports::{Hub, QueueError, StoreError};

/// Configuration of a worker. The defaults suit a single process; none of the defaults limits the
/// speed of a hub with a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Number of batches worked on at once for each hub. With more than one slot, the next window
    /// is sent while another window is being recorded; with many slots, a later rollout finds a
    /// free slot.
    pub slots: usize,
    /// Devices of a batch that may be sent to and not yet recorded. A crash makes the worker repeat
    /// at most this many sends of the batch.
    pub window: usize,
    /// The duration of a lease without renewal, and therefore the wait for the batches of a crashed
    /// worker. Must be much longer than `heartbeat`, or a busy machine looks like a crashed
    /// machine.
    pub lease: Duration,
    /// How often an idle batch run asks the store for the rollout's directive. Pause and abort take
    /// effect within this time plus the time of a store call. If the store does not answer, new
    /// sends stop after twice this time.
    pub heartbeat: Duration,
    /// The longest time an outcome waits to be recorded together with later outcomes.
    pub linger: Duration,
    /// The most tries of a message that the hub refuses for a transient reason of its own, or does
    /// not answer.
    pub tries: u8,
    /// How long a stopping worker waits for the hub's answers. Sends without an answer by then
    /// count as after a crash.
    pub drain: Duration,
    /// How long the store may be silent before the worker gives up; `None` means for ever. A limit
    /// implies a store on this machine: the worker gives up at once on a local store that is not
    /// writable.
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

/// A hub through which a worker sends.
#[derive(Clone)]
pub struct WorkerHub {
    /// The name of the hub.
    pub name: HubName,
    /// The host name of the hub. Batches planned for another host are not sent.
    pub host: HubHost,
    /// The port to the hub.
    pub hub: Arc<dyn Hub>,
    /// The limits of the hub for all workers together.
    pub limits: HubLimits,
}

/// Why a worker cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store does not accept records, so no further message may be sent.
    #[error("cannot continue with batch {batch} of rollout {rollout}")]
    Store {
        /// The rollout.
        rollout: RolloutName,
        /// The batch.
        batch: BatchId,
        /// The error of the store.
        #[source]
        source: StoreError,
    },
    /// Dispatches cannot be consumed from the queue.
    #[error("cannot consume dispatches of hub {hub}")]
    Queue {
        /// The hub.
        hub: HubName,
        /// The error of the queue.
        #[source]
        source: QueueError,
    },
    /// A task of the worker panicked: a defect.
    #[error("a task of the worker ended unexpectedly")]
    Panicked(#[source] JoinError),
}
