//! A YAML or JSON document with the position of every value. All problems are reported at once,
//! each with field and line.

mod difference;
mod json;
mod node;
mod read;
mod yaml;

use std::fmt;

use serde::de::DeserializeOwned;

pub use difference::difference;
pub use node::MAX_DOCUMENT_BYTES;

use crate::json::Json;
use node::{MistakeKind, Node, Step, Unreadable, Value};
use read::Reader;

/// The maximum number of problems reported at once: each problem requires another pass over the
/// document.
const MAX_PROBLEMS: usize = 100;

/// A problem of a document, with the position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, like `message.ttl` or `target.exclude[1].tags`; empty for the whole document.
    pub field: String,
    /// Line and column, from 1, where known.
    pub position: Option<(u64, u64)>,
    /// The found value and the allowed values.
    pub message: String,
    /// Another field on which the problem depends.
    depends_on: Option<&'static str>,
}

impl Problem {
    /// Creates a problem whose position is determined by the field.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            position: None,
            message: message.into(),
            depends_on: None,
        }
    }

    /// Makes the problem depend on the value of another field.
    #[must_use]
    pub(crate) fn depends_on(self, field: &'static str) -> Self {
        Self {
            depends_on: Some(field),
            ..self
        }
    }

    /// Returns whether the problem may be a consequence of `field`, an invalid field without a
    /// known value.
    fn is_consequence_of(&self, field: &str) -> bool {
        let is_within = |inner: &str, outer: &str| {
            let rest = inner.strip_prefix(outer);
            outer.is_empty() || rest.is_some_and(|it| it.is_empty() || it.starts_with(['.', '[']))
        };
        let own = std::iter::once(&*self.field).chain(self.depends_on);
        own.into_iter()
            .any(|own| is_within(own, field) || is_within(field, own))
    }
}

/// All problems of a document, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The origin of the document: the path of a file, or another name for people.
    pub origin: String,
    /// The problems; at least 1.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Returns all problems in a single line, without positions:
    /// `the body is not JSON: expected value`, `the body: a.b: is given twice`.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let origin = &self.origin;
        match self.problems.as_slice() {
            [only] if only.field.is_empty() => format!("{origin} {}", only.message),
            _ => format!("{origin}: {}", self.without_positions().join("; ")),
        }
    }

    /// Returns a line with the field for each problem, without positions: for texts whose lines the
    /// user has never seen.
    #[must_use]
    pub fn without_positions(&self) -> Vec<String> {
        let lines = self.problems.iter().map(|problem| match &*problem.field {
            "" => problem.message.clone(),
            field => format!("{field}: {}", problem.message),
        });
        lines.collect()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.origin)?;
            if let Some((line, column)) = problem.position {
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
    text: String,
    root: Node,
}

/// A value from another source than a single text: from a configuration, or from a query's
/// parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum InputValue {
    /// No value.
    Nothing,
    /// True or false.
    Bool(bool),
    /// A number, as written.
    Number(String),
    /// A text.
    Text(String),
    /// A text from an environment variable or a query parameter. Where required, the text counts as
    /// a number, or as true or false.
    UntypedText(String),
    /// A list of values.
    List(Vec<InputValue>),
    /// Values by their keys.
    Map(Vec<(String, InputValue)>),
}

impl InputValue {
    fn node(self) -> Node {
        let value = match self {
            Self::Nothing => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::Text(text),
            Self::UntypedText(text) => Value::UntypedText(text),
            Self::List(items) => Value::List(items.into_iter().map(Self::node).collect()),
            Self::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| node::Entry {
                        at: 0,
                        key,
                        node: value.node(),
                    })
                    .collect(),
            ),
        };
        Node { at: 0, value }
    }
}

impl Document {
    /// Creates a document from a value without a text. No value in the document has a position.
    #[must_use]
    pub fn from_input(origin: impl Into<String>, value: InputValue) -> Self {
        Self {
            origin: origin.into(),
            text: String::new(),
            root: value.node(),
        }
    }

    /// Parses `text` as YAML or JSON.
    ///
    /// # Errors
    /// Returns an error if the text is neither, is too large, or has a duplicate key.
    pub fn parse(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        // YAML accepts nearly all JSON, but not all.
        let is_json = text.trim_start().starts_with(['{', '[']) && json::check(text).is_ok();
        let read = if is_json { json::read } else { yaml::read };
        Self::of(origin.into(), text, read)
    }

    /// Parses `text` as JSON.
    ///
    /// # Errors
    /// Returns an error if the text is not JSON, is too large, or has a duplicate key.
    pub fn parse_json(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        let read = |text: &str| json::check(text).and_then(|()| json::read(text));
        Self::of(origin.into(), text, read)
    }

    fn of(
        origin: String,
        text: &str,
        read: impl FnOnce(&str) -> Result<Node, Unreadable>,
    ) -> Result<Self, Problems> {
        if text.len() > MAX_DOCUMENT_BYTES {
            let what = format!(
                "{} bytes are too many; at most {MAX_DOCUMENT_BYTES} are allowed",
                text.len()
            );
            let problems = vec![Problem::new("", what)];
            return Err(Problems { origin, problems });
        }
        let root = match read(text) {
            Ok(root) => root,
            Err((at, what)) => {
                let position = at.map(|at| position(text, at));
                let problem = Problem {
                    position,
                    ..Problem::new("", what)
                };
                let problems = vec![problem];
                return Err(Problems { origin, problems });
            }
        };
        let duplicate_keys = root.duplicate_keys();
        let problems = duplicate_keys.into_iter().take(MAX_PROBLEMS);
        let problems: Vec<_> = problems
            .map(|(path, at, before)| {
                let (line, column) = position(text, before);
                let what = format!("is given twice; first in line {line}, column {column}");
                Problem {
                    position: Some(position(text, at)),
                    ..Problem::new(node::field(&path), what)
                }
            })
            .collect();
        if !problems.is_empty() {
            return Err(Problems { origin, problems });
        }
        Ok(Self {
            origin,
            text: text.to_owned(),
            root,
        })
    }

    /// Deserializes the document as a `T`.
    ///
    /// # Errors
    /// Returns all invalid parts of the document, each with field and line.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Problems> {
        self.read_and_check(&[], |_| Vec::new())
    }

    /// Deserializes the document as a `T`, and checks the result. `placeholders` holds values for
    /// required fields, as JSON. Where such a field is missing or invalid, the placeholder allows
    /// the rest of the document to be checked.
    ///
    /// # Errors
    /// Returns all invalid parts of the document and all problems found by `check`, each with field
    /// and line.
    pub fn read_and_check<T: DeserializeOwned>(
        &self,
        placeholders: &[(&str, &str)],
        check: impl FnOnce(&T) -> Vec<Problem>,
    ) -> Result<T, Problems> {
        let mut problems = Vec::new();
        // Fields without a known value, because the value is missing or invalid.
        let mut unknown = Vec::new();
        let mut root = self.root.clone();
        let read = loop {
            let mistake = match T::deserialize(Reader(&root)) {
                Ok(read) => break Some(read),
                Err(mistake) => mistake,
            };
            let path: Vec<_> = mistake.path.into_iter().rev().collect();
            match mistake.kind {
                MistakeKind::Message(text) => problems.push(Problem::new(node::field(&path), text)),
                MistakeKind::Missing(missing) => {
                    let step = Step::Key(missing.to_owned());
                    let of = root.at_path(&path).and_then(|node| node.step(&step));
                    let field = node::field(path.iter().chain([&step]));
                    if !of.is_some_and(Node::is_invalid) {
                        problems.push(Problem::new(&field, "is missing"));
                    }
                    let placeholder = placeholders.iter().find(|(of, _)| *of == field);
                    let placeholder = placeholder.and_then(|(_, json)| json::read(json).ok());
                    if let Some(placeholder) = placeholder
                        && let Some(node) = root.at_path(&path)
                    {
                        node.set(missing, placeholder);
                        unknown.push(field);
                        continue;
                    }
                }
                MistakeKind::Emptied => {}
            }
            // The rest is read as if the invalid value were absent. An absent item of a list would
            // change the numbers of all later items, so the whole list counts as unknown.
            let known = path.iter().rposition(|step| matches!(step, Step::Key(_)));
            unknown.push(node::field(&path[..known.map_or(0, |last| last + 1)]));
            match root.at_path(&path) {
                Some(node) if !path.is_empty() && problems.len() < MAX_PROBLEMS => {
                    node.value = Value::Invalid;
                }
                _ => break None,
            }
        };
        if let Some(read) = &read {
            let may_come =
                |problem: &Problem| unknown.iter().any(|it| problem.is_consequence_of(it));
            let found = check(read).into_iter();
            problems.extend(found.filter(|problem| !may_come(problem)));
        }
        match read {
            Some(read) if problems.is_empty() => Ok(read),
            _ => Err(self.locate(problems)),
        }
    }

    /// Returns the document as JSON.
    ///
    /// # Errors
    /// Returns an error if the document has a number without a JSON form.
    pub fn to_json(&self) -> Result<Json, Problems> {
        self.read()
    }

    /// Adds the position to problems with a field only.
    #[must_use]
    fn locate(&self, mut problems: Vec<Problem>) -> Problems {
        for problem in &mut problems {
            problem.position = Some(position(&self.text, self.at(&problem.field)));
        }
        problems.sort_by_key(|problem| problem.position);
        Problems {
            origin: self.origin.clone(),
            problems,
        }
    }

    /// Returns the position of the field's name, or of the item of a list. For a missing field, the
    /// position of the closest parent.
    fn at(&self, field: &str) -> usize {
        let (mut node, mut at, mut rest) = (&self.root, self.root.at, field);
        loop {
            let next = match &node.value {
                Value::List(items) => {
                    let step = rest.strip_prefix('[').and_then(|it| it.split_once(']'));
                    step.and_then(|(index, rest)| {
                        let item = items.get(index.parse::<usize>().ok()?)?;
                        Some((item, item.at, rest))
                    })
                }
                Value::Map(entries) => {
                    // A key may contain dots.
                    let step = rest.strip_prefix('.').unwrap_or(rest);
                    let fits = entries.iter().filter_map(|entry| {
                        let rest = step.strip_prefix(&*entry.key)?;
                        let ends = rest.is_empty() || rest.starts_with(['.', '[']);
                        ends.then_some((&entry.node, entry.at, rest))
                    });
                    fits.min_by_key(|(_, _, rest)| rest.len())
                }
                _ => None,
            };
            match next {
                Some(next) if !rest.is_empty() => (node, at, rest) = next,
                _ => return at,
            }
        }
    }
}

/// Returns the line and column of a byte, from 1.
fn position(text: &str, at: usize) -> (u64, u64) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().unwrap_or_default();
    (line, column.chars().count() as u64 + 1)
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
        ttl: super::super::quantity::HumanDuration,
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
            "x.yaml:4:5: list[1].ttl: \"3x\" is not a duration; write for example \"90s\", \
             \"15m\", \"1h 30m\" or \"2d\""
        );
        assert_eq!(
            read("name: 1\nlist: []\n"),
            "x.yaml:1:1: name: is the number 1, and must be a text: quote it (\"1\")"
        );
        assert_eq!(
            read("name: a\nlist:\n  - ttl: 5m\n    tl: 1\n"),
            "x.yaml:4:5: list[0].tl: is not a field here; the fields are ttl"
        );
        assert_eq!(
            read("{\n \"name\": \"a\"\n}"),
            "x.yaml:1:1: list: is missing"
        );
        assert_eq!(
            read("name: a\nname: b\n"),
            "x.yaml:2:1: name: is given twice; first in line 1, column 1"
        );
        for bad in ["a: [1, 2\nb: 3\n", "a: b: c", "{\"a\" 1}"] {
            assert!(read(bad).starts_with("x.yaml:"), "{}", read(bad));
        }
        assert!(read(&"x".repeat(MAX_DOCUMENT_BYTES + 1)).contains("too many"));
    }

    #[test]
    fn all_independent_problems_are_reported_at_once() {
        let text = "nam: a\nname: [1]\nlist:\n  - ttl: 3x\n  - 7\n  - {tll: 5m}\n  - ttl:\n";
        let fields = |text: &str| -> Vec<String> {
            let lines = read(text);
            let lines = lines
                .lines()
                .map(|it| it.split(": ").take(2).collect::<Vec<_>>().join(": "));
            lines.collect()
        };
        assert_eq!(
            fields(text),
            [
                "x.yaml:1:1: nam",
                "x.yaml:2:1: name",
                "x.yaml:4:5: list[0].ttl",
                "x.yaml:5:5: list[1]",
                "x.yaml:6:5: list[2].ttl",
                "x.yaml:6:6: list[2].tll",
                "x.yaml:7:5: list[3].ttl",
            ],
            "{}",
            read(text)
        );
        assert_eq!(
            fields("[]"),
            ["x.yaml:1:1: is a list, and must be a map with fields such as name, list"]
        );
    }

    fn json(text: &str) -> String {
        let document = Document::parse("x", text).unwrap();
        let json = document.to_json().map(|json| json.as_str().to_owned());
        json.unwrap_or_else(|problems| problems.to_string())
    }

    #[test]
    fn values_are_sent_as_written() {
        for (text, sent) in [
            ("a: no\nb: 1.50\nc: ~\n", r#"{"a":"no","b":1.50,"c":null}"#),
            (
                "[12345678901234567890123, 1.10, -0, 1e400, 1234567e8]",
                "[12345678901234567890123,1.10,-0,1e400,1234567e8]",
            ),
            (
                "{\"a\":1E5,\t\"b\":\"\\ud83d\\ude00\\/\u{7f}\"}",
                "{\"a\":1E5,\"b\":\"😀/\u{7f}\"}",
            ),
            (
                "- 1_000\n- 1:30\n- 0b1\n- 1.4.2\n- --\n- .\n- e5\n- 0x\n- '08'\n- !!str 08\n",
                r#"["1_000","1:30","0b1","1.4.2","--",".","e5","0x","08","08"]"#,
            ),
            (
                "a: &a {x: 1.0, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n",
                r#"{"a":{"x":1.0,"y":2},"b":{"y":3,"x":1.0},"c":{"x":1.0,"y":2}}"#,
            ),
            ("true", "true"),
            ("", "null"),
        ] {
            assert_eq!(json(text), sent, "{text}");
            assert_eq!(json(sent), sent, "the JSON is stable");
        }
    }

    #[test]
    fn numbers_without_json_form_must_be_quoted() {
        for number in [
            "0123", "08", "-01", "00", "0x1F", "0o17", ".5", "5.", "+1", "1.e3", ".inf", "-.Inf",
            ".nan",
        ] {
            let found = json(&format!("a:\n  - b: {number}\n"));
            assert!(
                found.starts_with(&format!("x:2:5: a[0].b: {number} is a YAML number")),
                "{found}"
            );
            assert!(
                found.contains(&format!("quote it (\"{number}\")")),
                "{found}"
            );
        }
    }

    #[test]
    fn invalid_documents_are_refused() {
        let refused = |text: &str| Document::parse("x", text).unwrap_err().to_string();
        let deep = format!("{}1{}", "[".repeat(101), "]".repeat(101));
        let deep_map = (0..102)
            .map(|n| format!("{}a:\n", " ".repeat(n)))
            .collect::<String>();
        let laughs = (1..9).fold(
            "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(),
            |text, n| {
                let before = vec![format!("*a{}", n - 1); 8].join(", ");
                format!("{text}a{n}: &a{n} [{before}]\n")
            },
        );
        for (text, says) in [
            (
                "{\"a\": {\"b\": 1, \"b\": 2}}",
                "x:1:16: a.b: is given twice; first in line 1, column 8",
            ),
            ("a: {b: 1, b: 2}", "x:1:11: a.b: is given twice"),
            (&deep, "nested too deeply"),
            (&deep_map, "nested too deeply"),
            (&laughs, "through anchors and aliases"),
            ("a: &a [*a]", "an alias of a value"),
            ("a: 1\n---\nb: 1\n", "x:2:1: is a second YAML document"),
            ("a: !x 1", "the YAML tag !x is not allowed here"),
            ("? [1]\n: 2\n", "a key must be a text"),
            ("<<: 1", "must be a map"),
            ("[\"\\ud800\"]", "is not a character"),
        ] {
            assert!(refused(text).contains(says), "{text}: {}", refused(text));
        }
        let json = |text: &str| Document::parse_json("x", text).unwrap_err().to_string();
        assert_eq!(json("{"), "x:1:1: is not JSON: it ends too early");
        assert_eq!(json("a: 1"), "x:1:1: is not JSON: expected value");
        assert_eq!(
            json("{\"a\":1,\n\"a\":2}"),
            "x:2:1: a: is given twice; first in line 1, column 2"
        );
    }
}
