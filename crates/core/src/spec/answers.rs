//! Whether devices answer in their twins, and in which property.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::message::MessageSpec;
use super::quantity::HumanDuration;
use crate::query::PropertyName;

/// The longest wait for answers.
pub const MAX_ANSWERS_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
/// The message property that states the kind of the message.
const KIND: &str = "kind";
/// The kind of message that devices answer unless the spec says otherwise.
const UPDATE: &str = "update";

/// Whether devices answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// Devices do not answer.
    No,
    /// Devices answer by this convention.
    Yes(Convention),
}

/// How devices answer: each device writes the result of the message's request into a reported
/// property of the device's twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Convention {
    /// The reported property. Default: `update`.
    #[serde(default)]
    pub property: PropertyName,
    /// How long answers are waited for beyond the message's time to live. A device may take the
    /// message at the last moment, and then needs time to fulfil the request. 1s to 30d. Default:
    /// 1h.
    #[serde(default = "default_answer_time")]
    pub within: HumanDuration,
}

fn default_answer_time() -> HumanDuration {
    HumanDuration(Duration::from_secs(3600))
}

impl Default for Convention {
    fn default() -> Self {
        Self {
            property: PropertyName::default(),
            within: default_answer_time(),
        }
    }
}

impl Convention {
    /// Returns the convention of a rollout: the given convention, or the default convention for a
    /// message with the property `kind: update`. `None` if devices do not answer.
    pub(super) fn of(given: Option<&Answers>, message: &MessageSpec) -> Option<Self> {
        match given {
            Some(Answers::Yes(convention)) => Some(convention.clone()),
            Some(Answers::No) => None,
            None => {
                let kind = message.properties.get(KIND);
                kind.is_some_and(|kind| kind == UPDATE).then(Self::default)
            }
        }
    }

    /// Returns the problem of the convention, if any: the field and a description.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let is_right = (Duration::from_secs(1)..=MAX_ANSWERS_WITHIN).contains(&self.within.0);
        let what = || {
            format!(
                "{} is out of bounds; from 1s to 30d is allowed",
                self.within
            )
        };
        (!is_right).then(|| ("within", what()))
    }
}

impl Serialize for Answers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes(convention) => convention.serialize(serializer),
        }
    }
}

/// Deserializes a map, `true` or `false`.
pub(super) fn deserialize_optional<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Answers>, D::Error> {
    struct OptionalVisitor;

    impl<'de> Visitor<'de> for OptionalVisitor {
        type Value = Option<Answers>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true, false, or a map with property and within")
        }

        fn visit_bool<E>(self, given: bool) -> Result<Self::Value, E> {
            Ok(Some(match given {
                true => Answers::Yes(Convention::default()),
                false => Answers::No,
            }))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
            let convention = Convention::deserialize(MapAccessDeserializer::new(map))?;
            Ok(Some(Answers::Yes(convention)))
        }
    }

    from.deserialize_any(OptionalVisitor)
}

/// Returns the schema of the values read by [`deserialize_optional`].
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let map = generator.subschema_for::<Convention>();
    json_schema!({ "anyOf": [{ "type": "boolean" }, map, { "type": "null" }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RolloutSpec;

    fn read(kind: &str, answers: &str) -> Result<Option<Convention>, String> {
        let text = format!(
            "name: a\ntarget: {{all: true}}\nmessage: {{body: {{text: x}}, properties: {{kind: {kind}}}}}\n{answers}\n"
        );
        let spec = RolloutSpec::read("x", &text).map_err(|problems| problems.to_string())?;
        let again = serde_json::to_string(&spec).unwrap();
        assert_eq!(RolloutSpec::read("x", &again).unwrap(), spec);
        Ok(spec.convention())
    }

    #[test]
    fn updates_are_answered_unless_the_spec_says_otherwise() {
        let like = |property: &str, minutes: u64| {
            Ok(Some(Convention {
                property: PropertyName::new(property).unwrap(),
                within: HumanDuration(Duration::from_secs(60 * minutes)),
            }))
        };
        assert_eq!(read("update", ""), like("update", 60));
        assert_eq!(read("update", "answers: null"), like("update", 60));
        assert_eq!(read("update", "answers: false"), Ok(None));
        assert_eq!(read("other", ""), Ok(None));
        assert_eq!(read("other", "answers: true"), like("update", 60));
        assert_eq!(read("other", "answers: {}"), like("update", 60));
        let own = "answers: {property: fw, within: 2m}";
        assert_eq!(read("other", own), like("fw", 2));
        for (given, wrong) in [
            ("{within: 0s}", "answers.within: 0s is out of bounds"),
            ("{within: 31d}", "answers.within: 31d is out of bounds"),
            ("{property: a.b}", "answers.property"),
            ("{property: ''}", "answers.property"),
            ("{where: x}", "answers.where: is not a field here"),
            ("maybe", "true, false, or a map with property and within"),
        ] {
            let error = read("other", &format!("answers: {given}")).unwrap_err();
            assert!(error.contains(wrong), "{wrong:?} is not in {error:?}");
        }
    }
}
