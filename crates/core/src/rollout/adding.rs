//! Tries at planning, and looks: what batches are added by.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Checksum, HubPlan, NotUnderstood};
use crate::time::Timestamp;

/// One try at planning. Batches are stored under it, so a crashed try leaves no trace.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PlanId(pub u32);

/// The number of a look, from 1.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LookId(pub u32);

/// What batches are added by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adding {
    /// A try at planning.
    Plan(PlanId),
    /// A look for devices that have joined since.
    Look(LookId),
}

impl fmt::Display for Adding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(plan) => write!(f, "plan {}", plan.0),
            Self::Look(look) => write!(f, "look {}", look.0),
        }
    }
}

/// How far a continuous rollout is with its looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks {
    /// The newest one; 0 before the first.
    pub newest: LookId,
    /// Since when the newest one is under way, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<Timestamp>,
    /// When the last one began that was gone through with. At first, the planning.
    pub last: Timestamp,
}

/// What a look has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Devices that have joined.
    pub joined: u64,
    /// Devices that have left before they were sent the message.
    pub left: u64,
    /// What each hub has of the rollout now, in the order of their names.
    pub hubs: Vec<HubPlan>,
    /// The batches that the store must hold for the look to be complete.
    pub checksum: Checksum,
    /// How often the hubs named a device again that has joined.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeated: u64,
    /// Rows of the hubs' answers that are not understood.
    #[serde(default, skip_serializing_if = "NotUnderstood::is_empty")]
    pub not_understood: NotUnderstood,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Found {
    /// Nobody has joined or left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.joined == 0 && self.left == 0
    }
}
