//! A device's own twin: read, reported, and told of changes.

use serde_json::{Map, Value, json};

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::line::DesiredPush;
use super::session::DeviceSession;
use crate::fleet::{REPORTED_BYTES_MAX, Reported, Stamp, check_section, merge, touch};

impl Hub {
    /// Tells a connected device that its desired properties have changed by `patch`.
    pub(crate) fn push_desired(&self, device: u32, patch: &Map<String, Value>, version: u64) {
        if let Some(line) = self.state().devices.line(device) {
            line.push_desired(DesiredPush {
                version,
                patch: patch.clone(),
            });
        }
    }
}

impl DeviceSession {
    /// The twin as a device sees it: desired and reported properties, each with its version.
    pub(crate) fn twin(&self) -> Result<Value, Refusal> {
        self.touch();
        self.hub().tallies.device_twin_reads.one();
        let registry = self.hub().registry();
        let record = registry
            .record(self.pass.device)
            .filter(|record| record.generation == self.pass.generation)
            .ok_or_else(|| Refusal::device_not_found(&self.pass.id))?;
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

    /// Merges a patch into the reported properties (RFC 7396) and returns their version.
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
            .record_mut(self.pass.device)
            .filter(|record| record.generation == self.pass.generation)
            .ok_or_else(|| Refusal::device_not_found(&self.pass.id))?;
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
        self.hub().tallies.reported_patches.one();
        Ok(version)
    }

    /// Notes the Plug and Play model that the device names.
    pub(crate) fn set_model(&self, model_id: &str) {
        let mut registry = self.hub().registry_mut();
        let record = registry.record_mut(self.pass.device);
        if let Some(real) = record.and_then(|record| record.real.as_mut()) {
            real.model_id = model_id.chars().take(MODEL_ID_CHARS_MAX).collect();
        }
    }
}

/// The longest model id (the grammar of DTMI allows 128 characters in DTDL v2).
const MODEL_ID_CHARS_MAX: usize = 128;
