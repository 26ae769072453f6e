//! Active rollouts that share hubs, and perhaps devices, with one that is planned.

use serde::Serialize;
use twincast_core::ids::{GroupName, HubName, RolloutName};
use twincast_core::plan::{Overlap, overlap};
use twincast_core::ports::{Roster as _, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::spec::RolloutSpec;
use twincast_embedded::EmbeddedStore;

use crate::config::Settings;
use crate::engine;
use crate::exit::Failure;
use crate::output::Output;
use crate::stores::{self, AnyStore};

/// How many are shown.
const SHOWN: usize = 20;

/// An active rollout on hubs of ours.
#[derive(Debug, Serialize)]
pub(crate) struct Overlapping {
    rollout: RolloutName,
    phase: String,
    hubs: Vec<HubName>,
    /// `same`: the targets are chosen in the same words. `possible`: some devices may be in both. `none`: it is shown for
    /// its group.
    devices: &'static str,
    /// The group, if both are of one: only one of them can be under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<GroupName>,
}

impl Overlapping {
    /// What there is to be said about it.
    pub(crate) fn in_words(&self) -> String {
        let hubs: Vec<_> = self.hubs.iter().map(HubName::as_str).collect();
        let devices = match self.devices {
            "same" => ", and has the same target",
            "none" => "",
            _ => ", and may send to the same devices",
        };
        let on = match hubs.as_slice() {
            [] => String::new(),
            hubs => format!(" on {}", hubs.join(", ")),
        };
        let group = match &self.group {
            Some(group) => format!(" It has group {group}, which this one needs, too."),
            None => String::new(),
        };
        let phase = self.phase.replace('_', " ");
        format!("Rollout {} is {phase}{on}{devices}.{group}", self.rollout)
    }
}

/// Finds the active rollouts whose devices may be those of `spec`, in the store that is at hand, if one is. A store that
/// cannot be looked at is noted: a plan needs none.
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
    let store = stores::open(settings).await?;
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
    let names = match store {
        AnyStore::Redis(store) => store.active().await?,
        AnyStore::Folder(_) => store.rollouts().await?,
    };
    let mut found = Vec::new();
    for name in names.into_iter().filter(|name| *name != spec.name) {
        if found.len() == SHOWN {
            break;
        }
        let rollout = store.rollout(&name).await?;
        let Some(rollout) = rollout.filter(|rollout| !rollout.phase.is_ended()) else {
            continue;
        };
        let shared = hubs_of(&rollout, settings);
        let shared: Vec<_> = shared
            .into_iter()
            .filter(|hub| hubs.contains(hub))
            .collect();
        let devices = match overlap(spec, &rollout.spec) {
            _ if shared.is_empty() => "none",
            Overlap::Apart { .. } => "none",
            Overlap::Possible => "possible",
            Overlap::Same => "same",
        };
        let group = spec.group.clone();
        let group = group.filter(|_| spec.group == rollout.spec.group);
        if devices != "none" || group.is_some() {
            found.push(Overlapping {
                rollout: name,
                phase: rollout.phase.as_str().to_owned(),
                hubs: shared,
                devices,
                group,
            });
        }
    }
    Ok(found)
}

/// The hubs that a rollout sends through: those of its plan, or that it would be planned on.
fn hubs_of(rollout: &Rollout, settings: &Settings) -> Vec<HubName> {
    let named = &rollout.spec.target.hubs;
    match &rollout.plan {
        Some(plan) => {
            let hubs = plan.hubs.iter().filter(|part| part.devices > 0);
            hubs.map(|part| part.hub.clone()).collect()
        }
        None if named.is_empty() => settings.hubs.keys().cloned().collect(),
        None => named.clone(),
    }
}
