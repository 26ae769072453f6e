//! What the types of a spec cannot say.

use std::collections::BTreeSet;
use std::time::Duration;

use super::document::Problem;
use super::{Exclusion, NoContent, RolloutSpec, Target};
use crate::query::{MAX_QUERY_CHARS, OneOrMany, TagSelector};

/// The largest message that a hub takes from the cloud to a device: 64 KiB with its properties
/// (reference: quotas and throttling, "cloud-to-device messages").
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// The longest time to live (`iot-hub-devguide-messages-c2d`).
pub const MAX_TTL: Duration = Duration::from_secs(48 * 3600);
/// The shortest time to live that a hub's own setting takes; shorter ones expire on the way.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// More devices belong into a file.
pub const MAX_DEVICES_INLINE: usize = 10_000;

/// The largest share of a hub, compared with the smallest.
pub const MAX_WEIGHT: u32 = 100;

/// Everything that is wrong with a spec whose every value is of the right type.
pub(super) fn problems_of(spec: &RolloutSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    target(&spec.target, &mut problems);
    for (index, rule) in spec.target.exclude.iter().enumerate() {
        exclusion(index, rule, &mut problems);
    }
    let mut seen = BTreeSet::new();
    for (index, path) in spec.batch_by.iter().enumerate() {
        if !seen.insert(path) {
            problems.push(Problem::new(
                format!("batch_by[{index}]"),
                format!("tag {path} is named twice"),
            ));
        }
    }
    if spec.batch_by.len() > 8 {
        problems.push(Problem::new(
            "batch_by",
            format!("{} tags are too many; at most 8", spec.batch_by.len()),
        ));
    }
    if !(1..=MAX_WEIGHT).contains(&spec.weight) {
        problems.push(Problem::new(
            "weight",
            format!("is {}; from 1 to {MAX_WEIGHT} is allowed", spec.weight),
        ));
    }
    message(spec, &mut problems);
    let condition = spec.condition().chars().count();
    if condition > MAX_QUERY_CHARS - 1024 {
        problems.push(Problem::new(
            "target",
            format!("the query's condition would have {condition} characters; at most {} leave room for the rest of it", MAX_QUERY_CHARS - 1024),
        ));
    }
    problems
}

fn target(target: &Target, problems: &mut Vec<Problem>) {
    let by_query = !target.tags.is_empty() || target.condition.is_some();
    let ways = [
        by_query,
        !target.devices.is_empty(),
        target.devices_file.is_some(),
        target.all,
    ];
    match ways.iter().filter(|way| **way).count() {
        0 => problems.push(Problem::new(
            "target",
            "says no devices; give tags, where, devices, devices_file, or `all: true` for every device",
        )),
        1 => {}
        _ => problems.push(Problem::new(
            "target",
            "says its devices in more than one way; give one of: tags and/or where, devices, devices_file, all",
        )),
    }
    selector("target.tags", &target.tags, problems);
    if target
        .condition
        .as_ref()
        .is_some_and(|c| c.trim().is_empty())
    {
        problems.push(Problem::new(
            "target.where",
            "is empty; leave it out, or say `all: true` for every device",
        ));
    }
    if target.devices.len() > MAX_DEVICES_INLINE {
        problems.push(Problem::new(
            "target.devices",
            format!("{} ids are too many here; at most {MAX_DEVICES_INLINE}, put more into a devices_file", target.devices.len()),
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, hub) in target.hubs.iter().enumerate() {
        if !seen.insert(hub) {
            problems.push(Problem::new(
                format!("target.hubs[{index}]"),
                format!("hub {hub} is named twice"),
            ));
        }
    }
}

fn exclusion(index: usize, rule: &Exclusion, problems: &mut Vec<Problem>) {
    let field = format!("target.exclude[{index}]");
    let ways = [
        !rule.tags.is_empty(),
        !rule.devices.is_empty(),
        rule.devices_file.is_some(),
    ];
    if ways.iter().filter(|way| **way).count() != 1 {
        problems.push(Problem::new(
            &field,
            "must have exactly one of tags, devices and devices_file",
        ));
    }
    selector(&format!("{field}.tags"), &rule.tags, problems);
}

fn selector(field: &str, tags: &TagSelector, problems: &mut Vec<Problem>) {
    for (path, values) in tags {
        if matches!(values, OneOrMany::Many(values) if values.is_empty()) {
            problems.push(Problem::new(
                format!("{field}.{path}"),
                "is an empty list, which no device matches",
            ));
        }
    }
}

fn message(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    let message = &spec.message;
    if let Some(ttl) = message.ttl
        && !(MIN_TTL..=MAX_TTL).contains(&ttl.0)
    {
        problems.push(Problem::new(
            "message.ttl",
            format!("{ttl} is out of bounds; the hub takes 1m to 2d"),
        ));
    }
    for key in message.properties.keys() {
        let allowed = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-^_`|~.".contains(&b));
        let field = format!("message.properties.{key}");
        if !allowed {
            problems.push(Problem::new(&field, format!("{key:?} is not a property name; allowed are letters, digits and !#$%&'*+-^_`|~.")));
        } else if key.to_ascii_lowercase().starts_with("iothub-") {
            problems.push(Problem::new(
                &field,
                "names that start with \"iothub-\" are the hub's own; for feedback use message.ack",
            ));
        }
    }
    for (field, value) in [
        ("message.content_type", &message.content_type),
        ("message.content_encoding", &message.content_encoding),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_ascii()) {
            problems.push(Problem::new(field, "must be ASCII"));
        }
    }
    match message.content() {
        Ok(content) if content.size() > MAX_MESSAGE_BYTES => problems.push(Problem::new(
            "message",
            format!(
                "body, properties and content fields have {} bytes; a hub takes at most {MAX_MESSAGE_BYTES}",
                content.size()
            ),
        )),
        // A body in a file is checked once the file is read.
        Ok(_) | Err(NoContent::File(_)) => {}
        Err(NoContent::Base64(error)) => {
            problems.push(Problem::new("message.body.base64", format!("is not base64: {error}")));
        }
    }
}
