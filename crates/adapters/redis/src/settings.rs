//! Settings of the store.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo};
use twincast_core::ports::Clock;
use twincast_secret::{Secret, SecretSource};

use crate::credentials::CredentialsProvider;
use crate::error::ConnectError;
use crate::url::{Parsed, parse, split};

/// How to reach Redis, and under which prefix to store keys.
#[derive(Clone)]
pub struct Settings {
    /// `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or `rediss://` for TLS. For a cluster: some
    /// nodes, separated by commas. With sentinels: the host is the sentinels' name of the master,
    /// and there is no port. Read again for each new connection.
    pub url: SecretSource,
    /// The kind of service at the URL.
    pub topology: Topology,
    /// The name in the certificates of all servers, if different from the host of each address.
    /// Certificates of sentinels are checked against the hosts of the sentinels' URLs.
    pub tls_name: Option<String>,
    /// The source of user and password, in place of the URL.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
    /// A file of PEM certificates to trust with `rediss://`, in place of the system's certificates.
    /// Read again for each new connection.
    pub ca: Option<PathBuf>,
    /// The prefix of the names of all keys. All processes with the same prefix belong to the same
    /// engine.
    pub prefix: String,
    /// The time limit for making a connection.
    pub connect_timeout: Duration,
    /// The time limit for an answer.
    pub response_timeout: Duration,
    /// The clock for leases and permits.
    pub time: TimeSource,
    /// The time after which an acknowledged write is durable; `None` to derive the time from the
    /// server's settings.
    pub durable_after: Option<Duration>,
}

/// The kind of service.
#[derive(Debug, Clone)]
pub enum Topology {
    /// A single server, or an address that always leads to the master.
    Single,
    /// A Redis Cluster.
    Cluster,
    /// A master and replicas, watched by the sentinels at these URLs, separated by commas. Read
    /// again for each new connection.
    Sentinels(SecretSource),
}

/// The clock for leases and permits.
#[derive(Clone, Default)]
pub enum TimeSource {
    /// The server's clock, so that all processes share a clock.
    #[default]
    Server,
    /// A clock of this process, for tests with a controlled clock.
    Given(Arc<dyn Clock>),
}

/// The current servers, from the sources in the settings.
pub(crate) struct Addresses {
    /// A single server; or some nodes of a cluster; or the master, with the master's name as the
    /// host.
    pub(crate) servers: Vec<ConnectionInfo>,
    pub(crate) sentinels: Vec<ConnectionInfo>,
}

impl Settings {
    /// Creates settings for a single Redis with defaults: the prefix `twincast:`, and time limits
    /// of five seconds each for making a connection and for an answer. Five seconds without an
    /// answer mean a server in trouble, not a busy server.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: SecretSource::Fixed(Secret::new(url)),
            topology: Topology::Single,
            tls_name: None,
            credentials: None,
            ca: None,
            prefix: "twincast:".into(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            time: TimeSource::Server,
            durable_after: None,
        }
    }

    /// Creates settings for a Redis Cluster, by the URLs of some nodes.
    #[must_use]
    pub fn cluster(urls: &[impl AsRef<str>]) -> Self {
        let urls: Vec<_> = urls.iter().map(AsRef::as_ref).collect();
        Self {
            topology: Topology::Cluster,
            ..Self::new(urls.join(","))
        }
    }

    /// Reads and checks the addresses of the servers, without connecting.
    pub(crate) fn addresses(&self) -> Result<Addresses, ConnectError> {
        let servers = read(&self.url, "URL")?;
        let sentinels = match &self.topology {
            Topology::Single | Topology::Cluster => Vec::new(),
            Topology::Sentinels(source) => read(source, "sentinel URL")?,
        };
        if let Some(what) = self.mistake(&servers, &sentinels) {
            return Err(ConnectError::Settings { what: what.into() });
        }
        let infos = |urls: Vec<Parsed>| urls.into_iter().map(|url| url.info).collect();
        Ok(Addresses {
            servers: infos(servers),
            sentinels: infos(sentinels),
        })
    }

    /// Returns the first contradiction in the settings.
    fn mistake(&self, servers: &[Parsed], sentinels: &[Parsed]) -> Option<&'static str> {
        let all = || servers.iter().chain(sentinels);
        let is_cluster = matches!(self.topology, Topology::Cluster);
        let has_sentinels = matches!(self.topology, Topology::Sentinels(_));
        let checks = [
            // A cluster places a key by the text in the first braces. The braces of the store's
            // keys come after the prefix.
            (
                self.prefix.contains(['{', '}']),
                "the prefix has a brace in it",
            ),
            (
                !is_cluster && servers.len() > 1,
                "several URLs are given without a cluster",
            ),
            (
                is_cluster && servers.iter().any(Parsed::has_database),
                "a cluster has only database 0",
            ),
            (
                (is_cluster || has_sentinels) && all().any(Parsed::is_socket),
                "a socket is not allowed for the nodes of a cluster, or for servers with sentinels",
            ),
            (
                has_sentinels && servers.iter().any(|url| url.has_port),
                "with sentinels the host of the URL is the name of the master, and has no port",
            ),
            (
                sentinels.iter().any(Parsed::has_database),
                "a sentinel has no database; give the servers' database in their URL",
            ),
            (
                sentinels.iter().any(|url| !url.has_port),
                "the URL of a sentinel has no port; 26379 is usual",
            ),
            (
                self.credentials.is_some() && servers.iter().any(Parsed::has_password),
                "the URL has a password, but user and password come from another source",
            ),
            (
                self.ca.is_some() && !all().any(Parsed::is_tls),
                "a file of certificates to trust is given, but no URL is rediss://",
            ),
            (
                self.tls_name.is_some() && !servers.iter().all(Parsed::is_tls),
                "a name for the servers' certificates is given, but the URL is not rediss://",
            ),
        ];
        let mistake = checks.into_iter().find(|(is_made, _)| *is_made);
        mistake.map(|(_, what)| what)
    }
}

/// Reads and parses a list of URLs. Errors identify a URL by `what` and a number, because the URL
/// may hold a password.
fn read(source: &SecretSource, what: &str) -> Result<Vec<Parsed>, ConnectError> {
    let list = source.read().map_err(ConnectError::Source)?;
    let urls = split(list.expose());
    let parsed = urls.iter().enumerate().map(|(index, url)| {
        parse(url).map_err(|error| ConnectError::Settings {
            what: format!("{what} number {}: {error}", index + 1),
        })
    });
    parsed.collect()
}

impl fmt::Debug for Settings {
    /// Omits the URLs, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("topology", &self.topology)
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

impl Addresses {
    /// Formats the servers for display: hosts and ports, without passwords.
    pub(crate) fn shown(&self) -> String {
        let list = |of: &[ConnectionInfo]| {
            let shown: Vec<_> = of.iter().map(|it| it.addr().to_string()).collect();
            shown.join(", ")
        };
        match self.servers.first().map(ConnectionInfo::addr) {
            Some(ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. })
                if !self.sentinels.is_empty() =>
            {
                format!("{name} through the sentinels {}", list(&self.sentinels))
            }
            _ => list(&self.servers),
        }
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::error::describe;

    use super::*;

    fn sentinels(urls: &str) -> Topology {
        Topology::Sentinels(SecretSource::Fixed(Secret::new(urls)))
    }

    #[test]
    fn wrong_settings_are_named_without_secrets() {
        let with_sentinels = |url: &str, urls: &str| Settings {
            topology: sentinels(urls),
            ..Settings::new(url)
        };
        let prefix = Settings {
            prefix: "{x}:".into(),
            ..Settings::new("redis://localhost")
        };
        let ca = Settings {
            ca: Some("ca.pem".into()),
            ..Settings::new("redis://u:secret@localhost")
        };
        let name = Settings {
            tls_name: Some("redis.example".into()),
            ..Settings::new("redis://u:secret@localhost")
        };
        for (settings, named) in [
            (Settings::new(""), "URL number 1"),
            (
                Settings::new("redis://u:secret@a,redis://u:secret@b"),
                "several URLs",
            ),
            (prefix, "brace"),
            (ca, "no URL is rediss://"),
            (name, "not rediss://"),
            (Settings::new("http://u:secret@x"), "URL number 1"),
            (
                Settings::cluster(&["redis://u:secret@x/2"]),
                "only database 0",
            ),
            (
                Settings::cluster(&["unix:///s?user=u&pass=secret"]),
                "socket",
            ),
            (
                with_sentinels("redis://u:secret@master:6379", "redis://s:26379"),
                "no port",
            ),
            (
                with_sentinels("redis://u:secret@master", "redis://:secret@s"),
                "26379",
            ),
            (
                with_sentinels("redis://u:secret@master", "redis://:secret@s:26379/1"),
                "a sentinel has no database",
            ),
            (
                with_sentinels("redis://u:secret@master", "redis://s:1,redis://secret@s:2"),
                "sentinel URL number 2",
            ),
        ] {
            let error = settings.addresses().err().expect(named).to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert!(!format!("{settings:?}").contains("secret"));
        }
    }

    #[test]
    fn addresses_have_no_passwords() {
        let cluster = Settings::cluster(&["redis://u:secret@a:1", "redis://u:secret@b:2"]);
        assert_eq!(cluster.addresses().unwrap().shown(), "a:1, b:2");
        let settings = Settings {
            topology: sentinels("redis://s:26379,redis://:secret@t:26380"),
            ..Settings::new("rediss://u:secret@fleet/2")
        };
        let shown = settings.addresses().unwrap().shown();
        assert_eq!(shown, "fleet through the sentinels s:26379, t:26380");
    }

    #[test]
    fn a_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let settings = Settings {
            url: SecretSource::File {
                setting: "redis.url_file".into(),
                path: path.clone(),
            },
            ..Settings::new("")
        };
        let error = settings.addresses().err().unwrap();
        let error = describe(&error);
        assert!(error.contains("redis.url_file"), "{error}");
        for password in ["one", "two"] {
            std::fs::write(&path, format!("redis://u:{password}@x\n")).unwrap();
            let servers = settings.addresses().unwrap().servers;
            assert_eq!(servers[0].redis_settings().password(), Some(password));
        }
    }
}
