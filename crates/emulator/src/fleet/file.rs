//! The fleet file: what a person writes to describe a fleet.

use std::time::Duration;

use serde::Deserialize;

use super::generator::ValueSpec;
use super::parse::{Share, Span};

/// A fleet as written.
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
    /// Everything random follows from this number.
    #[serde(default)]
    pub seed: u64,
    /// The groups, in the order in which queries return them.
    pub groups: Vec<GroupSpec>,
}

/// Devices that are alike.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// A name for messages; draws depend on it, so that another group can be put in front.
    #[serde(default)]
    pub name: String,
    /// How many devices.
    pub count: u32,
    /// Their ids, such as `fridge-{index:06}`.
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
    /// What the devices do with messages.
    #[serde(default)]
    pub behaviour: Behaviour,
}

fn empty_object() -> ValueSpec {
    ValueSpec::Object(Vec::new())
}

impl GroupSpec {
    /// A group of well-behaved devices without tags.
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

/// What the devices of a group do with messages. The shares exclude each other; the rest completes every
/// message after its latency. Shares are exact to one device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Never connected: messages wait until they expire.
    pub offline: Share,
    /// Connected only some time after the hub's start.
    pub online_after: Later,
    /// Reject every message.
    pub rejects: Share,
    /// Take every message and abandon it, until the hub gives up.
    pub abandons: Share,
    /// Take messages and never answer; they expire.
    pub never_answers: Share,
    /// Complete their messages, report `reported_after_delivery`, and some time later what they had before:
    /// an update that did not last.
    pub reverts: Later,
    /// Disabled in the registry: nothing can be sent to them.
    pub disabled: Share,
    /// Devices that complete a message answer it in the reported property `update`.
    pub answers: Option<AnswerSpec>,
    /// From the enqueuing of a message (or the device's coming online) to its completion.
    pub latency: Span,
}

/// How the devices of a group answer the messages that they complete: first `installing`, later `applied` or `failed`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerSpec {
    /// How long after the completion of a message the answer is final.
    #[serde(default = "at_once")]
    pub after: Span,
    /// How many of the devices fail. Exact to one device.
    #[serde(default)]
    pub fails: Share,
    /// Why they fail, as `code: text`.
    #[serde(default)]
    pub error: String,
}

fn at_once() -> Span {
    Span {
        from: Duration::ZERO,
        to: Duration::ZERO,
    }
}

/// Devices to which something happens later.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Later {
    /// How many devices.
    pub share: Share,
    /// How long after: the hub's start for coming online, the message's completion for going back.
    pub after: Span,
}

impl Default for Behaviour {
    fn default() -> Self {
        let zero = at_once();
        Self {
            offline: Share(0.0),
            online_after: Later {
                share: Share(0.0),
                after: zero,
            },
            reverts: Later {
                share: Share(0.0),
                after: zero,
            },
            rejects: Share(0.0),
            abandons: Share(0.0),
            never_answers: Share(0.0),
            disabled: Share(0.0),
            answers: None,
            latency: Span {
                from: Duration::from_millis(50),
                to: Duration::from_millis(400),
            },
        }
    }
}

/// What is wrong with a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// The text is not a fleet file; the message names the line.
    #[error("reading the fleet file: {0}")]
    Syntax(String),
    /// A group says something that cannot be.
    #[error("group {number} of the fleet ('{id}'): {problem}")]
    Group {
        /// Which group, from 1.
        number: usize,
        /// Its id pattern.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// Two groups would have the same device.
    #[error("groups {first} and {second} of the fleet both have the device '{id}'")]
    Clash {
        /// One group, from 1.
        first: usize,
        /// The other group.
        second: usize,
        /// A device of both.
        id: String,
    },
    /// More devices than can be numbered.
    #[error("the fleet has {0} devices; at most {max} can be numbered", max = super::virtual_fleet::DEVICES_MAX)]
    TooMany(u64),
}

impl FleetFile {
    /// Reads a fleet file.
    ///
    /// # Errors
    ///
    /// Names the line and the field that is wrong, unknown fields included.
    pub fn parse(yaml: &str) -> Result<Self, FleetError> {
        let mut options = serde_saphyr::Options::default();
        // `no` and `y` are texts, as in YAML 1.2.
        options.strict_booleans = true;
        options.with_snippet = false;
        serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| FleetError::Syntax(error.to_string()))
    }
}
