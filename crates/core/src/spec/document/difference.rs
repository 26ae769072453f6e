//! The differences between two documents.

use super::json;
use super::node::{Node, Value};
use crate::json::Json;

/// Returns the differences between two specs, with a line per field:
/// `message.ttl: "1h" became "2h"`.
#[must_use]
pub fn difference(old: &Json, new: &Json) -> Vec<String> {
    let mut lines = Vec::new();
    let read = |it: &Json| json::read(it.as_str());
    if let (Ok(old), Ok(new)) = (read(old), read(new)) {
        differ("", &old, &new, &mut lines);
    } else if old != new {
        lines.push(format!(
            "{} became {}",
            brief(old.as_str()),
            brief(new.as_str())
        ));
    }
    lines
}

fn differ(path: &str, old: &Node, new: &Node, lines: &mut Vec<String>) {
    let (Value::Map(a), Value::Map(b)) = (&old.value, &new.value) else {
        if !is_same(old, new) {
            lines.push(format!("{path}: {} became {}", shown(old), shown(new)));
        }
        return;
    };
    let is_in = |key: &str, node: &Node| node.get(key).is_some();
    let added = b.iter().filter(|entry| !is_in(&entry.key, old));
    for entry in a.iter().chain(added) {
        let key = &entry.key;
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match (old.get(key), new.get(key)) {
            (Some(x), Some(y)) => differ(&path, x, y, lines),
            (Some(x), None) => lines.push(format!("{path}: {} was removed", shown(x))),
            (None, Some(y)) => lines.push(format!("{path}: {} was added", shown(y))),
            (None, None) => {}
        }
    }
}

/// Returns whether two values are the same, regardless of the order of map keys.
fn is_same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Map(x), Value::Map(y)) => {
            let is_in_b = |key, a| b.get(key).is_some_and(|b| is_same(a, b));
            x.len() == y.len() && x.iter().all(|it| is_in_b(&it.key, &it.node))
        }
        _ => text(a) == text(b),
    }
}

fn text(node: &Node) -> String {
    let mut text = String::new();
    // Every number from JSON can be written as JSON.
    _ = node.write(&mut text);
    text
}

fn shown(node: &Node) -> String {
    brief(&text(node))
}

fn brief(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(57).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::from_text(text.to_owned()).unwrap()
    }

    #[test]
    fn differences_are_reported_by_field() {
        let old = json(r#"{"a": {"b": 1, "c": 2}, "d": [1], "f": 1.10, "g": [{"x": 1, "y": 2}]}"#);
        let new = json(r#"{"f": 1.1, "a": {"b": 3}, "d": [1], "e": "x", "g": [{"y": 2, "x": 1}]}"#);
        assert_eq!(
            difference(&old, &new),
            [
                "a.b: 1 became 3",
                "a.c: 2 was removed",
                "f: 1.10 became 1.1",
                "e: \"x\" was added"
            ]
        );
        assert!(difference(&old, &old).is_empty());
    }
}
