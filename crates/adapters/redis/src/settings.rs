//! What an operator can set.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo};
use twincast_core::ports::Clock;

use crate::error::ConnectError;

/// How to reach Redis, and what to keep there.
#[derive(Clone)]
pub struct Settings {
    /// `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or `rediss://` for TLS. One; or some of a
    /// cluster's nodes, with the same user and password.
    pub urls: Vec<String>,
    /// Whether it is a Redis Cluster.
    pub cluster: bool,
    /// A file of PEM certificates to trust with `rediss://`, in place of the system's.
    pub ca: Option<PathBuf>,
    /// What the names of all keys begin with. Engines of one prefix are one engine.
    pub prefix: String,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub response_timeout: Duration,
    /// Whose time leases and permits go by.
    pub time: TimeSource,
    /// The time after which a write that the server acknowledged is durable; `None` to go by the server's settings.
    pub durable_after: Option<Duration>,
}

/// Whose time it is.
#[derive(Clone, Default)]
pub enum TimeSource {
    /// The server's, so that all processes have one clock.
    #[default]
    Server,
    /// A clock of this process, for tests that move it.
    Given(Arc<dyn Clock>),
}

impl Settings {
    /// One Redis, with the defaults: the prefix `twincast:`, and five seconds each for making a
    /// connection and for an answer. A slow answer is then a server in trouble, not a busy one.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            cluster: false,
            ca: None,
            prefix: "twincast:".into(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            time: TimeSource::Server,
            durable_after: None,
        }
    }

    /// A Redis Cluster, by the URLs of some of its nodes.
    #[must_use]
    pub fn cluster(urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            cluster: true,
            ..Self::new("")
        }
    }

    /// The servers' addresses, after a check of everything that can be checked without them.
    pub(crate) fn servers(&self) -> Result<Vec<ConnectionInfo>, ConnectError> {
        let wrong = |what: String| Err(ConnectError::Settings { what });
        if self.urls.is_empty() {
            return wrong("there is no URL".into());
        }
        if !self.cluster && self.urls.len() > 1 {
            let count = self.urls.len();
            return wrong(format!("there are {count} URLs, but it is not a cluster"));
        }
        // In braces is what a cluster places a key by; ours are further back.
        if self.prefix.contains(['{', '}']) {
            return wrong(format!("the prefix {:?} has a brace in it", self.prefix));
        }
        let mut servers = Vec::new();
        for (number, url) in self.urls.iter().enumerate() {
            match url.as_str().into_connection_info() {
                Ok(server) => servers.push(server),
                // The URL itself may hold a password.
                Err(error) => return wrong(format!("URL number {}: {error}", number + 1)),
            }
        }
        Ok(servers)
    }
}

impl fmt::Debug for Settings {
    /// Without the URLs, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("cluster", &self.cluster)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "Server",
            Self::Given(_) => "Given",
        })
    }
}

/// Where servers are, for people.
pub(crate) fn addresses(servers: &[ConnectionInfo]) -> String {
    let addresses: Vec<_> = servers.iter().map(|s| s.addr().to_string()).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_named_without_secrets() {
        let prefix = Settings {
            prefix: "{x}:".into(),
            ..Settings::new("redis://localhost")
        };
        let many = Settings {
            cluster: false,
            ..Settings::cluster(["redis://a", "redis://b"])
        };
        for (settings, named) in [
            (Settings::cluster(Vec::<String>::new()), "no URL"),
            (many, "2 URLs"),
            (prefix, "brace"),
            (Settings::new("http://u:secret@x"), "URL number 1"),
            (Settings::new("redis://u:secret@x:port"), "URL number 1"),
        ] {
            let error = settings.servers().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert!(!format!("{settings:?}").contains("secret"));
        }
    }

    #[test]
    fn addresses_have_no_passwords() {
        let settings = Settings::cluster(["redis://u:secret@a:1", "redis://u:secret@b:2"]);
        assert_eq!(addresses(&settings.servers().unwrap()), "a:1, b:2");
    }
}
