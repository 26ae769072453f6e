//! Addresses of the broker, and settings of the connection.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use twincast_retry::Policy;
use twincast_secret::{Secret, SecretSource};
use url::Url;

use crate::error::ConnectError;

/// How to reach the broker, and which names to use there.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The addresses of the broker, written as [`BrokerUrls`]. Read again for each attempt to
    /// connect, so a file may be replaced at any time.
    pub urls: SecretSource,
    /// A PEM file with certificate authorities to trust instead of the system's. Read again for
    /// each attempt to connect.
    pub ca_file: Option<PathBuf>,
    /// The interval of heartbeats from both sides, in whole seconds from 1 s to 18 h. A silent peer
    /// counts as lost after twice this time. 10 s unless set.
    pub heartbeat: Duration,
    /// The connection's name, as shown by RabbitMQ.
    pub connection_name: String,
    /// The prefix of the names of all queues and exchanges: 1 to 64 letters, digits, `.`, `_` or
    /// `-`, starting with a letter or digit. `twincast` unless set.
    pub prefix: String,
    /// The most waiting dispatches of a hub, at least 1. The limit is an argument of the queues, so
    /// all processes that share a prefix must use the same limit, and a change needs new queues.
    /// 10,000 unless set.
    pub dispatch_limit: usize,
    /// How long a publish may take, from the call to the broker's confirmation. 10 s unless set.
    pub publish_timeout: Duration,
    /// How long connecting to one address may take, from the look-up of the name to a declared
    /// topology. 15 s unless set.
    pub connect_timeout: Duration,
    /// How long a consumer without deliveries and without unanswered messages keeps a subscription
    /// before it subscribes again. The broker notifies consumers of a deleted queue, but not if the
    /// queue is created again at the same moment. 60 s unless set.
    pub renew_idle_after: Duration,
    /// The delays between attempts to connect, which continue for ever. 100 ms to 10 s unless set.
    pub reconnect: Policy,
}

impl Settings {
    /// Creates the default settings for a broker.
    ///
    /// # Panics
    /// Never: the delays are valid.
    #[must_use]
    pub fn new(urls: SecretSource) -> Self {
        let reconnect = Policy::new(Duration::from_millis(100), Duration::from_secs(10));
        Self {
            urls,
            ca_file: None,
            heartbeat: Duration::from_secs(10),
            connection_name: "twincast".into(),
            prefix: "twincast".into(),
            dispatch_limit: 10_000,
            publish_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(15),
            renew_idle_after: Duration::from_secs(60),
            reconnect: reconnect.expect("the delays ascend"),
        }
    }

    /// Checks that all values are allowed.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        if !is_prefix(&self.prefix) {
            return Err(SettingsError::Prefix(self.prefix.clone()));
        }
        if self.dispatch_limit == 0 || i64::try_from(self.dispatch_limit).is_err() {
            return Err(SettingsError::DispatchLimit(self.dispatch_limit));
        }
        if !(1..=u64::from(u16::MAX)).contains(&self.heartbeat.as_secs()) {
            return Err(SettingsError::Heartbeat(self.heartbeat));
        }
        Ok(())
    }

    /// Reads the current addresses.
    pub(crate) fn read_urls(&self) -> Result<BrokerUrls, ConnectError> {
        Ok(self.urls.read()?.expose().parse()?)
    }

    pub(crate) fn uri(&self, url: &BrokerUrl) -> AMQPUri {
        AMQPUri {
            scheme: if url.tls {
                AMQPScheme::AMQPS
            } else {
                AMQPScheme::AMQP
            },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: url.user.clone(),
                    password: url.password.expose().to_owned(),
                },
                host: url.host.clone(),
                port: url.port,
            },
            vhost: url.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: u16::try_from(self.heartbeat.as_secs()).ok(),
                ..AMQPQueryString::default()
            },
        }
    }
}

fn is_prefix(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        // Reserved by the broker.
        && !text.starts_with("amq.")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The prefix is not a name.
    #[error(
        "topology prefix {0:?} is not valid: 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit, and not with 'amq.'"
    )]
    Prefix(String),
    /// The limit is out of range.
    #[error("dispatch limit {0} is not valid: at least 1")]
    DispatchLimit(usize),
    /// The heartbeat is out of range.
    #[error("heartbeat {0:?} is not valid: 1 s to 65,535 s")]
    Heartbeat(Duration),
}

/// The addresses of a broker: a [`BrokerUrl`] for each node of a cluster, separated by commas.
///
/// Users and virtual hosts belong to the cluster, so the URLs differ in host and port only.
#[derive(Debug, Clone)]
pub struct BrokerUrls(Vec<BrokerUrl>);

impl BrokerUrls {
    /// Returns all URLs in order, beginning at an index, modulo the number of URLs.
    pub(crate) fn starting_at(&self, index: usize) -> impl Iterator<Item = &BrokerUrl> {
        let count = self.0.len();
        self.0.iter().cycle().skip(index % count).take(count)
    }

    /// Returns whether connections are encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.iter().any(|url| url.tls)
    }
}

impl FromStr for BrokerUrls {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let urls: Vec<BrokerUrl> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let differing = urls.iter().find_map(|url| urls[0].differs_from(url));
        match differing {
            Some(part) => Err(BrokerUrlError::Differing(part)),
            None => Ok(Self(urls)),
        }
    }
}

/// `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or `amqps://…` for TLS.
///
/// Omitted parts default to `guest`, `guest`, the scheme's port and `/`. User, password and virtual
/// host are percent-encoded: the virtual host `/` is `%2F`, or empty; a comma is `%2C`. Neither
/// `Debug` nor `Display` shows the password.
#[derive(Clone)]
pub struct BrokerUrl {
    tls: bool,
    user: String,
    password: Secret,
    host: String,
    port: u16,
    vhost: String,
}

impl BrokerUrl {
    /// Returns whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Returns the host, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Returns `HOST:PORT`, for errors.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Returns the first part, other than the address, different from another URL.
    fn differs_from(&self, other: &Self) -> Option<&'static str> {
        [
            ("scheme", self.tls == other.tls),
            ("user", self.user == other.user),
            (
                "password",
                self.password.expose() == other.password.expose(),
            ),
            ("virtual host", self.vhost == other.vhost),
        ]
        .into_iter()
        .find_map(|(part, is_same)| (!is_same).then_some(part))
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let url = Url::parse(text.trim()).map_err(BrokerUrlError::Syntax)?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            other => return Err(BrokerUrlError::Scheme(other.to_owned())),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(BrokerUrlError::NoHost)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BrokerUrlError::Extra);
        }
        let user = match url.username() {
            "" => "guest".to_owned(),
            user => decoded("user", user)?,
        };
        let vhost = match url.path().trim_start_matches('/') {
            "" => "/".to_owned(),
            path if path.contains('/') => return Err(BrokerUrlError::Path),
            path => decoded("virtual host", path)?,
        };
        Ok(Self {
            tls,
            user,
            password: decoded("password", url.password().unwrap_or("guest"))?.into(),
            host: decoded("host", host.trim_matches(['[', ']']))?,
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost,
        })
    }
}

fn decoded(part: &'static str, text: &str) -> Result<String, BrokerUrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    // The decoder's error would show the bytes of a password.
    let decoded = decoded.map_err(|_| BrokerUrlError::Encoding(part))?;
    Ok(decoded.into_owned())
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}@{}", self.user, self.host)?;
        write!(f, ":{} (virtual host {:?})", self.port, self.vhost)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a broker's URL. The text is not shown, because it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// The text is not a URL.
    #[error(
        "broker URL is not a URL; write amqp://USER:PASSWORD@HOST:PORT/VHOST; separate the nodes \
         of one cluster by commas, and write a comma in a user or password as %2C"
    )]
    Syntax(#[source] url::ParseError),
    /// The URL has another scheme.
    #[error("broker URL has scheme {0:?}; allowed are amqp and amqps")]
    Scheme(String),
    /// The URL has no host.
    #[error("broker URL has no host")]
    NoHost,
    /// The URL has a query or a fragment.
    #[error(
        "broker URL has a '?' or '#'; percent-encode them in a password, and give parameters as \
         settings"
    )]
    Extra,
    /// The path of the URL has several parts.
    #[error(
        "broker URL has more than one '/' after the host; write a '/' in a virtual host as %2F"
    )]
    Path,
    /// The URLs of a broker do not agree.
    #[error(
        "broker URLs differ in the {0}; the nodes of one cluster may differ only in host and port"
    )]
    Differing(&'static str),
    /// A part of the URL is not UTF-8.
    #[error("broker URL has a {0} that is not percent-encoded UTF-8")]
    Encoding(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BrokerUrl, BrokerUrlError> {
        text.parse()
    }

    fn settings(urls: &str) -> Settings {
        Settings::new(SecretSource::Fixed(urls.into()))
    }

    #[test]
    fn a_url_has_defaults_and_encoded_parts() {
        let url = parse("amqp://broker").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.user(), url.vhost()),
            ("broker", 5672, "guest", "/")
        );
        assert_eq!(url.password.expose(), "guest");
        for same in ["amqp://broker/", "amqp://broker/%2F"] {
            assert_eq!(url.differs_from(&parse(same).unwrap()), None, "{same}");
        }

        let url = parse("amqps://a%40b:p%2Fw@[::1]:99/eu%2Fwest").unwrap();
        assert!(url.is_tls());
        assert_eq!(
            (url.host(), url.port(), url.user(), url.vhost()),
            ("::1", 99, "a@b", "eu/west")
        );
        assert_eq!(url.password.expose(), "p/w");
        assert_eq!(parse("amqps://broker").unwrap().port(), 5671);
    }

    #[test]
    fn invalid_url_is_reported_without_the_password() {
        for (text, expected) in [
            ("broker:5672", "scheme \"broker\""),
            ("http://u:hunter2@broker", "scheme \"http\""),
            ("amqp://u:hunter2@", "not a URL"),
            ("amqp:", "no host"),
            (
                "amqp://u:hunter2@broker?heartbeat=1",
                "give parameters as settings",
            ),
            ("amqp://u:hunter2@broker/a/b", "more than one '/'"),
            ("amqp://u:hunter2%FF@broker", "password that is not"),
            ("amqp://u:hunter2@bro ker", "not a URL"),
            ("amqp://u:hunt,hunter2@broker", "a comma in a user or"),
            ("amqp://u:hunter2@a,", "not a URL"),
            ("amqp://a,amqps://a", "differ in the scheme"),
            ("amqp://u@a,amqp://v@b", "differ in the user"),
            ("amqp://u:p@a,amqp://u:hunter2@b", "differ in the password"),
            ("amqp://a/x,amqp://b/x,amqp://c", "differ in the virtual"),
        ] {
            let error = BrokerUrls::from_str(text).unwrap_err();
            let shown = format!(
                "{error} {error:?} {}",
                twincast_core::error::describe(&error)
            );
            assert!(shown.contains(expected), "{text}: {shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn each_index_begins_with_another_address() {
        let urls: BrokerUrls = "amqp://a, amqp://b:1 ,amqp://c".parse().unwrap();
        let order = |index| {
            urls.starting_at(index)
                .map(BrokerUrl::host)
                .collect::<String>()
        };
        assert_eq!([0, 1, 2, 3].map(order), ["abc", "bca", "cab", "abc"]);
        let one: BrokerUrls = "amqp://a".parse().unwrap();
        assert_eq!(one.starting_at(usize::MAX).count(), 1);
    }

    #[test]
    fn settings_do_not_show_the_password() {
        let settings = settings("amqp://ops:hunter2@broker/v");
        let urls = settings.read_urls().unwrap();
        let shown = format!("{settings:?} {settings:#?} {urls:?} {}", urls.0[0]);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("ops@broker:5672"), "{shown}");
    }

    #[test]
    fn settings_are_checked() {
        let settings = settings("amqp://broker");
        assert!(settings.check().is_ok());
        for prefix in ["", "-a", "amq.x", "a b", &"a".repeat(65)] {
            let prefix = prefix.to_owned();
            let settings = Settings {
                prefix,
                ..settings.clone()
            };
            assert!(matches!(settings.check(), Err(SettingsError::Prefix(_))));
        }
        let bad = Settings {
            dispatch_limit: 0,
            ..settings.clone()
        };
        assert!(matches!(bad.check(), Err(SettingsError::DispatchLimit(0))));
        let bad = Settings {
            heartbeat: Duration::from_millis(500),
            ..settings
        };
        assert!(matches!(bad.check(), Err(SettingsError::Heartbeat(_))));
    }
}
