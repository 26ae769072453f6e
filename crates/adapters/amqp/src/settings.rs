//! Where the broker is, and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use twincast_retry::Policy;
use url::Url;

/// How to reach the broker, and what belongs to us there.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker, with the credentials.
    pub url: BrokerUrl,
    /// A PEM file with the certificate authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How often each side shows that it is alive, in whole seconds from 1 s to 18 h. A silent
    /// peer is given up after twice this. 10 s unless set.
    pub heartbeat: Duration,
    /// What RabbitMQ shows as the connection's name.
    pub connection_name: String,
    /// What the names of all queues and exchanges begin with: 1 to 64 letters, digits, `.`, `_`
    /// or `-`, starting with a letter or digit. `twincast` unless set.
    pub prefix: String,
    /// How many dispatches of one hub may wait, at least 1. It is an argument of the queues, so all
    /// processes that share a prefix use the same, and a change needs new queues. 10,000 unless set.
    pub dispatch_limit: usize,
    /// How long a publish may take, from the call to the broker's confirmation. 10 s unless set.
    pub publish_timeout: Duration,
    /// How long connecting may take, from the look-up of the name to a declared topology. 15 s
    /// unless set.
    pub connect_timeout: Duration,
    /// How long a consumer that gets nothing and holds nothing keeps its subscription before it
    /// makes another. The broker tells consumers of a queue that was deleted, but not if it is
    /// made again at the same moment. 60 s unless set.
    pub renew_idle_after: Duration,
    /// The delays between attempts to connect, which go on for ever. 100 ms to 10 s unless set.
    pub reconnect: Policy,
}

impl Settings {
    /// The defaults, for this broker.
    ///
    /// # Panics
    /// Never: the delays are valid.
    #[must_use]
    pub fn new(url: BrokerUrl) -> Self {
        let reconnect = Policy::new(Duration::from_millis(100), Duration::from_secs(10));
        Self {
            url,
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

    /// Finds what is not allowed.
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

    pub(crate) fn uri(&self) -> AMQPUri {
        let BrokerUrl {
            tls,
            user,
            password,
            host,
            port,
            vhost,
        } = self.url.clone();
        AMQPUri {
            scheme: if tls {
                AMQPScheme::AMQPS
            } else {
                AMQPScheme::AMQP
            },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: user,
                    password,
                },
                host,
                port,
            },
            vhost,
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
        // The broker keeps these for itself.
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

/// `amqp://USER:PASSWORD@HOST:PORT/VHOST`, or `amqps://…` for TLS.
///
/// Parts that are left out are `guest`, `guest`, the scheme's port and `/`. User, password and
/// virtual host are percent-encoded: the virtual host `/` is `%2F`, or nothing. Neither `Debug`
/// nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    tls: bool,
    user: String,
    password: String,
    host: String,
    port: u16,
    vhost: String,
}

impl BrokerUrl {
    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.vhost
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
            password: decoded("password", url.password().unwrap_or("guest"))?,
            host: decoded("host", host.trim_matches(['[', ']']))?,
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost,
        })
    }
}

fn decoded(part: &'static str, text: &str) -> Result<String, BrokerUrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    // The error would show the bytes.
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

/// Why a text is not a broker's URL. The text is not shown: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    /// It is not a URL.
    #[error("broker URL is not a URL (expected amqp://USER:PASSWORD@HOST:PORT/VHOST)")]
    Syntax(#[source] url::ParseError),
    /// It is the URL of something else.
    #[error("broker URL has scheme {0:?}; allowed are amqp and amqps")]
    Scheme(String),
    /// It has no host.
    #[error("broker URL has no host")]
    NoHost,
    /// It has a query or a fragment.
    #[error(
        "broker URL has a '?' or '#'; a password with one is percent-encoded, and parameters have settings of their own"
    )]
    Extra,
    /// Its path has several parts.
    #[error(
        "broker URL has more than one '/' after the host; a virtual host with one is percent-encoded, as %2F"
    )]
    Path,
    /// A part of it is not UTF-8.
    #[error("broker URL has a {0} that is not percent-encoded UTF-8")]
    Encoding(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BrokerUrl, BrokerUrlError> {
        text.parse()
    }

    #[test]
    fn a_url_has_defaults_and_encoded_parts() {
        let url = parse("amqp://broker").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.user(), url.vhost()),
            ("broker", 5672, "guest", "/")
        );
        assert_eq!(url.password, "guest");
        assert_eq!(parse("amqp://broker/"), Ok(url.clone()));
        assert_eq!(parse("amqp://broker/%2F"), Ok(url));

        let url = parse("amqps://a%40b:p%2Fw@[::1]:99/eu%2Fwest").unwrap();
        assert!(url.is_tls());
        assert_eq!(
            (url.host(), url.port(), url.user(), url.vhost()),
            ("::1", 99, "a@b", "eu/west")
        );
        assert_eq!(url.password, "p/w");
        assert_eq!(parse("amqps://broker").unwrap().port(), 5671);
    }

    #[test]
    fn a_bad_url_is_named_without_its_secret() {
        for (text, expected) in [
            ("broker:5672", "scheme \"broker\""),
            ("http://u:hunter2@broker", "scheme \"http\""),
            ("amqp://u:hunter2@", "not a URL"),
            ("amqp:", "no host"),
            (
                "amqp://u:hunter2@broker?heartbeat=1",
                "settings of their own",
            ),
            ("amqp://u:hunter2@broker/a/b", "more than one '/'"),
            ("amqp://u:hunter2%FF@broker", "password that is not"),
            ("amqp://u:hunter2@bro ker", "not a URL"),
        ] {
            let error = parse(text).unwrap_err();
            let shown = format!(
                "{error} {error:?} {}",
                twincast_core::error::in_words(&error)
            );
            assert!(shown.contains(expected), "{text}: {shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn settings_do_not_show_the_password() {
        let settings = Settings::new(parse("amqp://ops:hunter2@broker/v").unwrap());
        let shown = format!("{settings:?} {settings:#?} {}", settings.url);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("ops@broker:5672"), "{shown}");
    }

    #[test]
    fn settings_are_checked() {
        let settings = Settings::new(parse("amqp://broker").unwrap());
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
