//! Rollouts that continue with devices joining the target later.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::quantity::HumanDuration;
use super::schedule::STARTS;
use crate::time::Timestamp;

/// The shortest interval between two scans: each scan queries the hubs for the whole target.
pub const MIN_SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// The longest interval between two scans.
pub const MAX_SCAN_INTERVAL: Duration = Duration::from_secs(30 * 24 * 3600);
/// The name of the last stage of a continuous rollout, for devices that have joined since planning.
pub const LATE_STAGE: &str = "late";

/// The repeated scans of the target in a continuous rollout. Devices that have joined the target
/// belong to a last stage, `late`. A device that leaves the target before its message is sent is
/// skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Continuous {
    /// The time from the start of a scan to the start of the next scan. 1m to 30d. Default: 1h.
    #[serde(default = "default_scan_interval")]
    pub every: HumanDuration,
    /// The start of the last scan. The rollout ends when all devices found by then are done.
    /// Default: never; the rollout goes on until an abort, or until another rollout supersedes this
    /// rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

fn default_scan_interval() -> HumanDuration {
    HumanDuration(Duration::from_secs(3600))
}

impl Default for Continuous {
    fn default() -> Self {
        Self {
            every: default_scan_interval(),
            until: None,
        }
    }
}

impl Continuous {
    /// Returns the start of the scan after a scan started at `last`; `None` after the last scan.
    #[must_use]
    pub fn next_scan(&self, last: Timestamp) -> Option<Timestamp> {
        let next = last.plus(self.every.0);
        match self.until {
            Some(until) if last >= until => None,
            Some(until) => Some(next.min(until)),
            None => Some(next),
        }
    }

    /// Returns the problems, each with a field and a description.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(MIN_SCAN_INTERVAL..=MAX_SCAN_INTERVAL).contains(&self.every.0) {
            let what = format!("{} is out of bounds; from 1m to 30d is allowed", self.every);
            problems.push(("every", what));
        }
        if let Some(until) = self.until.filter(|until| !STARTS.contains(until)) {
            problems.push(("until", format!("is {until}; from 2020 to 2099 is allowed")));
        }
        problems
    }
}

/// Deserializes a map, `true` or `false`.
pub(super) fn deserialize_optional<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Continuous>, D::Error> {
    struct OptionalVisitor;

    impl<'de> Visitor<'de> for OptionalVisitor {
        type Value = Option<Continuous>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true, or a map with every and until")
        }

        fn visit_bool<E>(self, given: bool) -> Result<Self::Value, E> {
            Ok(given.then(Continuous::default))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
            Continuous::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    from.deserialize_any(OptionalVisitor)
}

/// Returns the schema of the values read by [`deserialize_optional`].
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let map = generator.subschema_for::<Continuous>();
    json_schema!({ "anyOf": [{ "type": "boolean" }, map, { "type": "null" }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RolloutSpec;

    fn read(continuous: &str) -> Result<Option<Continuous>, String> {
        let text = format!(
            "name: a\ntarget: {{all: true}}\nmessage: {{body: {{text: x}}}}\ncontinuous: {continuous}\n"
        );
        let spec = RolloutSpec::read("x", &text).map_err(|problems| problems.to_string())?;
        let again = serde_json::to_string(&spec).unwrap();
        assert_eq!(RolloutSpec::read("x", &again).unwrap(), spec);
        Ok(spec.continuous)
    }

    #[test]
    fn continuous_accepts_boolean_or_map() {
        let every = |minutes: u64| {
            Ok(Some(Continuous {
                every: HumanDuration(Duration::from_secs(60 * minutes)),
                until: None,
            }))
        };
        assert_eq!(read("true"), every(60));
        assert_eq!(read("{}"), every(60));
        assert_eq!(read("{every: 1m}"), every(1));
        assert_eq!(read("false"), Ok(None));
        assert_eq!(read("null"), Ok(None));
        let until = read("{until: 2027-01-01T00:00:00Z}").unwrap().unwrap();
        assert_eq!(until.until.unwrap().to_string(), "2027-01-01T00:00:00Z");
        for bound in ["2020-01-01T00:00:00Z", "2099-12-31T23:59:59Z"] {
            assert!(read(&format!("{{until: {bound}}}")).is_ok(), "{bound}");
        }
        for (given, wrong) in [
            (
                "{every: 59s}",
                "x:4:14: continuous.every: 59s is out of bounds",
            ),
            ("{every: 31d}", "continuous.every: 31d is out of bounds"),
            ("{until: 1999-01-01T00:00:00Z}", "continuous.until: is 1999"),
            ("{often: 1h}", "continuous.often: is not a field here"),
            ("sometimes", "true, or a map with every and until"),
        ] {
            let error = read(given).unwrap_err();
            assert!(error.contains(wrong), "{wrong:?} is not in {error:?}");
        }
    }

    #[test]
    fn the_last_scan_is_at_the_end() {
        let at = Timestamp;
        let minute = |until: Option<u64>| Continuous {
            every: HumanDuration(Duration::from_secs(60)),
            until: until.map(Timestamp),
        };
        assert_eq!(minute(None).next_scan(at(5)), Some(at(60_005)));
        let ends = minute(Some(100_000));
        assert_eq!(ends.next_scan(at(40_000)), Some(at(100_000)));
        assert_eq!(ends.next_scan(at(99_999)), Some(at(100_000)));
        assert_eq!(ends.next_scan(at(100_000)), None);
        assert_eq!(ends.next_scan(at(100_001)), None);
    }
}
