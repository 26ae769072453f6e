//! `/devices/{id}/messages/…`: what devices do over HTTPS.
//!
//! A message that is received is locked for the device until it completes, rejects or abandons it with the lock token of
//! its `ETag`, or the lock ends.

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
use crate::hub::{Delivery, DevicePass, Operation, Refusal, Settling};

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

/// Takes a message of the device, or a batch of them.
pub(crate) async fn send(call: &Call, pass: &DevicePass) -> Answer {
    visit(call, pass)?;
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

/// Answers with the next message, or that there is none.
pub(crate) fn receive(call: &Call, pass: &DevicePass) -> Answer {
    check_tier(call)?;
    visit(call, pass)?;
    match call.hub.receive(pass.device) {
        None => Ok(empty_response(StatusCode::NO_CONTENT)),
        Some(delivery) => Ok(message(&delivery, &pass.id)),
    }
}

fn message(delivery: &Delivery, id: &str) -> http::Response<http_body_util::Full<Bytes>> {
    let system = SystemFields::decode(&delivery.system);
    let mut response = empty_response(StatusCode::OK);
    *response.body_mut() = body_bytes(&delivery.body).into();
    let headers = response.headers_mut();
    let mut set = |name: &str, value: &str| {
        // A name or a value that is in no header is left out: there is no other place for it.
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

/// Completes a message, or rejects it if the request's query says so.
pub(crate) fn complete(call: &Call, pass: &DevicePass, token: &str) -> Answer {
    let mut names = call.query.split('&').filter_map(|p| p.split('=').next());
    let rejects = names.any(|name| name.eq_ignore_ascii_case("reject"));
    let settling = if rejects {
        Settling::Rejected
    } else {
        Settling::Completed
    };
    settle(call, pass, token, settling)
}

/// Gives a message back to its queue.
pub(crate) fn abandon(call: &Call, pass: &DevicePass, token: &str) -> Answer {
    settle(call, pass, token, Settling::Abandoned)
}

fn settle(call: &Call, pass: &DevicePass, token: &str, settling: Settling) -> Answer {
    check_tier(call)?;
    visit(call, pass)?;
    let lock = token.trim_matches('"').parse::<Uuid>().ok();
    if lock.is_some_and(|lock| call.hub.settle_lock(pass.device, lock, settling)) {
        Ok(empty_response(StatusCode::NO_CONTENT))
    } else {
        Err((&Refusal::lock_lost(token)).into())
    }
}

fn visit(call: &Call, pass: &DevicePass) -> Result<(), ApiError> {
    let visited = call.hub.visit(pass);
    visited.map_err(|denial| (&Refusal::from(&denial)).into())
}
