//! Twin and identity documents, in the form of the hub's REST interface.

use serde_json::{Map, Value, json};

use super::metadata::{Stamp, touch};
use super::registry::DeviceRecord;

const NEVER: &str = "0001-01-01T00:00:00Z";

/// A version number in the form of the hub's etags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Etag(pub(crate) u64);

impl std::fmt::Display for Etag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use base64::Engine as _;
        f.write_str(&base64::engine::general_purpose::STANDARD.encode(self.0.to_be_bytes()))
    }
}

/// Returns the etag of a version.
pub(crate) fn etag_of(version: u64) -> String {
    Etag(version).to_string()
}

/// Formats a time as the hub does: UTC with milliseconds.
pub(crate) fn iso_time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| NEVER.to_owned(), |time| format!("{time:.3}"))
}

/// The reported properties of a device at some time, with metadata and version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reported {
    pub(crate) values: Map<String, Value>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) version: u64,
}

/// The state of a device's connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConnectionInfo {
    pub(crate) connected: bool,
    /// The time of the device's last activity, in milliseconds since 1970; `None` for a simulated
    /// device.
    pub(crate) activity_ms: Option<u64>,
    /// The time of the last connection or disconnection, in milliseconds since 1970; `None` for a
    /// simulated device.
    pub(crate) changed_ms: Option<u64>,
}

impl Reported {
    /// Returns the reported properties in the registry: the current ones of a real device, the
    /// initial ones of a simulated device.
    pub(crate) fn recorded(record: &DeviceRecord) -> Self {
        if let Some(real) = &record.real {
            return Self {
                values: record.reported.clone(),
                metadata: real.reported_metadata.clone(),
                version: real.reported_version,
            };
        }
        let mut initial = Self {
            values: Map::new(),
            metadata: Map::new(),
            version: 0,
        };
        initial.update(&record.reported, record.created_ms);
        initial
    }

    /// Applies a patch reported by a device; null removes a value.
    pub(crate) fn update(&mut self, patch: &Map<String, Value>, at_ms: u64) {
        let stamp = Stamp {
            at_ms,
            version: None,
        };
        touch(&mut self.metadata, patch, stamp);
        merge(&mut self.values, patch.clone());
        self.version += 1;
    }
}

/// Merges as the hub does: objects recursively, null deletes, any other value replaces.
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

/// Returns the twin document of a device.
pub(crate) fn twin_document(
    record: &DeviceRecord,
    reported: Reported,
    pending: u32,
    connection: ConnectionInfo,
) -> Value {
    let desired = section(
        record.desired.clone(),
        record.desired_metadata.clone(),
        record.desired_version,
    );
    json!({
        "deviceId": record.id,
        "etag": etag_of(record.version),
        "deviceEtag": etag_of(record.device_version),
        "status": record.status.as_str(),
        "statusReason": record.status_reason,
        "statusUpdateTime": time_or_never(record.status_updated_ms),
        "connectionState": connection_state(connection.connected),
        "lastActivityTime": time_or_never(connection.activity_ms),
        "cloudToDeviceMessageCount": pending,
        "authenticationType": record.authentication.kind(),
        "x509Thumbprint": record.authentication.thumbprints(),
        "modelId": record.real.as_ref().map_or("", |real| &real.model_id),
        "version": record.version,
        "tags": record.tags,
        "properties": {
            "desired": desired,
            "reported": section(reported.values, reported.metadata, reported.version),
        },
        "capabilities": { "iotEdge": record.edge },
        "deviceScope": record.scope,
        "parentScopes": record.parent_scopes,
    })
}

/// Returns the identity document of a device.
pub(crate) fn device_document(
    record: &DeviceRecord,
    pending: u32,
    connection: ConnectionInfo,
) -> Value {
    json!({
        "deviceId": record.id,
        "generationId": record.generation,
        "etag": etag_of(record.device_version),
        "connectionState": connection_state(connection.connected),
        "status": record.status.as_str(),
        "statusReason": record.status_reason,
        "connectionStateUpdatedTime": time_or_never(connection.changed_ms),
        "statusUpdatedTime": time_or_never(record.status_updated_ms),
        "lastActivityTime": time_or_never(connection.activity_ms),
        "cloudToDeviceMessageCount": pending,
        "authentication": record.authentication.document(),
        "capabilities": { "iotEdge": record.edge },
        "deviceScope": record.scope,
        "parentScopes": record.parent_scopes,
    })
}

fn time_or_never(ms: Option<u64>) -> String {
    ms.map_or_else(|| NEVER.to_owned(), iso_time)
}

fn connection_state(connected: bool) -> &'static str {
    if connected {
        "Connected"
    } else {
        "Disconnected"
    }
}

fn section(mut values: Map<String, Value>, metadata: Map<String, Value>, version: u64) -> Value {
    values.insert("$metadata".to_owned(), Value::Object(metadata));
    values.insert("$version".to_owned(), json!(version));
    Value::Object(values)
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
}
