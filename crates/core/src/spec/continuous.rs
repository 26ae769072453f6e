//! Rollouts that go on with devices which join their target later.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::quantity::Span;
use super::schedule::STARTS;
use crate::time::Timestamp;

/// The shortest time between two looks: each asks the hubs for the whole target.
pub const MIN_LOOK_EVERY: Duration = Duration::from_secs(60);
/// The longest time between two looks.
pub const MAX_LOOK_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);
/// The last stage of a continuous rollout: devices that have joined since it was planned.
pub const LATE: &str = "late";

/// The target is looked through again and again. Devices that have joined it belong to a last stage, `late`. A device that has left
/// it before it was sent the message is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Continuous {
    /// How long after one look the next begins. 1m to 30d. Default: 1h.
    #[serde(default = "one_hour")]
    pub every: Span,
    /// When the last look begins; the rollout is over once all that it found is. Default: never, it goes on until it is aborted or
    /// superseded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

fn one_hour() -> Span {
    Span(Duration::from_secs(3600))
}

impl Default for Continuous {
    fn default() -> Self {
        Self {
            every: one_hour(),
            until: None,
        }
    }
}

impl Continuous {
    /// When the look after the one that began at `last` is to begin; `None` when that was the last one.
    #[must_use]
    pub fn next_look(&self, last: Timestamp) -> Option<Timestamp> {
        let next = last.plus(self.every.0);
        match self.until {
            Some(until) if last >= until => None,
            Some(until) => Some(next.min(until)),
            None => Some(next),
        }
    }

    /// What is wrong with it: the field, and what.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(MIN_LOOK_EVERY..=MAX_LOOK_EVERY).contains(&self.every.0) {
            let what = format!("{} is out of bounds; from 1m to 30d is allowed", self.every);
            problems.push(("every", what));
        }
        if let Some(until) = self.until.filter(|until| !STARTS.contains(until)) {
            problems.push(("until", format!("is {until}; from 2020 to 2099 is allowed")));
        }
        problems
    }
}

/// Reads `true` and `false`, too.
pub(super) fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Continuous>, D::Error> {
    struct Given;

    impl<'de> Visitor<'de> for Given {
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

    from.deserialize_any(Given)
}

/// The schema of what [`given`] reads.
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
    fn it_is_true_or_says_how_often() {
        let every = |minutes: u64| {
            Ok(Some(Continuous {
                every: Span(Duration::from_secs(60 * minutes)),
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
    fn the_last_look_is_at_the_end() {
        let at = Timestamp;
        let minute = |until: Option<u64>| Continuous {
            every: Span(Duration::from_secs(60)),
            until: until.map(Timestamp),
        };
        assert_eq!(minute(None).next_look(at(5)), Some(at(60_005)));
        let ends = minute(Some(100_000));
        assert_eq!(ends.next_look(at(40_000)), Some(at(100_000)));
        assert_eq!(ends.next_look(at(99_999)), Some(at(100_000)));
        assert_eq!(ends.next_look(at(100_000)), None);
        assert_eq!(ends.next_look(at(100_001)), None);
    }
}
