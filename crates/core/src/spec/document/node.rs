//! The tree of a document.

use std::collections::BTreeMap;

/// Larger texts are refused unread: a rollout's spec is something that people write.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Values within values, at the most. What is stored is read by a reader that takes 128.
const MAX_DEPTH: usize = 100;

/// Why a text is not read: the byte at which that is seen, if it is known, and what.
pub(super) type Unreadable = (Option<usize>, String);

/// Refuses a value at the byte `at` that lies within too many others.
pub(super) fn check_depth(depth: usize, at: usize) -> Result<(), Unreadable> {
    if depth > MAX_DEPTH {
        let what = format!("is nested too deep; at most {MAX_DEPTH} levels are read");
        return Err((Some(at), what));
    }
    Ok(())
}

/// A value, and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The byte of the text.
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As it is written, which JSON has the same way.
    Number(String),
    /// As it is written in YAML, for which JSON has no such way: `0123`, `0x1F`, `.5`.
    OddNumber(String),
    Text(String),
    /// A text that may be meant as a number or a yes or no: that of an environment variable.
    Word(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Was wrong, which has been told: as if it were not there.
    Wrong,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Where the key begins.
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) node: Node,
}

/// A step from a value to one within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// What is wrong with a value: the steps to it from inside out, and what.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) path: Vec<Step>,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Said(String),
    /// A field is needed. If it was wrong, that has been told.
    Missing(&'static str),
    /// Nothing is left of it, because what it had was wrong.
    Emptied,
}

impl Mistake {
    pub(super) fn said(what: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            what: What::Said(what.into()),
        }
    }

    pub(super) fn within(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

/// The name of a field: `target.exclude[1].tags`.
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
            Value::Null | Value::Wrong => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => out.push_str(number),
            Value::OddNumber(number) => return Err(odd(number)),
            Value::Text(text) | Value::Word(text) => write_text(text, out),
            Value::List(items) => {
                out.push('[');
                let items = items
                    .iter()
                    .enumerate()
                    .filter(|(_, item)| !item.is_wrong());
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
                let entries = entries.iter().filter(|entry| !entry.node.is_wrong());
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

    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.value, Value::Wrong)
    }

    /// The value a step further.
    pub(super) fn step(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::List(items), Step::Item(index)) => items.get(*index),
            (Value::Map(_), Step::Key(key)) => self.get(key),
            _ => None,
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        let mut entries = entries.iter();
        entries.find(|entry| entry.key == key).map(|it| &it.node)
    }

    /// Gives a key of a map another value.
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

    /// The value at the end of a path.
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

    /// Every key that a map within has twice: its path, and where it is again and was before.
    pub(super) fn repeats(&self) -> Vec<(Vec<Step>, usize, usize)> {
        let mut found = Vec::new();
        self.find_repeats(&mut Vec::new(), &mut found);
        found
    }

    fn find_repeats(&self, path: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, usize, usize)>) {
        match &self.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Item(index));
                    item.find_repeats(path, found);
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
                    entry.node.find_repeats(path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

/// Why a number of YAML is not taken.
pub(super) fn odd(number: &str) -> Mistake {
    Mistake::said(format!(
        "{number} is a number in YAML, and could not be sent as it is written: quote it (\"{number}\") if it is a text, \
         else write it in plain decimal digits"
    ))
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a text is JSON"));
}
