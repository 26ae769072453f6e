//! Twin and identity documents, as the hub's REST interface shows them.

use serde_json::{Map, Value, json};

use super::registry::DeviceRecord;

const NEVER: &str = "0001-01-01T00:00:00Z";

/// A version number in the shape of the hub's etags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Etag(pub(crate) u64);

impl std::fmt::Display for Etag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use base64::Engine as _;
        f.write_str(&base64::engine::general_purpose::STANDARD.encode(self.0.to_be_bytes()))
    }
}

/// The etag of a version.
pub(crate) fn etag_of(version: u64) -> String {
    Etag(version).to_string()
}

/// The twin document of a device.
pub(crate) fn twin_document(record: &DeviceRecord, pending: u32, connected: bool) -> Value {
    json!({
        "deviceId": record.id,
        "etag": etag_of(record.version),
        "deviceEtag": etag_of(record.device_version),
        "status": record.status.as_str(),
        "statusReason": record.status_reason,
        "statusUpdateTime": NEVER,
        "connectionState": connection_state(connected),
        "lastActivityTime": NEVER,
        "cloudToDeviceMessageCount": pending,
        "authenticationType": record.authentication.get("type").cloned().unwrap_or(json!("sas")),
        "x509Thumbprint": { "primaryThumbprint": null, "secondaryThumbprint": null },
        "modelId": "",
        "version": record.version,
        "tags": record.tags,
        "properties": {
            "desired": section(&record.desired, record.desired_version),
            "reported": section(&record.reported, 1),
        },
        "capabilities": { "iotEdge": false },
    })
}

/// The identity document of a device.
pub(crate) fn device_document(record: &DeviceRecord, pending: u32, connected: bool) -> Value {
    json!({
        "deviceId": record.id,
        "generationId": record.generation,
        "etag": etag_of(record.device_version),
        "connectionState": connection_state(connected),
        "status": record.status.as_str(),
        "statusReason": record.status_reason,
        "connectionStateUpdatedTime": NEVER,
        "statusUpdatedTime": NEVER,
        "lastActivityTime": NEVER,
        "cloudToDeviceMessageCount": pending,
        "authentication": record.authentication,
        "capabilities": { "iotEdge": false },
        "deviceScope": "",
        "parentScopes": [],
    })
}

pub(crate) fn connection_state(connected: bool) -> &'static str {
    if connected {
        "Connected"
    } else {
        "Disconnected"
    }
}

fn section(values: &Map<String, Value>, version: u64) -> Value {
    let mut section = values.clone();
    section.insert("$metadata".to_owned(), json!({ "$lastUpdated": NEVER }));
    section.insert("$version".to_owned(), json!(version));
    Value::Object(section)
}
