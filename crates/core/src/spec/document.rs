//! A YAML or JSON text with the place of every value in it, so that whatever turns out to be
//! wrong can be said with its field and its line, and all of it at once.

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
use node::{Node, Step, Unreadable, Value, What};
use read::Reader;

/// Mistakes that are told at once, at the most: each costs a reading of the whole.
const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong with a document, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, like `message.ttl` or `target.exclude[1].tags`; empty for the whole document.
    pub field: String,
    /// Line and column, from 1, where known.
    pub place: Option<(u64, u64)>,
    /// What was found and what is allowed.
    pub message: String,
    /// Another field that decides whether it is a problem.
    given: Option<&'static str>,
}

impl Problem {
    /// A problem whose place is to be found by its field.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            place: None,
            message: message.into(),
            given: None,
        }
    }

    /// It is one only as long as another field is as it is.
    #[must_use]
    pub(crate) fn given(self, field: &'static str) -> Self {
        Self {
            given: Some(field),
            ..self
        }
    }

    /// It may come from `field`, of which nothing is known because it is wrong itself.
    fn may_come_from(&self, field: &str) -> bool {
        let is_within = |inner: &str, outer: &str| {
            let rest = inner.strip_prefix(outer);
            outer.is_empty() || rest.is_some_and(|it| it.is_empty() || it.starts_with(['.', '[']))
        };
        let own = std::iter::once(&*self.field).chain(self.given);
        own.into_iter()
            .any(|own| is_within(own, field) || is_within(field, own))
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

impl Problems {
    /// All in one line, without places: `the body is not JSON: expected value`, `the body: a.b: is here twice`.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let origin = &self.origin;
        match self.problems.as_slice() {
            [only] if only.field.is_empty() => format!("{origin} {}", only.message),
            _ => format!("{origin}: {}", self.without_places().join("; ")),
        }
    }

    /// One line each with its field, without a place: for texts of which nobody has seen the lines.
    #[must_use]
    pub fn without_places(&self) -> Vec<String> {
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
    text: String,
    root: Node,
}

/// A value that was not written in one text: of a configuration, or of a query's parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// Yes or no.
    Bool(bool),
    /// A number, as it is written.
    Number(String),
    /// A text.
    Text(String),
    /// A text that is taken for a number, or for true or false, where one is wanted: that of an environment variable.
    Word(String),
    /// Several values.
    List(Vec<Given>),
    /// Values by their keys.
    Map(Vec<(String, Given)>),
}

impl Given {
    fn node(self) -> Node {
        let value = match self {
            Self::Nothing => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::Text(text),
            Self::Word(word) => Value::Word(word),
            Self::List(items) => Value::List(items.into_iter().map(Self::node).collect()),
            Self::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, given)| node::Entry {
                        at: 0,
                        key,
                        node: given.node(),
                    })
                    .collect(),
            ),
        };
        Node { at: 0, value }
    }
}

impl Document {
    /// A document that was not written as one; nothing in it has a place.
    #[must_use]
    pub fn given(origin: impl Into<String>, given: Given) -> Self {
        Self {
            origin: origin.into(),
            text: String::new(),
            root: given.node(),
        }
    }

    /// Parses `text`, which is YAML or JSON.
    ///
    /// # Errors
    /// When it is neither, is too large, or has a key twice.
    pub fn parse(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        // YAML takes nearly all JSON, but not all.
        let is_json = text.trim_start().starts_with(['{', '[']) && json::check(text).is_ok();
        let read = if is_json { json::read } else { yaml::read };
        Self::of(origin.into(), text, read)
    }

    /// Parses `text`, which is JSON.
    ///
    /// # Errors
    /// When it is not, is too large, or has a key twice.
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
                "{} bytes are too many; at most {MAX_DOCUMENT_BYTES} are read",
                text.len()
            );
            let problems = vec![Problem::new("", what)];
            return Err(Problems { origin, problems });
        }
        let root = match read(text) {
            Ok(root) => root,
            Err((at, what)) => {
                let place = at.map(|at| place(text, at));
                let problem = Problem {
                    place,
                    ..Problem::new("", what)
                };
                let problems = vec![problem];
                return Err(Problems { origin, problems });
            }
        };
        let repeats = root.repeats();
        let problems = repeats.into_iter().take(MAX_PROBLEMS);
        let problems: Vec<_> = problems
            .map(|(path, at, before)| {
                let (line, column) = place(text, before);
                let what = format!("is here twice; the first time in line {line}, column {column}");
                Problem {
                    place: Some(place(text, at)),
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

    /// Reads the document as a `T`.
    ///
    /// # Errors
    /// Everything in it that does not fit, each with its field and line.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Problems> {
        self.read_and_check(&[], |_| Vec::new())
    }

    /// Reads the document as a `T`, and checks that. So that the rest is read when a field is missing or wrong without which
    /// there is no `T`, `stand_ins` have some value for such fields, as JSON.
    ///
    /// # Errors
    /// Everything in it that does not fit, and what `check` finds, each with its field and line.
    pub fn read_and_check<T: DeserializeOwned>(
        &self,
        stand_ins: &[(&str, &str)],
        check: impl FnOnce(&T) -> Vec<Problem>,
    ) -> Result<T, Problems> {
        let mut problems = Vec::new();
        // Fields of which nothing is known, as what they have is wrong.
        let mut unknown = Vec::new();
        let mut root = self.root.clone();
        let read = loop {
            let mistake = match T::deserialize(Reader(&root)) {
                Ok(read) => break Some(read),
                Err(mistake) => mistake,
            };
            let path: Vec<_> = mistake.path.into_iter().rev().collect();
            match mistake.what {
                What::Said(what) => problems.push(Problem::new(node::field(&path), what)),
                What::Missing(missing) => {
                    let step = Step::Key(missing.to_owned());
                    let of = root.at_path(&path).and_then(|node| node.step(&step));
                    let field = node::field(path.iter().chain([&step]));
                    if !of.is_some_and(Node::is_wrong) {
                        problems.push(Problem::new(&field, "is missing"));
                    }
                    let stand_in = stand_ins.iter().find(|(of, _)| *of == field);
                    let stand_in = stand_in.and_then(|(_, json)| json::read(json).ok());
                    if let Some(stand_in) = stand_in
                        && let Some(node) = root.at_path(&path)
                    {
                        node.set(missing, stand_in);
                        unknown.push(field);
                        continue;
                    }
                }
                What::Emptied => {}
            }
            // The rest is read as if it were not there. In a list, all after it would have other numbers.
            let known = path.iter().rposition(|step| matches!(step, Step::Key(_)));
            unknown.push(node::field(&path[..known.map_or(0, |last| last + 1)]));
            match root.at_path(&path) {
                Some(node) if !path.is_empty() && problems.len() < MAX_PROBLEMS => {
                    node.value = Value::Wrong;
                }
                _ => break None,
            }
        };
        if let Some(read) = &read {
            let may_come = |problem: &Problem| unknown.iter().any(|it| problem.may_come_from(it));
            let found = check(read).into_iter();
            problems.extend(found.filter(|problem| !may_come(problem)));
        }
        match read {
            Some(read) if problems.is_empty() => Ok(read),
            _ => Err(self.locate(problems)),
        }
    }

    /// The document as JSON.
    ///
    /// # Errors
    /// When it has a number that JSON cannot hold.
    pub fn to_json(&self) -> Result<Json, Problems> {
        self.read()
    }

    /// Adds the place to problems that know their field only.
    #[must_use]
    fn locate(&self, mut problems: Vec<Problem>) -> Problems {
        for problem in &mut problems {
            problem.place = Some(place(&self.text, self.at(&problem.field)));
        }
        problems.sort_by_key(|problem| problem.place);
        Problems {
            origin: self.origin.clone(),
            problems,
        }
    }

    /// Where the field's name stands, or the item of a list; where its closest parent stands if it is missing.
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
                    // A key may have dots in it.
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

/// Line and column of a byte, from 1.
fn place(text: &str, at: usize) -> (u64, u64) {
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
            "x.yaml:4:5: list[1].ttl: \"3x\" is not a length of time; write for example \"90s\", \"15m\", \"1h 30m\" or \"2d\""
        );
        assert_eq!(
            read("name: 1\nlist: []\n"),
            "x.yaml:1:1: name: is the number 1, and must be a text: quote it (\"1\")"
        );
        assert_eq!(
            read("name: a\nlist:\n  - ttl: 5m\n    tl: 1\n"),
            "x.yaml:4:5: list[0].tl: is not a field here; there are ttl"
        );
        assert_eq!(
            read("{\n \"name\": \"a\"\n}"),
            "x.yaml:1:1: list: is missing"
        );
        assert_eq!(
            read("name: a\nname: b\n"),
            "x.yaml:2:1: name: is here twice; the first time in line 1, column 1"
        );
        for bad in ["a: [1, 2\nb: 3\n", "a: b: c", "{\"a\" 1}"] {
            assert!(read(bad).starts_with("x.yaml:"), "{}", read(bad));
        }
        assert!(read(&"x".repeat(MAX_DOCUMENT_BYTES + 1)).contains("too many"));
    }

    #[test]
    fn all_problems_are_told_at_once_and_none_that_comes_from_another() {
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
    fn what_is_written_is_what_is_sent() {
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
            assert_eq!(json(sent), sent, "once more");
        }
    }

    #[test]
    fn a_number_that_json_has_no_way_to_write_is_to_be_quoted() {
        for number in [
            "0123", "08", "-01", "00", "0x1F", "0o17", ".5", "5.", "+1", "1.e3", ".inf", "-.Inf",
            ".nan",
        ] {
            let found = json(&format!("a:\n  - b: {number}\n"));
            assert!(
                found.starts_with(&format!("x:2:5: a[0].b: {number} is a number in YAML")),
                "{found}"
            );
            assert!(
                found.contains(&format!("quote it (\"{number}\")")),
                "{found}"
            );
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
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
                "x:1:16: a.b: is here twice; the first time in line 1, column 8",
            ),
            ("a: {b: 1, b: 2}", "x:1:11: a.b: is here twice"),
            (&deep, "nested too deep"),
            (&deep_map, "nested too deep"),
            (&laughs, "repeats more than"),
            ("a: &a [*a]", "a part of"),
            ("a: 1\n---\nb: 1\n", "x:2:1: is a second document"),
            ("a: !x 1", "the tag !x is not used here"),
            ("? [1]\n: 2\n", "a key must be a text"),
            ("<<: 1", "must be a map"),
            ("[\"\\ud800\"]", "stands for no character"),
        ] {
            assert!(refused(text).contains(says), "{text}: {}", refused(text));
        }
        let json = |text: &str| Document::parse_json("x", text).unwrap_err().to_string();
        assert_eq!(json("{"), "x:1:1: is not JSON: it ends in the middle");
        assert_eq!(json("a: 1"), "x:1:1: is not JSON: expected value");
        assert_eq!(
            json("{\"a\":1,\n\"a\":2}"),
            "x:2:1: a: is here twice; the first time in line 1, column 2"
        );
    }
}
