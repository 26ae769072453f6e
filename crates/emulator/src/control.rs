//! The control interface: plain HTTP on a dedicated port, for inspecting the hub and for injecting
//! faults.
//!
//! | request | effect |
//! |---|---|
//! | `GET /health` | answers 200 |
//! | `GET /summary` | the counters, see [`Summary`](crate::Summary) |
//! | `GET /devices/{id}/messages` | the device's messages, see [`MessageReport`] |
//! | `GET /devices/{id}/connection-string` | the connection string for a client acting as the device, as text |
//! | `GET /sessions` | the connected devices, see [`SessionReport`](crate::SessionReport) |
//! | `GET /messages` | one JSON line per device with messages: `{"deviceId": …, "messages": [{"id": …, "state": …}]}` |
//! | `PUT /policies/{name}/keys` | replaces a policy's keys: `{"primary": …, "secondary": …}`, base64 |
//! | `GET /principals`, `PUT /principals/{clientId}/roles` | the principals of Microsoft Entra ID, and their roles |
//! | `GET /metadata/identity/oauth2/token` | the token of a managed identity, as at a virtual machine's metadata endpoint |
//! | `GET /faults`, `PUT /faults`, `PATCH /faults` | the faults, see [`Faults`](crate::Faults); a patch changes only named faults |
//! | `POST /faults/disconnect-devices` | ends the connections of all devices |
//! | `POST /faults/disconnect` | cuts all AMQP connections: `{"how": "close" \| "drop" \| "detach"}` |

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use base64::Engine as _;
use bytes::Bytes;
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::amqp;
use crate::entra::{self, Role};
use crate::faults::Faults;
use crate::hub::{Cut, Hub, MessageState, SessionReport, Summary};
use crate::server::HubHandle;

/// The number of devices in one piece of the export.
const DEVICES_PER_PIECE: u32 = 4096;

/// A message in the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageReport {
    /// The message id, as text.
    pub message_id: String,
    /// The state of the message.
    pub state: MessageState,
    /// The feedback requested by the sender.
    pub ack: String,
    /// The time of enqueuing, in milliseconds since 1970.
    pub enqueued_ms: u64,
    /// The expiry, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The time of the end, for an ended message, in milliseconds since 1970.
    pub done_ms: Option<u64>,
    /// The length of the encoded body sections.
    pub body_bytes: u32,
    /// The body, if kept and UTF-8.
    pub body: Option<String>,
    /// The body in base64, if kept and not UTF-8.
    pub body_base64: Option<String>,
    /// The application properties.
    pub properties: Map<String, Value>,
}

/// Serves the control interface until `stop`.
pub(crate) async fn serve(listener: TcpListener, hub: HubHandle, stop: CancellationToken) {
    let router = axum::Router::new()
        .route(
            "/health",
            get(|| async { Json(serde_json::json!({ "status": "ok" })) }),
        )
        .route("/summary", get(summary))
        .route("/devices/{id}/messages", get(device_messages))
        .route("/devices/{id}/connection-string", get(connection_string))
        .route("/sessions", get(sessions))
        .route("/messages", get(export))
        .route(
            "/faults",
            get(get_faults).put(put_faults).patch(patch_faults),
        )
        .route("/policies/{name}/keys", put(set_keys))
        .route("/principals", get(principals))
        .route("/principals/{id}/roles", put(set_roles))
        .route("/metadata/identity/oauth2/token", get(metadata))
        .route("/faults/disconnect", post(disconnect))
        .route("/faults/disconnect-devices", post(disconnect_devices))
        .with_state(hub);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::warn!(error = %error, "control interface failed");
    }
}

async fn summary(State(hub): State<HubHandle>) -> Json<Summary> {
    Json(hub.summary())
}

async fn device_messages(State(hub): State<HubHandle>, Path(id): Path<String>) -> Response {
    match hub.messages(&id) {
        Some(messages) => Json(messages).into_response(),
        None => (StatusCode::NOT_FOUND, format!("device '{id}' not found\n")).into_response(),
    }
}

async fn sessions(State(hub): State<HubHandle>) -> Json<Vec<SessionReport>> {
    Json(hub.sessions())
}

async fn connection_string(State(hub): State<HubHandle>, Path(id): Path<String>) -> Response {
    match hub.device_connection_string(&id) {
        Some(text) => format!("{text}\n").into_response(),
        None => (
            StatusCode::NOT_FOUND,
            format!("no device '{id}' with a symmetric key\n"),
        )
            .into_response(),
    }
}

/// Returns all messages of a device.
pub(crate) fn messages_of(hub: &Hub, device_id: &str) -> Option<Vec<MessageReport>> {
    let number = hub.registry().number(device_id)?;
    let state = hub.state();
    let store = &state.store;
    let report = |number| {
        let message = store.message(number)?;
        let body = store
            .bodies
            .get(message.body)
            .map(|body| amqp::body_bytes(body));
        let (body, body_base64) = match body.map(String::from_utf8) {
            None => (None, None),
            Some(Ok(text)) => (Some(text), None),
            Some(Err(bytes)) => (
                None,
                Some(base64::engine::general_purpose::STANDARD.encode(bytes.into_bytes())),
            ),
        };
        let properties = store
            .properties
            .get(message.properties)
            .map(|properties| amqp::application_properties(properties));
        let done = !message.state.is_pending();
        Some(MessageReport {
            message_id: store.id(message).to_owned(),
            state: message.state,
            ack: message.ack.as_str().to_owned(),
            enqueued_ms: message.enqueued_ms,
            expires_ms: message.enqueued_ms + u64::from(message.ttl_ms),
            done_ms: done.then(|| message.enqueued_ms + u64::from(message.done_after_ms)),
            body_bytes: store.bodies.len(message.body),
            body,
            body_base64,
            properties: properties
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, Value::from(value)))
                .collect(),
        })
    };
    Some(store.messages_of(number).filter_map(report).collect())
}

async fn export(State(hub): State<HubHandle>) -> Response {
    let hub = Arc::clone(hub.inner());
    // In pieces: the export of a million devices has a hundred megabytes, and no lock is held for
    // long.
    let pieces = stream::unfold((hub, 0u32), |(hub, from)| async move {
        let end = hub.registry().end();
        if from >= end {
            return None;
        }
        let until = end.min(from.saturating_add(DEVICES_PER_PIECE));
        let piece = export_piece(&hub, from..until);
        Some((Ok::<_, Infallible>(Bytes::from(piece)), (hub, until)))
    });
    let headers = [(axum::http::header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::from_stream(pieces)).into_response()
}

fn export_piece(hub: &Hub, devices: std::ops::Range<u32>) -> String {
    let registry = hub.registry();
    let state = hub.state();
    let store = &state.store;
    let mut lines = String::new();
    for device in devices {
        let mut messages = store
            .messages_of(device)
            .filter_map(|number| store.message(number))
            .peekable();
        if messages.peek().is_none() {
            continue;
        }
        let id = registry.id(device).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = write!(lines, "{{\"deviceId\":{},\"messages\":[", Value::from(id));
        for (at, message) in messages.enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let id = Value::from(store.id(message));
            let state = serde_json::to_value(message.state).unwrap_or_default();
            let _ = write!(lines, "{comma}{{\"id\":{id},\"state\":{state}}}");
        }
        lines.push_str("]}\n");
    }
    lines
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyKeys {
    primary: String,
    secondary: String,
}

async fn set_keys(
    State(hub): State<HubHandle>,
    Path(policy): Path<String>,
    body: Bytes,
) -> Response {
    let decode = |key: &String| base64::engine::general_purpose::STANDARD.decode(key);
    let keys = serde_json::from_slice::<PolicyKeys>(&body).ok();
    let keys =
        keys.and_then(|keys| Some((decode(&keys.primary).ok()?, decode(&keys.secondary).ok()?)));
    let Some((primary, secondary)) = keys else {
        let text = "the body must be {\"primary\": ..., \"secondary\": ...} with keys in base64\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    if hub.set_keys(&policy, primary, secondary) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let text = format!("policy '{policy}' not found\n");
        (StatusCode::NOT_FOUND, text).into_response()
    }
}

async fn principals(State(hub): State<HubHandle>) -> Json<Value> {
    let issuer = hub.inner().issuer.as_ref();
    let principals = issuer.map(|issuer| issuer.directory().principals.iter());
    let all = principals.into_iter().flatten().map(|principal| {
        serde_json::json!({
            "clientId": principal.client_id,
            "objectId": principal.object_id,
            "roles": principal.roles(),
        })
    });
    Json(all.collect())
}

async fn set_roles(State(hub): State<HubHandle>, Path(id): Path<String>, body: Bytes) -> Response {
    let roles: Vec<Role> = match serde_json::from_slice(&body) {
        Ok(roles) => roles,
        Err(error) => {
            let text = format!("the body is not a list of roles: {error}\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    let issuer = hub.inner().issuer.as_ref();
    match issuer.and_then(|issuer| issuer.directory().principal(&id)) {
        Some(principal) => {
            principal.set_roles(roles);
            StatusCode::NO_CONTENT.into_response()
        }
        None => {
            let text = format!("no principal with the client id '{id}'\n");
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

async fn metadata(
    State(hub): State<HubHandle>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let hub = hub.inner();
    match &hub.issuer {
        Some(issuer) => {
            let query = query.unwrap_or_default();
            entra::metadata(issuer, &headers, &query, hub.now_s()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn get_faults(State(hub): State<HubHandle>) -> Json<Faults> {
    Json(hub.faults())
}

async fn put_faults(State(hub): State<HubHandle>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(faults) => set_faults(&hub, faults),
        Err(error) => bad_faults(&error),
    }
}

async fn patch_faults(State(hub): State<HubHandle>, body: Bytes) -> Response {
    let patch: Value = match serde_json::from_slice(&body) {
        Ok(patch) => patch,
        Err(error) => return bad_faults(&error),
    };
    let mut faults = serde_json::to_value(hub.faults()).unwrap_or_default();
    merge(&mut faults, patch);
    match serde_json::from_value(faults) {
        Ok(faults) => set_faults(&hub, faults),
        Err(error) => bad_faults(&error),
    }
}

/// Merges objects recursively; any other value replaces, including null (which resets an optional
/// fault).
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn set_faults(hub: &HubHandle, faults: Faults) -> Response {
    hub.set_faults(faults);
    Json(hub.faults()).into_response()
}

fn bad_faults(error: &serde_json::Error) -> Response {
    (
        StatusCode::BAD_REQUEST,
        format!("the body is not a set of faults: {error}\n"),
    )
        .into_response()
}

async fn disconnect_devices(State(hub): State<HubHandle>) -> StatusCode {
    hub.disconnect_devices();
    StatusCode::NO_CONTENT
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    #[serde(default = "close")]
    how: Cut,
}

fn close() -> Cut {
    Cut::Close
}

async fn disconnect(State(hub): State<HubHandle>, body: Bytes) -> Response {
    let order = if body.is_empty() {
        Ok(Disconnect { how: close() })
    } else {
        serde_json::from_slice(&body)
    };
    match order {
        Ok(order) => {
            hub.cut_connections(order.how);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => bad_faults(&error),
    }
}
