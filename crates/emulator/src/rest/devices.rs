//! `/devices/{id}` and `/statistics`.

use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, empty_response, json_response};
use super::identity::Identity;
use super::serve::{Answer, Call};
use super::twins::{check_match, with_etag};
use crate::fleet::{DeviceRecord, Status, check_id, device_document};
use crate::hub::{EndReason, MessageState, Refusal};

/// The largest number of devices in a list.
const LIST_MAX: usize = 1_000;

/// The body of a request to create or update an identity.
#[derive(Debug, Deserialize)]
struct Body {
    #[serde(rename = "deviceId")]
    device_id: String,
    #[serde(flatten)]
    identity: Identity,
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
    device_document(record, pending, call.hub.connection_info(registry, number))
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
    let body: Body = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::bad_request(format!("the body is not a device: {error}")))?;
    if body.device_id != id {
        return Err(ApiError::bad_request(
            "the deviceId in the body differs from the path",
        ));
    }
    let now_ms = call.hub.now_ms();
    let updates = call.headers.contains_key(header::IF_MATCH);
    let mut registry = call.hub.registry_mut();
    let found = registry
        .number(id)
        .and_then(|number| registry.record(number));
    let mut record = match found {
        Some(record) if updates => {
            check_match(&call.headers, record.device_version)?;
            record
        }
        Some(_) => {
            let text = format!("A device with ID '{id}' is already registered");
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "DeviceAlreadyExists",
                text,
            ));
        }
        None if updates => return Err(ApiError::not_found(id)),
        None => {
            check_id(id).map_err(ApiError::bad_request)?;
            registry.new_record(id, now_ms)
        }
    };
    body.identity
        .apply(&mut record, now_ms)
        .map_err(ApiError::bad_request)?;
    let number = registry.put(record.clone()).ok_or_else(registry_full)?;
    if record.status == Status::Disabled {
        call.hub.disconnect(number, EndReason::Disabled);
    }
    Ok(with_etag(
        &document(call, &registry, number, &record),
        record.device_version,
    ))
}

pub(crate) fn registry_full() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "TooManyDevices",
        "the registry is full",
    )
}

/// Deletes an identity together with the device's messages.
pub(crate) fn delete(call: &Call, id: &str) -> Answer {
    if !call.headers.contains_key(header::IF_MATCH) {
        return Err(ApiError::bad_request(
            "deleting a device requires an If-Match header; '*' matches any version",
        ));
    }
    let mut registry = call.hub.registry_mut();
    let number = registry.number(id).ok_or_else(|| ApiError::not_found(id))?;
    let version = registry
        .record(number)
        .map_or(0, |record| record.device_version);
    check_match(&call.headers, version)?;
    registry.delete(number);
    call.hub.forget_device(number);
    Ok(empty_response(StatusCode::NO_CONTENT))
}

/// Removes a device's pending messages.
pub(crate) fn purge(call: &Call, id: &str) -> Answer {
    check_tier(call)?;
    let number = call
        .hub
        .registry()
        .number(id)
        .ok_or_else(|| ApiError::not_found(id))?;
    let purged = call.hub.empty_queue(number, MessageState::Purged);
    let body = json!({ "deviceId": id, "moduleId": null, "totalMessagesPurged": purged });
    Ok(json_response(StatusCode::OK, &body))
}

/// Refuses operations on messages to devices in a tier without this feature.
pub(crate) fn check_tier(call: &Call) -> Result<(), ApiError> {
    if call.hub.config.tier.has_commands() {
        Ok(())
    } else {
        Err((&Refusal::not_in_tier()).into())
    }
}

/// Answers with the number of devices.
pub(crate) fn statistics(call: &Call) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let (enabled, disabled) = call.hub.registry().count_by_status();
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
        .filter(|number| call.hub.connection_info(&registry, *number).connected)
        .count();
    json_response(
        StatusCode::OK,
        &json!({ "connectedDeviceCount": connected }),
    )
}
