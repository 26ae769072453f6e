//! The queues of concurrency groups.

use async_trait::async_trait;

use super::StoreError;
use crate::concurrency_group::GroupQueue;
use crate::ids::ConcurrencyGroup;

/// Keeps a queue for each concurrency group of rollouts.
#[async_trait]
pub trait GroupQueues: Send + Sync + 'static {
    /// Returns the queue of a group; an empty queue with version 0 before the first rollout has
    /// joined.
    async fn group_queue(&self, group: &ConcurrencyGroup) -> Result<GroupQueue, StoreError>;

    /// Replaces a group's queue of the preceding version.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the stored version is another.
    async fn save_group_queue(
        &self,
        group: &ConcurrencyGroup,
        queue: &GroupQueue,
    ) -> Result<(), StoreError>;
}
