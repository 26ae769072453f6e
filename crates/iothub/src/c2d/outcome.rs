//! What became of a send, and what to do about it.
//!
//! [`SendOutcome`] says what happened in the hub's words, [`SendOutcome::disposition`] answers the one question that
//! callers have. The rules follow the official SDKs' error maps (Node `common-amqp` and `azure-iothub`, C#
//! `AmqpErrorMapper` and `ErrorCode`): the AMQP condition decides first, since the same numeric code means different
//! things in different sources, then the code, then the text.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connect_error::ConnectError;
use crate::credentials::CredentialsError;

use super::refusal::Refusal;

/// How long to leave a hub alone that says it is throttling: its own text says ten seconds.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(10);

/// What became of one send. Exactly one is given for every [`C2dSender::send`](crate::C2dSender::send).
#[derive(Debug, Clone)]
#[must_use = "a send that was not accepted must be dealt with"]
#[non_exhaustive]
pub enum SendOutcome {
    /// The hub has stored the message in the device's queue. It is not delivered yet.
    Accepted,
    /// The hub has refused the message: not stored (except where the disposition says unknown).
    Refused(Refusal),
    /// The hub gave the message back (`released` or `modified`): not stored. Some official SDKs report this as success.
    GivenBack {
        /// Whether the hub says that it counts as a failed delivery, or cannot be delivered here.
        undeliverable: bool,
    },
    /// The message never left: trying again cannot duplicate it.
    NotSent(NotSent),
    /// The message left and its fate is not known: trying again may duplicate it.
    Unknown(Lost),
}

/// Why a message never left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum NotSent {
    /// No free slot, no credit or no connection before the send's time was up.
    Timeout {
        /// Why there is no connection, if there is none.
        connection: Option<Arc<ConnectionFailure>>,
    },
    /// The sender is closed.
    Closed,
    /// The sender has failed for good (credentials or certificates); see its state.
    Failed(Arc<ConnectionFailure>),
    /// The message is larger than the link takes.
    TooLarge {
        /// Most bytes of an encoded message that the hub announced for the link.
        limit: u64,
    },
    /// The hub refused our token for this message; a new token is being put, so one more try may work.
    TokenRefused(Refusal),
}

/// Why the fate of a message that left is not known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Lost {
    /// The connection, session or link ended before the hub answered.
    Disconnected(Arc<ConnectionFailure>),
    /// The hub did not answer in time.
    Timeout,
    /// The sender was closed or dropped before the hub answered.
    Closed,
    /// The hub's answer is not one that AMQP allows here.
    BadAnswer,
}

/// Why a connection ended or could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionFailure {
    /// Name, TCP, TLS.
    #[error("failed to connect to the hub")]
    Connect(#[source] ConnectError),
    /// There is nothing to show to the hub.
    #[error("no credentials for the hub")]
    NoToken(#[source] CredentialsError),
    /// The hub refused our credentials. Not retried.
    #[error("hub refused the credentials of {identity} with status {status}: {description}")]
    Unauthorised {
        /// Who the client is: a policy or an identity.
        identity: String,
        /// The put-token status, or 401 if a link was refused.
        status: i32,
        /// What the hub says.
        description: String,
    },
    /// The hub took no token just now, for a reason that is not the key's: busy, throttled, failing over.
    #[error("hub did not take the token: status {}: {description}", status.map_or("unknown".to_owned(), |s| s.to_string()))]
    TokenNotTaken {
        /// The put-token status, if there was one that can be read.
        status: Option<i32>,
        /// What the hub says.
        description: String,
    },
    /// A stage of opening took too long.
    #[error("{stage} took longer than {limit:?}")]
    Timeout {
        /// What was under way.
        stage: &'static str,
        /// Its bound.
        limit: Duration,
    },
    /// The hub ended the connection, session or link and says why.
    #[error("hub ended the {what}: {condition}: {description}")]
    Ended {
        /// `connection`, `session` or `link`.
        what: &'static str,
        /// The AMQP condition.
        condition: String,
        /// The hub's text.
        description: String,
    },
    /// The connection broke without a word.
    #[error("connection broke during {stage}: {detail}")]
    Broken {
        /// What was under way.
        stage: &'static str,
        /// What the protocol library says.
        detail: String,
    },
    /// Deliveries were in flight and nothing moved for too long.
    #[error("hub made no progress for {0:?} with deliveries in flight")]
    Stalled(Duration),
}

/// What to do about a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing: it is stored.
    Accepted,
    /// Give this device up for this message; trying again does not help before something changes.
    PermanentForDevice(DeviceReason),
    /// Try again after a short, jittered wait; it is not stored.
    Retry,
    /// Try again, and slow every send to this hub down: pause all of them for so long.
    SlowHubDown {
        /// The least pause.
        retry_after: Duration,
    },
    /// Stop sending to this hub; it is not stored.
    HubShut {
        /// Why.
        reason: HubShutReason,
        /// When it may work again, if that is known.
        until: Option<SystemTime>,
    },
    /// It may be stored: trying again may duplicate it.
    Unknown,
}

/// Why a device cannot have this message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceReason {
    /// There is no such device (or module).
    NotFound,
    /// Its queue is full (50 messages).
    QueueFull,
    /// Anything else: too large, bad argument, disabled.
    Refused {
        /// The hub's numeric code, if it gave one.
        code: Option<u32>,
        /// The AMQP condition.
        condition: String,
    },
}

/// Why a hub takes no messages at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HubShutReason {
    /// The daily quota is used up; it starts afresh at midnight UTC.
    DailyQuota,
    /// The hub is suspended.
    Suspended,
    /// There is no such hub.
    NotFound,
    /// Our credentials are refused.
    Unauthorised,
    /// The hub's tier (Basic) has no C2D messages.
    NotInTier,
    /// The certificate of the hub is not one that we believe.
    Untrusted,
}

impl SendOutcome {
    /// What to do about it, with the system's clock for "until midnight".
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.disposition_at(SystemTime::now())
    }

    /// What to do about it, at `now`. Pure.
    #[must_use]
    pub fn disposition_at(&self, now: SystemTime) -> Disposition {
        match self {
            Self::Accepted => Disposition::Accepted,
            Self::Refused(refusal) => refusal.disposition_at(now),
            Self::GivenBack { .. } => Disposition::Retry,
            Self::NotSent(NotSent::Failed(failure)) => failure.disposition(),
            Self::NotSent(NotSent::TooLarge { .. }) => {
                Disposition::PermanentForDevice(DeviceReason::Refused {
                    code: Some(413_001),
                    condition: "amqp:link:message-size-exceeded".to_owned(),
                })
            }
            Self::NotSent(NotSent::Timeout { .. } | NotSent::Closed | NotSent::TokenRefused(_)) => {
                Disposition::Retry
            }
            Self::Unknown(_) => Disposition::Unknown,
        }
    }

    /// Whether the hub has stored the message for sure.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }
}

impl ConnectionFailure {
    /// Whether connecting again without changing anything can help. False for refused credentials and for
    /// certificates that we do not believe.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unauthorised { .. } => false,
            Self::NoToken(error) => error.is_transient(),
            Self::Connect(error) => error.is_transient(),
            Self::Ended { condition, .. } => !matches!(
                condition.as_str(),
                "amqp:unauthorized-access"
                    | "com.microsoft:iot-hub-suspended"
                    | "com.microsoft:iot-hub-not-found-error"
            ),
            _ => true,
        }
    }

    /// Whether the hub refused a link, session or connection for its token.
    pub(crate) fn is_refused_link(&self) -> bool {
        matches!(self, Self::Ended { condition, .. } if condition == "amqp:unauthorized-access")
    }

    fn disposition(&self) -> Disposition {
        let shut = |reason| Disposition::HubShut {
            reason,
            until: None,
        };
        match self {
            Self::Unauthorised { .. } => shut(HubShutReason::Unauthorised),
            Self::NoToken(error) if !error.is_transient() => shut(HubShutReason::Unauthorised),
            Self::Connect(error) if !error.is_transient() => shut(HubShutReason::Untrusted),
            Self::Ended { condition, .. } => match condition.as_str() {
                "amqp:unauthorized-access" => shut(HubShutReason::Unauthorised),
                "com.microsoft:iot-hub-suspended" => shut(HubShutReason::Suspended),
                "com.microsoft:iot-hub-not-found-error" => shut(HubShutReason::NotFound),
                _ => Disposition::Retry,
            },
            _ => Disposition::Retry,
        }
    }
}

impl fmt::Display for SendOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::GivenBack {
                undeliverable: false,
            } => f.write_str("given back"),
            Self::GivenBack {
                undeliverable: true,
            } => f.write_str("given back as undeliverable"),
            Self::NotSent(NotSent::Timeout { connection: None }) => {
                f.write_str("not sent: no slot or credit in time")
            }
            Self::NotSent(NotSent::Timeout {
                connection: Some(failure),
            }) => {
                write!(f, "not sent: no connection in time: {failure}")
            }
            Self::NotSent(NotSent::Closed) => f.write_str("not sent: sender is closed"),
            Self::NotSent(NotSent::Failed(failure)) => write!(f, "not sent: {failure}"),
            Self::NotSent(NotSent::TooLarge { limit }) => {
                write!(f, "not sent: larger than the link's {limit} bytes")
            }
            Self::NotSent(NotSent::TokenRefused(refusal)) => {
                write!(f, "not sent: token refused: {refusal}")
            }
            Self::Unknown(Lost::Disconnected(failure)) => write!(f, "unknown: {failure}"),
            Self::Unknown(Lost::Timeout) => f.write_str("unknown: no answer in time"),
            Self::Unknown(Lost::Closed) => f.write_str("unknown: sender closed before the answer"),
            Self::Unknown(Lost::BadAnswer) => f.write_str("unknown: answer makes no sense"),
        }
    }
}

/// The first midnight UTC after `now`: when the hub's daily quota starts afresh.
pub(crate) fn next_utc_midnight(now: SystemTime) -> SystemTime {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    UNIX_EPOCH + Duration::from_secs((seconds / DAY + 1) * DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn midnight_is_always_ahead() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(next_utc_midnight(at(0)), at(86_400));
        assert_eq!(next_utc_midnight(at(86_399)), at(86_400));
        assert_eq!(next_utc_midnight(at(86_400)), at(172_800));
    }

    #[test]
    fn what_is_not_a_refusal_has_its_disposition_too() {
        let failure = Arc::new(ConnectionFailure::Stalled(Duration::from_secs(1)));
        let refused = Arc::new(ConnectionFailure::Unauthorised {
            identity: "policy \"service\"".into(),
            status: 401,
            description: String::new(),
        });
        let table = [
            (SendOutcome::Accepted, Disposition::Accepted),
            (
                SendOutcome::GivenBack {
                    undeliverable: false,
                },
                Disposition::Retry,
            ),
            (
                SendOutcome::GivenBack {
                    undeliverable: true,
                },
                Disposition::Retry,
            ),
            (SendOutcome::NotSent(NotSent::Closed), Disposition::Retry),
            (
                SendOutcome::NotSent(NotSent::Timeout { connection: None }),
                Disposition::Retry,
            ),
            (
                SendOutcome::NotSent(NotSent::Failed(refused)),
                Disposition::HubShut {
                    reason: HubShutReason::Unauthorised,
                    until: None,
                },
            ),
            (SendOutcome::Unknown(Lost::Timeout), Disposition::Unknown),
            (
                SendOutcome::Unknown(Lost::Disconnected(failure)),
                Disposition::Unknown,
            ),
            (SendOutcome::Unknown(Lost::Closed), Disposition::Unknown),
            (SendOutcome::Unknown(Lost::BadAnswer), Disposition::Unknown),
        ];
        for (outcome, disposition) in table {
            assert_eq!(outcome.disposition(), disposition, "{outcome}");
        }
    }
}
