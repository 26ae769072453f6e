//! Removing rollouts that have ended.

use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Rollout;

use crate::groups;

/// Removes a rollout that has ended and is off the roster, with all that is stored of it. Its name is free then.
///
/// Idempotent. Cancel safety: may be dropped, and done again.
///
/// # Errors
/// When the store fails; [`StoreError::Superseded`] when the rollout was changed since it was read.
pub(crate) async fn remove(store: &dyn Store, rollout: &Rollout) -> Result<(), StoreError> {
    let name = &rollout.spec.name;
    if let Some(group) = &rollout.spec.group {
        groups::leave(store, group, name).await?;
    }
    store.remove(name, rollout.revision()).await
}
