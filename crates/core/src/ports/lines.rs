//! The lines of groups of rollouts.

use async_trait::async_trait;

use super::StoreError;
use crate::group::Line;
use crate::ids::GroupName;

/// Keeps a line for each group of rollouts.
#[async_trait]
pub trait Lines: Send + Sync + 'static {
    /// The line of a group: the empty one of version 0 before somebody has joined it.
    async fn line(&self, group: &GroupName) -> Result<Line, StoreError>;

    /// Replaces a group's line by one that was made from the version before it.
    /// [`StoreError::Superseded`] when the stored version is another.
    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError>;
}
