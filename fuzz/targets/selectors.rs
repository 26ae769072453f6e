//! Tags and ids as conditions of a query: the emulator reads the conditions written by the core,
//! and both select the same devices.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use serde_json::{Map, Value, json};
use twincast_core::query::{
    OneOrMany, TagPath, TagSelector, TagValue, matches, matching, not_matching, write_text_literal,
};
use twincast_emulator::fuzzing::meets;

#[derive(Debug, Arbitrary)]
enum AnyValue {
    Bool(bool),
    Int(i64),
    Small(i8),
    Float(f64),
    Text(String),
}

#[derive(Debug, Arbitrary)]
struct Case {
    device: String,
    tags: Vec<(String, AnyValue)>,
    wanted: Vec<(String, Vec<AnyValue>)>,
    one: bool,
}

impl AnyValue {
    fn wanted(&self) -> TagValue {
        match self {
            Self::Bool(value) => TagValue::Bool(*value),
            Self::Int(value) => TagValue::Int(*value),
            Self::Small(value) => TagValue::Int((*value).into()),
            Self::Float(value) => TagValue::Float(if value.is_finite() { *value } else { 0.5 }),
            Self::Text(text) => TagValue::Text(text.clone()),
        }
    }

    fn found(&self) -> Value {
        serde_json::to_value(self.wanted()).expect("a value")
    }
}

twincast_fuzz::bytes!(|input| {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(input)) else {
        return;
    };
    let tags = case
        .tags
        .iter()
        .map(|(name, value)| (name.clone(), value.found()));
    let tags: Map<String, Value> = tags.collect();
    let twin = json!({ "deviceId": case.device, "tags": tags });
    same_device(&case.device, &twin);
    let mut selector = TagSelector::new();
    for (path, values) in &case.wanted {
        let Ok(path) = TagPath::new(path.clone()) else {
            continue;
        };
        let mut values: Vec<_> = values.iter().map(AnyValue::wanted).collect();
        let values = match values.pop() {
            None => continue,
            Some(one) if case.one => OneOrMany::One(one),
            Some(last) => {
                values.push(last);
                OneOrMany::Many(values)
            }
        };
        selector.insert(path, values);
    }
    same_tags(&selector, &twin);
});

/// Asserts that the literal of an id means this id only.
fn same_device(device: &str, twin: &Value) {
    let mut query = "SELECT * FROM devices WHERE deviceId = ".to_owned();
    write_text_literal(device, &mut query);
    if query.chars().count() <= 8192 {
        assert_eq!(meets(&query, twin), Ok(true), "{query}");
        let other = json!({ "deviceId": format!("{device}x") });
        assert_eq!(meets(&query, &other), Ok(false), "{query}");
    }
}

fn same_tags(selector: &TagSelector, twin: &Value) {
    if selector.is_empty() {
        return;
    }
    let tag = |path: &TagPath| {
        let mut steps = path.as_str().split('.');
        steps.try_fold(&twin["tags"], |value, step| value.get(step))
    };
    let expected = matches(selector, tag);
    for (condition, expected) in [
        (matching(selector), expected),
        (not_matching(selector), !expected),
    ] {
        let query = format!("SELECT * FROM devices WHERE {condition}");
        if query.chars().count() <= 8192 {
            assert_eq!(meets(&query, twin), Ok(expected), "{query} of {twin}");
        }
    }
}
