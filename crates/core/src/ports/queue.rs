//! The dispatch queue. A dispatch only notifies workers and contains nothing but ids: lost,
//! repeated or reordered dispatches cost time, never correctness.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{BatchId, HubName, RolloutName};

use super::Disposition;

/// The notification "batch B of rollout R can be worked on".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dispatch {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// The hub of the batch's devices: each hub has its own queue.
    pub hub: HubName,
}

/// Why a call to the queue failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The hub's queue has reached its limit.
    #[error("the dispatch queue of hub {hub} is full ({limit} dispatches)")]
    Full {
        /// The hub.
        hub: HubName,
        /// The limit.
        limit: usize,
    },
    /// The broker cannot be reached, or did not confirm in time.
    #[error("cannot {doing}")]
    Unavailable {
        /// The attempted operation.
        doing: &'static str,
        /// The error of the broker's client.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This process has closed its connection to the queue.
    #[error("cannot {doing}: this process has closed its connection to the queue")]
    Closed {
        /// The attempted operation.
        doing: &'static str,
    },
}

impl QueueError {
    /// Returns how to handle the error.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Full { .. } | Self::Unavailable { .. } => Disposition::Retry,
            Self::Closed { .. } => Disposition::Fatal,
        }
    }
}

/// Publishes dispatches and hands them out.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Puts a dispatch on the queue of its hub. `Ok` means that the queue keeps the dispatch until
    /// the ack. Not idempotent: two calls make two dispatches, which is harmless.
    ///
    /// # Cancel safety
    /// If dropped, the dispatch may or may not be on the queue.
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError>;

    /// Starts to consume dispatches of `hub`. Several consumers share the queue, and each dispatch
    /// goes to one of them. A consumer holds at most `at_once` unanswered dispatches, so dispatches
    /// for the other consumers do not pile up here.
    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError>;

    /// Returns the approximate depth of a hub's queue. Serves to decide how much to publish and
    /// what was lost, never to decide what is true.
    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError>;
}

/// The depth of a hub's queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Dispatches waiting for a consumer.
    pub waiting: usize,
    /// Consumers, including those of other processes.
    pub consumers: usize,
}

/// A consumer of one hub's dispatches. Dropping the consumer returns unacked dispatches to the
/// queue.
#[async_trait]
pub trait Deliveries: Send + 'static {
    /// Returns the next dispatch; waits for a dispatch, and for an unreachable broker. An error is
    /// permanent.
    ///
    /// # Cancel safety
    /// If dropped, nothing is lost.
    async fn next(&mut self) -> Result<Delivery, QueueError>;
}

/// A delivered dispatch.
pub struct Delivery {
    /// The dispatch.
    pub dispatch: Dispatch,
    /// Whether the dispatch was delivered before: the earlier consumer is gone, or requeued the
    /// dispatch.
    pub redelivered: bool,
    /// Answers the delivery.
    pub ticket: Box<dyn Ticket>,
}

/// The required answer to a delivery. The queue delivers the dispatch again if the ticket is
/// dropped without an answer.
#[async_trait]
pub trait Ticket: Send + Sync + 'static {
    /// Acknowledges the dispatch: the queue deletes it. Called after the effect is durable.
    async fn ack(self: Box<Self>) -> Result<(), QueueError>;
    /// Returns the dispatch to the queue, for another consumer or for this consumer later.
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
