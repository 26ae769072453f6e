//! Stages, and the gates between them, as a user writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::order::Order;
use super::quantity::{Percent, Rate, Span};
use super::ramp::Ramp;
use crate::ids::StageName;
use crate::query::{MAX_QUERY_CHARS, TagSelector};

/// An ordered slice of the target. A device belongs to the first stage that takes it: that is, to
/// the first of which it fulfils all of `tags`, `percent` and `max_devices` that are given. What no stage
/// takes belongs to a last one, `rest`, that need not be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The stage's name.
    pub name: StageName,
    /// Takes devices with these tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// Takes devices within the first so many per cent of the whole target, in the order of their cohorts:
    /// exact to one device, rounded up. It is cumulative: after a stage of `10%`, one of `50%` takes the next 40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Takes so many devices at the most, those that come first in the order of their cohorts. 1 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_devices: Option<u32>,
    /// The most that is sent through each hub while this stage is sent to, below the rollout's own rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// A ramp of this stage's own, which counts its devices only, in place of the rollout's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// An order of this stage's own, in place of the rollout's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// What must hold before the next stage starts; of the last stage, before the rollout succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

impl Stage {
    /// The stage that takes what no other has taken.
    #[must_use]
    pub fn rest(name: &str) -> Self {
        Self {
            name: StageName::new(name).expect("a name of ours"),
            tags: BTreeMap::new(),
            percent: None,
            max_devices: None,
            rate: None,
            ramp: None,
            order: None,
            gate: None,
        }
    }

    /// It takes every device that comes to it.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.tags.is_empty() && self.percent.is_none() && self.max_devices.is_none()
    }
}

/// The test at the end of a stage. All that is given must hold. Shares are compared exactly, without rounding.
///
/// The *measured* devices of a stage are those that succeeded and those that failed. Devices that are
/// silent (sent to, no word yet) are neither; see `unconfirmed`. Skipped devices do not count at all.
/// A gate that has measured no device at all fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// What counts as success.
    #[serde(default)]
    pub counts: Rung,
    /// So many of the stage's devices must have succeeded: this share or more. A gate fails as soon as that
    /// cannot be reached any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_at_least: Option<Percent>,
    /// The gate fails when more than this share of the measured devices has failed: strictly more. Armed from the
    /// first device on, and until the gate has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_above: Option<Percent>,
    /// The failure rule waits for so many measured devices while more can still be measured, and the gate does not pass
    /// with fewer: all devices, if the stage has fewer. Default: 20. 1 to 1,000,000,000.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub min_sample: u32,
    /// What happens when fewer devices than `min_sample` are measured in the end.
    #[serde(default)]
    pub too_little: TooLittle,
    /// How long silent devices are waited for once all were sent to. Default: the message's `ttl` (or 1h), and half a
    /// minute, in which the hub tells that messages have expired. With `counts: enqueued` there are no silent devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// How long the hub's word is waited for when it cannot be heard; the rollout is paused then. Default: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_within: Option<Span>,
    /// How devices count that are still silent at the deadline.
    #[serde(default)]
    pub unconfirmed: Unconfirmed,
    /// A wait that begins when all devices of the stage were sent to. The failure rule stays armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake: Option<Span>,
    /// With `counts: applied`, where devices do not answer: a condition in the hub's own query language that a device fulfils when it has done what the
    /// rollout was to bring about. Asked when the bake is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_QUERY_CHARS / 4))]
    pub applied_when: Option<String>,
    /// Numbers that a Prometheus server is asked for, from the stage's start on. At most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub metrics: Vec<Metric>,
    /// Somebody must approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// What happens when the gate fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

impl Gate {
    /// It has a rule about shares of devices.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.success_at_least.is_some() || self.failure_above.is_some()
    }

    /// How long the hub's word is waited for.
    #[must_use]
    pub fn evidence_within(&self) -> Duration {
        self.evidence_within.map_or(EVIDENCE_WITHIN, |span| span.0)
    }
}

/// How long the hub's word is waited for when nothing else is said.
pub const EVIDENCE_WITHIN: Duration = Duration::from_secs(3600);

fn twenty() -> u32 {
    20
}

/// The rungs of the ladder that a device climbs.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The hub has taken the message for the device.
    #[default]
    Enqueued,
    /// The device has completed the message. Needs `ack: full` or `positive` in the message.
    Delivered,
    /// The device answers that it has done what the message asks for, or its twin fulfils `applied_when`.
    Applied,
}

/// How devices count that say nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unconfirmed {
    /// Neither as succeeded nor as failed: `success_at_least` is of all devices, silent ones among them,
    /// `failure_above` of the measured ones.
    #[default]
    Neither,
    /// As if they were not there: both shares are of the measured devices.
    LeftOut,
    /// As failed.
    AsFailed,
    /// As succeeded.
    AsSucceeded,
}

/// What happens when too few devices are measured for a verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLittle {
    /// The rollout is paused, whatever `on_failure` says.
    #[default]
    Pause,
    /// The gate judges the few that there are.
    Pass,
}

/// Who must approve, and for how long they are waited for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// The gate fails when nobody has approved by then, from the time on at which approval is all that is
    /// missing. Default: it waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
}

/// What happens when a gate fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The rollout is paused. Resumed, the gate is asked again.
    #[default]
    Pause,
    /// The rollout is aborted.
    Abort,
    /// It is noted, and the next stage starts once this one is sent.
    Continue,
}
