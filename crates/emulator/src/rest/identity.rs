//! The client's description of a device identity, alone or in bulk.

use serde::Deserialize;

use crate::fleet::{AuthenticationBody, Credentials, DeviceRecord, Status};

/// The longest reason for a status, in characters.
const STATUS_REASON_CHARS_MAX: usize = 128;

/// An identity as sent by clients. A missing field resets the value to the default, except for the
/// authentication, which stays. Fields written by the hub alone (`generationId`, `connectionState`
/// ...) are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Identity {
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<AuthenticationBody>,
    capabilities: Option<Capabilities>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Capabilities {
    iot_edge: bool,
}

impl Identity {
    /// Changes a record at `now_ms`. On an error, the record stays unchanged.
    pub(crate) fn apply(self, record: &mut DeviceRecord, now_ms: u64) -> Result<(), String> {
        let status = match self.status.as_deref() {
            None => Status::Enabled,
            Some(text) if text.eq_ignore_ascii_case("enabled") => Status::Enabled,
            Some(text) if text.eq_ignore_ascii_case("disabled") => Status::Disabled,
            Some(text) => {
                return Err(format!(
                    "the status '{text}' is neither enabled nor disabled"
                ));
            }
        };
        let reason = self.status_reason.as_deref().unwrap_or_default();
        let length = reason.chars().count();
        if length > STATUS_REASON_CHARS_MAX {
            return Err(format!(
                "the statusReason has {length} characters; at most {STATUS_REASON_CHARS_MAX} are allowed"
            ));
        }
        let credentials = self
            .authentication
            .map(AuthenticationBody::credentials)
            .transpose()?;
        match credentials {
            Some(Credentials::Given(authentication)) => record.authentication = authentication,
            Some(Credentials::Generated) => record.keep_or_generate_keys(),
            None => {}
        }
        if record.status != status {
            record.status_updated_ms = Some(now_ms);
        }
        record.status = status;
        record.status_reason = self.status_reason;
        record.edge = self.capabilities.unwrap_or_default().iot_edge;
        record.scope = self.device_scope.unwrap_or_default();
        record.parent_scopes = self.parent_scopes.unwrap_or_default();
        if record.edge && record.scope.is_empty() {
            record.scope = format!("ms-azure-iot-edge://{}-{}", record.id, record.generation);
        } else if !record.edge && record.parent_scopes.is_empty() && !record.scope.is_empty() {
            record.parent_scopes = vec![record.scope.clone()];
        }
        record.device_version += 1;
        Ok(())
    }
}
