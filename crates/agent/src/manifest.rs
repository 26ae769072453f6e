//! The manifest of an update, and all checks possible without the artefact.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::envelope::{self, EnvelopeError, PublicKey};
use crate::report::Reason;
use crate::version;

/// The manifest schema of this agent.
pub const SCHEMA: u64 = 1;

/// The signed content of an update's message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The schema: [`SCHEMA`].
    pub schema: u64,
    /// The update's name. A device accepts only updates with the configured name.
    pub name: String,
    /// The new version.
    pub version: String,
    /// The supported hardware; any hardware if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Vec<String>>,
    /// The artefact to download.
    pub artifact: Artifact,
    /// The time of expiry. From this time on, the update is not installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whether a version equal to or lower than the running version is installed too.
    #[serde(default)]
    pub force: bool,
}

/// The artefact of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The URL: `https`, `http` or `ftp`.
    pub url: String,
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256, in hex.
    pub sha256: String,
}

/// A device's policy for accepted updates.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The trusted keys.
    pub keys: Vec<PublicKey>,
    /// The accepted update name.
    pub name: String,
    /// The device's hardware.
    pub hardware: String,
    /// The largest accepted artefact, in bytes.
    pub max_size: u64,
}

/// Returns the manifest of a message, if a device running version `installed` may install the
/// update.
///
/// # Errors
/// A [`Reason`] with one of the codes `malformed`, `payload_type`, `signature`, `schema`, `name`,
/// `hardware`, `version`, `downgrade`, `size`, `sha256`, `url`, `expired`.
pub fn check(
    body: &[u8],
    policy: &Policy,
    installed: Option<&str>,
    now: Timestamp,
) -> Result<Manifest, Reason> {
    let payload = envelope::open(body, &policy.keys).map_err(|error| {
        let code = match error {
            EnvelopeError::Malformed(_) => "malformed",
            EnvelopeError::OtherPayload { .. } => "payload_type",
            EnvelopeError::NotSigned { .. } => "signature",
        };
        Reason::new(code, error.to_string())
    })?;
    // Check the schema before the fields: a later schema may have other fields.
    let schema = serde_json::from_slice::<serde_json::Value>(&payload)
        .ok()
        .and_then(|manifest| manifest.get("schema")?.as_u64());
    if let Some(schema) = schema.filter(|schema| *schema != SCHEMA) {
        let text = format!("the manifest has schema {schema}; this device supports {SCHEMA}");
        return Err(Reason::new("schema", text));
    }
    let manifest: Manifest = serde_json::from_slice(&payload)
        .map_err(|error| Reason::new("malformed", format!("the manifest is not valid: {error}")))?;
    manifest.check_form()?;
    manifest.check_device(policy, installed)?;
    manifest.check_time(now)?;
    Ok(manifest)
}

impl Manifest {
    /// Checks the form of version, SHA-256 and URL.
    ///
    /// # Errors
    /// A [`Reason`] with one of the codes `version`, `sha256`, `url`.
    pub fn check_form(&self) -> Result<(), Reason> {
        if !version::is_numbered(&self.version) {
            let text = format!(
                "the version must begin with a number and have 1 to {} visible ASCII characters",
                version::MAX_CHARS
            );
            return Err(Reason::new("version", text));
        }
        if hex::decode(&self.artifact.sha256).map_or(0, |bytes| bytes.len()) != 32 {
            return Err(Reason::new(
                "sha256",
                "the artefact's sha256 must be 64 hexadecimal digits",
            ));
        }
        match Url::parse(&self.artifact.url) {
            Err(error) => Err(Reason::new(
                "url",
                format!("the artefact's url is not valid: {error}"),
            )),
            Ok(url)
                if url.host_str().is_none()
                    || !matches!(url.scheme(), "https" | "http" | "ftp") =>
            {
                let text = format!(
                    "the artefact's url has the scheme {:?}; it must be https, http or ftp",
                    url.scheme()
                );
                Err(Reason::new("url", text))
            }
            Ok(_) => Ok(()),
        }
    }

    fn check_device(&self, policy: &Policy, installed: Option<&str>) -> Result<(), Reason> {
        if self.name != policy.name {
            let text = format!(
                "the update is for {:?}; this device accepts {:?}",
                self.name, policy.name
            );
            return Err(Reason::new("name", text));
        }
        if let Some(hardware) = &self.hardware
            && !hardware.contains(&policy.hardware)
        {
            let text = format!(
                "the update is for the hardware {}; this device is {}",
                hardware.join(", "),
                policy.hardware
            );
            return Err(Reason::new("hardware", text));
        }
        if self.artifact.size > policy.max_size {
            let text = format!(
                "the artefact has {} bytes; this device accepts at most {}",
                self.artifact.size, policy.max_size
            );
            return Err(Reason::new("size", text));
        }
        if let Some(installed) = installed
            && !self.force
            && version::compare(&self.version, installed) != Ordering::Greater
        {
            let text = format!(
                "version {} is not later than the running version {installed}, and force is not set",
                self.version
            );
            return Err(Reason::new("downgrade", text));
        }
        Ok(())
    }

    /// Checks the time of expiry.
    ///
    /// # Errors
    /// A [`Reason`] with the code `expired`.
    pub fn check_time(&self, now: Timestamp) -> Result<(), Reason> {
        match self.expires {
            Some(expires) if expires <= now => Err(Reason::new(
                "expired",
                format!("the update expired at {expires}"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::envelope::SecretKey;

    fn now() -> Timestamp {
        "2026-11-30T12:00:00Z".parse().unwrap()
    }

    /// Replaces a field of a valid manifest with `value`, and checks the manifest.
    fn checked(at: &str, value: Value) -> Result<Manifest, Reason> {
        let (key, _) = SecretKey::new().unwrap();
        let mut manifest = json!({
            "schema": 1, "name": "fridge", "version": "1.4.2", "hardware": ["a", "b"], "force": false,
            "artifact": { "url": "https://files/fw", "size": 1024, "sha256": "00".repeat(32) },
            "expires": "2027-01-01T00:00:00Z",
        });
        *manifest.pointer_mut(at).unwrap() = value;
        let policy = Policy {
            keys: vec![key.public()],
            name: "fridge".to_owned(),
            hardware: "a".to_owned(),
            max_size: 1024,
        };
        let body = envelope::seal(manifest.to_string().as_bytes(), &[key]);
        check(
            &serde_json::to_vec(&body).unwrap(),
            &policy,
            Some("1.4.1"),
            now(),
        )
    }

    #[test]
    fn invalid_manifests_are_refused_with_a_code() {
        for (at, value, code) in [
            ("/schema", json!(2), "schema"),
            ("/schema", json!("1"), "malformed"),
            ("/name", json!("oven"), "name"),
            ("/name", json!(null), "malformed"),
            ("/version", json!("1.4.1"), "downgrade"),
            ("/version", json!("1.4"), "downgrade"),
            ("/version", json!(""), "version"),
            ("/version", json!("1 2"), "version"),
            ("/hardware", json!(["b"]), "hardware"),
            ("/hardware", json!([]), "hardware"),
            ("/artifact/size", json!(1025), "size"),
            ("/artifact/size", json!(-1), "malformed"),
            ("/artifact/sha256", json!("00"), "sha256"),
            ("/artifact/url", json!("file:///etc/passwd"), "url"),
            ("/artifact/url", json!("files/fw"), "url"),
            ("/expires", json!("2026-11-30T12:00:00Z"), "expired"),
            ("/expires", json!("soon"), "malformed"),
        ] {
            let reason = checked(at, value.clone()).unwrap_err();
            assert_eq!(reason.code, code, "{at} = {value}: {}", reason.text);
        }
    }

    #[test]
    fn valid_manifests_are_accepted() {
        for (at, value) in [
            ("/force", json!(true)),
            ("/hardware", json!(null)),
            ("/expires", json!(null)),
            ("/version", json!("2.0.0")),
            ("/artifact/url", json!("ftp://files/fw")),
        ] {
            assert!(checked(at, value.clone()).is_ok(), "{at} = {value}");
        }
        let forced = Manifest {
            version: "1.0".to_owned(),
            force: true,
            ..checked("/force", json!(true)).unwrap()
        };
        let policy = Policy {
            keys: vec![],
            name: "fridge".to_owned(),
            hardware: "a".to_owned(),
            max_size: 1024,
        };
        assert!(forced.check_device(&policy, Some("2.0")).is_ok());
    }
}
