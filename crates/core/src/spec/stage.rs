//! Stages, and the gates between stages, as written by a user.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::order::Order;
use super::quantity::{HumanDuration, Percent, Rate};
use super::ramp::Ramp;
use crate::ids::StageName;
use crate::query::{MAX_QUERY_CHARS, TagSelector};

/// An ordered slice of the target. A device belongs to the first stage that takes the device. A
/// stage takes a device that fulfils all of the given conditions `tags`, `percent` and
/// `max_devices`. All other devices belong to a last stage, `rest`, which need not be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The stage's name.
    pub name: StageName,
    /// Takes devices with these tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// Takes devices within the first so many per cent of the whole target, in the order of their
    /// cohorts: exact to a single device, rounded up. The percent is cumulative: after a stage of
    /// `10%`, a stage of `50%` takes the next 40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Takes at most so many devices, the first in the order of their cohorts. 1 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_devices: Option<u32>,
    /// The maximum rate through each hub during this stage, below the rollout's own rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// A ramp for this stage, in place of the rollout's ramp. The ramp counts the devices of this
    /// stage only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// An order for this stage, in place of the rollout's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The test before the next stage starts. On the last stage, the test before the rollout
    /// succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

impl Stage {
    /// Returns a stage for all devices not taken by another stage.
    #[must_use]
    pub fn rest(name: &str) -> Self {
        Self {
            name: StageName::new(name).expect("the name is valid"),
            tags: BTreeMap::new(),
            percent: None,
            max_devices: None,
            rate: None,
            ramp: None,
            order: None,
            gate: None,
        }
    }

    /// Returns whether the stage takes every device not taken by an earlier stage.
    #[must_use]
    pub fn takes_every_device(&self) -> bool {
        self.tags.is_empty() && self.percent.is_none() && self.max_devices.is_none()
    }
}

/// The test at the end of a stage. All given conditions must hold. Shares are compared exactly,
/// without rounding.
///
/// The *measured* devices of a stage are the succeeded and the failed devices. Silent devices (sent
/// to, without a result so far) are neither; see `unconfirmed`. Skipped devices do not count at
/// all. With too few measured devices, or none, the rollout is paused; see `min_sample` and
/// `too_little`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The success level: what counts as the success of a device.
    #[serde(default)]
    pub counts: SuccessLevel,
    /// The share of the stage's devices that must have succeeded: this share or more. The gate
    /// fails as soon as this share cannot be reached any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_at_least: Option<Percent>,
    /// The gate fails when more than this share of the measured devices has failed: strictly more.
    /// This failure rule is armed from the first device until the gate has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_above: Option<Percent>,
    /// The failure rule waits for so many measured devices while more can still be measured. With
    /// fewer, the gate does not pass, unless `too_little` allows it. In a smaller stage: all
    /// devices. Default: 20. 1 to 1,000,000,000.
    #[serde(default = "default_min_sample")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub min_sample: u32,
    /// The action to take when fewer devices than `min_sample` are measured in the end.
    #[serde(default)]
    pub too_little: SmallSample,
    /// How long silent devices are waited for once all devices were sent to. Default: the message's
    /// `ttl` (or 1h), plus half a minute in which the hub reports expired messages; with
    /// `counts: applied` plus the time in which devices answer. With `counts: enqueued` there are
    /// no silent devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<HumanDuration>,
    /// How long missing feedback of the hub is waited for. After this time, the rollout is paused.
    /// Default: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_within: Option<HumanDuration>,
    /// How devices count that are still silent at the deadline.
    #[serde(default)]
    pub unconfirmed: Unconfirmed,
    /// A wait that begins when all devices of the stage were sent to. The failure rule stays armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake: Option<HumanDuration>,
    /// With `counts: applied`, where devices do not answer: a condition in the hub's own query
    /// language, fulfilled by a device that has applied the change. The hub is queried when the
    /// bake is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_QUERY_CHARS / 4))]
    pub applied_when: Option<String>,
    /// Numbers queried from a Prometheus server, from the stage's start on. At most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub metrics: Vec<Metric>,
    /// An approval that must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// The action to take when the gate fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

impl Gate {
    /// Returns whether the gate has a rule about shares of devices.
    #[must_use]
    pub fn has_share_rules(&self) -> bool {
        self.success_at_least.is_some() || self.failure_above.is_some()
    }

    /// Returns how long missing feedback of the hub is waited for.
    #[must_use]
    pub fn evidence_within(&self) -> Duration {
        self.evidence_within
            .map_or(EVIDENCE_WITHIN, |duration| duration.0)
    }
}

/// The default of a gate's `evidence_within`.
pub const EVIDENCE_WITHIN: Duration = Duration::from_secs(3600);

fn default_min_sample() -> u32 {
    20
}

/// The success levels of a device, in ascending order.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SuccessLevel {
    /// The hub has accepted the message for the device.
    #[default]
    Enqueued,
    /// The device has completed the message. Needs `ack: full` or `positive` in the message.
    Delivered,
    /// The device answers that the message's request is fulfilled, or the device's twin fulfils
    /// `applied_when`.
    Applied,
}

/// How silent devices count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unconfirmed {
    /// Neither as succeeded nor as failed: `success_at_least` is a share of all devices, including
    /// silent devices, and `failure_above` is a share of the measured devices.
    #[default]
    Neither,
    /// As if absent: both rules are about shares of the measured devices.
    LeftOut,
    /// As failed.
    AsFailed,
    /// As succeeded.
    AsSucceeded,
}

/// The action to take when too few devices are measured for a verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SmallSample {
    /// The rollout is paused, regardless of `on_failure`.
    #[default]
    Pause,
    /// The gate judges the few measured devices.
    Pass,
}

/// The rule for an approval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// How long an approval is waited for, from the time at which only the approval is missing.
    /// After this time, the gate fails. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<HumanDuration>,
}

/// The action to take when a gate fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The rollout is paused. After a resume, the gate is judged again.
    #[default]
    Pause,
    /// The rollout is aborted.
    Abort,
    /// The failure is noted, and the next stage starts once this stage is sent.
    Continue,
}
