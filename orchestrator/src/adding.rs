//! Stores the batches that a planner makes.

use tokio::sync::mpsc;
use twincast_core::ids::RolloutName;
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Adding;

/// Stores batches as they come, several at a time when they come fast. The rollout has those of `checksum` already; gives
/// the checksum of all.
///
/// # Errors
/// When the store fails; [`StoreError::Regressed`] when it has other batches than it acknowledged.
pub(crate) async fn store_batches(
    store: &dyn Store,
    name: &RolloutName,
    by: Adding,
    mut checksum: Checksum,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<Checksum, StoreError> {
    let mut group = Vec::new();
    while batches.recv_many(&mut group, 4).await > 0 {
        checksum.join(&group.iter().collect());
        // On an error the receiver is dropped, which stops the planner.
        let found = store
            .add_batches(name, by, std::mem::take(&mut group))
            .await?;
        if found != checksum {
            return Err(StoreError::Regressed {
                what: format!("{by} of rollout {name} has {found}, not {checksum}"),
            });
        }
    }
    Ok(checksum)
}
