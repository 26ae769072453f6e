//! From tag selectors to the condition of a twin query.
//!
//! Values are quoted so that no value can change the meaning of the query, and tag paths are
//! limited to names that the query language takes (reference: `iot-hub-devguide-query-language`).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A hub refuses longer queries.
pub const MAX_QUERY_CHARS: usize = 8192;

/// The path of a tag below `tags`, for example `region` or `location.site`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagPath(String);

/// Why a text is not a tag path that can be queried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTagPath {
    /// Not of the allowed shape.
    #[error(
        "tag {0:?} cannot be queried: allowed are letters, digits and '_', not starting with a digit, \
         with '.' between the levels of a nested tag, without the leading \"tags.\""
    )]
    Shape(String),
    /// A level is a word of the query language.
    #[error(
        "tag {path:?} cannot be queried: {word:?} is a word of the hub's query language and breaks the query; rename the tag"
    )]
    Keyword {
        /// The whole path.
        path: String,
        /// The level that is a keyword.
        word: String,
    },
}

/// Words that break a twin query when a tag has their name. No escape is known to work.
const KEYWORDS: [&str; 25] = [
    "select",
    "from",
    "where",
    "group",
    "by",
    "as",
    "and",
    "or",
    "not",
    "in",
    "nin",
    "top",
    "count",
    "avg",
    "sum",
    "min",
    "max",
    "order",
    "is_defined",
    "startswith",
    "endswith",
    "true",
    "false",
    "null",
    "join",
];

impl TagPath {
    /// Checks `text` and makes it a path.
    ///
    /// # Errors
    /// [`InvalidTagPath`], which says what is allowed.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidTagPath> {
        let text = text.into();
        let levels_ok = text.split('.').all(|level| {
            level.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && level
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
        if !levels_ok || text.len() > 256 || text.starts_with("tags.") {
            return Err(InvalidTagPath::Shape(text));
        }
        let keyword = text
            .split('.')
            .find(|level| KEYWORDS.contains(&level.to_ascii_lowercase().as_str()));
        match keyword.map(str::to_owned) {
            Some(word) => Err(InvalidTagPath::Keyword { path: text, word }),
            None => Ok(Self(text)),
        }
    }

    /// The path as text, without `tags.`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TagPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TagPath {
    type Error = InvalidTagPath;
    fn try_from(text: String) -> Result<Self, InvalidTagPath> {
        Self::new(text)
    }
}

impl From<TagPath> for String {
    fn from(path: TagPath) -> String {
        path.0
    }
}

impl JsonSchema for TagPath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TagPath".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z_][A-Za-z0-9_]*)*$",
            "description": "the path of a tag below `tags`, for example `region` or `location.site`",
        })
    }
}

/// A value that a tag is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be a text, a number, true or false, or a list of these; a nested tag is written with dots: location.site"
)]
pub enum TagValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(#[schemars(length(max = crate::spec::MAX_CONDITION_CHARS))] String),
}

impl TagValue {
    fn equals(&self, found: &Value) -> bool {
        match (self, found) {
            (Self::Bool(wanted), Value::Bool(found)) => wanted == found,
            (Self::Text(wanted), Value::String(found)) => wanted == found,
            // Large whole numbers would lose their last digits in a double.
            (Self::Int(wanted), Value::Number(found)) => match found.as_i64() {
                Some(found) => *wanted == found,
                None => found.as_f64() == Some(*wanted as f64),
            },
            (Self::Float(wanted), Value::Number(found)) => found.as_f64() == Some(*wanted),
            _ => false,
        }
    }

    fn write_literal(&self, out: &mut String) {
        match self {
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&value.to_string()),
            Self::Text(value) => write_text_literal(value, out),
        }
    }
}

/// Writes `text` as a string literal of the query language.
pub fn write_text_literal(text: &str, out: &mut String) {
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("\\'"),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('\'');
}

/// One value, or any of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be a text, a number, true or false, or a list of these; a nested tag is written with dots: location.site"
)]
pub enum OneOrMany {
    /// The tag must equal this value.
    One(TagValue),
    /// The tag must equal one of these values.
    Many(Vec<TagValue>),
}

/// Tags and the values that they must have, all of them.
pub type TagSelector = std::collections::BTreeMap<TagPath, OneOrMany>;

/// The condition for devices that match all of `tags`; empty for no tags.
#[must_use]
pub fn matching(tags: &TagSelector) -> String {
    join(
        tags.iter()
            .map(|(path, values)| compare(path, values, "=", "IN")),
        " AND ",
    )
}

/// The condition for devices that do *not* match all of `tags`.
///
/// A device without the tag does not match it, so it stays. That is said in the condition,
/// because a comparison with something undefined is neither true nor false there, and `NOT`
/// does not make it true.
#[must_use]
pub fn not_matching(tags: &TagSelector) -> String {
    join(
        tags.iter().map(|(path, values)| {
            format!(
                "NOT IS_DEFINED(tags.{path}) OR {}",
                compare(path, values, "!=", "NIN")
            )
        }),
        " OR ",
    )
}

/// Whether a device matches all of `tags`; `tag` gives its value of one. As the hub itself would say to
/// [`matching`]: numbers are equal by value, all else by type and value, and what is not defined
/// equals nothing.
#[must_use]
pub fn matches<'t>(tags: &TagSelector, tag: impl Fn(&TagPath) -> Option<&'t Value>) -> bool {
    tags.iter().all(|(path, wanted)| {
        let found = tag(path);
        found.is_some_and(|found| match wanted {
            OneOrMany::One(value) => value.equals(found),
            OneOrMany::Many(values) => values.iter().any(|value| value.equals(found)),
        })
    })
}

fn compare(path: &TagPath, values: &OneOrMany, one: &str, many: &str) -> String {
    let mut out = format!("tags.{path} ");
    match values {
        OneOrMany::One(value) => {
            out.push_str(one);
            out.push(' ');
            value.write_literal(&mut out);
        }
        OneOrMany::Many(values) => {
            out.push_str(many);
            out.push_str(" [");
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                value.write_literal(&mut out);
            }
            out.push(']');
        }
    }
    out
}

fn join(parts: impl Iterator<Item = String>, with: &str) -> String {
    parts.collect::<Vec<_>>().join(with)
}

/// `a` AND `b`, where an empty condition means "all devices".
#[must_use]
pub fn all_of<'a>(conditions: impl IntoIterator<Item = &'a str>) -> String {
    let parts: Vec<_> = conditions
        .into_iter()
        .filter(|c| !c.trim().is_empty())
        .collect();
    match parts.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        many => many
            .iter()
            .map(|c| format!("({c})"))
            .collect::<Vec<_>>()
            .join(" AND "),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selector(pairs: &[(&str, OneOrMany)]) -> TagSelector {
        pairs
            .iter()
            .map(|(path, v)| (TagPath::new(*path).unwrap(), v.clone()))
            .collect()
    }

    fn text(value: &str) -> OneOrMany {
        OneOrMany::One(TagValue::Text(value.into()))
    }

    #[test]
    fn conditions_are_written_out() {
        let tags = selector(&[
            ("type", text("fridge")),
            (
                "location.site",
                OneOrMany::Many(vec![TagValue::Int(7), TagValue::Text("b".into())]),
            ),
            ("beta", OneOrMany::One(TagValue::Bool(true))),
        ]);
        assert_eq!(
            matching(&tags),
            "tags.beta = true AND tags.location.site IN [7, 'b'] AND tags.type = 'fridge'"
        );
        assert_eq!(
            not_matching(&selector(&[("a", text("x"))])),
            "NOT IS_DEFINED(tags.a) OR tags.a != 'x'"
        );
        assert_eq!(all_of(["a = 1", "", "b = 2"]), "(a = 1) AND (b = 2)");
        assert_eq!(all_of(["a = 1"]), "a = 1");
        assert_eq!(all_of([]), "");
    }

    #[test]
    fn a_selector_matches_by_type_and_value() {
        use serde_json::json;
        let one = OneOrMany::One;
        let many = OneOrMany::Many;
        let some = vec![TagValue::Int(7), TagValue::Text("b".into())];
        for (wanted, equal, others) in [
            (
                text("5"),
                vec![json!("5")],
                vec![json!(5), json!("5 "), json!(["5"]), json!(null)],
            ),
            (
                text("a"),
                vec![json!("a")],
                vec![json!("A"), json!({"a": "a"})],
            ),
            (
                one(TagValue::Int(5)),
                vec![json!(5), json!(5.0)],
                vec![json!("5"), json!(6), json!(5.5), json!(true)],
            ),
            (
                one(TagValue::Int(i64::MAX)),
                vec![json!(i64::MAX)],
                vec![json!(i64::MAX - 1)],
            ),
            (
                one(TagValue::Float(0.5)),
                vec![json!(0.5)],
                vec![json!("0.5"), json!(0), json!(0.25)],
            ),
            (one(TagValue::Float(2.0)), vec![json!(2)], vec![json!(3)]),
            (
                one(TagValue::Bool(true)),
                vec![json!(true)],
                vec![json!("true"), json!(false), json!(1)],
            ),
            (many(some), vec![json!(7), json!("b")], vec![json!("7")]),
            (many(vec![]), vec![], vec![json!(7)]),
        ] {
            let tags = selector(&[("a.b", wanted)]);
            let found = |value: &Value| {
                matches(&tags, |path| {
                    assert_eq!(path.as_str(), "a.b");
                    Some(value)
                })
            };
            assert!(equal.iter().all(found), "{tags:?} equals {equal:?}");
            assert!(
                !others.iter().any(found),
                "{tags:?} equals none of {others:?}"
            );
            assert!(
                !matches(&tags, |_| None),
                "{tags:?} equals nothing undefined"
            );
        }
        assert!(matches(&TagSelector::new(), |_| None));
        let both = selector(&[("a", text("x")), ("b", text("y"))]);
        let x = json!("x");
        assert!(!matches(&both, |path| (path.as_str() == "a").then_some(&x)));
    }

    #[test]
    fn paths_that_break_a_query_are_refused() {
        for bad in [
            "",
            "a b",
            "a-b",
            "1a",
            "a..b",
            "tags.a",
            "a'",
            "group",
            "location.Group",
            "a]",
        ] {
            assert!(TagPath::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(TagPath::new("location.site_7").is_ok());
    }

    proptest! {
        /// However hostile the value, the literal ends where we end it.
        #[test]
        fn no_value_leaves_its_quotes(value in any::<String>()) {
            let mut literal = String::new();
            write_text_literal(&value, &mut literal);
            let inner = literal.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                prop_assert!(c != '\'' && !c.is_control());
                if c == '\\' {
                    prop_assert!(matches!(chars.next(), Some('\'' | '\\' | 'u')));
                }
            }
        }
    }
}
