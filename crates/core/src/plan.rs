//! Planning: turns a stream of devices into batches.
//!
//! A plan is the frozen assignment of every device of the target to a stage and a batch. Planning
//! happens once, in a stream. Memory is bounded by [`BatchLimits::open_devices`], by the
//! `max_devices` of the stages, and by some thousand devices for each distinct `percent` of the
//! stages ([`HubStager`]), regardless of the size of the fleet.

mod batcher;
mod checksum;
mod cohort;
mod digest;
mod estimate;
mod forecast;
mod malformed_rows;
mod manifest;
mod order;
mod overlap;
mod packer;
mod sending_time;
mod sizes;
mod sort_key;
mod stager;
mod unknown_zones;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use batcher::{BatchLimits, Batcher, ClosedBatch};
pub use checksum::Checksum;
pub use cohort::Cohort;
pub use digest::{HubDigest, PlanDigest};
pub use estimate::{Estimate, HubEstimate, estimate};
pub use forecast::{Forecast, Impossible, Share, StageForecast, StageShares, forecast, warnings};
pub use malformed_rows::{MalformedRowExample, MalformedRows};
pub use manifest::{Batch, BatchHeader, DeviceList, TagGroup};
pub use overlap::{Overlap, overlap};
pub use packer::{Packed, pack};
pub use sizes::BatchSizes;
pub use sort_key::{COMPARED_BYTES, SortKey};
pub use stager::{AssignedDevice, CutMissed, HubStager, StageRules, finish_stages};
pub use unknown_zones::UnknownZones;

use crate::ids::{HubHost, HubName, StageName};

/// The result of planning. The batches themselves are in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanSummary {
    /// Devices in all batches.
    pub devices: u64,
    /// The number of batches.
    pub batches: u32,
    /// Equal digests mean equal plans: the same devices in the same batches.
    pub digest: String,
    /// The expected checksum of the batches in the store. A store with another checksum does not
    /// hold the whole plan.
    pub checksum: Checksum,
    /// The part of each hub, ordered by hub name.
    pub hubs: Vec<HubPlan>,
    /// The part of each stage, in the order of
    /// [`RolloutSpec::all_stages`](crate::spec::RolloutSpec::all_stages). Older records have no
    /// stages.
    #[serde(default)]
    pub stages: Vec<StagePlan>,
    /// The effect of each exclusion rule, in the order of the spec.
    pub excluded: Vec<Excluded>,
    /// The number of repeated occurrences of devices, in the device list or in a hub's answers.
    /// Each device is in the plan once.
    pub repeated: u64,
    /// Malformed rows of the hubs' answers. The plan leaves their devices out. In a continuous
    /// rollout, the malformed rows of the newest scan of the target.
    #[serde(default, skip_serializing_if = "MalformedRows::is_empty")]
    pub malformed_rows: MalformedRows,
    /// Devices with an unknown time zone in `zone_tag`. Devices left out for this reason count in
    /// `excluded`, too.
    #[serde(default, skip_serializing_if = "UnknownZones::is_empty")]
    pub unknown_zones: UnknownZones,
}

impl PlanSummary {
    /// Returns the error text for a plan without devices.
    #[must_use]
    pub fn empty_plan_message(&self) -> String {
        let malformed = self.malformed_rows.summary();
        let malformed = malformed
            .map(|malformed| format!("; {malformed}"))
            .unwrap_or_default();
        format!("the target matches no device{malformed}")
    }
}

/// A hub's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HubPlan {
    /// The hub.
    pub hub: HubName,
    /// The host name of the hub at the time of planning.
    pub host: HubHost,
    /// The number of devices.
    pub devices: u64,
    /// The number of batches.
    pub batches: u32,
}

impl HubPlan {
    /// Returns the part of a hub without devices.
    #[must_use]
    pub fn empty(hub: &HubName, host: &HubHost) -> Self {
        Self {
            hub: hub.clone(),
            host: host.clone(),
            devices: 0,
            batches: 0,
        }
    }
}

/// A stage's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagePlan {
    /// The stage.
    pub name: StageName,
    /// The number of devices; may be zero.
    pub devices: u64,
    /// The number of batches.
    pub batches: u32,
}

/// The number of devices left out by an exclusion rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Excluded {
    /// A description of the rule.
    pub rule: String,
    /// The reason from the spec, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Devices that match both the target and this rule. Rules may overlap.
    pub devices: u64,
}
