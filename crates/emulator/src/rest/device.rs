//! `/devices/{id}/messages/…`: the operations of devices over HTTPS.
//!
//! A received message is locked for the device. The lock ends when the device completes, rejects or
//! abandons the message with the lock token in the `ETag`, or after a time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::devices::check_tier;
use super::error::{ApiError, empty_response};
use super::serve::{Answer, Call, admit};
use crate::amqp::{SystemFields, application_properties, body_bytes, field_text};
use crate::fleet::iso_time;
use crate::hub::{AuthenticatedDevice, Delivery, MessageSettlement, Operation, Refusal};

/// The content type of a batch of messages.
const BATCH: &str = "application/vnd.microsoft.iothub.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchItem {
    body: String,
    #[serde(default = "yes")]
    base64_encoded: bool,
    #[serde(default)]
    properties: Map<String, Value>,
}

fn yes() -> bool {
    true
}

/// Accepts a message, or a batch of messages, from the device.
pub(crate) async fn send(call: &Call, device: &AuthenticatedDevice) -> Answer {
    record_activity(call, device)?;
    let kind = call.headers.get(header::CONTENT_TYPE);
    let is_batch = kind
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with(BATCH));
    let sizes = if is_batch {
        batch_sizes(&call.body)?
    } else {
        vec![call.body.len() + properties_size(&call.headers)]
    };
    admit(&call.hub, Operation::DeviceSend, sizes.len().max(1) as u64).await?;
    for size in sizes {
        let taken = call.hub.take_telemetry(size);
        taken.map_err(|refusal| ApiError::from(&refusal))?;
    }
    Ok(empty_response(StatusCode::NO_CONTENT))
}

fn batch_sizes(body: &[u8]) -> Result<Vec<usize>, ApiError> {
    let bad = |text: String| ApiError::bad_request(format!("the body is not a batch: {text}"));
    let items: Vec<BatchItem> =
        serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    let size = |item: &BatchItem| {
        let body = if item.base64_encoded {
            let decoded = STANDARD.decode(&item.body);
            decoded
                .map_err(|_| bad("a body is not base64".to_owned()))?
                .len()
        } else {
            item.body.len()
        };
        let properties = item.properties.iter();
        let properties =
            properties.map(|(name, value)| name.len() + value.as_str().map_or(0, str::len));
        Ok(body + properties.sum::<usize>())
    };
    items.iter().map(size).collect()
}

fn properties_size(headers: &HeaderMap) -> usize {
    let properties = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("iothub-app-"));
    properties
        .map(|(name, value)| name.as_str().len() - "iothub-app-".len() + value.len())
        .sum()
}

/// Answers with the next message, or 204 without a message.
pub(crate) fn receive(call: &Call, device: &AuthenticatedDevice) -> Answer {
    check_tier(call)?;
    record_activity(call, device)?;
    match call.hub.receive(device.number) {
        None => Ok(empty_response(StatusCode::NO_CONTENT)),
        Some(delivery) => Ok(message(&delivery, &device.id)),
    }
}

fn message(delivery: &Delivery, id: &str) -> http::Response<http_body_util::Full<Bytes>> {
    let system = SystemFields::decode(&delivery.system);
    let mut response = empty_response(StatusCode::OK);
    *response.body_mut() = body_bytes(&delivery.body).into();
    let headers = response.headers_mut();
    let mut set = |name: &str, value: &str| {
        // A name or value invalid in a header is left out, since HTTP has no other place for a
        // property.
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    };
    if let Some(lock) = delivery.lock {
        set("etag", &format!("\"{lock}\""));
    }
    set("iothub-messageid", &delivery.message_id);
    set("iothub-to", &format!("/devices/{id}/messages/deviceBound"));
    set("iothub-sequencenumber", &(delivery.number + 1).to_string());
    set("iothub-enqueuedtime", &iso_time(delivery.enqueued_ms));
    set("iothub-expiry", &iso_time(delivery.expires_ms));
    set("iothub-deliverycount", &delivery.deliveries.to_string());
    set("iothub-ack", delivery.ack.as_str());
    for (name, value) in [
        ("iothub-correlationid", system.correlation_id),
        ("iothub-userid", system.user_id),
        ("iothub-contenttype", system.content_type),
        ("iothub-contentencoding", system.content_encoding),
    ] {
        if let Some(value) = value {
            set(name, &field_text(value));
        }
    }
    for (name, value) in application_properties(&delivery.properties) {
        if name != "iothub-ack" {
            set(&format!("iothub-app-{name}"), &value);
        }
    }
    response
}

/// Completes a message, or rejects the message if the query contains `reject`.
pub(crate) fn complete(call: &Call, device: &AuthenticatedDevice, token: &str) -> Answer {
    let mut names = call.query.split('&').filter_map(|p| p.split('=').next());
    let rejects = names.any(|name| name.eq_ignore_ascii_case("reject"));
    let settlement = if rejects {
        MessageSettlement::Rejected
    } else {
        MessageSettlement::Completed
    };
    settle(call, device, token, settlement)
}

/// Returns a message to the queue.
pub(crate) fn abandon(call: &Call, device: &AuthenticatedDevice, token: &str) -> Answer {
    settle(call, device, token, MessageSettlement::Abandoned)
}

fn settle(
    call: &Call,
    device: &AuthenticatedDevice,
    token: &str,
    settlement: MessageSettlement,
) -> Answer {
    check_tier(call)?;
    record_activity(call, device)?;
    let lock = token.trim_matches('"').parse::<Uuid>().ok();
    if lock.is_some_and(|lock| call.hub.settle_lock(device.number, lock, settlement)) {
        Ok(empty_response(StatusCode::NO_CONTENT))
    } else {
        Err((&Refusal::lock_lost(token)).into())
    }
}

fn record_activity(call: &Call, device: &AuthenticatedDevice) -> Result<(), ApiError> {
    let recorded = call.hub.record_activity(device);
    recorded.map_err(|error| (&Refusal::from(&error)).into())
}
