//! The records of rollouts.

use async_trait::async_trait;

use super::StoreError;
use crate::ids::{Revision, RolloutName};
use crate::rollout::{Commands, Rollout};

/// The result of `create`.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// The rollout was new and is stored.
    New,
    /// A rollout with this name exists; it was not changed.
    Existing(Box<Rollout>),
}

/// Keeps the records of rollouts.
#[async_trait]
pub trait Rollouts: Send + Sync + 'static {
    /// Stores a rollout, unless a rollout with the same name exists.
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError>;

    /// Returns a rollout's record; `None` without a rollout of this name.
    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError>;

    /// Returns the revision of a rollout's record: a cheap check for changes, without reading the
    /// record.
    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError>;

    /// Returns the names of all rollouts, ascending.
    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError>;

    /// Replaces the record with revision `from`, and its notes, by a newer version.
    ///
    /// A record with another `plan_id` also removes all batches of older tries.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the stored revision is another. [`StoreError::Regressed`]
    /// when the store lacks the contents that the new record [relies on](Rollout::precondition).
    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        self.save_with_commands(rollout, from, None).await
    }

    /// Does the same as [`save`](Self::save), and replaces the [commands](Rollouts::commands), if
    /// given, in the same step.
    async fn save_with_commands(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError>;

    /// Replaces the notes on a rollout, and nothing else.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the stored revision differs from the rollout's revision.
    async fn save_notes(&self, rollout: &Rollout) -> Result<(), StoreError>;

    /// Returns the remembered commands of a rollout; empty without a rollout of this name.
    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError>;

    /// Removes an ended rollout absent from the [rollout registry](super::RolloutRegistry), with
    /// its batches and outcomes. The name is free afterwards. Without a rollout of this name,
    /// nothing changes. The call does not delay other calls, however large the rollout: its space
    /// is freed after the call, piece by piece.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when the stored revision is another.
    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError>;
}
