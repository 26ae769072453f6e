//! JSON values with all digits of their numbers.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A JSON value as compact text. Its numbers keep every written digit, unlike machine numbers.
#[derive(Clone)]
pub struct Json(Box<RawValue>);

impl Json {
    /// The name by which [`Document`](crate::spec::Document) recognises a value to hand over as
    /// text.
    pub(crate) const NAME: &str = "twincast::Json";

    /// Parses compact JSON text.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub(crate) fn from_text(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    /// Serializes a value.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self)
    }

    /// Returns the parsed value; its numbers become machine numbers.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::from_str(self.as_str()).unwrap_or_default()
    }

    /// Returns the compact text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct JsonVisitor;

        impl<'de> Visitor<'de> for JsonVisitor {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
                Json::from_text(text.to_owned()).map_err(E::custom)
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
                Box::<RawValue>::deserialize(from).map(Json)
            }
        }

        deserializer.deserialize_newtype_struct(Self::NAME, JsonVisitor)
    }
}

impl JsonSchema for Json {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        serde_json::Value::schema_name()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        serde_json::Value::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Record {
        name: String,
        body: Json,
    }

    #[test]
    fn every_digit_is_kept_in_a_record() {
        let text = r#"{"name":"a","body":{"n":[1.10,12345678901234567890123,-0,1E5,1e400]}}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        let value = serde_json::json!({"name": "a", "body": {"n": 1}});
        let record: Record = serde_json::from_value(value).unwrap();
        assert_eq!(record.body.as_str(), r#"{"n":1}"#);
    }
}
