//! Errors of the broker, in terms of this crate.
//!
//! No error exposes a type of `lapin`: [`BrokerError`] wraps the errors of `lapin`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lapin::ErrorKind;
use twincast_core::error::describe;
use twincast_secret::SourceError;
use twincast_tls::RootsError;

use crate::settings::{BrokerUrl, BrokerUrlError, SettingsError};

/// Codes with which RabbitMQ closes a channel or connection (AMQP 0-9-1, 1.2 and 2.2).
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// An error of the broker or the client library.
///
/// The library repeats the cause of an error in the text of the error, so this type has no source.
#[derive(Debug, Clone)]
pub struct BrokerError(Arc<lapin::Error>);

impl BrokerError {
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

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for BrokerError {
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

impl std::error::Error for BrokerError {}

/// Why the connection could not be opened.
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
    #[error("no address of the broker can be used: {}", describe_each(tried))]
    NoAddress {
        /// The error for each address, in the order of the attempts.
        tried: Vec<ConnectError>,
    },
    /// The certificate authorities cannot be loaded.
    #[error("cannot load the certificate authorities for the broker")]
    Authorities(#[from] RootsError),
    /// The address does not answer.
    #[error("broker at {broker} cannot be reached")]
    Unreachable {
        /// Host and port.
        broker: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The peer is not trusted, or does not speak TLS.
    #[error("TLS handshake with the broker at {broker} failed")]
    Tls {
        /// Host and port.
        broker: String,
        /// The error of the TLS library.
        source: io::Error,
    },
    /// A step exceeded the time limit.
    #[error("broker at {broker} did not answer within {after:?} while {doing}")]
    TimedOut {
        /// Host and port.
        broker: String,
        /// The step.
        doing: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The broker does not know the user, or the password is wrong.
    #[error("broker at {broker} refuses user {user:?}: check user and password")]
    Credentials {
        /// Host and port.
        broker: String,
        /// The user.
        user: String,
        /// The error of the broker.
        source: BrokerError,
    },
    /// There is no such virtual host, or the user may not use the virtual host.
    #[error("broker at {broker} refuses virtual host {vhost:?} to user {user:?}")]
    VirtualHost {
        /// Host and port.
        broker: String,
        /// The virtual host.
        vhost: String,
        /// The user.
        user: String,
        /// The error of the broker.
        source: BrokerError,
    },
    /// The handshake broke off, or the peer does not speak AMQP 0-9-1.
    #[error("handshake with the broker at {broker} failed")]
    Handshake {
        /// Host and port.
        broker: String,
        /// The error of the client library.
        source: BrokerError,
    },
    /// The queues and exchanges cannot be used as declared.
    #[error("queues of the broker at {broker} cannot be used")]
    Topology {
        /// Host and port.
        broker: String,
        /// The error of the declaration.
        source: AmqpError,
    },
}

impl ConnectError {
    /// Returns the error of the first node with an answer or, without an answer from any node, of
    /// the first address.
    #[must_use]
    pub fn most_specific(&self) -> &Self {
        let Self::NoAddress { tried } = self else {
            return self;
        };
        let is_silent =
            |error: &&Self| matches!(error, Self::Unreachable { .. } | Self::TimedOut { .. });
        let answered = tried.iter().find(|error| !is_silent(error));
        answered.or(tried.first()).unwrap_or(self)
    }
}

fn describe_each(errors: &[ConnectError]) -> String {
    let descriptions: Vec<_> = errors.iter().map(|error| describe(error)).collect();
    descriptions.join("; ")
}

/// Why an operation over the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    /// This process has closed the connection permanently.
    #[error("connection to the broker was closed by this process")]
    Closed,
    /// There was no connection within the time limit.
    #[error("no connection to the broker: {why}")]
    NotConnected {
        /// Why the last attempt failed.
        why: String,
    },
    /// The broker accepts no messages for now.
    #[error("broker accepts no messages for now: {reason}")]
    Blocked {
        /// The broker's reason: `low on memory`, `low on disk`.
        reason: String,
    },
    /// The broker did not answer.
    #[error("broker did not answer within {after:?}")]
    TimedOut {
        /// The time limit.
        after: Duration,
    },
    /// The connection or channel was lost before the answer: the operation may have taken effect or
    /// not.
    #[error("connection was lost before the broker answered")]
    Lost,
    /// The delivery came over a lost connection, so the broker has the message back.
    #[error("delivery came over a lost connection, so the broker has requeued it")]
    Stale,
    /// The queue holds the most messages allowed.
    #[error("queue {queue} is full")]
    Full {
        /// The queue, or the exchange that feeds it.
        queue: String,
    },
    /// There is no such queue.
    #[error("queue {queue} does not exist")]
    NoQueue {
        /// The queue.
        queue: String,
    },
    /// A queue or exchange of this name exists with other arguments.
    #[error(
        "{what} {name} exists with other arguments. If other settings created it, use these \
         settings here, or another topology prefix; if it is a leftover, delete it once it is \
         empty (`rabbitmqctl delete_queue`)"
    )]
    OtherArguments {
        /// `queue` or `exchange`.
        what: &'static str,
        /// The name of the queue or exchange.
        name: String,
        /// The differing argument, with both values.
        source: BrokerError,
    },
    /// A property exceeds the limit of 255 bytes.
    #[error("{what} is too long: {length} bytes, at most 255")]
    TooLong {
        /// The property.
        what: &'static str,
        /// The length, in bytes.
        length: usize,
    },
    /// The dead letter does not exist, or no longer exists.
    #[error("dead letter {id} does not exist")]
    NoLetter {
        /// The id of the letter.
        id: String,
    },
    /// A dead letter cannot be sent again.
    #[error("dead letter {id} cannot be replayed: {why}")]
    NotReplayable {
        /// The id of the letter.
        id: String,
        /// The reason.
        why: String,
    },
    /// Any other error of the broker.
    #[error("cannot {doing}")]
    Broker {
        /// The operation, with the object of the operation.
        doing: String,
        /// The error of the broker.
        source: BrokerError,
    },
}

impl AmqpError {
    pub(crate) fn broker(doing: impl Into<String>, error: impl Into<BrokerError>) -> Self {
        Self::Broker {
            doing: doing.into(),
            source: error.into(),
        }
    }

    /// Converts the error of a declaration.
    pub(crate) fn declaring(what: &'static str, name: &str, error: impl Into<BrokerError>) -> Self {
        let source = error.into();
        if source.code() == Some(code::PRECONDITION_FAILED) {
            let name = name.to_owned();
            Self::OtherArguments { what, name, source }
        } else {
            Self::broker(format!("declare {what} {name}"), source)
        }
    }
}

/// Converts the error of a handshake, by the code of the broker's close.
pub(crate) fn handshake(url: &BrokerUrl, error: lapin::Error) -> ConnectError {
    let source = BrokerError::from(error);
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
