//! Skips what was not sent of a rollout that is being aborted.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use twincast_core::ids::{HubName, RolloutName, StageIndex};
use twincast_core::ports::{Skip, Store, StoreError};

/// Batches that are read at once.
const PAGE: usize = 256;
/// Batches that are skipped at the same time.
const AT_ONCE: usize = 16;

/// Marks what was not sent as skipped, in all batches, once the workers have let go of them: those that somebody works on are
/// asked for again after `pause`. `false` after `stop`.
///
/// Cancel safety: may be dropped at any time, and done again.
pub(crate) async fn skip_rest(
    store: &dyn Store,
    name: &RolloutName,
    pause: Duration,
    stop: &CancellationToken,
) -> Result<bool, StoreError> {
    let all = async {
        // A rollout without a whole plan may have batches, of a try at planning.
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

/// Skips what is left on one hub, but for what somebody works on: says whether there is some of that.
async fn skip_on(store: &dyn Store, name: &RolloutName, hub: &HubName) -> Result<bool, StoreError> {
    let rest = Skip::Rest;
    loop {
        let all = StageIndex(u16::MAX);
        let open = store.open_batches(name, hub, all, PAGE).await?;
        let ids: Vec<_> = open.iter().map(|batch| batch.header.id).collect();
        let skipped = futures::stream::iter(ids).map(|id| store.skip(name, id, &rest));
        let mut skipped = skipped.buffer_unordered(AT_ONCE);
        let mut held = 0;
        while let Some(by) = skipped.try_next().await? {
            held += usize::from(by.is_some());
        }
        if held == open.len() {
            return Ok(held > 0);
        }
    }
}
