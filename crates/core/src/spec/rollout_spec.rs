//! A rollout's spec as a whole.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answers::{self, Answers, Convention};
use super::budget::Budget;
use super::continuous::{self, Continuous};
use super::limits::MAX_TEXT_CHARS;
use super::message::MessageSpec;
use super::order::Order;
use super::quantity::Rate;
use super::ramp::Ramp;
use super::schedule::Schedule;
use super::stage::Stage;
use super::target::Target;
use crate::ids::{ConcurrencyGroup, RolloutName};
use crate::query::{TagPath, all_of, matching, not_matching};

/// A rollout: a message for a target, with limits. A spec never changes after the rollout is
/// accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Twincast rollout")]
pub struct RolloutSpec {
    /// The rollout's name. The same spec under the same name again is the same rollout.
    pub name: RolloutName,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub description: Option<String>,
    /// The concurrency group of the rollout, and the policy for other rollouts of the group. In
    /// each group, a single rollout is under way at a time. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// The target devices.
    pub target: Target,
    /// The tags by whose values devices are batched and outcomes are shown. Many small groups share
    /// batches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch_by: Vec<TagPath>,
    /// The message sent to each device.
    pub message: MessageSpec,
    /// Whether devices answer in their twins about the message's request: `true`, `false`, or a map
    /// with the reported property and the time to wait for answers. Default: `true` for a message
    /// with the property `kind: update`, else `false`.
    #[serde(
        default,
        deserialize_with = "answers::deserialize_optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "answers::schema")]
    pub answers: Option<Answers>,
    /// The maximum rate through each hub, below the hub's own quota. Default: the quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// A rate that begins low and rises with the number of devices in the whole rollout that were
    /// sent to, or have succeeded. `rate` stays the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// The order in which devices are sent to within each stage. Default: the order of the hubs'
    /// lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The maximum number of devices of a site, region or the like that may be in progress at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<Budget>,
    /// The stages, in order. Default: a single stage with all devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// The times at which messages are sent. Default: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Whether devices that join the target later get the message, too: `true`, or a map with the
    /// interval between scans of the target, and the time of the last scan. Default: `false`.
    #[serde(
        default,
        deserialize_with = "continuous::deserialize_optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "continuous::schema")]
    pub continuous: Option<Continuous>,
    /// The salt of the device cohorts. Rollouts with the same salt begin with the same devices.
    /// Default: the rollout's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub salt: Option<String>,
    /// The rollout's share of a hub that several rollouts use at once, relative to the weights of
    /// the other rollouts: 10 gets ten times as much as 1. 1 to 100.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
    /// The action to take when the result of a send is unknown, because the hub may or may not have
    /// taken the message.
    #[serde(default)]
    pub delivery: Delivery,
}

fn default_weight() -> u32 {
    1
}

/// The concurrency group of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// The name of the group, for example `firmware`.
    pub group: ConcurrencyGroup,
    /// The action to take when another rollout of the group is under way.
    #[serde(default)]
    pub policy: ConcurrencyPolicy,
}

impl RolloutSpec {
    /// Returns the concurrency group of the rollout, if any.
    #[must_use]
    pub fn concurrency_group(&self) -> Option<&ConcurrencyGroup> {
        self.concurrency
            .as_ref()
            .map(|concurrency| &concurrency.group)
    }
}

/// The action to take when another rollout of the group is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConcurrencyPolicy {
    /// The new rollout is refused.
    #[default]
    Reject,
    /// The new rollout waits until all earlier rollouts have ended.
    Queue,
    /// The other rollouts are aborted: their unsent messages are skipped. The new rollout starts
    /// after their end.
    Supersede,
}

/// The action to take when the result of a send is unknown, because the hub may or may not have
/// taken the message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// The message is sent again, with the same message id: a device may get the message twice.
    #[default]
    AtLeastOnce,
    /// The device is marked `unknown`, and no message is sent again: a device may not get the
    /// message.
    AtMostOnce,
}

impl RolloutSpec {
    /// Returns the published JSON Schema of a spec.
    #[must_use]
    pub fn json_schema() -> Value {
        schemars::schema_for!(Self).to_value()
    }

    /// Returns the target's condition in the hub's query language, including exclusions by tag;
    /// empty for all devices.
    #[must_use]
    pub fn condition(&self) -> String {
        let mut parts = vec![self.selected()];
        parts.extend(
            self.target
                .exclude
                .iter()
                .filter(|rule| !rule.tags.is_empty())
                .map(|rule| not_matching(&rule.tags)),
        );
        all_of(parts.iter().map(String::as_str))
    }

    /// Returns the target's condition without the exclusions.
    #[must_use]
    pub fn selected(&self) -> String {
        let tags = matching(&self.target.tags);
        all_of([
            tags.as_str(),
            self.target.condition.as_deref().unwrap_or(""),
        ])
    }

    /// Returns how devices answer; `None` if devices do not answer.
    #[must_use]
    pub fn convention(&self) -> Option<Convention> {
        Convention::of(self.answers.as_ref(), &self.message)
    }

    /// Returns the time given to devices to fulfil the message's request; zero if devices do not
    /// answer.
    #[must_use]
    pub fn answered_within(&self) -> Duration {
        let convention = self.convention();
        convention.map_or(Duration::ZERO, |convention| convention.within.0)
    }

    /// Returns the salt of the device cohorts.
    #[must_use]
    pub fn salt(&self) -> &str {
        self.salt.as_deref().unwrap_or(self.name.as_str())
    }

    /// Returns whether the devices are listed, not queried.
    #[must_use]
    pub fn has_list(&self) -> bool {
        !self.target.devices.is_empty() || self.target.devices_file.is_some()
    }
}
