//! A device's own twin: reads, reported properties, and changes of desired properties.

use serde_json::{Map, Value, json};

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::connection::DesiredPush;
use super::session::DeviceSession;
use crate::fleet::{REPORTED_BYTES_MAX, Reported, Stamp, check_section, merge, touch};

impl Hub {
    /// Pushes a change `patch` of the desired properties to a connected device.
    pub(crate) fn push_desired(&self, device: u32, patch: &Map<String, Value>, version: u64) {
        if let Some(connection) = self.state().devices.connection(device) {
            connection.push_desired(DesiredPush {
                version,
                patch: patch.clone(),
            });
        }
    }
}

impl DeviceSession {
    /// Returns the twin in the form for devices: desired and reported properties, each with the
    /// version.
    pub(crate) fn twin(&self) -> Result<Value, Refusal> {
        self.touch();
        self.hub().counters.device_twin_reads.one();
        let registry = self.hub().registry();
        let record = registry
            .record(self.device.number)
            .filter(|record| record.generation == self.device.generation)
            .ok_or_else(|| Refusal::device_not_found(&self.device.id))?;
        let section = |values: Map<String, Value>, version: u64| {
            let mut values = values;
            values.insert("$version".to_owned(), version.into());
            values
        };
        let reported_version = record.real.as_ref().map_or(1, |real| real.reported_version);
        Ok(json!({
            "desired": section(record.desired, record.desired_version),
            "reported": section(record.reported, reported_version),
        }))
    }

    /// Merges a patch into the reported properties (RFC 7396). Returns the new version.
    pub(crate) fn report(&self, patch: &[u8]) -> Result<u64, Refusal> {
        self.touch();
        let patch: Map<String, Value> = serde_json::from_slice(patch).map_err(|error| {
            Refusal::bad_argument(format!(
                "the reported properties are not a JSON object: {error}"
            ))
        })?;
        let at_ms = self.hub().now_ms();
        let mut registry = self.hub().registry_mut();
        let record = registry
            .record_mut(self.device.number)
            .filter(|record| record.generation == self.device.generation)
            .ok_or_else(|| Refusal::device_not_found(&self.device.id))?;
        let mut merged = record.reported.clone();
        merge(&mut merged, patch.clone());
        check_section("reported properties", &merged, REPORTED_BYTES_MAX)
            .map_err(Refusal::bad_argument)?;
        let before = Reported::recorded(record);
        record.reported = merged;
        let real = record.real.get_or_insert_default();
        let stamp = Stamp {
            at_ms,
            version: None,
        };
        let lag_ms = self.hub().query_lag_ms();
        if lag_ms > 0 {
            real.keep_earlier(before, at_ms, lag_ms);
        }
        touch(&mut real.reported_metadata, &patch, stamp);
        real.reported_version += 1;
        let version = real.reported_version;
        drop(registry);
        self.hub().counters.reported_patches.one();
        Ok(version)
    }

    /// Records the Plug and Play model named by the device.
    pub(crate) fn set_model(&self, model_id: &str) {
        let mut registry = self.hub().registry_mut();
        let record = registry.record_mut(self.device.number);
        if let Some(real) = record.and_then(|record| record.real.as_mut()) {
            real.model_id = model_id.chars().take(MODEL_ID_CHARS_MAX).collect();
        }
    }
}

/// The longest model id (the grammar of DTMI allows 128 characters in DTDL v2).
const MODEL_ID_CHARS_MAX: usize = 128;
