//! `/twins/{id}`.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{ApiError, json_response};
use super::serve::{Answer, Call};
use crate::fleet::{DeviceRecord, etag_of};

const TAGS_BYTES_MAX: usize = 8 * 1024;
const DESIRED_BYTES_MAX: usize = 32 * 1024;
const DEPTH_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// How an update treats what it does not mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It stays; null deletes.
    Merge,
    /// It goes.
    Replace,
}

/// The parts of a twin that a service may change.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TwinPatch {
    tags: Option<Map<String, Value>>,
    properties: PropertiesPatch,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PropertiesPatch {
    desired: Option<Map<String, Value>>,
}

/// Answers with a twin.
pub(crate) fn get(call: &Call, id: &str) -> Answer {
    let registry = call.hub.registry();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let record = registry
        .record(number)
        .ok_or_else(|| ApiError::not_found(id))?;
    Ok(with_etag(
        &call.hub.twin_of(&registry, number, &record),
        record.version,
    ))
}

/// Changes a twin and answers with it.
pub(crate) fn update(call: &Call, id: &str, manner: Manner) -> Answer {
    let patch: TwinPatch = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::bad_request(format!("the body is not a twin: {error}")))?;
    let mut registry = call.hub.registry_mut();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let mut record = registry
        .record(number)
        .ok_or_else(|| ApiError::not_found(id))?;
    check_match(&call.headers, record.version)?;
    patch.apply(&mut record, manner)?;
    let changed = record.clone();
    registry.change(number, |stored| *stored = changed);
    Ok(with_etag(
        &call.hub.twin_of(&registry, number, &record),
        record.version,
    ))
}

impl TwinPatch {
    /// Changes a record, unless the result would break the hub's limits.
    pub(crate) fn apply(self, record: &mut DeviceRecord, manner: Manner) -> Result<(), ApiError> {
        let (mut tags, mut desired) = match manner {
            Manner::Merge => (record.tags.clone(), record.desired.clone()),
            Manner::Replace => (Map::new(), Map::new()),
        };
        let changes_desired = self.properties.desired.is_some() || manner == Manner::Replace;
        merge(&mut tags, self.tags.unwrap_or_default());
        let mut wanted = self.properties.desired.unwrap_or_default();
        // A twin that was read and is written back carries these.
        wanted.retain(|key, _| !matches!(key.as_str(), "$metadata" | "$version"));
        merge(&mut desired, wanted);
        check("tags", &tags, TAGS_BYTES_MAX)?;
        check("desired properties", &desired, DESIRED_BYTES_MAX)?;
        record.tags = tags;
        record.desired = desired;
        record.version += 1;
        record.desired_version += u64::from(changes_desired);
        Ok(())
    }
}

/// Merges as the hub does: objects into each other, null deletes, all else replaces.
pub(crate) fn merge(into: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                into.shift_remove(&key);
            }
            Value::Object(patch) => {
                let slot = into.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(inner) = slot {
                    merge(inner, patch);
                }
            }
            value => {
                into.insert(key, value);
            }
        }
    }
}

fn check(what: &str, values: &Map<String, Value>, bytes_max: usize) -> Result<(), ApiError> {
    let size = serde_json::to_vec(values).map_or(usize::MAX, |json| json.len());
    if size > bytes_max {
        return Err(ApiError::bad_request(format!(
            "the {what} have {size} bytes; at most {bytes_max} are allowed"
        )));
    }
    check_depth(what, values, 1)
}

fn check_depth(what: &str, values: &Map<String, Value>, depth: usize) -> Result<(), ApiError> {
    if depth > DEPTH_MAX {
        return Err(ApiError::bad_request(format!(
            "the {what} nest deeper than {DEPTH_MAX}"
        )));
    }
    for (key, value) in values {
        let bad = |c: char| c.is_control() || matches!(c, '.' | '$' | '#' | ' ');
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(bad) {
            return Err(ApiError::bad_request(format!(
                "'{key}' in the {what} is not an allowed name"
            )));
        }
        match value {
            Value::Object(inner) => check_depth(what, inner, depth + 1)?,
            Value::String(text) if text.len() > TEXT_BYTES_MAX => {
                return Err(ApiError::bad_request(format!(
                    "'{key}' in the {what} is longer than 4 KB"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks `If-Match` against a version. No header, or `*`, matches everything.
pub(crate) fn check_match(headers: &HeaderMap, version: u64) -> Result<(), ApiError> {
    let Some(wanted) = headers.get(header::IF_MATCH) else {
        return Ok(());
    };
    let wanted = wanted.to_str().unwrap_or_default().trim().trim_matches('"');
    if wanted == "*" || wanted == etag_of(version) {
        Ok(())
    } else {
        Err(ApiError::precondition(format!(
            "the ETag '{wanted}' is not the current one"
        )))
    }
}

/// A document with its ETag.
pub(crate) fn with_etag(
    document: &Value,
    version: u64,
) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let mut response = json_response(StatusCode::OK, document);
    if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", etag_of(version))) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(into: &Value, patch: &Value) -> Value {
        let mut into = into.as_object().unwrap().clone();
        merge(&mut into, patch.as_object().unwrap().clone());
        Value::Object(into)
    }

    #[test]
    fn a_patch_merges_and_null_deletes() {
        let before = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": 4});
        let patch = json!({"a": null, "b": {"c": 5, "d": null}, "e": {"f": 6}, "g": null});
        assert_eq!(
            merged(&before, &patch),
            json!({"b": {"c": 5}, "e": {"f": 6}})
        );
    }

    #[test]
    fn limits_are_kept() {
        let check_tags = |value: Value| check("tags", value.as_object().unwrap(), TAGS_BYTES_MAX);
        assert!(check_tags(json!({"a": "x"})).is_ok());
        assert!(check_tags(json!({"a.b": 1})).is_err());
        assert!(check_tags(json!({"$a": 1})).is_err());
        assert!(check_tags(json!({"a": "x".repeat(5000)})).is_err());
        let mut deep = json!(1);
        for _ in 0..11 {
            deep = json!({ "a": deep });
        }
        assert!(check_tags(deep).is_err());
    }
}
