//! The operations that add batches: tries at planning, and scans of the target.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Checksum, HubPlan, MalformedRows};
use crate::time::Timestamp;

/// A try at planning. Batches are stored under the number of the try, so a crashed try leaves no
/// trace.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PlanId(pub u32);

/// The number of a scan, from 1.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ScanId(pub u32);

/// An operation that adds batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adding {
    /// A try at planning.
    Plan(PlanId),
    /// A scan for devices that have joined since.
    Scan(ScanId),
}

impl fmt::Display for Adding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(plan) => write!(f, "plan {}", plan.0),
            Self::Scan(scan) => write!(f, "scan {}", scan.0),
        }
    }
}

/// The progress of the scans of a continuous rollout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scans {
    /// The newest scan; 0 before the first scan.
    pub newest: ScanId,
    /// The start of the newest scan, while the scan is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<Timestamp>,
    /// The start of the last completed scan. At first, the start of planning.
    pub last: Timestamp,
}

/// The result of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanResult {
    /// Devices that have joined.
    pub joined: u64,
    /// Devices that left before they were sent the message.
    pub departed: u64,
    /// The rollout's devices and batches on each hub after the scan, in the order of the hubs'
    /// names.
    pub hubs: Vec<HubPlan>,
    /// The checksum of the batches that the store must hold for the scan to be complete.
    pub checksum: Checksum,
    /// How often the hubs returned a joined device again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeated: u64,
    /// Malformed rows of the query results.
    #[serde(default, skip_serializing_if = "MalformedRows::is_empty")]
    pub malformed_rows: MalformedRows,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ScanResult {
    /// Returns whether no device has joined or left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.joined == 0 && self.departed == 0
    }
}
