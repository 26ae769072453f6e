//! Who the device is, and how it proves that to its hub.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{self, ConfigError, Identity, Secret};
use crate::sas;

pub(crate) mod dps;

/// The hub that a device belongs to, and its name there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// The hub's host name.
    pub(crate) hub: String,
    /// The device's id.
    pub(crate) device_id: String,
}

/// How a device proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It signs tokens with a symmetric key.
    Key(Secret),
    /// Its certificate is part of TLS.
    Certificate { certificate: PathBuf, key: PathBuf },
}

/// Where an [`Assignment`] comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The configuration.
    Fixed(Assignment),
    /// The Device Provisioning Service.
    Provisioned(dps::Registration),
}

/// What the configuration says of the device's identity, read and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) source: Source,
    pub(crate) proof: Proof,
}

/// Why the device has no identity.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The connection string is not a device's.
    #[error("the connection string is not a device's: {0}")]
    ConnectionString(&'static str),
    /// A key is not base64.
    #[error("the device's symmetric key is not base64")]
    Key,
}

impl Credentials {
    /// Reads what `identity` names.
    pub(crate) fn load(identity: &Identity) -> Result<Self, IdentityError> {
        if let Some(dps) = &identity.dps {
            return Self::provisioned(identity, dps);
        }
        let certificate = certificate(identity);
        if let (Some(hub), Some(device_id), Some(proof)) =
            (&identity.hub, &identity.device_id, certificate)
        {
            let assignment = Assignment {
                hub: hub.clone(),
                device_id: device_id.clone(),
            };
            return Ok(Self {
                source: Source::Fixed(assignment),
                proof,
            });
        }
        let text = match (
            &identity.connection_string,
            &identity.connection_string_file,
        ) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => Secret::from(config::read(path)?.trim().to_owned()),
            (None, None) => return Err(IdentityError::ConnectionString("there is none")),
        };
        let (assignment, key) = connection_string(text.expose())?;
        Ok(Self {
            source: Source::Fixed(assignment),
            proof: Proof::Key(checked(key)?),
        })
    }

    fn provisioned(identity: &Identity, dps: &config::Dps) -> Result<Self, IdentityError> {
        let proof = match (
            certificate(identity),
            &dps.key,
            &dps.key_file,
            &dps.group_key,
        ) {
            (Some(proof), ..) => proof,
            (_, Some(key), ..) => Proof::Key(checked(key.clone())?),
            (_, _, Some(path), _) => Proof::Key(checked(Secret::from(
                config::read(path)?.trim().to_owned(),
            ))?),
            (_, _, _, group_key) => {
                let group_key = group_key.as_ref().map_or("", Secret::expose);
                let key = sas::derive(group_key, &dps.registration_id).ok_or(IdentityError::Key)?;
                Proof::Key(Secret::from(key))
            }
        };
        let registration = dps::Registration {
            host: dps.host.clone(),
            port: dps.port,
            id_scope: dps.id_scope.clone(),
            registration_id: dps.registration_id.clone(),
        };
        Ok(Self {
            source: Source::Provisioned(registration),
            proof,
        })
    }

    /// The files of the device's certificate, if it has one.
    pub(crate) fn certificate(&self) -> Option<(&Path, &Path)> {
        match &self.proof {
            Proof::Certificate { certificate, key } => Some((certificate, key)),
            Proof::Key(_) => None,
        }
    }
}

impl Proof {
    /// A token for a resource; none for a device that has a certificate.
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

fn certificate(identity: &Identity) -> Option<Proof> {
    let (certificate, key) = (
        identity.certificate_file.clone()?,
        identity.private_key_file.clone()?,
    );
    Some(Proof::Certificate { certificate, key })
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
    let device_id = field("DeviceId").ok_or(missing("DeviceId is missing; is it a service's?"))?;
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
        for (text, told) in [
            ("", "HostName"),
            (
                "HostName=h;SharedAccessKeyName=service;SharedAccessKey=MTIz",
                "DeviceId",
            ),
            ("HostName=h;DeviceId=d;SharedAccessKey=", "SharedAccessKey"),
        ] {
            let error = connection_string(text).unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("MTIz"), "{error}");
        }
    }
}
