//! `/twins/{id}`.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{ApiError, json_response};
use super::serve::{Answer, Call};
use crate::fleet::{
    DESIRED_BYTES_MAX, DeviceRecord, Stamp, TAGS_BYTES_MAX, check_section, etag_of, merge, touch,
};

/// How an update treats values missing in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpdateMode {
    /// Missing values stay; null deletes a value.
    Merge,
    /// Missing values are deleted.
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

/// Changes a twin and answers with the new twin.
pub(crate) fn update(call: &Call, id: &str, mode: UpdateMode) -> Answer {
    let patch: TwinPatch = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::bad_request(format!("the body is not a twin: {error}")))?;
    let mut registry = call.hub.registry_mut();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let mut record = registry
        .record(number)
        .ok_or_else(|| ApiError::not_found(id))?;
    check_match(&call.headers, record.version)?;
    let changed = patch.apply(&mut record, mode, call.hub.now_ms())?;
    registry.put(record.clone());
    if let Some(changed) = changed {
        // Under the registry's lock, so that devices receive changes in order.
        call.hub
            .push_desired(number, &changed, record.desired_version);
    }
    Ok(with_etag(
        &call.hub.twin_of(&registry, number, &record),
        record.version,
    ))
}

impl TwinPatch {
    /// Changes a record at `now_ms`, if the result keeps the hub's limits. Returns the patch for
    /// the device if the desired properties change: a replacement sets missing properties to null.
    pub(crate) fn apply(
        self,
        record: &mut DeviceRecord,
        mode: UpdateMode,
        now_ms: u64,
    ) -> Result<Option<Map<String, Value>>, ApiError> {
        let replaces = mode == UpdateMode::Replace;
        let (mut tags, mut desired) = if replaces {
            (Map::new(), Map::new())
        } else {
            (record.tags.clone(), record.desired.clone())
        };
        let changes_desired = self.properties.desired.is_some() || replaces;
        merge(&mut tags, self.tags.unwrap_or_default());
        let mut requested = self.properties.desired.unwrap_or_default();
        // Present in a twin that a client has read and writes back.
        requested.retain(|key, _| !matches!(key.as_str(), "$metadata" | "$version"));
        merge(&mut desired, requested.clone());
        check_section("tags", &tags, TAGS_BYTES_MAX)
            .and_then(|()| check_section("desired properties", &desired, DESIRED_BYTES_MAX))
            .map_err(ApiError::bad_request)?;
        let mut patch = requested.clone();
        if replaces {
            let removed = record
                .desired
                .keys()
                .filter(|key| !requested.contains_key(*key));
            patch.extend(removed.map(|key| (key.clone(), Value::Null)));
        }
        record.tags = tags;
        record.desired = desired;
        record.version += 1;
        if changes_desired {
            record.desired_version += 1;
            if replaces {
                record.desired_metadata.clear();
            }
            let stamp = Stamp {
                at_ms: now_ms,
                version: Some(record.desired_version),
            };
            touch(&mut record.desired_metadata, &requested, stamp);
        }
        Ok(changes_desired.then_some(patch))
    }
}

/// Checks `If-Match` against a version. A missing header and `*` match every version.
pub(crate) fn check_match(headers: &HeaderMap, version: u64) -> Result<(), ApiError> {
    let Some(if_match) = headers.get(header::IF_MATCH) else {
        return Ok(());
    };
    let if_match = if_match.to_str().unwrap_or_default();
    if if_match.split(',').any(|etag| is_current(etag, version)) {
        Ok(())
    } else {
        Err(ApiError::precondition(format!(
            "the ETag {if_match} is not the current one"
        )))
    }
}

/// Whether an entity tag, weak or strong, with or without quotes, matches a version; `*` always
/// matches.
pub(crate) fn is_current(etag: &str, version: u64) -> bool {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    etag == "*" || etag == etag_of(version)
}

/// Returns a document with the ETag of the version.
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
