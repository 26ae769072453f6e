//! The reported property for the answers of devices, in queries.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TagPath;

/// The longest name, in bytes.
const MAX_CHARS: usize = 64;

/// The name of a reported property at the top level of a twin: 1 to 64 letters, digits, `_` and
/// `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PropertyName(String);

/// A text that is not a name of a reported property.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a reported property: 1 to {MAX_CHARS} letters, digits, '_' and '-'"
)]
pub struct InvalidPropertyName(String);

impl PropertyName {
    /// Creates a name from valid text.
    ///
    /// # Errors
    /// [`InvalidPropertyName`], with a description of the allowed texts.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidPropertyName> {
        let text = text.into();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        match (1..=MAX_CHARS).contains(&text.len()) && text.bytes().all(is_allowed) {
            true => Ok(Self(text)),
            false => Err(InvalidPropertyName(text)),
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns a field of the property in query syntax: `properties.reported.update.state`.
    #[must_use]
    pub fn field(&self, field: &str) -> String {
        let below = |name: &str| {
            let path = TagPath::new(name).expect("a name of letters, digits, '_' and '-'");
            path.in_query().split_off("tags".len())
        };
        format!("properties.reported{}{}", below(&self.0), below(field))
    }

    /// Returns the condition for devices with an answer to a message whose id begins with `prefix`.
    /// Hubs accept `STARTSWITH` in twin queries, although their documentation does not mention it
    /// (MicrosoftDocs/azure-docs, issue 110329).
    #[must_use]
    pub fn answers(&self, prefix: &str) -> String {
        format!("STARTSWITH({}, '{prefix}')", self.field("id"))
    }

    /// Returns the same condition for answers in one of these states.
    #[must_use]
    pub fn answers_in(&self, prefix: &str, states: &[&str]) -> String {
        let states: Vec<_> = states.iter().map(|state| format!("'{state}'")).collect();
        let (state, states) = (self.field("state"), states.join(", "));
        format!("{} AND {state} IN [{states}]", self.answers(prefix))
    }
}

impl Default for PropertyName {
    fn default() -> Self {
        Self("update".to_owned())
    }
}

impl fmt::Display for PropertyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PropertyName {
    type Error = InvalidPropertyName;
    fn try_from(text: String) -> Result<Self, InvalidPropertyName> {
        Self::new(text)
    }
}

impl From<PropertyName> for String {
    fn from(name: PropertyName) -> String {
        name.0
    }
}

impl JsonSchema for PropertyName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PropertyName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^[A-Za-z0-9_-]{1,64}$",
            "description": "the name of a reported property, for example `update`",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_change_a_query() {
        for (name, id) in [
            ("update", "properties.reported.update.id"),
            ("group", "properties.reported.[[group]].id"),
            ("fw-2", "properties.reported.[[fw-2]].id"),
            ("2nd", "properties.reported.[[2nd]].id"),
        ] {
            assert_eq!(PropertyName::new(name).unwrap().field("id"), id);
        }
        for wrong in ["", "a.b", "a b", "a'", "a]]", "é", &"x".repeat(65)] {
            assert!(PropertyName::new(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            PropertyName::default().answers_in("r.1.", &["failed", "refused"]),
            "STARTSWITH(properties.reported.update.id, 'r.1.') AND \
             properties.reported.update.state IN ['failed', 'refused']"
        );
    }
}
