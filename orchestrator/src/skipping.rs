//! Skips the devices not sent to in a rollout under abort.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use twincast_core::ids::{HubName, RolloutName, StageIndex};
use twincast_core::ports::{Skip, Store, StoreError};

/// The number of batches read per page.
const PAGE: usize = 256;
/// The number of batches skipped concurrently.
const MAX_CONCURRENT_SKIPS: usize = 16;

/// Marks the devices not sent to as skipped, in all batches. Batches held by workers are tried
/// again after `pause`. Returns `false` after `stop`.
///
/// Cancel safety: may be dropped at any time, and repeated.
pub(crate) async fn skip_rest(
    store: &dyn Store,
    name: &RolloutName,
    pause: Duration,
    stop: &CancellationToken,
) -> Result<bool, StoreError> {
    let all = async {
        // A rollout without a complete plan may have batches of a planning try.
        let tallies = store.tallies(name).await?;
        let hubs: BTreeSet<_> = tallies.into_iter().map(|tally| tally.hub).collect();
        for hub in &hubs {
            while skip_on(store, name, hub).await? {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(false),
        done = all => done.map(|()| true),
    }
}

/// Skips the remaining devices on one hub, except in batches held by workers. Returns whether there
/// are such batches.
async fn skip_on(store: &dyn Store, name: &RolloutName, hub: &HubName) -> Result<bool, StoreError> {
    let rest = Skip::Remaining;
    loop {
        let all = StageIndex(u16::MAX);
        let open = store.open_batches(name, hub, all, PAGE).await?;
        let ids: Vec<_> = open.iter().map(|batch| batch.header.id).collect();
        let skipped = futures::stream::iter(ids).map(|id| store.skip(name, id, &rest));
        let mut skipped = skipped.buffer_unordered(MAX_CONCURRENT_SKIPS);
        let mut held = 0;
        while let Some(by) = skipped.try_next().await? {
            held += usize::from(by.is_some());
        }
        if held == open.len() {
            return Ok(held > 0);
        }
    }
}
