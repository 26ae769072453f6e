//! Parses JSON into the tree of a document.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::node::{Entry, Node, Unreadable, Value, check_depth};

/// Checks whether a text is JSON, regardless of the content.
pub(super) fn check(text: &str) -> Result<(), Unreadable> {
    let checked: Result<IgnoredAny, _> = serde_json::from_str(text);
    checked.map(drop).map_err(|error| {
        let line = text.split_inclusive('\n').take(error.line().max(1) - 1);
        let at = line.map(str::len).sum::<usize>() + error.column().max(1) - 1;
        let words = error.to_string();
        let words = match error.is_eof() {
            true => "it ends too early",
            false => words.rsplit_once(" at line ").map_or(&*words, |it| it.0),
        };
        (Some(at), format!("is not JSON: {words}"))
    })
}

/// Reads a valid JSON text.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|_| (None, "is not JSON".into()))?;
    node(text, whole, 0)
}

fn node(text: &str, raw: &RawValue, depth: usize) -> Result<Node, Unreadable> {
    // Borrowed values lie within the text.
    let at = |raw: &RawValue| raw.get().as_ptr() as usize - text.as_ptr() as usize;
    let own = at(raw);
    check_depth(depth, own)?;
    // Parsing the whole text has found all other problems before.
    let bad_text = |at| {
        let what = "has an escape such as \\ud800 that is not a character";
        move |_: serde_json::Error| (Some(at), what.to_owned())
    };
    let written = raw.get();
    let value = match written.as_bytes().first() {
        Some(b'{') => {
            let Entries(found) = serde_json::from_str(written).map_err(bad_text(own))?;
            let mut entries = Vec::with_capacity(found.len());
            for (key, value) in found {
                entries.push(Entry {
                    at: at(key),
                    key: serde_json::from_str(key.get()).map_err(bad_text(at(key)))?,
                    node: node(text, value, depth + 1)?,
                });
            }
            Value::Map(entries)
        }
        Some(b'[') => {
            let found: Vec<&RawValue> = serde_json::from_str(written).map_err(bad_text(own))?;
            let items = found.into_iter().map(|raw| node(text, raw, depth + 1));
            Value::List(items.collect::<Result<_, _>>()?)
        }
        Some(b'"') => Value::Text(serde_json::from_str(written).map_err(bad_text(own))?),
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'n') => Value::Null,
        _ => Value::Number(written.to_owned()),
    };
    Ok(Node { at: own, value })
}

/// The keys and values of an object as written, including duplicate keys.
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Each)
    }
}
