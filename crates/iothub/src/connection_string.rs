//! Service connection strings: `HostName=…;SharedAccessKeyName=…;SharedAccessKey=…`.
//!
//! Keys may come in any order; a part is split at its *first* `=` because base64 keys end in `=`.
//! The host name is lower-cased, and no DNS suffix is ever added: sovereign clouds have their own.
//! `HostName=localhost:5671` names a port for both protocols, as needed for emulators. No error of
//! this module repeats a value of the string, since a mistyped string may hold the key anywhere.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

use twincast_secret::Secret;

/// A hub's address and signing key: the parsed form of a service connection string.
///
/// `Debug` shows the host and the policy, never the key.
#[derive(Clone)]
pub struct ConnectionString {
    address: HubAddress,
    key_name: String,
    key: Secret,
}

/// A hub's host name, and a port if non-standard.
///
/// Parsed from text such as `contoso.azure-devices.net`. Hubs have the host names
/// `{hub}.azure-devices.net`, `{hub}.service.azure-devices.net` and, in sovereign clouds, others.
/// No form is converted into another, and each host name counts as a hub of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    host_name: String,
    port: Option<u16>,
    gateway_host_name: Option<String>,
}

impl HubAddress {
    /// The hub's host name, in lower case.
    #[must_use]
    pub fn host_name(&self) -> &str {
        &self.host_name
    }

    /// The port in the host name, if any: for both protocols.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host to dial instead of the hub itself, if the connection string names a gateway.
    #[must_use]
    pub fn gateway_host_name(&self) -> Option<&str> {
        self.gateway_host_name.as_deref()
    }
}

impl FromStr for HubAddress {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, ConnectionStringError> {
        let (host_name, port) = match text.trim().split_once(':') {
            None => (host("HostName", text.trim())?, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                let port = port.ok_or(ConnectionStringError::NotAHostName("HostName"))?;
                (host("HostName", name)?, Some(port))
            }
        };
        Ok(Self {
            host_name,
            port,
            gateway_host_name: None,
        })
    }
}

/// Why a connection string was refused. Never holds a value of the string.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnectionStringError {
    /// The text is empty.
    #[error("connection string is empty")]
    Empty,
    /// A part between two `;` has no `=`.
    #[error("connection string part {position} has no '='")]
    NoEquals {
        /// The part's position, counted from one.
        position: usize,
    },
    /// A part has a key unknown in service connection strings.
    #[error(
        "connection string part {position} has an unknown key; known are HostName, SharedAccessKeyName, SharedAccessKey and GatewayHostName"
    )]
    UnknownKey {
        /// The part's position, counted from one.
        position: usize,
    },
    /// The same key is given twice.
    #[error("connection string has {0} twice")]
    Repeated(&'static str),
    /// A mandatory key is missing.
    #[error("connection string lacks {0}")]
    Missing(&'static str),
    /// A mandatory key has no value.
    #[error("connection string has an empty {0}")]
    EmptyValue(&'static str),
    /// The host name has characters not allowed in host names, or a scheme or path.
    #[error("connection string's {0} is not a bare host name")]
    NotAHostName(&'static str),
    /// The shared access key is not base64.
    #[error("connection string's SharedAccessKey is not base64")]
    KeyNotBase64,
    /// The string is a device's (`DeviceId` or `ModuleId`); this is a service client.
    #[error(
        "connection string is for a device (it has {0}); a service policy such as 'service' is needed"
    )]
    ForADevice(&'static str),
    /// The string holds a ready token instead of a key. Tokens cannot be renewed.
    #[error("connection string has SharedAccessSignature; only SharedAccessKey is supported")]
    HasSignature,
}

/// Why a connection string could not be loaded from the environment.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadConnectionStringError {
    /// The environment variable is not set.
    #[error("environment variable {0} is not set")]
    NotSet(String),
    /// The environment variable is not Unicode.
    #[error("environment variable {0} is not Unicode")]
    NotUnicode(String),
    /// The loaded text is not a connection string.
    #[error("{origin} does not contain a valid connection string")]
    Invalid {
        /// The variable.
        origin: String,
        /// The parse error.
        source: ConnectionStringError,
    },
}

impl ConnectionString {
    /// Creates a connection string from its parts, with the same checks as parsing.
    ///
    /// # Errors
    ///
    /// When the host is not a bare host name, the policy name is empty or the key is not base64.
    pub fn new(
        host_name: &str,
        key_name: &str,
        key: Secret,
    ) -> Result<Self, ConnectionStringError> {
        let address = host_name.parse()?;
        if key_name.is_empty() {
            return Err(ConnectionStringError::EmptyValue("SharedAccessKeyName"));
        }
        if key.is_empty() {
            return Err(ConnectionStringError::EmptyValue("SharedAccessKey"));
        }
        let decoded = STANDARD.decode(key.expose()).map(Zeroizing::new);
        if decoded.is_err() {
            return Err(ConnectionStringError::KeyNotBase64);
        }
        Ok(Self {
            address,
            key_name: key_name.to_owned(),
            key,
        })
    }

    /// Reads and parses an environment variable.
    ///
    /// # Errors
    ///
    /// When the variable is not set, not Unicode, or does not hold a connection string.
    pub fn from_env(variable: &str) -> Result<Self, LoadConnectionStringError> {
        let text = match std::env::var(variable) {
            Ok(text) => Zeroizing::new(text),
            Err(std::env::VarError::NotPresent) => {
                return Err(LoadConnectionStringError::NotSet(variable.to_owned()));
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(LoadConnectionStringError::NotUnicode(variable.to_owned()));
            }
        };
        text.trim()
            .parse()
            .map_err(|source| LoadConnectionStringError::Invalid {
                origin: format!("environment variable {variable}"),
                source,
            })
    }

    /// The hub's address.
    #[must_use]
    pub fn address(&self) -> &HubAddress {
        &self.address
    }

    /// The hub's host name, in lower case.
    #[must_use]
    pub fn host_name(&self) -> &str {
        self.address.host_name()
    }

    /// The port in the host name, if any: for both protocols.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.address.port()
    }

    /// The name of the shared access policy.
    #[must_use]
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The base64 key of the policy.
    #[must_use]
    pub fn key(&self) -> &Secret {
        &self.key
    }

    /// The host to dial instead of the hub itself, if the string names a gateway.
    #[must_use]
    pub fn gateway_host_name(&self) -> Option<&str> {
        self.address.gateway_host_name()
    }
}

impl FromStr for ConnectionString {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, ConnectionStringError> {
        if text.trim().is_empty() {
            return Err(ConnectionStringError::Empty);
        }
        let (mut host_name, mut key_name, mut key, mut gateway) = (None, None, None, None);
        for (index, part) in text.split(';').enumerate() {
            let (part, position) = (part.trim(), index + 1);
            if part.is_empty() {
                continue;
            }
            let (name, value) = part
                .split_once('=')
                .ok_or(ConnectionStringError::NoEquals { position })?;
            let (slot, known) = match name.trim().to_ascii_lowercase().as_str() {
                "hostname" => (&mut host_name, "HostName"),
                "sharedaccesskeyname" => (&mut key_name, "SharedAccessKeyName"),
                "sharedaccesskey" => (&mut key, "SharedAccessKey"),
                "gatewayhostname" => (&mut gateway, "GatewayHostName"),
                "deviceid" => return Err(ConnectionStringError::ForADevice("DeviceId")),
                "moduleid" => return Err(ConnectionStringError::ForADevice("ModuleId")),
                "sharedaccesssignature" => return Err(ConnectionStringError::HasSignature),
                _ => return Err(ConnectionStringError::UnknownKey { position }),
            };
            if slot.replace(value.trim()).is_some() {
                return Err(ConnectionStringError::Repeated(known));
            }
        }
        let host_name = host_name.ok_or(ConnectionStringError::Missing("HostName"))?;
        let key_name = key_name.ok_or(ConnectionStringError::Missing("SharedAccessKeyName"))?;
        let key = key.ok_or(ConnectionStringError::Missing("SharedAccessKey"))?;
        let gateway_host_name = gateway
            .map(|name| host("GatewayHostName", name))
            .transpose()?;
        let mut parsed = Self::new(host_name, key_name, Secret::new(key))?;
        parsed.address.gateway_host_name = gateway_host_name;
        Ok(parsed)
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("address", &self.address)
            .field("key_name", &self.key_name)
            .field("key", &self.key)
            .finish()
    }
}

fn host(key: &'static str, text: &str) -> Result<String, ConnectionStringError> {
    if text.is_empty() {
        return Err(ConnectionStringError::EmptyValue(key));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if text.len() > 253 || !text.chars().all(allowed) {
        return Err(ConnectionStringError::NotAHostName(key));
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ=";

    #[test]
    fn parts_come_in_any_order_and_case_and_the_host_is_lower_cased() {
        for text in [
            format!(
                "HostName=Hub.Azure-Devices.NET;SharedAccessKeyName=service;SharedAccessKey={KEY}"
            ),
            format!(
                "SharedAccessKey={KEY}; sharedaccesskeyname=service ;HOSTNAME=hub.azure-devices.net;"
            ),
        ] {
            let parsed: ConnectionString = text.parse().unwrap();
            assert_eq!(parsed.host_name(), "hub.azure-devices.net");
            assert_eq!(parsed.key_name(), "service");
            assert_eq!(parsed.key().expose(), KEY);
        }
    }

    #[test]
    fn a_host_name_may_carry_a_port() {
        let parsed = ConnectionString::new("LocalHost:5671", "s", Secret::new(KEY)).unwrap();
        assert_eq!(
            (parsed.host_name(), parsed.port()),
            ("localhost", Some(5_671))
        );
    }

    #[test]
    fn every_error_is_named() {
        use ConnectionStringError as E;
        let cases: &[(&str, E)] = &[
            ("", E::Empty),
            ("  ", E::Empty),
            ("HostName", E::NoEquals { position: 1 }),
            ("HostName=h;Colour=red", E::UnknownKey { position: 2 }),
            ("HostName=a;HostName=b", E::Repeated("HostName")),
            (
                "SharedAccessKeyName=s;SharedAccessKey=YQ==",
                E::Missing("HostName"),
            ),
            (
                "HostName=h;SharedAccessKey=YQ==",
                E::Missing("SharedAccessKeyName"),
            ),
            (
                "HostName=h;SharedAccessKeyName=s",
                E::Missing("SharedAccessKey"),
            ),
            (
                "HostName=;SharedAccessKeyName=s;SharedAccessKey=YQ==",
                E::EmptyValue("HostName"),
            ),
            (
                "HostName=h;SharedAccessKeyName=;SharedAccessKey=YQ==",
                E::EmptyValue("SharedAccessKeyName"),
            ),
            (
                "HostName=h;SharedAccessKeyName=s;SharedAccessKey=",
                E::EmptyValue("SharedAccessKey"),
            ),
            (
                "HostName=https://h/;SharedAccessKeyName=s;SharedAccessKey=YQ==",
                E::NotAHostName("HostName"),
            ),
            (
                "HostName=h:x;SharedAccessKeyName=s;SharedAccessKey=YQ==",
                E::NotAHostName("HostName"),
            ),
            (
                "HostName=h;SharedAccessKeyName=s;SharedAccessKey=*",
                E::KeyNotBase64,
            ),
            (
                "HostName=h;DeviceId=d;SharedAccessKey=YQ==",
                E::ForADevice("DeviceId"),
            ),
            ("HostName=h;SharedAccessSignature=x", E::HasSignature),
        ];
        for (text, error) in cases {
            assert_eq!(
                text.parse::<ConnectionString>().unwrap_err(),
                *error,
                "{text}"
            );
        }
    }

    #[test]
    fn debug_and_errors_never_show_the_key() {
        let parsed = ConnectionString::new("h", "service", Secret::new(KEY)).unwrap();
        assert!(!format!("{parsed:?}").contains(KEY));
        for text in [
            format!("HostName=h;{KEY}"),
            format!("HostName=h;{KEY}x"),
            format!("{KEY}=;HostName=h"),
        ] {
            let error = text.parse::<ConnectionString>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("c2Vjc"), "{error}");
        }
    }

    #[test]
    fn an_unset_variable_is_reported() {
        let error =
            ConnectionString::from_env("TWINCAST_TEST_VARIABLE_THAT_IS_NOT_SET").unwrap_err();
        assert!(matches!(error, LoadConnectionStringError::NotSet(_)));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            let _ = text.parse::<ConnectionString>();
        }
    }
}
