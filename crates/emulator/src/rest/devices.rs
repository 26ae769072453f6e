//! `/devices/{id}` and `/statistics`.

use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, empty_response, json_response};
use super::serve::{Answer, Call};
use super::twins::{check_match, with_etag};
use crate::fleet::{DeviceRecord, Status, check_id, device_document};
use crate::hub::MessageState;

/// How many devices a list shows at most.
const LIST_MAX: usize = 1_000;

/// What a client says of an identity.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Identity {
    pub(crate) device_id: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) status_reason: Option<String>,
    pub(crate) authentication: Option<Value>,
}

impl Identity {
    /// Changes a record.
    pub(crate) fn apply(self, record: &mut DeviceRecord) -> Result<(), ApiError> {
        record.status = match self.status.as_deref() {
            None => record.status,
            Some(text) if text.eq_ignore_ascii_case("enabled") => Status::Enabled,
            Some(text) if text.eq_ignore_ascii_case("disabled") => Status::Disabled,
            Some(text) => {
                return Err(ApiError::bad_request(format!(
                    "the status '{text}' is neither enabled nor disabled"
                )));
            }
        };
        if self.status_reason.is_some() {
            record.status_reason = self.status_reason;
        }
        // A client that leaves the keys out asks the hub to make them.
        let has_keys = |value: &Value| {
            let thumbprint = value
                .pointer("/x509Thumbprint/primaryThumbprint")
                .and_then(Value::as_str);
            let key = value
                .pointer("/symmetricKey/primaryKey")
                .and_then(Value::as_str);
            thumbprint.or(key).is_some_and(|text| !text.is_empty())
        };
        if let Some(authentication) = self.authentication.filter(has_keys) {
            record.authentication = authentication;
        }
        record.device_version += 1;
        Ok(())
    }
}

/// Answers with the first devices.
pub(crate) fn list(call: &Call) -> Answer {
    let top = call
        .query
        .split('&')
        .find_map(|pair| pair.strip_prefix("top="));
    let top = match top {
        None => LIST_MAX,
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|top| (1..=LIST_MAX).contains(top))
            .ok_or_else(|| {
                ApiError::bad_request(format!("top={text} is not between 1 and {LIST_MAX}"))
            })?,
    };
    let registry = call.hub.registry();
    let documents: Vec<Value> = registry
        .numbers(0)
        .take(top)
        .filter_map(|number| Some(document(call, &registry, number, &registry.record(number)?)))
        .collect();
    Ok(json_response(StatusCode::OK, &Value::Array(documents)))
}

fn document(
    call: &Call,
    registry: &crate::fleet::Registry,
    number: u32,
    record: &DeviceRecord,
) -> Value {
    let pending = call.hub.state().store.pending(number);
    device_document(record, pending, call.hub.is_connected(registry, number))
}

/// Answers with an identity.
pub(crate) fn get(call: &Call, id: &str) -> Answer {
    let registry = call.hub.registry();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let record = registry
        .record(number)
        .ok_or_else(|| ApiError::not_found(id))?;
    Ok(with_etag(
        &document(call, &registry, number, &record),
        record.device_version,
    ))
}

/// Creates or updates an identity.
pub(crate) fn put(call: &Call, id: &str) -> Answer {
    let identity: Identity = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::bad_request(format!("the body is not a device: {error}")))?;
    if identity.device_id.as_deref() != Some(id) {
        return Err(ApiError::bad_request(
            "the body's deviceId is not the one of the path",
        ));
    }
    let mut registry = call.hub.registry_mut();
    let number = match registry.number(id) {
        Some(number) => {
            if !call.headers.contains_key(header::IF_MATCH) {
                let text = format!("A device with ID '{id}' is already registered");
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    "DeviceAlreadyExists",
                    text,
                ));
            }
            let version = registry
                .record(number)
                .map_or(0, |record| record.device_version);
            check_match(&call.headers, version)?;
            number
        }
        None if call.headers.contains_key(header::IF_MATCH) => return Err(ApiError::not_found(id)),
        None => {
            check_id(id).map_err(ApiError::bad_request)?;
            registry.add(id).ok_or_else(registry_full)?
        }
    };
    let mut record = registry
        .record(number)
        .ok_or_else(|| ApiError::not_found(id))?;
    identity.apply(&mut record)?;
    let changed = record.clone();
    registry.change(number, |stored| *stored = changed);
    Ok(with_etag(
        &document(call, &registry, number, &record),
        record.device_version,
    ))
}

pub(crate) fn registry_full() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "TooManyDevices",
        "the registry holds as many devices as it can",
    )
}

/// Deletes an identity, and with it its messages.
pub(crate) fn delete(call: &Call, id: &str) -> Answer {
    if !call.headers.contains_key(header::IF_MATCH) {
        return Err(ApiError::bad_request(
            "deleting a device takes an If-Match header; '*' will do",
        ));
    }
    let mut registry = call.hub.registry_mut();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let version = registry
        .record(number)
        .map_or(0, |record| record.device_version);
    check_match(&call.headers, version)?;
    registry.delete(number);
    call.hub.empty_queue(number, MessageState::Lost);
    Ok(empty_response(StatusCode::NO_CONTENT))
}

/// Removes a device's pending messages.
pub(crate) fn purge(call: &Call, id: &str) -> Answer {
    let number = call
        .hub
        .registry()
        .number(id)
        .ok_or_else(|| ApiError::not_found(id))?;
    let purged = call.hub.empty_queue(number, MessageState::Purged);
    let body = json!({ "deviceId": id, "moduleId": null, "totalMessagesPurged": purged });
    Ok(json_response(StatusCode::OK, &body))
}

/// Answers with the number of devices.
pub(crate) fn statistics(call: &Call) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let (enabled, disabled) = call.hub.registry().census();
    let body = json!({
        "totalDeviceCount": enabled + disabled,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": disabled,
    });
    json_response(StatusCode::OK, &body)
}

/// Answers with the number of connected devices.
pub(crate) fn service_statistics(
    call: &Call,
) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let registry = call.hub.registry();
    let connected = registry
        .numbers(0)
        .filter(|number| call.hub.is_connected(&registry, *number))
        .count();
    json_response(
        StatusCode::OK,
        &json!({ "connectedDeviceCount": connected }),
    )
}
