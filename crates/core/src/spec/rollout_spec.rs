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
use crate::ids::{GroupName, RolloutName};
use crate::query::{TagPath, all_of, matching, not_matching};

/// A rollout: one message for one target, with its limits. Never changes once it is accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Twincast rollout")]
pub struct RolloutSpec {
    /// The rollout's name. The same spec under the same name again is the same rollout.
    pub name: RolloutName,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub description: Option<String>,
    /// The group of rollouts that it belongs to, say `firmware`: of each group one at a time is under way. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// With `group`: what happens when another rollout of the group is under way.
    #[serde(default)]
    pub conflict: Conflict,
    /// Which devices.
    pub target: Target,
    /// Devices are batched by the values of these tags, and outcomes are shown by them. Many small groups share batches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch_by: Vec<TagPath>,
    /// What each device is sent.
    pub message: MessageSpec,
    /// Whether devices answer in their twins what became of what the message asks for: `true`, `false`, or in which reported
    /// property, and how long they are waited for. Default: `true` for a message with the property `kind: update`, else `false`.
    #[serde(
        default,
        deserialize_with = "answers::given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "answers::schema")]
    pub answers: Option<Answers>,
    /// The most that is sent through each hub, below the hub's own quota. Default: the quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// A rate that begins low and rises with what was sent, or has succeeded, in the whole rollout. `rate` stays the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// In which order devices are sent to within each stage. Default: as the hubs list them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// How many devices of one site, region or the like may be in progress at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<Budget>,
    /// The stages, in order. Default: one, with all devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// When messages are sent. Default: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Whether devices that join the target later get the message, too: `true`, or how often it is looked for them, and until when.
    /// Default: `false`.
    #[serde(
        default,
        deserialize_with = "continuous::given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "continuous::schema")]
    pub continuous: Option<Continuous>,
    /// What the devices' cohorts are made from. Rollouts with the same salt begin with the same devices.
    /// Default: the rollout's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub salt: Option<String>,
    /// The rollout's share of a hub that several rollouts want at once, compared with theirs: 10
    /// gets ten times what 1 gets. 1 to 100.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
    /// What happens to sends of which it is not known whether the hub took them.
    #[serde(default)]
    pub delivery: Delivery,
}

fn one() -> u32 {
    1
}

/// What happens when another rollout of the group is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// This one is refused.
    #[default]
    Reject,
    /// This one waits until those that came before it have ended.
    Queue,
    /// The others are aborted: what they have not sent is skipped. This one starts when they have ended.
    Supersede,
}

/// What happens to sends of which it is not known whether the hub took them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// They are sent again, with the same message id: a device may get the message twice.
    #[default]
    AtLeastOnce,
    /// They are marked `unknown` and left: a device may not get the message.
    AtMostOnce,
}

impl RolloutSpec {
    /// The published JSON Schema of a spec.
    #[must_use]
    pub fn json_schema() -> Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The target's condition in the hub's query language, exclusions by tag included; empty
    /// for all devices.
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

    /// The target's condition without its exclusions.
    #[must_use]
    pub fn selected(&self) -> String {
        let tags = matching(&self.target.tags);
        all_of([
            tags.as_str(),
            self.target.condition.as_deref().unwrap_or(""),
        ])
    }

    /// How devices answer; `None` if they do not.
    #[must_use]
    pub fn convention(&self) -> Option<Convention> {
        Convention::of(self.answers.as_ref(), &self.message)
    }

    /// How long a device that answers has to do what the message asks for; zero if devices do not answer.
    #[must_use]
    pub fn answered_within(&self) -> Duration {
        let convention = self.convention();
        convention.map_or(Duration::ZERO, |convention| convention.within.0)
    }

    /// What the cohorts are made from.
    #[must_use]
    pub fn salt(&self) -> &str {
        self.salt.as_deref().unwrap_or(self.name.as_str())
    }

    /// The devices are listed, not queried.
    #[must_use]
    pub fn has_list(&self) -> bool {
        !self.target.devices.is_empty() || self.target.devices_file.is_some()
    }
}
