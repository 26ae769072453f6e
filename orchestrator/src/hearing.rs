//! Reads how far the feedback of a rollout's relevant hubs was received.

use std::collections::BTreeSet;

use twincast_core::evidence::{Evidence, Watermark};
use twincast_core::ids::HubName;
use twincast_core::ports::{Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::time::Timestamp;

/// The evidence for the current gate, or the end, of a rollout. Reads nothing from the store if no hub is relevant.
///
/// # Errors
/// [`StoreError`].
pub async fn evidence(
    store: &dyn Store,
    rollout: &Rollout,
    tallies: &[Tally],
    now: Timestamp,
) -> Result<Evidence, StoreError> {
    if rollout.phase != Phase::Running {
        return Ok(Evidence::complete());
    }
    let stage = rollout.stage();
    let left = tallies
        .iter()
        .any(|tally| tally.stage <= stage && tally.counts.unsettled() > 0);
    let hubs: BTreeSet<&HubName> = rollout.hubs_to_hear(tallies, left);
    let mut watermarks = Vec::new();
    for hub in hubs {
        let listeners = store.listeners(hub).await?;
        watermarks.push((hub.clone(), Watermark::of(&listeners, now)));
    }
    Ok(Evidence::of(watermarks))
}
