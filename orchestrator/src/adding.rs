//! Stores the batches of a planner.

use tokio::sync::mpsc;
use twincast_core::ids::RolloutName;
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Adding;

/// Stores batches as they arrive, up to four at a time under load. `checksum` covers the batches
/// already stored; the result covers all batches.
///
/// # Errors
/// When the store fails; [`StoreError::Regressed`] when the stored batches differ from the
/// acknowledged batches.
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
        // An error drops the receiver, which stops the planner.
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
