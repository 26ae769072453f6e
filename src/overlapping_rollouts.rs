//! Active rollouts with a possible overlap with a planned rollout, from the configured store.

use twincast_core::ids::HubName;
use twincast_core::ports::StoreError;
use twincast_core::spec::RolloutSpec;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::view::overlaps::{self, Overlapping};

use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::output::Output;
use crate::stores::{self, AnyStore, StoreAccess};

/// Finds overlapping rollouts, if a store is configured. An unreadable store is only noted: a plan
/// needs no store.
pub(crate) async fn find(
    spec: &RolloutSpec,
    hubs: &[HubName],
    settings: &Settings,
    output: &Output,
) -> Vec<Overlapping> {
    if !settings.redis.is_configured() && !EmbeddedStore::is_in(&settings.state) {
        return Vec::new();
    }
    match look(spec, hubs, settings).await {
        Ok(found) => found,
        Err(failure) => {
            let why = failure.lines().join(": ");
            output.note(&format!(
                "Active rollouts were not checked for overlaps: {why}"
            ));
            Vec::new()
        }
    }
}

async fn look(
    spec: &RolloutSpec,
    hubs: &[HubName],
    settings: &Settings,
) -> Result<Vec<Overlapping>, Failure> {
    let StoreAccess::Store(store) = stores::open_for_reading(settings).await? else {
        return Err(Failure::message(
            ExitCode::State,
            "a `twincast run` uses this state folder now: see `twincast status`",
        ));
    };
    let found = among(&store, spec, hubs, settings).await;
    store.close().await;
    found.map_err(engine::store_failure)
}

async fn among(
    store: &AnyStore,
    spec: &RolloutSpec,
    hubs: &[HubName],
    settings: &Settings,
) -> Result<Vec<Overlapping>, StoreError> {
    let names = match store.registry() {
        Some(registry) => registry.active().await?,
        None => store.shared().rollouts().await?,
    };
    let configured: Vec<_> = settings.hubs.keys().cloned().collect();
    overlaps::read(&*store.shared(), names, spec, hubs, &configured).await
}
