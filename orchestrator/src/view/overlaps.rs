//! Active rollouts that share hubs, and perhaps devices, with one that is planned.

use serde::{Deserialize, Serialize};
use twincast_core::ids::{GroupName, HubName, RolloutName};
use twincast_core::plan::{Overlap, overlap};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::spec::RolloutSpec;
use utoipa::ToSchema;

/// How many are shown.
const SHOWN: usize = 20;

/// An active rollout on the same hubs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overlapping {
    /// Its name.
    #[schema(value_type = String)]
    pub rollout: RolloutName,
    /// Its phase.
    pub phase: String,
    /// The hubs that both are on.
    #[schema(value_type = Vec<String>)]
    pub hubs: Vec<HubName>,
    /// Which devices may be in both.
    pub devices: Devices,
    /// The group, if both are of one: only one of them can be under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupName>,
}

/// Which devices may be in two rollouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// The targets are chosen in the same words.
    Same,
    /// Some may be.
    Possible,
    /// None; it is shown for its group.
    None,
}

impl Overlapping {
    /// What there is to be said about it.
    #[must_use]
    pub fn in_words(&self) -> String {
        let hubs: Vec<_> = self.hubs.iter().map(HubName::as_str).collect();
        let devices = match self.devices {
            Devices::Same => ", and has the same target",
            Devices::Possible => ", and may send to the same devices",
            Devices::None => "",
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

/// Of the rollouts `among`, the active ones whose devices may be those of `spec` on its `hubs`. `configured` are all
/// hubs.
///
/// # Errors
/// [`StoreError`].
pub async fn read(
    store: &dyn Store,
    among: Vec<RolloutName>,
    spec: &RolloutSpec,
    hubs: &[HubName],
    configured: &[HubName],
) -> Result<Vec<Overlapping>, StoreError> {
    let mut found = Vec::new();
    for name in among.into_iter().filter(|name| *name != spec.name) {
        if found.len() == SHOWN {
            break;
        }
        let rollout = match store.rollout(&name).await {
            Ok(rollout) => rollout,
            // What it sends to is not known, so it may be anything.
            Err(StoreError::Newer { .. } | StoreError::Corrupt { .. }) => {
                found.push(Overlapping {
                    rollout: name,
                    phase: "not understood".to_owned(),
                    hubs: Vec::new(),
                    devices: Devices::Possible,
                    group: None,
                });
                continue;
            }
            Err(error) => return Err(error),
        };
        let active = rollout.filter(|rollout| !rollout.phase.is_ended());
        found.extend(active.and_then(|rollout| compare(spec, hubs, &rollout, configured)));
    }
    Ok(found)
}

fn compare(
    spec: &RolloutSpec,
    hubs: &[HubName],
    other: &Rollout,
    configured: &[HubName],
) -> Option<Overlapping> {
    let shared = hubs_of(other, configured).into_iter();
    let shared: Vec<_> = shared.filter(|hub| hubs.contains(hub)).collect();
    let devices = match overlap(spec, &other.spec) {
        Overlap::Apart { .. } => Devices::None,
        _ if shared.is_empty() => Devices::None,
        Overlap::Possible => Devices::Possible,
        Overlap::Same => Devices::Same,
    };
    let group = spec.group.clone();
    let group = group.filter(|_| spec.group == other.spec.group);
    (devices != Devices::None || group.is_some()).then(|| Overlapping {
        rollout: other.spec.name.clone(),
        phase: other.phase.as_str().to_owned(),
        hubs: shared,
        devices,
        group,
    })
}

/// The hubs that a rollout sends through: those of its plan, or that it would be planned on.
fn hubs_of(rollout: &Rollout, configured: &[HubName]) -> Vec<HubName> {
    let named = &rollout.spec.target.hubs;
    match &rollout.plan {
        Some(plan) => {
            let hubs = plan.hubs.iter().filter(|part| part.devices > 0);
            hubs.map(|part| part.hub.clone()).collect()
        }
        None if named.is_empty() => configured.to_vec(),
        None => named.clone(),
    }
}
