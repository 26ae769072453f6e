//! From tag selectors to the condition of a twin query.
//!
//! Values and tags are quoted, so none can change the meaning of the query. A user's condition is
//! checked to be safe in parentheses (reference: `iot-hub-devguide-query-language`).

mod property;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use property::{InvalidPropertyName, PropertyName};

/// The longest query accepted by a hub, in characters.
pub const MAX_QUERY_CHARS: usize = 8192;
/// The longest condition on devices, in characters: leaves room for the rest of the query.
pub const MAX_CONDITION_CHARS: usize = MAX_QUERY_CHARS - 1024;

/// The path of a tag below `tags`, for example `region` or `location.site`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagPath(String);

/// A text that is not a usable tag path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tag {0:?} is not a valid tag path: write names with '.' between the levels of a nested tag, \
     without the leading \"tags.\"; a name has no white space, quotes, brackets or \\, and the \
     path has at most 256 bytes"
)]
pub struct InvalidTagPath(String);

/// Keywords of the query language. A tag with such a name is written in brackets.
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
    /// Creates a path from valid text.
    ///
    /// # Errors
    /// [`InvalidTagPath`], with a description of the allowed texts.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidTagPath> {
        let text = text.into();
        let is_allowed = |c: char| !c.is_control() && !c.is_whitespace() && !"[]'\"\\`".contains(c);
        let levels_ok = text
            .split('.')
            .all(|level| !level.is_empty() && level.chars().all(is_allowed));
        if !levels_ok || text.len() > 256 || text.starts_with("tags.") {
            return Err(InvalidTagPath(text));
        }
        Ok(Self(text))
    }

    /// Returns the path in query syntax: `tags.location.[[group]]`. Names equal to a keyword of the
    /// language, or with other characters than letters, digits and `_`, are in brackets
    /// (`iot-hub-devguide-query-language`).
    #[must_use]
    pub fn in_query(&self) -> String {
        let mut out = "tags".to_owned();
        for level in self.0.split('.') {
            let is_word = level.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && level
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !KEYWORDS.iter().any(|word| word.eq_ignore_ascii_case(level));
            match is_word {
                true => out.extend([".", level]),
                false => out.extend([".[[", level, "]]"]),
            }
        }
        out
    }

    /// Returns the path as text, without `tags.`.
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
            "pattern": r#"^[^\s.\[\]'"\\`]+(\.[^\s.\[\]'"\\`]+)*$"#,
            "description": "the path of a tag below `tags`, for example `region`, `location.site` or `device-type`",
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
    Text(#[schemars(length(max = MAX_CONDITION_CHARS))] String),
}

impl TagValue {
    fn equals(&self, found: &Value) -> bool {
        match (self, found) {
            (Self::Bool(expected), Value::Bool(found)) => expected == found,
            (Self::Text(expected), Value::String(found)) => expected == found,
            // Large whole numbers would lose their last digits in a double.
            (Self::Int(expected), Value::Number(found)) => match found.as_i64() {
                Some(found) => *expected == found,
                None => found.as_f64() == Some(*expected as f64),
            },
            (Self::Float(expected), Value::Number(found)) => found.as_f64() == Some(*expected),
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

/// Tags with their required values. A device must match all tags.
pub type TagSelector = std::collections::BTreeMap<TagPath, OneOrMany>;

/// Returns the condition for devices matching all of `tags`; empty for no tags.
#[must_use]
pub fn matching(tags: &TagSelector) -> String {
    join(
        tags.iter()
            .map(|(path, values)| compare(path, values, "=", "IN")),
        " AND ",
    )
}

/// Returns the condition for devices *not* matching all of `tags`.
///
/// A device without the tag does not match, so the condition must include the device. The condition
/// says so explicitly, because in the query language a comparison with an undefined value is
/// neither true nor false, and `NOT` does not make it true.
///
/// # Example
/// ```
/// use twincast_core::query::{InvalidTagPath, OneOrMany, TagPath, TagSelector, TagValue};
/// use twincast_core::query::{matching, not_matching};
///
/// let eu = OneOrMany::One(TagValue::Text("eu".to_owned()));
/// let tags = TagSelector::from([(TagPath::new("location.region")?, eu)]);
/// assert_eq!(matching(&tags), "tags.location.region = 'eu'");
/// assert_eq!(
///     not_matching(&tags),
///     "NOT IS_DEFINED(tags.location.region) OR tags.location.region != 'eu'"
/// );
/// # Ok::<(), InvalidTagPath>(())
/// ```
#[must_use]
pub fn not_matching(tags: &TagSelector) -> String {
    join(
        tags.iter().map(|(path, values)| {
            format!(
                "NOT IS_DEFINED({}) OR {}",
                path.in_query(),
                compare(path, values, "!=", "NIN")
            )
        }),
        " OR ",
    )
}

/// Returns whether a device matches all of `tags`; `tag` returns the device's value of a tag. The
/// result equals the hub's result for [`matching`]: numbers are equal by value, everything else by
/// type and value, and an undefined value equals nothing.
#[must_use]
pub fn matches<'t>(tags: &TagSelector, tag: impl Fn(&TagPath) -> Option<&'t Value>) -> bool {
    tags.iter().all(|(path, expected)| {
        let found = tag(path);
        found.is_some_and(|found| match expected {
            OneOrMany::One(value) => value.equals(found),
            OneOrMany::Many(values) => values.iter().any(|value| value.equals(found)),
        })
    })
}

fn compare(path: &TagPath, values: &OneOrMany, one: &str, many: &str) -> String {
    let mut out = path.in_query() + " ";
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

/// Joins conditions with AND; an empty condition means "all devices".
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

/// Returns what is wrong with a user's condition. The condition must stay one condition in
/// parentheses: it must close everything that it opens, and nothing else.
#[must_use]
pub fn condition_problem(condition: &str) -> Option<String> {
    let mut open = Vec::new();
    let mut chars = condition.chars().zip(1..).peekable();
    while let Some((c, at)) = chars.next() {
        let next = chars.peek().map(|(c, _)| *c);
        match (c, next) {
            ('\'' | '"', _) => loop {
                match chars.next() {
                    None => {
                        return Some(format!("has an unterminated text at character {at}"));
                    }
                    Some(('\\', _)) => _ = chars.next(),
                    Some((end, _)) if end == c => break,
                    Some(_) => {}
                }
            },
            // A name in brackets may contain quotes.
            ('[', Some('[')) => {
                _ = chars.next();
                let mut before = ' ';
                loop {
                    match chars.next() {
                        None => {
                            return Some(format!("has an unterminated name at character {at}"));
                        }
                        Some((']', _)) if before == ']' => break,
                        Some((c, _)) => before = c,
                    }
                }
            }
            ('(' | '[', _) => open.push((c, at)),
            (')' | ']', _) => {
                let opening = if c == ')' { '(' } else { '[' };
                if open.pop().is_none_or(|(opened, _)| opened != opening) {
                    return Some(format!("has an unmatched {c} at character {at}"));
                }
            }
            ('-', Some(next @ '-')) | ('/', Some(next @ '*')) => {
                return Some(format!(
                    "has a comment ({c}{next}) at character {at}; remove it"
                ));
            }
            _ => {}
        }
    }
    let (opened, at) = open.pop()?;
    Some(format!("has an unclosed {opened} at character {at}"))
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
        for (expected, equal, others) in [
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
            let tags = selector(&[("a.b", expected)]);
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
    fn tag_paths_are_validated_and_escaped() {
        for bad in [
            "", "a b", "a..b", ".", "a.", "tags.a", "a'", "a\"", "a]", "[a", "a\nb", "a\\",
            "a\u{85}",
        ] {
            assert!(TagPath::new(bad).is_err(), "{bad:?} was accepted");
        }
        for (path, written) in [
            ("region", "tags.region"),
            ("location.site_7", "tags.location.site_7"),
            ("group", "tags.[[group]]"),
            ("Order", "tags.[[Order]]"),
            ("count", "tags.[[count]]"),
            ("location.Group.x", "tags.location.[[Group]].x"),
            ("device-type", "tags.[[device-type]]"),
            ("2nd", "tags.[[2nd]]"),
            ("$iotin:x", "tags.[[$iotin:x]]"),
            ("größe", "tags.[[größe]]"),
            ("a=1)OR(1=1", "tags.[[a=1)OR(1=1]]"),
        ] {
            assert_eq!(TagPath::new(path).unwrap().in_query(), written);
        }
        let tags = selector(&[("group", text("x")), ("order.by", text("y"))]);
        assert_eq!(
            matching(&tags),
            "tags.[[group]] = 'x' AND tags.[[order]].[[by]] = 'y'"
        );
        assert_eq!(
            not_matching(&selector(&[("2nd", text("x"))])),
            "NOT IS_DEFINED(tags.[[2nd]]) OR tags.[[2nd]] != 'x'"
        );
    }

    #[test]
    fn unbalanced_conditions_are_reported() {
        for good in [
            "",
            "tags.a = 'it\\'s )' AND (tags.b IN [1, 2] OR NOT IS_DEFINED(tags.c))",
            "tags.a = \"(\" OR tags.[[it's (]] = '['",
            "tags.n - -1 = 2",
        ] {
            assert_eq!(condition_problem(good), None, "{good}");
        }
        for (bad, says) in [
            (
                "tags.region='zz') OR (tags.type='fridge'",
                "has an unmatched ) at character 17",
            ),
            ("(tags.a = 1", "has an unclosed ( at character 1"),
            ("tags.a IN [1)", "has an unmatched ) at character 13"),
            ("tags.a = 'x", "has an unterminated text at character 10"),
            ("tags.a = 'x\\'", "has an unterminated text at character 10"),
            ("tags.[[a] = 1", "has an unterminated name at character 6"),
            ("tags.a = 1 -- x", "has a comment (--) at character 12"),
            ("tags.a = 1 /* x", "has a comment (/*) at character 12"),
            ("]", "has an unmatched ] at character 1"),
        ] {
            let found = condition_problem(bad).unwrap();
            assert!(found.starts_with(says), "{bad}: {found}");
        }
    }

    proptest! {
        /// However hostile the value, the literal ends at the final quote.
        #[test]
        fn text_literal_ends_at_final_quote(value in any::<String>()) {
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
