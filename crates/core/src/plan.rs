//! Planning: from a stream of devices to batches.
//!
//! The plan is the frozen answer to "which devices, in which stage, in which batch". It is made
//! once, in a stream: what is held in memory is bounded by [`BatchLimits::open_devices`], by the stages'
//! `max_devices`, and by some thousand devices for each percent that cuts ([`HubStager`]), however large the fleet is.

mod batcher;
mod checksum;
mod cohort;
mod course;
mod digest;
mod estimate;
mod forecast;
mod manifest;
mod not_understood;
mod order;
mod overlap;
mod packer;
mod place;
mod sizes;
mod stager;
mod unknown_zones;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use batcher::{BatchLimits, Batcher, Filled};
pub use checksum::Checksum;
pub use cohort::Cohort;
pub use digest::{HubDigest, PlanDigest};
pub use estimate::{Estimate, HubEstimate, estimate};
pub use forecast::{Forecast, Impossible, Share, StageForecast, StageShares, forecast, warnings};
pub use manifest::{Batch, BatchHeader, DeviceList, Group};
pub use not_understood::{NotUnderstood, OddExample};
pub use overlap::{Overlap, overlap};
pub use packer::{Packed, pack};
pub use place::{COMPARED, Place};
pub use sizes::BatchSizes;
pub use stager::{Assigned, CutMissed, HubStager, StageRules, finish_stages};
pub use unknown_zones::UnknownZones;

use crate::ids::{HubHost, HubName, StageName};

/// What a plan came to. The batches themselves are in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanSummary {
    /// Devices in all batches.
    pub devices: u64,
    /// How many batches.
    pub batches: u32,
    /// Equal digests mean equal plans: the same devices in the same batches.
    pub digest: String,
    /// The batches that the store must hold for the plan to be whole.
    pub checksum: Checksum,
    /// By hub, in the order of their names.
    pub hubs: Vec<HubPlan>,
    /// By stage, in the order of the spec; the one for the rest is the last. Older records have none.
    #[serde(default)]
    pub stages: Vec<StagePlan>,
    /// By exclusion rule, in the order of the spec.
    pub excluded: Vec<Excluded>,
    /// How often a device was named again, by the device list or by its hub; each is in the plan once.
    pub repeated: u64,
    /// Rows of the hubs' answers that are not understood, whose devices are left out. In a continuous rollout, those of the
    /// newest look.
    #[serde(default, skip_serializing_if = "NotUnderstood::is_empty")]
    pub not_understood: NotUnderstood,
    /// Devices whose `zone_tag` holds no zone. Those that are left out for that are among the excluded, too.
    #[serde(default, skip_serializing_if = "UnknownZones::is_empty")]
    pub unknown_zones: UnknownZones,
}

impl PlanSummary {
    /// What there is to be said of a plan without devices.
    #[must_use]
    pub fn empty(&self) -> String {
        let odd = self.not_understood.in_short();
        let odd = odd.map(|odd| format!("; {odd}")).unwrap_or_default();
        format!("the target matches no device{odd}")
    }
}

/// One hub's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HubPlan {
    /// The hub.
    pub hub: HubName,
    /// The host name of the hub that the devices were found in.
    pub host: HubHost,
    /// Its devices.
    pub devices: u64,
    /// Its batches.
    pub batches: u32,
}

impl HubPlan {
    /// That of a hub without devices.
    #[must_use]
    pub fn none(hub: &HubName, host: &HubHost) -> Self {
        Self {
            hub: hub.clone(),
            host: host.clone(),
            devices: 0,
            batches: 0,
        }
    }
}

/// One stage's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagePlan {
    /// The stage.
    pub name: StageName,
    /// Its devices; there may be none.
    pub devices: u64,
    /// Its batches.
    pub batches: u32,
}

/// How many devices of the target a rule left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Excluded {
    /// The rule, in words.
    pub rule: String,
    /// Why, if the spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Devices that match the target and this rule. Rules may overlap.
    pub devices: u64,
}
