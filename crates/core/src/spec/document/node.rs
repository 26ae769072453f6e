//! The tree of a document.

use std::collections::BTreeMap;

/// The maximum size of a document. Larger texts are refused unread, because a rollout's spec is
/// written by people.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// The maximum nesting depth. Stored values are read by a parser with a limit of 128.
const MAX_DEPTH: usize = 100;

/// The reason why a text cannot be read: the position in bytes, if known, and a description.
pub(super) type Unreadable = (Option<usize>, String);

/// Refuses the value at byte `at`, if the value is nested too deep.
pub(super) fn check_depth(depth: usize, at: usize) -> Result<(), Unreadable> {
    if depth > MAX_DEPTH {
        let what = format!("is nested too deeply; at most {MAX_DEPTH} levels are allowed");
        return Err((Some(at), what));
    }
    Ok(())
}

/// A value with the start position.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The position in the text, in bytes.
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number as written, in a form valid in JSON.
    Number(String),
    /// A number as written in YAML, in a form not valid in JSON: `0123`, `0x1F`, `.5`.
    YamlNumber(String),
    Text(String),
    /// A text from an environment variable or a query parameter, possibly a number, or true or
    /// false.
    UntypedText(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// An invalid value, already reported. Counts as absent.
    Invalid,
}

/// A key with the value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The start of the key.
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) node: Node,
}

/// A step from a value to a nested value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// A problem of a value: the steps to the value from the inside out, and a description.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) path: Vec<Step>,
    pub(super) kind: MistakeKind,
}

#[derive(Debug)]
pub(super) enum MistakeKind {
    Message(String),
    /// A required field is missing. If the field was invalid, the problem is already reported.
    Missing(&'static str),
    /// Nothing is left of the value, because its content was invalid.
    Emptied,
}

impl Mistake {
    pub(super) fn message(text: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            kind: MistakeKind::Message(text.into()),
        }
    }

    pub(super) fn within(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

/// Returns the name of a field: `target.exclude[1].tags`.
pub(super) fn field<'a>(path: impl IntoIterator<Item = &'a Step>) -> String {
    let mut field = String::new();
    for step in path {
        match step {
            Step::Key(key) if field.is_empty() => field.push_str(key),
            Step::Key(key) => field.extend([".", key]),
            Step::Item(index) => field.push_str(&format!("[{index}]")),
        }
    }
    field
}

impl Node {
    /// Writes the value as compact JSON.
    pub(super) fn write(&self, out: &mut String) -> Result<(), Mistake> {
        match &self.value {
            Value::Null | Value::Invalid => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => out.push_str(number),
            Value::YamlNumber(number) => return Err(not_json_number(number)),
            Value::Text(text) | Value::UntypedText(text) => write_text(text, out),
            Value::List(items) => {
                out.push('[');
                let items = items
                    .iter()
                    .enumerate()
                    .filter(|(_, item)| !item.is_invalid());
                for (nth, (index, item)) in items.enumerate() {
                    if nth > 0 {
                        out.push(',');
                    }
                    item.write(out).map_err(|it| it.within(Step::Item(index)))?;
                }
                out.push(']');
            }
            Value::Map(entries) => {
                out.push('{');
                let entries = entries.iter().filter(|entry| !entry.node.is_invalid());
                for (nth, entry) in entries.enumerate() {
                    if nth > 0 {
                        out.push(',');
                    }
                    write_text(&entry.key, out);
                    out.push(':');
                    let step = || Step::Key(entry.key.clone());
                    entry.node.write(out).map_err(|it| it.within(step()))?;
                }
                out.push('}');
            }
        }
        Ok(())
    }

    pub(super) fn is_invalid(&self) -> bool {
        matches!(self.value, Value::Invalid)
    }

    /// Returns the nested value after a step.
    pub(super) fn step(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::List(items), Step::Item(index)) => items.get(*index),
            (Value::Map(_), Step::Key(key)) => self.get(key),
            _ => None,
        }
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        let mut entries = entries.iter();
        entries.find(|entry| entry.key == key).map(|it| &it.node)
    }

    /// Sets the value of a key in a map.
    pub(super) fn set(&mut self, key: &str, node: Self) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|entry| entry.key != key);
            let key = key.to_owned();
            entries.push(Entry {
                at: self.at,
                key,
                node,
            });
        }
    }

    /// Returns the value at the end of a path.
    pub(super) fn at_path(&mut self, path: &[Step]) -> Option<&mut Self> {
        let Some((step, rest)) = path.split_first() else {
            return Some(self);
        };
        let next = match (&mut self.value, step) {
            (Value::List(items), Step::Item(index)) => items.get_mut(*index),
            (Value::Map(entries), Step::Key(key)) => {
                let mut entries = entries.iter_mut();
                entries
                    .find(|entry| entry.key == *key)
                    .map(|it| &mut it.node)
            }
            _ => None,
        };
        next?.at_path(rest)
    }

    /// Returns every duplicate key of a nested map: the path, the position of the repetition, and
    /// the position of the first key.
    pub(super) fn duplicate_keys(&self) -> Vec<(Vec<Step>, usize, usize)> {
        let mut found = Vec::new();
        self.find_duplicate_keys(&mut Vec::new(), &mut found);
        found
    }

    fn find_duplicate_keys(
        &self,
        path: &mut Vec<Step>,
        found: &mut Vec<(Vec<Step>, usize, usize)>,
    ) {
        match &self.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Item(index));
                    item.find_duplicate_keys(path, found);
                    path.pop();
                }
            }
            Value::Map(entries) => {
                let mut seen = BTreeMap::new();
                for entry in entries {
                    path.push(Step::Key(entry.key.clone()));
                    match seen.get(&entry.key) {
                        Some(before) => found.push((path.clone(), entry.at, *before)),
                        None => drop(seen.insert(&entry.key, entry.at)),
                    }
                    entry.node.find_duplicate_keys(path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

/// Returns the error for a number of YAML without a JSON form.
pub(super) fn not_json_number(number: &str) -> Mistake {
    Mistake::message(format!(
        "{number} is a YAML number without an exact JSON form: quote it (\"{number}\") if it is a \
         text, otherwise write plain decimal digits"
    ))
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a text is JSON"));
}
