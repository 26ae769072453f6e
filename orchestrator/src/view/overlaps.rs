//! Active rollouts sharing hubs, and perhaps devices, with a planned rollout.

use serde::{Deserialize, Serialize};
use twincast_core::ids::{ConcurrencyGroup, HubName, RolloutName};
use twincast_core::plan::{Overlap, overlap};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::spec::RolloutSpec;
use utoipa::ToSchema;

/// The most rollouts shown.
const MAX_SHOWN: usize = 20;

/// An active rollout on the same hubs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overlapping {
    /// The rollout's name.
    #[schema(value_type = String)]
    pub rollout: RolloutName,
    /// The rollout's phase.
    pub phase: String,
    /// The hubs of both rollouts.
    #[schema(value_type = Vec<String>)]
    pub hubs: Vec<HubName>,
    /// The devices possibly in both rollouts.
    pub devices: Devices,
    /// The concurrency group of both rollouts, if shared: the rollouts of a group run one at a
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<ConcurrencyGroup>,
}

/// The devices possibly in two rollouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// The targets are written identically.
    Same,
    /// Some devices may be in both rollouts.
    Possible,
    /// None. The rollout is shown for its group.
    None,
}

impl Overlapping {
    /// Describes the overlap.
    #[must_use]
    pub fn describe(&self) -> String {
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
            Some(group) => format!(" Both rollouts are in concurrency group {group}."),
            None => String::new(),
        };
        let phase = self.phase.replace('_', " ");
        format!("Rollout {} is {phase}{on}{devices}.{group}", self.rollout)
    }
}

/// Returns the active rollouts of `among` with possible sends to devices of `spec` on `hubs`, or
/// with the same concurrency group. `configured` are all hubs.
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
        if found.len() == MAX_SHOWN {
            break;
        }
        let rollout = match store.rollout(&name).await {
            Ok(rollout) => rollout,
            // The target is unknown, so any device is possible.
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
        Overlap::Disjoint { .. } => Devices::None,
        _ if shared.is_empty() => Devices::None,
        Overlap::Possible => Devices::Possible,
        Overlap::Same => Devices::Same,
    };
    let group = spec.concurrency_group();
    let group = group
        .filter(|_| group == other.spec.concurrency_group())
        .cloned();
    (devices != Devices::None || group.is_some()).then(|| Overlapping {
        rollout: other.spec.name.clone(),
        phase: other.phase.as_str().to_owned(),
        hubs: shared,
        devices,
        group,
    })
}

/// Returns the hubs of a rollout's sends: the hubs of the plan, or the hubs to be planned.
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
