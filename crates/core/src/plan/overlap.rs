//! Checks whether two rollouts may send to the same devices.

use std::collections::BTreeSet;

use crate::ids::DeviceId;
use crate::query::{OneOrMany, TagPath, TagSelector, TagValue};
use crate::spec::RolloutSpec;

/// The overlap of two targets on their common hubs, judged from the specs alone. A raw `where`
/// condition is not interpreted and a list in a file is not read: such targets count as possibly
/// overlapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlap {
    /// No device can be in both targets.
    Disjoint {
        /// The reason, for people.
        reason: String,
    },
    /// Some devices may be in both targets.
    Possible,
    /// Both specs select the devices in the same way.
    Same,
}

/// Compares two targets without their hubs.
#[must_use]
pub fn overlap(one: &RolloutSpec, other: &RolloutSpec) -> Overlap {
    if let Some(reason) = disjoint_reason(one, other) {
        return Overlap::Disjoint { reason };
    }
    let chosen = |spec: &RolloutSpec| (spec.selected(), spec.target.devices.clone());
    let in_files = one.target.devices_file.is_some() || other.target.devices_file.is_some();
    if !in_files && chosen(one) == chosen(other) && one.target.exclude == other.target.exclude {
        return Overlap::Same;
    }
    Overlap::Possible
}

fn disjoint_reason(one: &RolloutSpec, other: &RolloutSpec) -> Option<String> {
    let (a, b) = (&one.target, &other.target);
    if !a.devices.is_empty() && !b.devices.is_empty() {
        let listed: BTreeSet<&DeviceId> = a.devices.iter().collect();
        if !b.devices.iter().any(|device| listed.contains(device)) {
            return Some("their lists have no device in common".to_owned());
        }
    }
    let unlike = a.tags.iter().find(|(path, values)| {
        b.tags
            .get(*path)
            .is_some_and(|others| !share_a_value(values, others))
    });
    if let Some((path, _)) = unlike {
        return Some(format!("they select different values of tag {path}"));
    }
    let leaves_out = |spec: &RolloutSpec, tags: &TagSelector| {
        let mut rules = spec.target.exclude.iter();
        rules.any(|rule| !rule.tags.is_empty() && rule.tags.iter().all(|it| implies(tags, it)))
    };
    if leaves_out(one, &b.tags) || leaves_out(other, &a.tags) {
        return Some("one excludes the tags that the other selects".to_owned());
    }
    None
}

/// Returns whether every device that matches `tags` has an allowed value.
fn implies(tags: &TagSelector, (path, values): (&TagPath, &OneOrMany)) -> bool {
    let Some(selected) = tags.get(path) else {
        return false;
    };
    let allowed = each(values);
    each(selected).iter().all(|value| {
        let mut allowed = allowed.iter();
        allowed.any(|other| is_same(value, other))
    })
}

fn share_a_value(some: &OneOrMany, others: &OneOrMany) -> bool {
    let others = each(others);
    each(some).iter().any(|value| {
        let mut others = others.iter();
        others.any(|other| is_same(value, other))
    })
}

fn each(values: &OneOrMany) -> Vec<&TagValue> {
    match values {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values.iter().collect(),
    }
}

/// Compares like the hub: numbers by value, in any notation.
fn is_same(one: &TagValue, other: &TagValue) -> bool {
    match (one, other) {
        (TagValue::Int(a), TagValue::Float(b)) | (TagValue::Float(b), TagValue::Int(a)) => {
            *a as f64 == *b
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(target: &str) -> RolloutSpec {
        let text = format!("{{name: a, target: {{{target}}}, message: {{body: {{text: x}}}}}}");
        RolloutSpec::read("x", &text).unwrap()
    }

    #[test]
    fn overlap_follows_target_definitions() {
        for (one, other, expected) in [
            ("all: true", "all: true", "same"),
            ("all: true", "tags: {ring: a}", "possible"),
            ("tags: {ring: a}", "tags: {ring: a}", "same"),
            ("tags: {ring: a}", "tags: {ring: b}", "tag ring"),
            ("tags: {ring: [a, b]}", "tags: {ring: [b, c]}", "possible"),
            ("tags: {ring: [a, b]}", "tags: {ring: [c, d]}", "tag ring"),
            ("tags: {ring: a}", "tags: {type: x}", "possible"),
            ("tags: {n: [5, 6]}", "tags: {n: 5.0}", "possible"),
            ("tags: {n: 5}", "tags: {n: '5'}", "tag n"),
            (
                "tags: {ring: a}",
                "tags: {ring: a}, where: tags.x = 1",
                "possible",
            ),
            ("where: tags.x = 1", "where: tags.x = 2", "possible"),
            ("devices: [a, b]", "devices: [c]", "lists"),
            ("devices: [a, b]", "devices: [b]", "possible"),
            ("devices: [a]", "devices: [a]", "same"),
            ("devices_file: x", "devices_file: x", "possible"),
            ("devices: [a]", "tags: {ring: a}", "possible"),
            (
                "all: true, exclude: [{tags: {ring: [a, b]}}]",
                "tags: {ring: a}",
                "excludes",
            ),
            (
                "tags: {ring: a}",
                "all: true, exclude: [{tags: {ring: a}}]",
                "excludes",
            ),
            (
                "all: true, exclude: [{tags: {ring: a, vip: true}}]",
                "tags: {ring: a}",
                "possible",
            ),
            (
                "all: true, exclude: [{tags: {ring: a}}]",
                "tags: {ring: [a, b]}",
                "possible",
            ),
            (
                "all: true, exclude: [{devices: [a]}]",
                "devices: [a]",
                "possible",
            ),
        ] {
            let found = overlap(&spec(one), &spec(other));
            let said = match &found {
                Overlap::Disjoint { reason } => reason.as_str(),
                Overlap::Possible => "possible",
                Overlap::Same => "same",
            };
            assert!(said.contains(expected), "{one} / {other}: {said}");
            let other_way = overlap(&spec(other), &spec(one));
            assert_eq!(
                std::mem::discriminant(&found),
                std::mem::discriminant(&other_way)
            );
        }
    }
}
