//! How a worker works, through which hubs, and why it cannot go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{BatchId, HubHost, HubName, RolloutName};
use twincast_core::ports::{Hub, QueueError, StoreError};

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
        rollout: RolloutName,
        /// The batch.
        batch: BatchId,
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
    Panicked(#[source] JoinError),
}
