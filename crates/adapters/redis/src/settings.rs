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
            // The URL itself may hold a password.
            let wrong = |what: &str| wrong(format!("URL number {}: {what}", number + 1));
            // The library passes over what it does not look for there. Sockets have their database in it.
            let is_tcp = ["redis://", "rediss://", "valkey://", "valkeys://"];
            if is_tcp.iter().any(|scheme| url.starts_with(scheme)) && url.contains(['?', '#']) {
                return wrong(
                    "it has parameters (after ? or #), which nothing looks at; the database is the path, as in \
                     redis://HOST/2, and these characters in a password are written %3F and %23",
                );
            }
            match url.as_str().into_connection_info() {
                Ok(server) if self.cluster && server.redis_settings().db() != 0 => {
                    return wrong("a cluster has no database but 0");
                }
                Ok(server) => servers.push(server),
                Err(error) => return wrong(&error.to_string()),
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

/// The URLs of a list with commas between them. A password may have commas in it.
#[must_use]
pub fn urls(list: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for piece in list.split(',') {
        let scheme = piece
            .trim_start()
            .split_once("://")
            .map(|(scheme, _)| scheme);
        let begins =
            scheme.is_some_and(|it| it.bytes().all(|b| b.is_ascii_alphabetic() || b == b'+'));
        match urls.last_mut() {
            Some(last) if !begins => last.extend([",", piece]),
            _ => urls.push(piece.to_owned()),
        }
    }
    urls.iter().map(|url| url.trim().to_owned()).collect()
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
            (
                Settings::new("redis://u:secret@x?db=2"),
                "as in redis://HOST/2",
            ),
            (
                Settings::new("rediss://u:secret@x/1#2"),
                "as in redis://HOST/2",
            ),
            (Settings::new("redis://u:secr?secret@x"), "written %3F"),
            (Settings::new("redis://u:secret@x/two"), "URL number 1"),
            (Settings::cluster(["redis://u:secret@x/2"]), "but 0"),
        ] {
            let error = settings.servers().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert!(!format!("{settings:?}").contains("secret"));
        }
    }

    #[test]
    fn a_list_is_cut_where_a_url_begins() {
        for (list, urls) in [
            ("redis://:a,b@x", vec!["redis://:a,b@x"]),
            (
                " redis://u:a,b@x, rediss://u:a,b@y:1 ,redis://z",
                vec!["redis://u:a,b@x", "rediss://u:a,b@y:1", "redis://z"],
            ),
            ("x,y", vec!["x,y"]),
            ("", vec![""]),
        ] {
            assert_eq!(super::urls(list), urls);
        }
        let servers = Settings::new("redis://:a,b@x/3").servers().unwrap();
        assert_eq!(servers[0].redis_settings().password(), Some("a,b"));
        assert_eq!(servers[0].redis_settings().db(), 3);
    }

    #[test]
    fn addresses_have_no_passwords() {
        let settings = Settings::cluster(["redis://u:secret@a:1", "redis://u:secret@b:2"]);
        assert_eq!(addresses(&settings.servers().unwrap()), "a:1, b:2");
    }
}
