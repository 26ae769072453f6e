//! Budgets as written by a user: how many devices of a place may be in progress at once.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::{HumanDuration, InvalidPercent, Percent};
use crate::budget::Limit;
use crate::query::TagPath;

/// A limit on the devices with the same value of a tag that may be in progress at once. A device
/// without the tag is not limited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The tag. Must be in `batch_by`.
    pub tag: TagPath,
    /// The maximum number of devices with the same value: a number, or a per cent of the target's
    /// devices with this value, rounded down, but at least 1.
    pub at_most: AtMost,
    /// The time after which a silent device does not count as in progress any more, from the last
    /// send of the device's batch on. Default: the message's `ttl`, or 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<HumanDuration>,
}

/// A number of devices, or a per cent of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AtMostText", into = "AtMostText")]
pub enum AtMost {
    /// A number of devices.
    Devices(u32),
    /// A per cent of the devices.
    Percent(Percent),
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "must be a number of devices such as 2, or a part of them such as \"10%\""
)]
enum AtMostText {
    Number(u32),
    Share(f64),
    Text(String),
}

/// The error for a value that is neither a number of devices nor a per cent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAtMost {
    /// The value has no valid reading.
    #[error("{0:?} is not a number of devices; write for example 2 or \"10%\"")]
    Neither(String),
    /// The value is less than a device, and has no per cent sign.
    #[error(transparent)]
    Share(InvalidPercent),
}

impl FromStr for AtMost {
    type Err = InvalidAtMost;

    fn from_str(text: &str) -> Result<Self, InvalidAtMost> {
        let invalid = || InvalidAtMost::Neither(text.to_owned());
        if text.trim().ends_with('%') {
            return text.parse().map(Self::Percent).map_err(|_| invalid());
        }
        if let Ok(devices) = text.trim().parse() {
            return Ok(Self::Devices(devices));
        }
        match text.trim().parse::<f64>() {
            Ok(share) if share > 0.0 && share < 1.0 => {
                Err(InvalidAtMost::Share(InvalidPercent::bare(share)))
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices(devices) => write!(f, "{devices}"),
            Self::Percent(percent) => write!(f, "{percent}"),
        }
    }
}

impl TryFrom<AtMostText> for AtMost {
    type Error = InvalidAtMost;
    fn try_from(text: AtMostText) -> Result<Self, InvalidAtMost> {
        match text {
            AtMostText::Number(devices) => Ok(Self::Devices(devices)),
            AtMostText::Share(share) => share.to_string().parse(),
            AtMostText::Text(text) => text.parse(),
        }
    }
}

impl From<AtMost> for AtMostText {
    fn from(at_most: AtMost) -> Self {
        match at_most {
            AtMost::Devices(devices) => Self::Number(devices),
            AtMost::Percent(percent) => Self::Text(percent.to_string()),
        }
    }
}

impl JsonSchema for AtMost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AtMost".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["integer", "string"],
            "minimum": 1,
            "pattern": r"^\s*([0-9]+|[0-9]+(\.[0-9]{1,4})?\s*%)\s*$",
            "description": "devices: `2`; or a part of them: `10%`",
        })
    }
}

impl AtMost {
    pub(super) fn limit(self) -> Limit {
        match self {
            Self::Devices(devices) => Limit::Devices(devices),
            Self::Percent(percent) => Limit::Millionths(percent.millionths()),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} per {} in progress", self.at_most, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::BudgetGroup;
    use crate::plan::TagGroup;
    use crate::spec::RolloutSpec;

    fn read(rest: &str) -> Result<RolloutSpec, String> {
        let text = format!("{{name: r, target: {{all: true}}, batch_by: [site, region], {rest}}}");
        RolloutSpec::read("x", &text).map_err(|problems| problems.to_string())
    }

    #[test]
    fn budgets_read_and_are_by_value() {
        let spec = read(
            "message: {body: {text: x}, ack: full, ttl: 2h}, \
             budgets: [{tag: site, at_most: 2}, {tag: region, at_most: 12.5%, deadline: 5m}]",
        )
        .unwrap();
        let group = |site: Option<&str>| {
            TagGroup(vec![
                ("site".into(), site.map(str::to_owned)),
                ("region".into(), Some("eu".into())),
            ])
        };
        let region = BudgetGroup {
            group: "region=eu".into(),
            limit: Limit::Millionths(125_000),
            silent_ms: 300_000,
        };
        let site = BudgetGroup {
            group: "site=7".into(),
            limit: Limit::Devices(2),
            silent_ms: 7_200_000,
        };
        assert_eq!(
            spec.budget_groups(&group(Some("7"))),
            [site, region.clone()]
        );
        assert_eq!(spec.budget_groups(&group(None)), [region]);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(RolloutSpec::read("x", &json).unwrap(), spec);
    }

    #[test]
    fn invalid_budgets_are_reported() {
        let full = "message: {body: {text: x}, ack: full}";
        for (message, budgets, wrong) in [
            (full, "{tag: site, at_most: 0}", "budgets[0].at_most: is 0"),
            (
                full,
                "{tag: site, at_most: 0%}",
                "budgets[0].at_most: is 0%",
            ),
            (
                full,
                "{tag: site, at_most: 2 of 3}",
                "is not a number of devices",
            ),
            (
                full,
                "{tag: site, at_most: 101%}",
                "is not a number of devices",
            ),
            (
                full,
                "{tag: site, at_most: 0.1}",
                "budgets[0].at_most: 0.1 can be read as 0.1% or as 10%: write \"0.1%\" or \"10%\"",
            ),
            (
                full,
                "{tag: site, at_most: 2.5}",
                "is not a number of devices",
            ),
            (
                full,
                "{tag: site, at_most: -1}",
                "is not a number of devices",
            ),
            (
                full,
                "{tag: ring, at_most: 2}",
                "budgets[0].tag: tag ring must be one of batch_by",
            ),
            (
                full,
                "{tag: site, at_most: 2}, {tag: site, at_most: 3}",
                "budgets[1].tag: tag site has a budget already",
            ),
            (
                full,
                "{tag: site, at_most: 2, deadline: 91d}",
                "is too long",
            ),
            (
                "message: {body: {text: x}, ack: positive}",
                "{tag: site, at_most: 2}",
                "budgets: need message.ack: full",
            ),
        ] {
            let found = read(&format!("{message}, budgets: [{budgets}]")).unwrap_err();
            assert!(found.contains(wrong), "{wrong:?} is not in {found:?}");
        }
    }
}
