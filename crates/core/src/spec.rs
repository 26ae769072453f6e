//! A rollout's spec: what a user writes, in YAML or JSON.
//!
//! [`Document`] keeps the place of every value; [`RolloutSpec::read`] gives either a spec of
//! which nothing need be checked again, or every problem with its field and line.

mod budget;
mod continuous;
mod document;
mod metric;
mod order;
mod quantity;
mod ramp;
mod schedule;
mod stage;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use budget::{AtMost, Budget, InvalidAtMost};
pub use continuous::{Continuous, LATE, MAX_LOOK_EVERY, MIN_LOOK_EVERY};
pub use document::{Document, Given, MAX_DOCUMENT_BYTES, Problem, Problems, difference};
pub use metric::{
    Comparison, Condition, InvalidCondition, MAX_MEASUREMENTS, MAX_METRICS, MAX_PROMQL_CHARS,
    MIN_EVERY, Metric,
};
pub use order::Order;
pub use quantity::{InvalidPercent, InvalidRate, InvalidSpan, Percent, Rate, Span};
pub use ramp::{MAX_EVERY, MAX_FACTOR, MIN_FACTOR, Ramp, RampOf, StagePace};
pub use schedule::{
    CivilDate, Closed, Day, Freeze, HORIZON, InvalidDate, InvalidTimeOfDay, InvalidZone,
    MAX_FREEZES, MAX_WINDOW, MAX_WINDOWS, MIN_WINDOW, Opening, Schedule, TimeOfDay, UnknownZone,
    Window, ZoneName,
};
pub use stage::{
    ApprovalRule, EVIDENCE_WITHIN, Gate, OnFailure, Rung, Stage, TooLittle, Unconfirmed,
};
pub use validate::{
    MAX_BY_CHARS, MAX_CONDITION_CHARS, MAX_DEVICES_INLINE, MAX_MESSAGE_BYTES, MAX_STAGES,
    MAX_TEXT_CHARS, MAX_TTL, MAX_WEIGHT, MIN_TTL, too_long,
};

use crate::group::Conflict;
use crate::ids::{DeviceId, GroupName, HubName, RolloutName, StageIndex, StageName};
use crate::json::Json;
use crate::message::{Ack, Content};
use crate::plan::Group;
use crate::query::{TagPath, TagSelector};
use crate::time::Timestamp;

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

/// Which devices. Give `tags`, `where` or both; or `devices` or `devices_file`; or `all: true`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The hubs, by their names in the configuration. Default: all that are configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<HubName>,
    /// Tags and the values that they must have, all of them. A list means "one of these".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// A condition in the hub's own query language, for what `tags` cannot say.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_CONDITION_CHARS))]
    pub condition: Option<String>,
    /// Device ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// A file with device ids, beside the spec: one a line; or a registry's export, with a JSON object a line; or CSV with a
    /// header and a column `id` or `deviceId`. Empty lines and lines that start with `#` followed by a space are passed
    /// over; an id that is listed twice counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_file: Option<PathBuf>,
    /// Every device of the hubs. To be said in so many words.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Devices to leave out, each rule on its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Exclusion>,
}

/// Devices to leave out. Exactly one of `tags`, `devices` and `devices_file`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exclusion {
    /// Devices that match all of these tags. A device without the tag is not left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: TagSelector,
    /// Device ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// A file with device ids, beside the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_file: Option<PathBuf>,
    /// Why, for people. The plan shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub reason: Option<String>,
}

/// What each device is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageSpec {
    /// The body.
    pub body: Body,
    /// The `content-type` property. Default: `application/json` for a JSON body, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE_BYTES))]
    pub content_type: Option<String>,
    /// The `content-encoding` property. Default: `utf-8` for a JSON or text body, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE_BYTES))]
    pub content_encoding: Option<String>,
    /// Application properties. Texts only, as the hub wants it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = { "type": "string", "maxLength": MAX_MESSAGE_BYTES }))]
    pub properties: BTreeMap<String, String>,
    /// How long the hub keeps the message for a device that is away, from its send on: 1 minute
    /// to 2 days. Default: the hub's own (1 hour unless its owner changed it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// Which feedback the hub is asked to give.
    #[serde(default)]
    pub ack: Ack,
}

impl MessageSpec {
    /// The hub is asked to tell what becomes of the message.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.ack != Ack::None
    }
}

/// A message's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Any JSON value, sent in its compact form, with every number to the digit.
    Json(Json),
    /// A text, sent as UTF-8.
    Text(#[schemars(length(max = MAX_MESSAGE_BYTES))] String),
    /// The bytes of a file beside the spec, as they are when the rollout is accepted.
    File(PathBuf),
    /// Bytes, in base64. What `file` becomes when the rollout is accepted.
    Base64(#[schemars(length(max = MAX_MESSAGE_BYTES.div_ceil(3) * 4))] String),
}

/// Why there is no message yet.
#[derive(Debug, thiserror::Error)]
pub enum NoContent {
    /// The body is in a file that was not read.
    #[error("the body is still to be read from {}", .0.display())]
    File(PathBuf),
    /// The body is not base64.
    #[error("the body is not base64")]
    Base64(#[source] base64::DecodeError),
}

impl MessageSpec {
    /// The message as it is sent.
    ///
    /// # Errors
    /// When the body is a file that was not inlined, or is not base64.
    pub fn content(&self) -> Result<Content, NoContent> {
        use base64::Engine as _;
        let (body, content_type, encoding) = match &self.body {
            Body::Json(value) => (
                value.as_str().to_owned().into(),
                Some("application/json"),
                Some("utf-8"),
            ),
            Body::Text(text) => (text.clone().into(), None, Some("utf-8")),
            Body::File(path) => return Err(NoContent::File(path.clone())),
            Body::Base64(text) => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(NoContent::Base64)?;
                (bytes.into(), None, None)
            }
        };
        Ok(Content {
            body,
            content_type: self
                .content_type
                .clone()
                .or(content_type.map(str::to_owned)),
            content_encoding: self
                .content_encoding
                .clone()
                .or(encoding.map(str::to_owned)),
            properties: self
                .properties
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            ttl: self.ttl.map(|ttl| ttl.0),
            ack: self.ack,
        })
    }
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
    /// Reads and checks a spec. `origin` is what a person would call the text, say its path.
    ///
    /// # Errors
    /// Everything that is wrong, each with its field and line.
    pub fn read(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        const STAND_INS: [(&str, &str); 4] = [
            ("name", r#""a""#),
            ("target", r#"{"all":true}"#),
            ("message", r#"{"body":{"text":""}}"#),
            ("message.body", r#"{"text":""}"#),
        ];
        Document::parse(origin, text)?.read_and_check(&STAND_INS, validate::problems_of)
    }

    /// What is wrong with a spec that was changed after it was read, as by inlining its files.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        validate::problems_of(self)
    }

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
                .map(|rule| crate::query::not_matching(&rule.tags)),
        );
        crate::query::all_of(parts.iter().map(String::as_str))
    }

    /// The target's condition without its exclusions.
    #[must_use]
    pub fn selected(&self) -> String {
        let tags = crate::query::matching(&self.target.tags);
        crate::query::all_of([
            tags.as_str(),
            self.target.condition.as_deref().unwrap_or(""),
        ])
    }

    /// The stages with the one for the rest, which takes all that comes to it: at least one; and after it the one for devices that
    /// join later, if the rollout is continuous.
    #[must_use]
    pub fn all_stages(&self) -> Vec<Stage> {
        let mut stages = self.stages.clone();
        match stages.last() {
            None => stages.push(Stage::rest("all")),
            Some(last) if last.takes_all() => {}
            Some(_) => stages.push(Stage::rest("rest")),
        }
        stages.extend(self.late());
        stages
    }

    /// What the cohorts are made from.
    #[must_use]
    pub fn salt(&self) -> &str {
        self.salt.as_deref().unwrap_or(self.name.as_str())
    }

    /// The rate of a stage: its own, or the rollout's if that is lower.
    #[must_use]
    pub fn rate_of(&self, stage: StageIndex) -> Option<Rate> {
        let own = self
            .stages
            .get(usize::from(stage.0))
            .and_then(|stage| stage.rate);
        match (own, self.rate) {
            (Some(a), Some(b)) => Some(if a < b { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// The gate of a stage, if it has one.
    #[must_use]
    pub fn gate_of(&self, stage: StageIndex) -> Option<&Gate> {
        self.stages.get(usize::from(stage.0))?.gate.as_ref()
    }

    /// Whether messages are sent at `now` to the devices of a tag group, and until when that is so.
    #[must_use]
    pub fn opening(&self, group: &Group, now: Timestamp) -> Opening {
        match &self.schedule {
            Some(schedule) => schedule.at(now, self.zone_in(group)),
            None => Opening::Open { until: None },
        }
    }

    /// What the devices of a tag group say is their zone, if the schedule goes by that.
    #[must_use]
    pub fn zone_in<'a>(&self, group: &'a Group) -> Option<&'a str> {
        let tag = self.schedule.as_ref()?.zone_tag.as_ref()?;
        let (_, value) = group.0.iter().find(|(name, _)| name == tag.as_str())?;
        value.as_deref()
    }

    /// The value that the devices of a tag group have as their zone, if no zone has that name.
    #[must_use]
    pub fn unknown_zone_in<'a>(&self, group: &'a Group) -> Option<&'a str> {
        self.zone_in(group)
            .filter(|zone| zone.parse::<ZoneName>().is_err())
    }

    /// The tag by which devices with an unknown zone are left out, if they are.
    #[must_use]
    pub fn skips_unknown_zones(&self) -> Option<&TagPath> {
        let schedule = self.schedule.as_ref()?;
        let tag = schedule.zone_tag.as_ref()?;
        (schedule.unknown_zone == UnknownZone::Skip).then_some(tag)
    }

    /// Some gate asks a Prometheus server for a metric: the first such stage.
    #[must_use]
    pub fn asks_for_metrics(&self) -> Option<&StageName> {
        let mut stages = self.stages.iter();
        let asks = |stage: &&Stage| {
            let gate = stage.gate.as_ref();
            gate.is_some_and(|gate| !gate.metrics.is_empty())
        };
        stages.find(asks).map(|stage| &stage.name)
    }

    /// Devices may have time zones of their own, and so be sent to when others are not.
    #[must_use]
    pub fn has_zones(&self) -> bool {
        let schedule = self.schedule.as_ref();
        schedule.is_some_and(|schedule| schedule.zone_tag.is_some())
    }

    /// It has several stages, of its own or for devices that join later.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        !self.stages.is_empty() || self.continuous.is_some()
    }

    /// The devices are listed, not queried.
    #[must_use]
    pub fn has_list(&self) -> bool {
        !self.target.devices.is_empty() || self.target.devices_file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRIDGES: &str = "\
name: firmware-1.4.2
target:
  tags: {type: fridge, region: [eu, us]}
  where: properties.reported.firmware != '1.4.2'
  exclude:
    - tags: {vip: true}
      reason: asked not to be disturbed
    - devices: [fridge-000007]
batch_by: [region]
message:
  body:
    json: {command: update, version: 1.4.2}
  ttl: 24h
  ack: full
rate: 600/min
";

    #[test]
    fn a_spec_reads_and_writes() {
        let spec = RolloutSpec::read("x.yaml", FRIDGES).unwrap();
        assert_eq!(
            spec.condition(),
            "((tags.region IN ['eu', 'us'] AND tags.type = 'fridge') AND (properties.reported.firmware != '1.4.2')) \
             AND (NOT IS_DEFINED(tags.vip) OR tags.vip != true)"
        );
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(RolloutSpec::read("x.json", &json).unwrap(), spec);
    }

    #[test]
    fn numbers_of_a_body_keep_their_last_digit() {
        let spec = RolloutSpec::read("x.yaml", FRIDGES).unwrap();
        for step in 0..2000_u64 {
            // From 6e-11 to 1e30, roughly.
            let number = f64::from_bits(0x3dd0_0000_0000_0000 + step * 0x0001_1335_5779_9bbd);
            let mut spec = spec.clone();
            spec.message.body =
                Body::Json(Json::of(&serde_json::json!({ "number": number })).unwrap());
            // As a store keeps it, and as a command brings it.
            let json = serde_json::to_string(&spec).unwrap();
            let stored: RolloutSpec = serde_json::from_str(&json).unwrap();
            assert_eq!(stored, spec);
            assert_eq!(RolloutSpec::read("x.json", &json).unwrap(), spec);
        }
    }

    #[test]
    fn every_problem_is_named_with_its_line() {
        let text = FRIDGES
            .replace("ttl: 24h", "ttl: 72h")
            .replace("tags: {vip: true}", "reason2: x")
            .replace("      reason: asked", "      note: asked");
        let error = RolloutSpec::read("x.yaml", &text).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "x.yaml:6:7: target.exclude[0].reason2: is not a field here; there are tags, "
            ),
            "{error}"
        );

        let text = FRIDGES
            .replace("ttl: 24h", "ttl: 72h")
            .replace("    - devices: [fridge-000007]", "    - {}")
            .replace("batch_by: [region]", "batch_by: [region, region]");
        let error = RolloutSpec::read("x.yaml", &text).unwrap_err().to_string();
        let lines: Vec<_> = error
            .lines()
            .map(|l| l.split(": ").take(2).collect::<Vec<_>>().join(": "))
            .collect();
        assert_eq!(
            lines,
            [
                "x.yaml:8:7: target.exclude[1]",
                "x.yaml:9:20: batch_by[1]",
                "x.yaml:13:3: message.ttl"
            ],
            "{error}"
        );
    }

    /// Of type, unit, choice, bounds and unknown fields; with a place each, and without a word of the language that this is made of.
    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "\
nme: a
name: 1.10
conflict: replace
target:
  tags: {location: {site: x}, n: 12345678901234567890}
batch_by: region
message:
  body: {jsn: 1}
  ttl: 3x
  ack: yes
rate: 600
weight: -1
stages:
  - {name: a, percent: [1]}
  - {nme: b}
budgets: [{tag: region, at_most: 1.5}]
";
        let found = RolloutSpec::read("x", text).unwrap_err().to_string();
        let fields: Vec<_> = found
            .lines()
            .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "))
            .collect();
        assert_eq!(
            fields,
            [
                "x:1:1: nme",
                "x:2:1: name",
                "x:3:1: conflict",
                "x:5:10: target.tags.location",
                "x:5:31: target.tags.n",
                "x:6:1: batch_by",
                "x:8:10: message.body.jsn",
                "x:9:3: message.ttl",
                "x:10:3: message.ack",
                "x:11:1: rate",
                "x:12:1: weight",
                "x:14:15: stages[0].percent",
                "x:15:5: stages[1].name",
                "x:15:6: stages[1].nme",
                "x:16:25: budgets[0].at_most",
            ],
            "{found}"
        );
        for word in [
            "invalid type",
            "struct",
            "enum",
            "variant",
            "u32",
            "`",
            "sequence",
            "integer",
        ] {
            assert!(!found.contains(word), "{word}: {found}");
        }
        // What comes from another mistake is not told, what does not is.
        let found = RolloutSpec::read("x", "description: x")
            .unwrap_err()
            .to_string();
        assert_eq!(
            found,
            "x:1:1: name: is missing\nx:1:1: target: is missing\nx:1:1: message: is missing"
        );
        let text = "name: 7\ntarget: {al: 1}\nmessage: {bdy: {text: x}, ack: full, ttl: 72h}\nweight: 0\nbatch_by: [a, a]\n";
        let found = RolloutSpec::read("x", text).unwrap_err().to_string();
        let fields: Vec<_> = found
            .lines()
            .map(|line| line.split(": ").nth(1).unwrap())
            .collect();
        let all = [
            "name",
            "target.al",
            "message.body",
            "message.bdy",
            "message.ttl",
            "weight",
            "batch_by[1]",
        ];
        assert_eq!(fields, all, "{found}");
        let text = "name: a\ntarget: {all: true}\nmessage: {body: {text: x}, ack: ful, ttl: 72h}\nweight: 0\nstages: [{name: s, gate: {failure_above: 1%, counts: delivered}}]\n";
        let found = RolloutSpec::read("x", text).unwrap_err().to_string();
        let fields: Vec<_> = found
            .lines()
            .map(|line| line.split(": ").nth(1).unwrap())
            .collect();
        assert_eq!(fields, ["message.ack", "message.ttl", "weight"], "{found}");
    }

    #[test]
    fn what_is_null_is_absent() {
        let text = "name: a\ndescription:\ntarget: {hubs: , tags: ~, all: true, exclude: null}\nbatch_by:\nmessage: {body: {text: x}, properties: , ttl: , ack: ~}\n\
            stages:\nbudgets:\ncontinuous:\nweight:\ndelivery:\nconflict:\nschedule:\n";
        let spec = RolloutSpec::read("x", text).unwrap();
        let plain = "{name: a, target: {all: true}, message: {body: {text: x}}}";
        assert_eq!(spec, RolloutSpec::read("x", plain).unwrap());
        // A tag is no field: without it the target would be a larger one.
        let text = "{name: a, target: {tags: {type: x, region: }}, message: {body: {text: x}}}";
        assert!(RolloutSpec::read("x", text).is_err());
        let text = "{name: , target: {all: true}, message: {body: {json: null}}}";
        let found = RolloutSpec::read("x", text).unwrap_err().to_string();
        assert_eq!(found, "x:1:2: name: is missing");
    }

    #[test]
    fn what_stages_cannot_be_is_named() {
        let with = |stages: &str| {
            let text = format!(
                "name: a\ntarget: {{all: true}}\nmessage: {{body: {{text: x}}, ack: positive}}\nstages:\n{stages}"
            );
            match RolloutSpec::read("x", &text) {
                Ok(_) => String::new(),
                Err(problems) => problems.to_string(),
            }
        };
        assert_eq!(
            with(
                "  - {name: a, tags: {ring: canary}, gate: {success_at_least: 95%}}\n  - {name: b, percent: 10%}\n  - {name: c}\n"
            ),
            ""
        );
        for (stages, wrong) in [
            (
                "  - {name: a}\n  - {name: b}\n",
                "x:5:5: stages[0]: takes every device",
            ),
            (
                "  - {name: a, percent: 1%}\n  - {name: a}\n",
                "x:6:6: stages[1].name: stage a is named twice",
            ),
            (
                "  - {name: a, percent: 20%}\n  - {name: b, percent: 20%}\n",
                "x:6:15: stages[1].percent: is 20%, but it is cumulative",
            ),
            (
                "  - {name: a, percent: 0%}\n",
                "x:5:15: stages[0].percent: is 0%",
            ),
            (
                "  - {name: a, max_devices: 0}\n",
                "x:5:15: stages[0].max_devices: is 0",
            ),
            (
                "  - {name: rest, percent: 1%}\n",
                "stages[0].name: \"rest\"",
            ),
            ("  - {name: a, gate: {min_sample: 5}}\n", "asks nothing"),
            (
                "  - {name: a, gate: {bake: 1h, counts: delivered}}\n",
                "needs success_at_least or failure_above",
            ),
            (
                "  - {name: a, gate: {failure_above: 1%, counts: delivered}}\n",
                "message.ack: full, so that failures",
            ),
            (
                "  - {name: a, gate: {failure_above: 1%, counts: applied}}\n",
                "applied_when: is missing",
            ),
            (
                "  - {name: a, gate: {failure_above: 1%, applied_when: x}}\n",
                "has a meaning with",
            ),
            (
                "  - {name: a, gate: {failure_above: 101%}}\n",
                "\"101%\" is not a per cent",
            ),
            (
                "  - {name: a, gate: {success_at_least: 0.95}}\n",
                "stages[0].gate.success_at_least: 0.95 can be read as 0.95% or as 95%: write \"0.95%\" or \"95%\"",
            ),
            (
                "  - {name: a, gate: {failure_above: 0}}\n",
                "stages[0].gate.failure_above: 0 has no per cent sign: write \"0%\"",
            ),
            (
                "  - {name: a, percent: 10}\n",
                "stages[0].percent: 10 has no per cent sign: write \"10%\"",
            ),
            ("  - {name: a, gate: {bake: 91d}}\n", "is too long"),
            (
                "  - {name: a, gate: {bake: 1h, min_sample: 0}}\n",
                "min_sample: is 0",
            ),
        ] {
            let found = with(stages);
            assert!(found.contains(wrong), "{wrong:?} is not in {found:?}");
        }
    }

    #[test]
    fn the_published_schema_is_this_one() {
        let published = include_str!("../../../docs/rollout.schema.json");
        let published: Value = serde_json::from_str(published).unwrap();
        assert_eq!(
            published,
            RolloutSpec::json_schema(),
            "twincast schema > docs/rollout.schema.json"
        );
    }

    /// A message counts with its address and id, which are as long as they may become.
    #[test]
    fn a_message_that_no_hub_takes_is_refused() {
        let read = |target: &str, more: &str, bytes: usize| {
            let body = "x".repeat(bytes);
            let text =
                format!("name: a\ntarget: {target}\nmessage: {{body: {{text: {body}}}{more}}}\n");
            RolloutSpec::read("x", &text)
        };
        // What beside the body is counted: sections 45, expiry 9, address with its id, message id, `utf-8`.
        let beside = |id: usize| {
            45 + 9 + (5 + 30 + id) + (2 + "a.3w5e11264sgsf.1z141z3.1z141z3.1ekf".len()) + (2 + 5)
        };
        let all = 65_536 - beside(384);
        assert!(read("{all: true}", "", all).is_ok(), "{all}");
        let error = read("{all: true}", "", all + 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!(
                "this message has 65537; beside them is room for a body of {all}, and it has"
            )),
            "{error}"
        );
        assert!(read("{all: true}", "", 65_450).is_err());
        // The ids of a list are known; `%` is three bytes in an address.
        let listed = 65_536 - (beside("ab%25".len()) - 3);
        assert!(read("{devices: [a, 'ab%']}", "", listed).is_ok());
        assert!(read("{devices: [a, 'ab%']}", "", listed + 1).is_err());
        // An ack and properties count, too.
        for more in [
            ", ack: full",
            ", properties: {k: v}",
            ", content_type: text/plain",
        ] {
            assert!(read("{all: true}", more, all).is_err(), "{more}");
        }
    }

    #[test]
    fn a_target_must_be_said() {
        let text = "name: a\ntarget: {}\nmessage: {body: {text: hi}}\n";
        let error = RolloutSpec::read("x.yaml", text).unwrap_err().to_string();
        assert!(
            error.contains("x.yaml:2:1: target: says no devices"),
            "{error}"
        );
        assert!(RolloutSpec::read("x", &text.replace("{}", "{all: true}")).is_ok());
        assert!(RolloutSpec::read("x", &text.replace("{}", "{all: true, devices: [a]}")).is_err());
    }

    #[test]
    fn texts_for_people_have_a_bound_that_the_schema_states() {
        let spec = |length: usize| {
            let text = "\u{e4}".repeat(length);
            format!(
                "name: r\ntarget: {{all: true, exclude: [{{devices: [a], reason: {text}}}]}}\n\
                 message: {{body: {{text: hi}}}}\ndescription: {text}\nsalt: {text}\n\
                 schedule: {{freeze: [{{from: 2026-12-24, reason: {text}}}]}}\n"
            )
        };
        RolloutSpec::read("r", &spec(MAX_TEXT_CHARS)).unwrap();
        let problems = RolloutSpec::read("r", &spec(MAX_TEXT_CHARS + 1)).unwrap_err();
        let fields: Vec<_> = problems.problems.iter().map(|it| &*it.field).collect();
        let texts = [
            "target.exclude[0].reason",
            "description",
            "salt",
            "schedule.freeze[0].reason",
        ];
        assert_eq!(fields, texts);
        let schema = RolloutSpec::json_schema();
        for path in [
            "/properties/description",
            "/properties/salt",
            "/$defs/Exclusion/properties/reason",
            "/$defs/Freeze/properties/reason",
        ] {
            let stated = schema.pointer(path).expect(path);
            assert_eq!(stated["maxLength"], MAX_TEXT_CHARS, "{path}");
        }
    }
}
