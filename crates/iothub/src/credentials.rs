//! A client's credentials for a hub: tokens of a shared access key, or of Microsoft Entra ID.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::warn;
use twincast_entra::{TokenError, Tokens};
use twincast_secret::{Secret, SecretSource, SourceError};

use crate::clock::HubClock;
use crate::connection_string::{ConnectionString, ConnectionStringError};
use crate::sas::{SAS_TOKEN_TYPE, SasToken, Signer};

/// The `type` of a put-token request with a token of Microsoft Entra ID, as in the C# and Java
/// SDKs; the body is the token after the prefix `Bearer `.
const BEARER_TYPE: &str = "Bearer";

/// How a client authenticates to a hub.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credentials {
    /// The key of a shared access policy.
    SharedAccess(SharedAccess),
    /// A token of Microsoft Entra ID for [`HUB_SCOPE`](twincast_entra::HUB_SCOPE).
    Entra(Tokens),
}

/// The keys of a shared access policy, as connection strings.
///
/// A connection string in a file is read again for each new token and each connection. With two
/// strings, for a policy's two keys, the client switches to the other string when the hub refuses
/// the current one, so keys can be rotated one after the other.
#[derive(Debug, Clone)]
pub struct SharedAccess {
    /// In order of preference. Never empty.
    strings: Vec<KeySource>,
}

#[derive(Debug, Clone)]
enum KeySource {
    Given(ConnectionString),
    Read(SecretSource),
}

/// Why no credentials are available. Cheap to clone.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A connection string cannot be read.
    #[error("connection string is not available")]
    Source(#[source] Arc<SourceError>),
    /// The source holds another text.
    #[error("{place} does not contain a valid connection string")]
    NotAConnectionString {
        /// The expected place of the connection string.
        place: String,
        /// The parse error.
        source: ConnectionStringError,
    },
    /// A file now names another hub.
    #[error(
        "connection string is for {found}, but this client is for {expected}; the hub of a client cannot change"
    )]
    OtherHub {
        /// The hub named by the file.
        found: String,
        /// The client's hub.
        expected: String,
    },
    /// No token of Microsoft Entra ID is available.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The permission needed for a request or a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    SendMessages,
    ReceiveFeedback,
    ReadTwins,
    ReadStatistics,
}

/// A token with its renewal and expiry times on this machine's clock. `Debug` does not show the
/// token.
#[derive(Debug, Clone)]
pub(crate) struct HubToken {
    /// The value of the header `Authorization` and the body of a put-token request.
    pub(crate) text: Secret,
    /// The `type` of a put-token request.
    pub(crate) kind: &'static str,
    pub(crate) renew_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

/// The credentials of one hub's client, with the current token.
pub(crate) struct HubCredentials {
    host_name: String,
    method: Method,
}

enum Method {
    SharedAccess(Box<Keys>),
    Entra(Tokens),
}

struct Keys {
    strings: SharedAccess,
    lifetime: Duration,
    clock: Arc<HubClock>,
    state: Mutex<KeyState>,
}

#[derive(Default)]
struct KeyState {
    /// The strings as last read without an error.
    read: Vec<ConnectionString>,
    signer: Option<Signer>,
    token: Option<SasToken>,
    /// The key most recently refused by the hub.
    refused: Option<Secret>,
    is_warned: bool,
}

impl SharedAccess {
    /// Connection strings from the configuration or from files: a policy's first key, and its
    /// second one.
    #[must_use]
    pub fn read_from(first: SecretSource, second: Option<SecretSource>) -> Self {
        let sources = std::iter::once(first).chain(second);
        Self {
            strings: sources.map(KeySource::Read).collect(),
        }
    }

    /// Reads the current connection strings.
    ///
    /// # Errors
    ///
    /// A source cannot be read, or does not hold a connection string.
    pub fn connection_strings(&self) -> Result<Vec<ConnectionString>, CredentialsError> {
        let strings = self.strings.iter().map(|source| match source {
            KeySource::Given(string) => Ok(string.clone()),
            KeySource::Read(source) => {
                let text = source
                    .read()
                    .map_err(|error| CredentialsError::Source(Arc::new(error)))?;
                let string = text.expose().parse::<ConnectionString>();
                string.map_err(|error| CredentialsError::NotAConnectionString {
                    place: source.describe(),
                    source: error,
                })
            }
        });
        strings.collect()
    }
}

impl From<ConnectionString> for SharedAccess {
    fn from(string: ConnectionString) -> Self {
        Self {
            strings: vec![KeySource::Given(string)],
        }
    }
}

impl CredentialsError {
    /// Whether the next try may succeed without an operator's help, e.g. while a file is being
    /// replaced or an identity service does not answer.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(_) | Self::NotAConnectionString { .. } => true,
            Self::OtherHub { .. } => false,
            Self::Token(error) => error.is_transient(),
        }
    }
}

impl HubCredentials {
    pub(crate) fn new(
        host_name: &str,
        credentials: Credentials,
        lifetime: Duration,
        clock: Arc<HubClock>,
    ) -> Self {
        Self {
            host_name: host_name.to_owned(),
            method: match credentials {
                Credentials::SharedAccess(strings) => Method::SharedAccess(Box::new(Keys {
                    strings,
                    lifetime,
                    clock,
                    state: Mutex::default(),
                })),
                Credentials::Entra(tokens) => Method::Entra(tokens),
            },
        }
    }

    /// The audience of a put-token request: the bare host name, in lower case.
    pub(crate) fn audience(&self) -> &str {
        &self.host_name
    }

    /// A description of the client's identity.
    pub(crate) fn identity(&self) -> String {
        match &self.method {
            Method::SharedAccess(keys) => {
                let state = keys.state.lock().unwrap_or_else(PoisonError::into_inner);
                match state.signer.as_ref() {
                    Some(signer) => format!("policy {:?}", signer.key_name()),
                    None => "a shared access policy".to_owned(),
                }
            }
            Method::Entra(tokens) => tokens.identity().to_owned(),
        }
    }

    /// Returns the token for the next request.
    ///
    /// Cancel safe.
    pub(crate) async fn token(&self) -> Result<HubToken, CredentialsError> {
        match &self.method {
            Method::SharedAccess(keys) => {
                let now = SystemTime::now();
                let hub_now = keys.clock.hub_time(now);
                let mut state = keys.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.refresh(&keys.strings, &self.host_name)?;
                let token = state.token(keys.lifetime, now, hub_now);
                Ok(HubToken {
                    text: token.token().clone(),
                    kind: SAS_TOKEN_TYPE,
                    renew_at: token.renew_at(),
                    expires_at: token.expires_at(),
                })
            }
            Method::Entra(tokens) => {
                let token = tokens.token().await?;
                Ok(HubToken {
                    text: Secret::new(format!("Bearer {}", token.token.expose())),
                    kind: BEARER_TYPE,
                    renew_at: token.renew_at,
                    expires_at: token.expires_at,
                })
            }
        }
    }

    /// Records a refusal of the last token by the hub: the next token is new, and signed with the
    /// other key if available.
    pub(crate) fn refused(&self) {
        match &self.method {
            Method::SharedAccess(keys) => {
                let mut state = keys.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.token = None;
                state.refused = state.signer.as_ref().map(|signer| signer.key().clone());
            }
            Method::Entra(tokens) => tokens.refused(),
        }
    }

    /// Describes the permission missing from a refused client.
    pub(crate) fn missing_permission(&self, permission: Permission) -> String {
        match &self.method {
            Method::SharedAccess(_) => {
                let permission = match permission {
                    Permission::ReadStatistics => "registry read",
                    _ => "service connect",
                };
                format!("a policy with the permission {permission:?} is needed")
            }
            Method::Entra(tokens) => {
                let (action, role) = match permission {
                    Permission::SendMessages => (
                        "cloudToDeviceMessages/send/action",
                        "IoT Hub Data Contributor",
                    ),
                    Permission::ReceiveFeedback => (
                        "cloudToDeviceMessages/feedback/action",
                        "IoT Hub Data Contributor",
                    ),
                    Permission::ReadTwins => ("twins/read", "IoT Hub Data Reader"),
                    Permission::ReadStatistics => ("statistics/read", "IoT Hub Data Reader"),
                };
                let identity = tokens.identity();
                format!(
                    "{identity} needs the role {role:?} at the hub, or another role with the data action \
                     Microsoft.Devices/IotHubs/{action}; a new role assignment may take some minutes to take effect"
                )
            }
        }
    }
}

impl KeyState {
    /// Reads the strings again. The previous strings stay in use while a file is being replaced.
    fn refresh(&mut self, keys: &SharedAccess, host_name: &str) -> Result<(), CredentialsError> {
        let read = keys.connection_strings().and_then(|strings| {
            let other = strings
                .iter()
                .find(|string| string.host_name() != host_name);
            match other {
                None => Ok(strings),
                Some(other) => Err(CredentialsError::OtherHub {
                    found: other.host_name().to_owned(),
                    expected: host_name.to_owned(),
                }),
            }
        });
        match read {
            Ok(strings) => {
                self.is_warned = false;
                self.read = strings;
            }
            Err(error) if self.read.is_empty() => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.is_warned, true) {
                    let error = crate::amqp::connection::describe(&error);
                    warn!(
                        hub = host_name,
                        error,
                        "failed to read the connection string; the previous one stays in use"
                    );
                }
            }
        }
        Ok(())
    }

    /// Returns a token of the first key other than the refused one; the previous token while it is
    /// fresh.
    fn token(&mut self, lifetime: Duration, now: SystemTime, hub_now: SystemTime) -> &SasToken {
        let is_refused = |string: &&ConnectionString| {
            let refused = self.refused.as_ref().map(Secret::expose);
            refused == Some(string.key().expose())
        };
        let string = self
            .read
            .iter()
            .find(|string| !is_refused(string))
            .unwrap_or(&self.read[0]);
        let is_same = |signer: &Signer| {
            signer.key().expose() == string.key().expose() && signer.key_name() == string.key_name()
        };
        if !self.signer.as_ref().is_some_and(is_same) {
            self.signer = None;
            self.token = None;
        }
        let signer = self
            .signer
            .get_or_insert_with(|| Signer::new(string, lifetime));
        let last = self.token.take();
        let fresh = last.filter(|token| token.is_fresh(lifetime, now, hub_now));
        self.token
            .insert(fresh.unwrap_or_else(|| signer.sign(now, hub_now)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(1_000);

    fn string(host: &str, key: &str) -> String {
        format!("HostName={host};SharedAccessKeyName=service;SharedAccessKey={key}")
    }

    fn hub_credentials(first: &Path, second: Option<&Path>) -> HubCredentials {
        let source = |path: &Path| SecretSource::File {
            setting: "hubs.eu.connection_string_file".to_owned(),
            path: path.to_owned(),
        };
        let keys = SharedAccess::read_from(source(first), second.map(source));
        let credentials = Credentials::SharedAccess(keys);
        HubCredentials::new("hub.example", credentials, LIFETIME, Arc::default())
    }

    #[tokio::test]
    async fn a_token_is_signed_with_the_current_key_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("string");
        let credentials = hub_credentials(&path, None);
        assert!(credentials.token().await.unwrap_err().is_transient());
        std::fs::write(&path, string("hub.example", "b2xk")).unwrap();
        let old = credentials.token().await.unwrap();
        let again = credentials.token().await.unwrap();
        assert_eq!(again.text.expose(), old.text.expose());
        for being_replaced in ["", "HostName="] {
            std::fs::write(&path, being_replaced).unwrap();
            let again = credentials.token().await.unwrap();
            assert_eq!(again.text.expose(), old.text.expose());
        }
        std::fs::write(&path, string("hub.example", "bmV3")).unwrap();
        let new = credentials.token().await.unwrap();
        assert_ne!(new.text.expose(), old.text.expose());
        assert_eq!(credentials.identity(), "policy \"service\"");
        // A file naming another hub is ignored.
        std::fs::write(&path, string("other.example", "bmV3")).unwrap();
        let kept = credentials.token().await.unwrap();
        assert_eq!(kept.text.expose(), new.text.expose());
    }

    #[tokio::test]
    async fn a_file_of_another_hub_is_refused_permanently() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("string");
        std::fs::write(&path, string("other.example", "b2xk")).unwrap();
        let error = hub_credentials(&path, None).token().await.unwrap_err();
        assert!(!error.is_transient());
        let text = error.to_string();
        assert!(
            text.contains("other.example") && text.contains("hub.example"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_refused_key_switches_to_the_alternate_key() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        std::fs::write(&first, string("hub.example", "Zmlyc3Q=")).unwrap();
        std::fs::write(&second, string("hub.example", "c2Vjb25k")).unwrap();
        let credentials = hub_credentials(&first, Some(&second));
        let key = async || {
            credentials.token().await.unwrap();
            let Method::SharedAccess(keys) = &credentials.method else {
                unreachable!("the credentials have keys");
            };
            let state = keys.state.lock().unwrap();
            state.signer.as_ref().unwrap().key().expose().to_owned()
        };
        assert_eq!(key().await, "Zmlyc3Q=");
        credentials.refused();
        assert_eq!(key().await, "c2Vjb25k");
        assert_eq!(key().await, "c2Vjb25k");
        credentials.refused();
        assert_eq!(key().await, "Zmlyc3Q=");
        // A new key differs from the refused key.
        credentials.refused();
        std::fs::write(&first, string("hub.example", "dGhpcmQ=")).unwrap();
        assert_eq!(key().await, "dGhpcmQ=");
    }
}
