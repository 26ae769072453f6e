//! Active rollouts that a planned one may overlap with, in the store that is at hand.

use twincast_core::ids::HubName;
use twincast_core::ports::StoreError;
use twincast_core::spec::RolloutSpec;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::view::overlaps::{self, Overlapping};

use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::stores::{self, AnyStore, Reached};

/// Finds them, if a store is at hand. One that cannot be looked at is noted: a plan needs none.
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
            output.note(&format!("Active rollouts were not looked at: {why}"));
            Vec::new()
        }
    }
}

async fn look(
    spec: &RolloutSpec,
    hubs: &[HubName],
    settings: &Settings,
) -> Result<Vec<Overlapping>, Failure> {
    let Reached::Store(store) = stores::look(settings).await? else {
        return Err(Failure::message(
            ExitCode::State,
            "a rollout is run from this state folder now: `twincast status` shows it",
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
    let names = match store.roster() {
        Some(roster) => roster.active().await?,
        None => store.shared().rollouts().await?,
    };
    let configured: Vec<_> = settings.hubs.keys().cloned().collect();
    overlaps::read(&*store.shared(), names, spec, hubs, &configured).await
}
