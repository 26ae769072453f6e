//! The records of rollouts.

use async_trait::async_trait;

use super::StoreError;
use crate::ids::{Revision, RolloutName};
use crate::rollout::{Commands, Rollout};

/// What `create` found.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// It was new and is stored.
    New,
    /// There was one of that name; it was left as it is.
    Existing(Box<Rollout>),
}

/// Keeps the records of rollouts.
#[async_trait]
pub trait Rollouts: Send + Sync + 'static {
    /// Stores a rollout unless there is one of its name.
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError>;

    /// A rollout's record, `None` if there is none of that name.
    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError>;

    /// The revision of a rollout's record: whether it changed, for less than reading it.
    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError>;

    /// The names of all rollouts, ascending.
    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError>;

    /// Replaces a record, with its notes, by one that was made from its revision `from` and has a newer version.
    ///
    /// When the new record has another `plan_id`, all batches of older tries are gone with it.
    /// [`StoreError::Superseded`] when the stored revision is another, [`StoreError::Regressed`] when the store does not
    /// hold what the new record [relies on](Rollout::relies_on).
    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        self.save_with(rollout, from, None).await
    }

    /// The same, and replaces the [commands](Rollouts::commands) if there are any, in one step.
    async fn save_with(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError>;

    /// Replaces the notes on a rollout, and nothing else of it.
    /// [`StoreError::Superseded`] when the stored revision is another than the rollout's.
    async fn note(&self, rollout: &Rollout) -> Result<(), StoreError>;

    /// The commands that a rollout remembers; none if there is no rollout of that name.
    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError>;

    /// Removes a rollout that has ended and is off the [roster](super::Roster), with its batches and outcomes. The name is
    /// free afterwards. Nothing is changed when there is no rollout of that name. However large the rollout was, other
    /// calls are not held up: what it took is given back after the call, piece by piece.
    /// [`StoreError::Superseded`] when the stored revision is another.
    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError>;
}
