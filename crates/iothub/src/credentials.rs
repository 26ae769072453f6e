//! What a client shows to a hub: a token of a shared access key, or of Microsoft Entra ID.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::warn;
use twincast_entra::{TokenError, Tokens};
use twincast_secret::{Secret, SecretSource, SourceError};

use crate::clock::HubClock;
use crate::connection_string::{ConnectionString, ConnectionStringError};
use crate::sas::{SAS_TOKEN_TYPE, SasToken, Signer};

/// The `type` of a put-token request with a token of Microsoft Entra ID, as C# and Java name it; its body is the token
/// with `Bearer ` before it.
const BEARER_TYPE: &str = "Bearer";

/// How a client proves to a hub who it is.
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
/// A string that a file holds is read again for each new token and each connection. With two strings, of a policy's two
/// keys, the second is tried when the hub refuses the first, and the other way round, so that keys can be rotated one
/// after the other.
#[derive(Debug, Clone)]
pub struct SharedAccess {
    /// The first is tried first. Never empty.
    strings: Vec<KeySource>,
}

#[derive(Debug, Clone)]
enum KeySource {
    Given(ConnectionString),
    Read(SecretSource),
}

/// Why there is nothing to show to the hub. Cheap to clone.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A connection string cannot be read.
    #[error("connection string is not available")]
    Source(#[source] Arc<SourceError>),
    /// There is something else.
    #[error("{place} does not hold a connection string")]
    NotAConnectionString {
        /// The place where it was to be.
        place: String,
        /// What is wrong with it.
        source: ConnectionStringError,
    },
    /// A file names another hub now.
    #[error(
        "connection string is for {found}, but this client is for {expected}; a client of another hub is needed"
    )]
    OtherHub {
        /// The hub that the file names.
        found: String,
        /// The hub that the client was made for.
        expected: String,
    },
    /// There is no token of Microsoft Entra ID.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// What a request or a link needs to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    SendMessages,
    ReceiveFeedback,
    ReadTwins,
    ReadStatistics,
}

/// A token with the times that matter, on this machine's clock. `Debug` does not show the token.
#[derive(Debug, Clone)]
pub(crate) struct HubToken {
    /// As the header `Authorization` and the body of a put-token request have it.
    pub(crate) text: Secret,
    /// The `type` of a put-token request.
    pub(crate) kind: &'static str,
    pub(crate) renew_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

/// The credentials of one hub's client, with the current token.
pub(crate) struct Shown {
    host_name: String,
    how: How,
}

enum How {
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
    /// The strings as they were last read without a fault.
    read: Vec<ConnectionString>,
    signer: Option<Signer>,
    token: Option<SasToken>,
    /// The key that the hub refused last.
    refused: Option<Secret>,
    is_warned: bool,
}

impl SharedAccess {
    /// Connection strings from the configuration or from files: a policy's first key, and its second one.
    #[must_use]
    pub fn read_from(first: SecretSource, second: Option<SecretSource>) -> Self {
        let sources = std::iter::once(first).chain(second);
        Self {
            strings: sources.map(KeySource::Read).collect(),
        }
    }

    /// The connection strings as they are now.
    ///
    /// # Errors
    ///
    /// One of them cannot be read or is none.
    pub fn connection_strings(&self) -> Result<Vec<ConnectionString>, CredentialsError> {
        let strings = self.strings.iter().map(|source| match source {
            KeySource::Given(string) => Ok(string.clone()),
            KeySource::Read(source) => {
                let text = source
                    .read()
                    .map_err(|error| CredentialsError::Source(Arc::new(error)))?;
                let string = text.expose().parse::<ConnectionString>();
                string.map_err(|error| CredentialsError::NotAConnectionString {
                    place: source.place(),
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
    /// Whether the next try may succeed without a person's help: a file that is being replaced, an identity service
    /// that does not answer.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(_) | Self::NotAConnectionString { .. } => true,
            Self::OtherHub { .. } => false,
            Self::Token(error) => error.is_transient(),
        }
    }
}

impl Shown {
    pub(crate) fn new(
        host_name: &str,
        credentials: Credentials,
        lifetime: Duration,
        clock: Arc<HubClock>,
    ) -> Self {
        Self {
            host_name: host_name.to_owned(),
            how: match credentials {
                Credentials::SharedAccess(strings) => How::SharedAccess(Box::new(Keys {
                    strings,
                    lifetime,
                    clock,
                    state: Mutex::default(),
                })),
                Credentials::Entra(tokens) => How::Entra(tokens),
            },
        }
    }

    /// The audience of a put-token request: the bare host name, in lower case.
    pub(crate) fn audience(&self) -> &str {
        &self.host_name
    }

    /// Who the client is, for people.
    pub(crate) fn identity(&self) -> String {
        match &self.how {
            How::SharedAccess(keys) => {
                let state = keys.state.lock().unwrap_or_else(PoisonError::into_inner);
                match state.signer.as_ref() {
                    Some(signer) => format!("policy {:?}", signer.key_name()),
                    None => "a shared access policy".to_owned(),
                }
            }
            How::Entra(tokens) => tokens.identity().to_owned(),
        }
    }

    /// The token to show now.
    ///
    /// Cancel safe.
    pub(crate) async fn token(&self) -> Result<HubToken, CredentialsError> {
        match &self.how {
            How::SharedAccess(keys) => {
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
            How::Entra(tokens) => {
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

    /// Notes that the hub has refused the last token: the next one is new, and of the other key if there is one.
    pub(crate) fn refused(&self) {
        match &self.how {
            How::SharedAccess(keys) => {
                let mut state = keys.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.token = None;
                state.refused = state.signer.as_ref().map(|signer| signer.key().clone());
            }
            How::Entra(tokens) => tokens.refused(),
        }
    }

    /// What a refused client needs, for people.
    pub(crate) fn needs(&self, right: Right) -> String {
        match &self.how {
            How::SharedAccess(_) => {
                let permission = match right {
                    Right::ReadStatistics => "registry read",
                    _ => "service connect",
                };
                format!("a policy with the permission {permission:?} is needed")
            }
            How::Entra(tokens) => {
                let (action, role) = match right {
                    Right::SendMessages => (
                        "cloudToDeviceMessages/send/action",
                        "IoT Hub Data Contributor",
                    ),
                    Right::ReceiveFeedback => (
                        "cloudToDeviceMessages/feedback/action",
                        "IoT Hub Data Contributor",
                    ),
                    Right::ReadTwins => ("twins/read", "IoT Hub Data Reader"),
                    Right::ReadStatistics => ("statistics/read", "IoT Hub Data Reader"),
                };
                let identity = tokens.identity();
                format!(
                    "{identity} needs the role {role:?} at the hub, or another one with the data action \
                     Microsoft.Devices/IotHubs/{action}; a new role may take some minutes to have effect"
                )
            }
        }
    }
}

impl KeyState {
    /// Reads the strings again. What was read before serves while a file is being replaced.
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
                    let error = crate::amqp::connection::in_words(&error);
                    warn!(hub = host_name, error, "the last connection string serves");
                }
            }
        }
        Ok(())
    }

    /// The token of the first key that was not just refused: the last one while it is fresh.
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
        let fresh = last.filter(|token| token.serves(lifetime, now, hub_now));
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

    fn shown(first: &Path, second: Option<&Path>) -> Shown {
        let source = |path: &Path| SecretSource::File {
            setting: "hubs.eu.connection_string_file".to_owned(),
            path: path.to_owned(),
        };
        let keys = SharedAccess::read_from(source(first), second.map(source));
        let credentials = Credentials::SharedAccess(keys);
        Shown::new("hub.example", credentials, LIFETIME, Arc::default())
    }

    #[tokio::test]
    async fn a_key_is_what_the_file_says_when_a_token_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("string");
        let shown = shown(&path, None);
        assert!(shown.token().await.unwrap_err().is_transient());
        std::fs::write(&path, string("hub.example", "b2xk")).unwrap();
        let old = shown.token().await.unwrap();
        let again = shown.token().await.unwrap();
        assert_eq!(again.text.expose(), old.text.expose());
        for being_replaced in ["", "HostName="] {
            std::fs::write(&path, being_replaced).unwrap();
            let again = shown.token().await.unwrap();
            assert_eq!(again.text.expose(), old.text.expose());
        }
        std::fs::write(&path, string("hub.example", "bmV3")).unwrap();
        let new = shown.token().await.unwrap();
        assert_ne!(new.text.expose(), old.text.expose());
        assert_eq!(shown.identity(), "policy \"service\"");
        // A file of another hub's is not followed there.
        std::fs::write(&path, string("other.example", "bmV3")).unwrap();
        let kept = shown.token().await.unwrap();
        assert_eq!(kept.text.expose(), new.text.expose());
    }

    #[tokio::test]
    async fn a_file_of_another_hub_is_refused_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("string");
        std::fs::write(&path, string("other.example", "b2xk")).unwrap();
        let error = shown(&path, None).token().await.unwrap_err();
        assert!(!error.is_transient());
        let text = error.to_string();
        assert!(
            text.contains("other.example") && text.contains("hub.example"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn the_second_key_is_tried_when_the_first_is_refused_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        std::fs::write(&first, string("hub.example", "Zmlyc3Q=")).unwrap();
        std::fs::write(&second, string("hub.example", "c2Vjb25k")).unwrap();
        let shown = shown(&first, Some(&second));
        let key = async || {
            shown.token().await.unwrap();
            let How::SharedAccess(keys) = &shown.how else {
                unreachable!("it has keys");
            };
            let state = keys.state.lock().unwrap();
            state.signer.as_ref().unwrap().key().expose().to_owned()
        };
        assert_eq!(key().await, "Zmlyc3Q=");
        shown.refused();
        assert_eq!(key().await, "c2Vjb25k");
        assert_eq!(key().await, "c2Vjb25k");
        shown.refused();
        assert_eq!(key().await, "Zmlyc3Q=");
        // A key that is new is not the one that was refused.
        shown.refused();
        std::fs::write(&first, string("hub.example", "dGhpcmQ=")).unwrap();
        assert_eq!(key().await, "dGhpcmQ=");
    }
}
