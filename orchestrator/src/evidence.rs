//! Reads how far the feedback of a rollout's relevant hubs was received.

use twincast_core::evidence::{Evidence, Watermark};
use twincast_core::ports::{Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::time::Timestamp;

/// Returns the evidence for the current gate or the end of a rollout. Reads nothing from the store
/// if no hub is relevant.
///
/// # Errors
/// [`StoreError`].
pub async fn read(
    store: &dyn Store,
    rollout: &Rollout,
    tallies: &[Tally],
    now: Timestamp,
) -> Result<Evidence, StoreError> {
    if rollout.phase != Phase::Running {
        return Ok(Evidence::complete());
    }
    let mut watermarks = Vec::new();
    for hub in rollout.hubs_needed(tallies) {
        let listeners = store.listeners(hub).await?;
        watermarks.push((hub.clone(), Watermark::of(&listeners, now)));
    }
    Ok(Evidence::of(watermarks))
}
