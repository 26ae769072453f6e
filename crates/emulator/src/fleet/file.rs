//! The fleet file: the user's description of a fleet.

use std::time::Duration;

use serde::Deserialize;

use super::generator::ValueSpec;
use super::parse::{DurationRange, Share};

/// The content of a fleet file.
///
/// ```yaml
/// seed: 7
/// groups:
///   - name: fridges
///     count: 1000000
///     id: "fridge-{index:06}"
///     tags:
///       kind: fridge
///       region: { $weighted: { eu: 70, us: 30 } }
///       site: { $text: "site-{index/100:04}" }
///     reported:
///       firmware: { $choice: ["1.0", "1.1"] }
///     behaviour:
///       offline: 5%
///       online_after: { share: 10%, after: 10s..2m }
///       rejects: 1%
///       latency: 50ms..400ms
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetFile {
    /// The seed of all random values.
    #[serde(default)]
    pub seed: u64,
    /// The groups, in the order in which queries return them.
    pub groups: Vec<GroupSpec>,
}

/// A group of similar devices.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// A name for messages. Random values depend on the name and not on the position, so adding a
    /// group changes no other group.
    #[serde(default)]
    pub name: String,
    /// The number of devices.
    pub count: u32,
    /// The pattern of the device ids, such as `fridge-{index:06}`.
    pub id: String,
    /// The number of the first device.
    #[serde(default)]
    pub first: u64,
    /// Tags of the twin.
    #[serde(default = "empty_object")]
    pub tags: ValueSpec,
    /// Reported properties of the twin.
    #[serde(default = "empty_object")]
    pub reported: ValueSpec,
    /// Reported properties that change to these values once the device has completed a message.
    #[serde(default = "empty_object")]
    pub reported_after_delivery: ValueSpec,
    /// The reaction of the devices to messages.
    #[serde(default)]
    pub behaviour: Behaviour,
}

fn empty_object() -> ValueSpec {
    ValueSpec::Object(Vec::new())
}

impl GroupSpec {
    /// Creates a group of well-behaved devices without tags.
    #[must_use]
    pub fn plain(count: u32, id: &str) -> Self {
        Self {
            name: String::new(),
            count,
            id: id.to_owned(),
            first: 0,
            tags: empty_object(),
            reported: empty_object(),
            reported_after_delivery: empty_object(),
            behaviour: Behaviour::default(),
        }
    }
}

/// The reaction of a group's devices to messages. The shares are disjoint; the remaining devices
/// complete every message after the latency. Shares are exact to one device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Devices never connected: messages wait until expiry.
    pub offline: Share,
    /// Devices connected only some time after the hub's start.
    pub online_after: DelayedShare,
    /// Devices rejecting every message.
    pub rejects: Share,
    /// Devices abandoning every message, up to the delivery limit.
    pub abandons: Share,
    /// Devices receiving messages without settling them; the messages expire.
    pub never_answers: Share,
    /// Devices completing messages and reporting `reported_after_delivery`, and some time later the
    /// earlier values again: an update that does not last.
    pub reverts: DelayedShare,
    /// Devices disabled in the registry: sends are refused.
    pub disabled: Share,
    /// The answers to completed messages, in the reported property `update`.
    pub answers: Option<AnswerSpec>,
    /// The time from the enqueuing of a message (or from the device's connection, if later) to
    /// completion.
    pub latency: DurationRange,
}

/// The answers of a group's devices to completed messages: first `installing`, later `applied` or
/// `failed`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerSpec {
    /// The time from the completion of a message to the final answer.
    #[serde(default = "at_once")]
    pub after: DurationRange,
    /// The share of failing devices, exact to one device.
    #[serde(default)]
    pub fails: Share,
    /// The reason of a failure, as `code: text`.
    #[serde(default)]
    pub error: String,
}

fn at_once() -> DurationRange {
    DurationRange {
        from: Duration::ZERO,
        to: Duration::ZERO,
    }
}

/// A share of devices with a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayedShare {
    /// The share of devices.
    pub share: Share,
    /// The delay: from the hub's start for `online_after`, from the message's completion for
    /// `reverts`.
    pub after: DurationRange,
}

impl Default for Behaviour {
    fn default() -> Self {
        let zero = at_once();
        Self {
            offline: Share(0.0),
            online_after: DelayedShare {
                share: Share(0.0),
                after: zero,
            },
            reverts: DelayedShare {
                share: Share(0.0),
                after: zero,
            },
            rejects: Share(0.0),
            abandons: Share(0.0),
            never_answers: Share(0.0),
            disabled: Share(0.0),
            answers: None,
            latency: DurationRange {
                from: Duration::from_millis(50),
                to: Duration::from_millis(400),
            },
        }
    }
}

/// An error in the description of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// The text is not a fleet file; the message names the line.
    #[error("cannot parse the fleet file: {0}")]
    Syntax(String),
    /// A group is invalid.
    #[error("group {number} of the fleet ('{id}'): {problem}")]
    Group {
        /// The position of the group, counted from 1.
        number: usize,
        /// The group's id pattern.
        id: String,
        /// The problem.
        problem: String,
    },
    /// Two groups contain the same device.
    #[error("groups {first} and {second} of the fleet both have the device '{id}'")]
    Clash {
        /// The position of the first group, counted from 1.
        first: usize,
        /// The position of the second group.
        second: usize,
        /// The id of a device in both groups.
        id: String,
    },
    /// The fleet has more devices than supported.
    #[error("the fleet has {0} devices; at most {max} are supported", max = super::virtual_fleet::DEVICES_MAX)]
    TooMany(u64),
}

impl FleetFile {
    /// Reads a fleet file.
    ///
    /// # Errors
    ///
    /// An error names the line and the invalid field, including unknown fields.
    pub fn parse(yaml: &str) -> Result<Self, FleetError> {
        let mut options = serde_saphyr::Options::default();
        // `no` and `y` are texts, as in YAML 1.2.
        options.strict_booleans = true;
        options.with_snippet = false;
        serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| FleetError::Syntax(error.to_string()))
    }
}
