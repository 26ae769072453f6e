//! A YAML or JSON text with the place of every value in it, so that whatever turns out to be
//! wrong later can be said with its field and its line.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// Larger texts are refused unread: a rollout's spec is something that people write.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// One thing that is wrong with a document, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, like `message.ttl` or `target.exclude[1].tags`; empty for the whole document.
    pub field: String,
    /// Line and column, from 1, where known.
    pub place: Option<(u64, u64)>,
    /// What was found and what is allowed.
    pub message: String,
}

impl Problem {
    /// A problem whose place is to be found by its field.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            place: None,
            message: message.into(),
        }
    }
}

/// Everything that is wrong with a document, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// Where the document came from: a file's path, or what else a person would call it.
    pub origin: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.origin)?;
            if let Some((line, column)) = problem.place {
                write!(f, ":{line}:{column}")?;
            }
            if !problem.field.is_empty() {
                write!(f, ": {}", problem.field)?;
            }
            write!(f, ": {}", problem.message)?;
        }
        Ok(())
    }
}

/// A parsed document.
#[derive(Debug)]
pub struct Document {
    origin: String,
    root: Spanned<Node>,
}

#[derive(Debug)]
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

impl Document {
    /// Parses `text`, which is YAML or JSON.
    ///
    /// # Errors
    /// When it is neither, is too large, or has a key twice.
    pub fn parse(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        let origin = origin.into();
        let problem = |place, message| Problems {
            origin: origin.clone(),
            problems: vec![Problem {
                field: String::new(),
                place,
                message,
            }],
        };
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(problem(
                None,
                format!(
                    "{} bytes are too many; at most {MAX_DOCUMENT_BYTES} are read",
                    text.len()
                ),
            ));
        }
        let mut options = serde_saphyr::Options::default();
        options.strict_booleans = true;
        options.with_snippet = false;
        let root = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let place = error.location().map(|l| (l.line(), l.column()));
            problem(
                place,
                without_location(&error.without_snippet().to_string()),
            )
        })?;
        Ok(Self { origin, root })
    }

    /// The document as a plain value.
    #[must_use]
    pub fn to_value(&self) -> Value {
        self.root.value.to_value()
    }

    /// Reads the document as a `T`.
    ///
    /// # Errors
    /// The first value that does not fit, with its field and line.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Problems> {
        serde_path_to_error::deserialize(self.to_value()).map_err(|error| {
            let mut field = error.path().to_string();
            if field == "." {
                field = String::new();
            }
            self.locate(vec![Problem::new(field, error.into_inner().to_string())])
        })
    }

    /// Adds the place to problems that know their field only.
    #[must_use]
    pub fn locate(&self, mut problems: Vec<Problem>) -> Problems {
        for problem in &mut problems {
            problem.place = problem.place.or_else(|| self.place_of(&problem.field));
        }
        problems.sort_by_key(|problem| problem.place);
        Problems {
            origin: self.origin.clone(),
            problems,
        }
    }

    /// Where the field stands; where its closest parent stands if it is missing.
    fn place_of(&self, field: &str) -> Option<(u64, u64)> {
        let mut node = &self.root;
        for step in field.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (Node::List(items), Some(index)) => {
                    index.parse::<usize>().ok().and_then(|i| items.get(i))
                }
                (Node::Map(entries), None) => entries
                    .iter()
                    .find(|(key, _)| key == step)
                    .map(|(_, value)| value),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        let location = node.referenced;
        (location != serde_saphyr::Location::UNKNOWN).then(|| (location.line(), location.column()))
    }
}

/// The parser appends its own words for the place; we put the place in front.
fn without_location(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

impl Node {
    fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.value.to_value()).collect())
            }
            Self::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.clone(), value.value.to_value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        serde_json::Number::from_f64(value)
            .map(|number| Node::Scalar(Value::Number(number)))
            .ok_or_else(|| E::custom(format!("{value} is not a number that JSON can hold")))
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        name: String,
        list: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        ttl: super::super::quantity::Span,
    }

    fn read(text: &str) -> String {
        Document::parse("x.yaml", text)
            .and_then(|d| d.read::<Sample>())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn problems_name_field_and_line() {
        assert_eq!(
            read("name: a\nlist:\n  - ttl: 5m\n  - ttl: 3x\n"),
            "x.yaml:4:10: list[1].ttl: \"3x\" is not a length of time; write for example \"90s\", \"15m\", \"1h 30m\" or \"2d\""
        );
        assert_eq!(
            read("name: 1\nlist: []\n"),
            "x.yaml:1:7: name: invalid type: integer `1`, expected a string"
        );
        assert_eq!(
            read("name: a\nlist:\n  - ttl: 5m\n    tl: 1\n"),
            "x.yaml:4:9: list[0].tl: unknown field `tl`, expected `ttl`"
        );
        assert_eq!(
            read("{\n \"name\": \"a\"\n}"),
            "x.yaml:1:1: missing field `list`"
        );
        assert!(
            read("name: a\nname: b\n").starts_with("x.yaml:2:1: "),
            "{}",
            read("name: a\nname: b\n")
        );
        assert!(
            read("a: [1, 2\nb: 3\n").starts_with("x.yaml:"),
            "{}",
            read("a: [1, 2\nb: 3\n")
        );
        assert!(read(&"x".repeat(MAX_DOCUMENT_BYTES + 1)).contains("too many"));
    }

    #[test]
    fn yaml_words_for_booleans_stay_text() {
        let document = Document::parse("x", "a: no\nb: 007\nc: 1.50").unwrap();
        assert_eq!(document.to_value()["a"], "no");
    }
}
