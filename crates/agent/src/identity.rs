//! The device's identity, and the device's credentials for the hub.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{self, ConfigError, Identity, Secret};
use crate::sas;

pub(crate) mod dps;

/// The hub of a device, and the device's id in this hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// The hub's host name.
    pub(crate) hub: String,
    /// The device's id.
    pub(crate) device_id: String,
}

/// The credential of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A symmetric key for signing tokens.
    Key(Secret),
    /// A client certificate for TLS.
    Certificate { certificate: PathBuf, key: PathBuf },
}

/// The source of an [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AssignmentSource {
    /// The configuration.
    Fixed(Assignment),
    /// The Device Provisioning Service.
    Provisioned(dps::Registration),
}

/// The device's identity, loaded from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceIdentity {
    pub(crate) source: AssignmentSource,
    pub(crate) credential: Credential,
}

/// Errors of loading the device's identity.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The connection string is not a device's.
    #[error("the connection string is not a device connection string: {0}")]
    ConnectionString(&'static str),
    /// A key is not base64.
    #[error("the device's symmetric key is not base64")]
    Key,
}

impl DeviceIdentity {
    /// Loads the credentials named in `identity`.
    pub(crate) fn load(identity: &Identity) -> Result<Self, IdentityError> {
        if let Some(dps) = &identity.dps {
            return Self::provisioned(identity, dps);
        }
        let certificate = certificate(identity);
        if let (Some(hub), Some(device_id), Some(credential)) =
            (&identity.hub, &identity.device_id, certificate)
        {
            let assignment = Assignment {
                hub: hub.clone(),
                device_id: device_id.clone(),
            };
            return Ok(Self {
                source: AssignmentSource::Fixed(assignment),
                credential,
            });
        }
        let text = match (
            &identity.connection_string,
            &identity.connection_string_file,
        ) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => Secret::from(config::read(path)?.trim().to_owned()),
            (None, None) => return Err(IdentityError::ConnectionString("it is missing")),
        };
        let (assignment, key) = connection_string(text.expose())?;
        Ok(Self {
            source: AssignmentSource::Fixed(assignment),
            credential: Credential::Key(checked(key)?),
        })
    }

    fn provisioned(identity: &Identity, dps: &config::Dps) -> Result<Self, IdentityError> {
        let credential = match (
            certificate(identity),
            &dps.key,
            &dps.key_file,
            &dps.group_key,
        ) {
            (Some(credential), ..) => credential,
            (_, Some(key), ..) => Credential::Key(checked(key.clone())?),
            (_, _, Some(path), _) => Credential::Key(checked(Secret::from(
                config::read(path)?.trim().to_owned(),
            ))?),
            (_, _, _, group_key) => {
                let group_key = group_key.as_ref().map_or("", Secret::expose);
                let key = sas::derive(group_key, &dps.registration_id).ok_or(IdentityError::Key)?;
                Credential::Key(Secret::from(key))
            }
        };
        let registration = dps::Registration {
            host: dps.host.clone(),
            port: dps.port,
            id_scope: dps.id_scope.clone(),
            registration_id: dps.registration_id.clone(),
        };
        Ok(Self {
            source: AssignmentSource::Provisioned(registration),
            credential,
        })
    }

    /// Returns the files of the device's certificate and key, if the device has a certificate.
    pub(crate) fn certificate(&self) -> Option<(&Path, &Path)> {
        match &self.credential {
            Credential::Certificate { certificate, key } => Some((certificate, key)),
            Credential::Key(_) => None,
        }
    }
}

impl Credential {
    /// Returns a token for a resource, or none for a device with a certificate.
    pub(crate) fn token(
        &self,
        resource: &str,
        policy: Option<&str>,
        expires: Timestamp,
    ) -> Option<String> {
        match self {
            Self::Key(key) => sas::token(resource, key.expose(), policy, expires.as_second()),
            Self::Certificate { .. } => None,
        }
    }
}

fn certificate(identity: &Identity) -> Option<Credential> {
    let (certificate, key) = (
        identity.certificate_file.clone()?,
        identity.private_key_file.clone()?,
    );
    Some(Credential::Certificate { certificate, key })
}

fn checked(key: Secret) -> Result<Secret, IdentityError> {
    sas::derive(key.expose(), "")
        .map(|_| key)
        .ok_or(IdentityError::Key)
}

fn connection_string(text: &str) -> Result<(Assignment, Secret), IdentityError> {
    let field = |name: &str| {
        let mut fields = text.split(';').filter_map(|field| field.split_once('='));
        fields
            .find(|(key, value)| key.trim() == name && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    let missing = |what| IdentityError::ConnectionString(what);
    let hub = field("HostName").ok_or(missing("HostName is missing"))?;
    let device_id = field("DeviceId").ok_or(missing(
        "DeviceId is missing; this may be a service connection string",
    ))?;
    let key = field("SharedAccessKey").ok_or(missing("SharedAccessKey is missing"))?;
    Ok((Assignment { hub, device_id }, Secret::from(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings() {
        let (assignment, key) =
            connection_string("HostName=h.net;DeviceId=a=b;SharedAccessKey=MTIz==").unwrap();
        assert_eq!(
            (&*assignment.hub, &*assignment.device_id, key.expose()),
            ("h.net", "a=b", "MTIz==")
        );
        for (text, expected) in [
            ("", "HostName"),
            (
                "HostName=h;SharedAccessKeyName=service;SharedAccessKey=MTIz",
                "DeviceId",
            ),
            ("HostName=h;DeviceId=d;SharedAccessKey=", "SharedAccessKey"),
        ] {
            let error = connection_string(text).unwrap_err().to_string();
            assert!(
                error.contains(expected) && !error.contains("MTIz"),
                "{error}"
            );
        }
    }
}
