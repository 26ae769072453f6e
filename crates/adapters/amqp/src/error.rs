//! What can go wrong with a broker, in our words.
//!
//! No type of `lapin` shows in an error: what it said is kept as [`BrokerSaid`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lapin::ErrorKind;
use twincast_core::error::in_words;
use twincast_secret::SourceError;
use twincast_tls::RootsError;

use crate::settings::{BrokerUrl, BrokerUrlError, SettingsError};

/// Codes that RabbitMQ closes a channel or connection with (AMQP 0-9-1, 1.2 and 2.2).
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// What the broker or its client library said.
///
/// The library repeats the cause of an error in its text, so this has no source.
#[derive(Debug, Clone)]
pub struct BrokerSaid(Arc<lapin::Error>);

impl BrokerSaid {
    fn code(&self) -> Option<u16> {
        match self.0.kind() {
            ErrorKind::ProtocolError(error) => Some(error.get_id()),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(code::NOT_FOUND)
    }
}

impl From<lapin::Error> for BrokerSaid {
    fn from(error: lapin::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for BrokerSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            ErrorKind::ProtocolError(error) => {
                write!(f, "{} ({})", error.get_message(), error.get_id())
            }
            ErrorKind::IOError(error) => error.fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl std::error::Error for BrokerSaid {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings are not valid.
    #[error("settings of the broker are not valid")]
    Settings(#[from] SettingsError),
    /// The file with the addresses of the broker cannot be read.
    #[error("addresses of the broker cannot be read")]
    Source(#[from] SourceError),
    /// The addresses of the broker are not valid.
    #[error("addresses of the broker are not valid")]
    Url(#[from] BrokerUrlError),
    /// None of several addresses can be used.
    #[error("no address of the broker can be used: {}", each_in_words(tried))]
    NoAddress {
        /// Why, for each address in the order of the attempts.
        tried: Vec<ConnectError>,
    },
    /// The certificate authorities cannot be loaded.
    #[error("no certificate authorities for the broker")]
    Authorities(#[from] RootsError),
    /// Nobody answers at the address.
    #[error("broker at {broker} cannot be reached")]
    Unreachable {
        /// Host and port.
        broker: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The peer could not be trusted, or does not speak TLS.
    #[error("no TLS with the broker at {broker}")]
    Tls {
        /// Host and port.
        broker: String,
        /// What the TLS library said.
        source: io::Error,
    },
    /// It did not happen in time.
    #[error("broker at {broker} did not answer within {after:?} while {doing}")]
    TimedOut {
        /// Host and port.
        broker: String,
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The broker does not know the user, or the password is another.
    #[error("broker at {broker} refuses user {user:?}: check user and password")]
    Credentials {
        /// Host and port.
        broker: String,
        /// The user.
        user: String,
        /// What the broker said.
        source: BrokerSaid,
    },
    /// There is no such virtual host, or the user may not use it.
    #[error("broker at {broker} refuses virtual host {vhost:?} to user {user:?}")]
    VirtualHost {
        /// Host and port.
        broker: String,
        /// The virtual host.
        vhost: String,
        /// The user.
        user: String,
        /// What the broker said.
        source: BrokerSaid,
    },
    /// It broke off, or the peer does not speak AMQP 0-9-1.
    #[error("handshake with the broker at {broker} failed")]
    Handshake {
        /// Host and port.
        broker: String,
        /// What the client library said.
        source: BrokerSaid,
    },
    /// The queues and exchanges are not as they must be.
    #[error("queues of the broker at {broker} cannot be used")]
    Topology {
        /// Host and port.
        broker: String,
        /// What is wrong with them.
        source: AmqpError,
    },
}

impl ConnectError {
    /// The error of the first node that has answered; without such a node, of the first address.
    #[must_use]
    pub fn most_telling(&self) -> &Self {
        let Self::NoAddress { tried } = self else {
            return self;
        };
        let is_silent =
            |error: &&Self| matches!(error, Self::Unreachable { .. } | Self::TimedOut { .. });
        let answered = tried.iter().find(|error| !is_silent(error));
        answered.or(tried.first()).unwrap_or(self)
    }
}

fn each_in_words(errors: &[ConnectError]) -> String {
    let words: Vec<_> = errors.iter().map(|error| in_words(error)).collect();
    words.join("; ")
}

/// Why something was not done by way of the broker.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    /// This process has closed its connection for good.
    #[error("connection to the broker was closed by this process")]
    Closed,
    /// There was no connection all the while.
    #[error("no connection to the broker: {why}")]
    Away {
        /// Why the last attempt failed.
        why: String,
    },
    /// The broker takes no messages for now.
    #[error("broker takes no messages for now: {reason}")]
    Blocked {
        /// What it said: `low on memory`, `low on disk`.
        reason: String,
    },
    /// The broker did not answer.
    #[error("broker did not answer within {after:?}")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection or channel was lost in between: it may have been done or not.
    #[error("connection was lost before the broker answered")]
    Lost,
    /// The delivery came over a connection that is gone, so the broker has it back.
    #[error("delivery came over a connection that is gone, so the broker has handed it back")]
    Stale,
    /// The queue holds as many messages as it may.
    #[error("queue {queue} is full")]
    Full {
        /// The queue, or the exchange that feeds it.
        queue: String,
    },
    /// There is no such queue.
    #[error("there is no queue {queue}")]
    NoQueue {
        /// The queue.
        queue: String,
    },
    /// A queue or exchange of this name exists and is another one than we would make.
    #[error(
        "{what} {name} exists with other arguments. Either it was made with other settings: use those here, or another topology prefix; or it is a leftover: delete it (`rabbitmqctl delete_queue`) when nothing waits in it"
    )]
    OtherArguments {
        /// `queue` or `exchange`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Which argument, and both values.
        source: BrokerSaid,
    },
    /// A property has a limit on its length, which it is above.
    #[error("{what} is too long: {length} bytes, at most 255")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length, in bytes.
        length: usize,
    },
    /// There is no such dead letter, or no longer.
    #[error("there is no dead letter {id}")]
    NoLetter {
        /// Its id.
        id: String,
    },
    /// A dead letter cannot be sent again.
    #[error("dead letter {id} cannot be replayed: {why}")]
    NotReplayable {
        /// Its id.
        id: String,
        /// Why.
        why: String,
    },
    /// Anything else that the broker says.
    #[error("cannot {doing}")]
    Broker {
        /// What was being done, and to what.
        doing: String,
        /// What was said.
        source: BrokerSaid,
    },
}

impl AmqpError {
    pub(crate) fn broker(doing: impl Into<String>, error: impl Into<BrokerSaid>) -> Self {
        Self::Broker {
            doing: doing.into(),
            source: error.into(),
        }
    }

    /// A declaration that was refused.
    pub(crate) fn declaring(what: &'static str, name: &str, error: impl Into<BrokerSaid>) -> Self {
        let source = error.into();
        if source.code() == Some(code::PRECONDITION_FAILED) {
            let name = name.to_owned();
            Self::OtherArguments { what, name, source }
        } else {
            Self::broker(format!("declare {what} {name}"), source)
        }
    }
}

/// A handshake that failed, by what the broker closed the connection with.
pub(crate) fn handshake(url: &BrokerUrl, error: lapin::Error) -> ConnectError {
    let source = BrokerSaid::from(error);
    let (broker, user) = (url.address(), url.user().to_owned());
    match source.code() {
        Some(code::ACCESS_REFUSED) => ConnectError::Credentials {
            broker,
            user,
            source,
        },
        Some(code::NOT_ALLOWED) => ConnectError::VirtualHost {
            broker,
            vhost: url.vhost().to_owned(),
            user,
            source,
        },
        _ => ConnectError::Handshake { broker, source },
    }
}
