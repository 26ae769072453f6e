//! The queue: a doorbell. A dispatch carries ids only; losing, repeating or reordering
//! dispatches costs time, never correctness.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{BatchId, HubName, RolloutName};

use super::Disposition;

/// "Batch B of rollout R can be worked on."
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dispatch {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// The hub of its devices: each hub has a queue of its own.
    pub hub: HubName,
}

/// Why the queue did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The hub's queue holds as many dispatches as it may.
    #[error("the dispatch queue of hub {hub} is full ({limit} dispatches)")]
    Full {
        /// The hub.
        hub: HubName,
        /// How many it may hold.
        limit: usize,
    },
    /// The broker cannot be reached, or did not confirm in time.
    #[error("cannot {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What the broker's client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This process has closed its way to the queue.
    #[error("cannot {doing}: the way to the queue was closed by this process")]
    Closed {
        /// What was being done.
        doing: &'static str,
    },
}

impl QueueError {
    /// What is to be done about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Full { .. } | Self::Unavailable { .. } => Disposition::Retry,
            Self::Closed { .. } => Disposition::Fatal,
        }
    }
}

/// Publishes and hands out dispatches.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Puts a dispatch on its hub's queue. `Ok` means that the queue has it and will keep it
    /// until it is acked. Not idempotent: twice is two dispatches, which is harmless.
    /// Cancel safety: if dropped, the dispatch may or may not be on the queue.
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError>;

    /// Starts taking dispatches of `hub`. Several consumers share the queue; each dispatch goes
    /// to one of them. The queue hands this one at most `at_once` that it has not answered for,
    /// so it never holds what another could work on.
    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError>;

    /// How a hub's queue stands, about now. For deciding how much to publish and what was lost,
    /// never for deciding what is true.
    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError>;
}

/// How a hub's queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Dispatches that wait for a consumer.
    pub waiting: usize,
    /// Consumers, those of other processes among them.
    pub consumers: usize,
}

/// A consumer of one hub's dispatches. Dropping it hands back what was not acked.
#[async_trait]
pub trait Deliveries: Send + 'static {
    /// The next dispatch; waits for one, and for a broker that is away. An error is for good.
    /// Cancel-safe: if dropped, nothing is lost.
    async fn next(&mut self) -> Result<Delivery, QueueError>;
}

/// A dispatch that was handed to us.
pub struct Delivery {
    /// What it says.
    pub dispatch: Dispatch,
    /// It was handed out before and came back: whoever had it is gone, or gave it back.
    pub redelivered: bool,
    /// To answer for it.
    pub ticket: Box<dyn Ticket>,
}

/// The answer that a delivery is owed. Dropped without one, the dispatch comes back.
#[async_trait]
pub trait Ticket: Send + Sync + 'static {
    /// Done with: the queue forgets the dispatch. Called after the effect is durable.
    async fn ack(self: Box<Self>) -> Result<(), QueueError>;
    /// Not done: another consumer, or this one later, gets it.
    async fn requeue(self: Box<Self>) -> Result<(), QueueError>;
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("dispatch", &self.dispatch)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}
