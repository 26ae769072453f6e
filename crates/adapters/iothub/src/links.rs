//! The budget for opening links to a hub, shared by all processes through the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use twincast_core::error::describe;
use twincast_core::ids::HubName;
use twincast_core::ports::Store;
use twincast_iothub::LinkHook;

/// Time limit of the store's answer. Sending needs a link, so the budget must never prevent the
/// opening of a link.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Keeps the links of a client within the budget of hub `hub`; for
/// [`ClientOptions::before_link`](twincast_iothub::ClientOptions::before_link).
///
/// Every link waits for the time returned by
/// [`Limiter::open_link`](twincast_core::ports::Limiter::open_link). When the store fails, or does
/// not answer within a second, the link is opened at once, and a warning is logged.
#[must_use]
pub fn link_budget(store: Arc<dyn Store>, hub: HubName) -> LinkHook {
    LinkHook::new(move || {
        let (store, hub) = (Arc::clone(&store), hub.clone());
        async move { wait_for_turn(&*store, &hub).await }
    })
}

/// Cancel safety: a dropped call may lose one link's worth of the budget.
async fn wait_for_turn(store: &dyn Store, hub: &HubName) {
    match timeout(ANSWER_WITHIN, store.open_link(hub)).await {
        Ok(Ok(wait)) => sleep(wait).await,
        Ok(Err(error)) => {
            tracing::warn!(%hub, error = describe(&error), "link is opened outside the budget, the store has failed");
        }
        Err(_) => {
            tracing::warn!(%hub, "link is opened outside the budget, the store does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use twincast_core::permits::Links;
    use twincast_testkit::{Condition, FaultyStore, MemoryStore, RuntimeClock, build};

    use super::*;

    async fn waits(store: &dyn Store) -> Duration {
        let started = Instant::now();
        wait_for_turn(store, &build::hub("a")).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn links_are_spaced_unless_the_store_is_unavailable() {
        let memory = MemoryStore::new(Arc::new(RuntimeClock::default()));
        let store = FaultyStore::new(&memory);
        for _ in 0..Links::BURST {
            assert_eq!(waits(&store).await, Duration::ZERO);
        }
        // Timers are accurate to a millisecond.
        let late = waits(&store).await - Links::EACH;
        assert!(late <= Duration::from_millis(1), "{late:?}");
        store.set(Condition::Broken);
        assert_eq!(waits(&store).await, Duration::ZERO);
        store.set(Condition::Silent);
        let late = waits(&store).await - ANSWER_WITHIN;
        assert!(late <= Duration::from_millis(1), "{late:?}");
    }
}
