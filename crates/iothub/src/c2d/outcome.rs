//! The outcome of a send, and the caller's next step.
//!
//! [`SendOutcome`] reports the hub's answer, [`SendOutcome::disposition`] derives the caller's next
//! step. The rules follow the official SDKs' error maps (Node `common-amqp` and `azure-iothub`, C#
//! `AmqpErrorMapper` and `ErrorCode`): the AMQP condition decides first, since the same numeric
//! code means different things in different sources, then the code, then the text.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connect_error::ConnectError;
use crate::credentials::CredentialsError;

use super::refusal::Refusal;

/// Pause of all sends to a throttling hub. The hub's own error text names ten seconds.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(10);

/// The outcome of one send. Every [`C2dSender::send`](crate::C2dSender::send) gives exactly one
/// outcome.
#[derive(Debug, Clone)]
#[must_use = "a send may have failed: handle the outcome"]
#[non_exhaustive]
pub enum SendOutcome {
    /// The hub has stored the message in the device's queue. The message is not delivered yet.
    Accepted,
    /// The hub has refused the message: not stored (except where the disposition is `Unknown`).
    Refused(Refusal),
    /// The hub gave the message back (`released` or `modified`): not stored. Some official SDKs
    /// report this as success.
    Released {
        /// Whether the hub counts this as a failed delivery, or cannot deliver the message here.
        undeliverable: bool,
    },
    /// The message never left: a retry cannot duplicate it.
    NotSent(NotSent),
    /// The message left and its fate is unknown: a retry may duplicate it.
    Unknown(UnknownCause),
}

/// Why a message never left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum NotSent {
    /// The send's time ran out before a free slot, credit or a connection was available.
    Timeout {
        /// Why no connection is open, if none is.
        connection: Option<Arc<ConnectionFailure>>,
    },
    /// The sender is closed.
    Closed,
    /// The sender has failed permanently (credentials or certificates); see the sender's state.
    Failed(Arc<ConnectionFailure>),
    /// The message exceeds the link's limit.
    TooLarge {
        /// The link's limit for an encoded message in bytes, as announced by the hub.
        limit: u64,
    },
    /// The hub refused the client's token for this message. The token is being renewed, so one more
    /// try may succeed.
    TokenRefused(Refusal),
}

/// Why the fate of a message is unknown.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum UnknownCause {
    /// The connection, session or link ended before the hub answered.
    Disconnected(Arc<ConnectionFailure>),
    /// The hub did not answer in time.
    Timeout,
    /// The sender was closed or dropped before the hub answered.
    Closed,
    /// AMQP does not allow the hub's answer here.
    BadAnswer,
}

/// Why a connection ended or could not be established.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionFailure {
    /// Name resolution, TCP or TLS failed.
    #[error("failed to connect to the hub")]
    Connect(#[source] ConnectError),
    /// No token could be obtained.
    #[error("no credentials for the hub")]
    NoToken(#[source] CredentialsError),
    /// The hub refused the client's credentials. Not retried.
    #[error("hub refused the credentials of {identity} with status {status}: {description}")]
    Unauthorised {
        /// The client's policy or identity.
        identity: String,
        /// The put-token status, or 401 if a link was refused.
        status: i32,
        /// The hub's description.
        description: String,
    },
    /// The hub did not take the token for a transient reason unrelated to the key: busy, throttled,
    /// failing over.
    #[error("hub did not accept the token: status {}: {description}", status.map_or("unknown".to_owned(), |s| s.to_string()))]
    TokenNotTaken {
        /// The put-token status, if readable.
        status: Option<i32>,
        /// The hub's description.
        description: String,
    },
    /// A stage of opening took too long.
    #[error("{stage} took longer than {limit:?}")]
    Timeout {
        /// The stage under way.
        stage: &'static str,
        /// The stage's time limit.
        limit: Duration,
    },
    /// The hub ended the connection, session or link and gave a reason.
    #[error("hub ended the {scope}: {condition}: {description}")]
    Ended {
        /// `connection`, `session` or `link`.
        scope: &'static str,
        /// The AMQP condition.
        condition: String,
        /// The hub's text.
        description: String,
    },
    /// The connection broke without a reason from the hub.
    #[error("connection broke while {stage}: {detail}")]
    Broken {
        /// The stage under way.
        stage: &'static str,
        /// The protocol library's description.
        detail: String,
    },
    /// No progress for too long while deliveries were in flight.
    #[error("hub made no progress for {0:?} with deliveries in flight")]
    Stalled(Duration),
}

/// The caller's next step after a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// None: the message is stored.
    Accepted,
    /// Give up on this message for this device; a retry cannot succeed before something changes.
    PermanentForDevice(DeviceReason),
    /// Retry after a short, jittered wait; the message is not stored.
    Retry,
    /// Retry, and slow down every send to this hub: pause all sends for `retry_after`.
    SlowHubDown {
        /// The minimum pause.
        retry_after: Duration,
    },
    /// Stop sending to this hub; the message is not stored.
    HubUnavailable {
        /// The reason.
        reason: HubUnavailableReason,
        /// When the hub may work again, if known.
        until: Option<SystemTime>,
    },
    /// The message may be stored: a retry may duplicate it.
    Unknown,
}

/// Why a device cannot receive this message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceReason {
    /// The device (or module) does not exist.
    NotFound,
    /// The device's queue is full (50 messages).
    QueueFull,
    /// Anything else: too large, bad argument, disabled.
    Refused {
        /// The hub's numeric code, if given.
        code: Option<u32>,
        /// The AMQP condition.
        condition: String,
    },
}

/// Why a hub takes no messages at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HubUnavailableReason {
    /// The daily quota is used up; a new quota starts at midnight UTC.
    DailyQuota,
    /// The hub is suspended.
    Suspended,
    /// The hub does not exist.
    NotFound,
    /// The client's credentials are refused.
    Unauthorised,
    /// The hub's tier (Basic) has no C2D messages.
    NotInTier,
    /// The hub's certificate is not trusted.
    Untrusted,
}

impl SendOutcome {
    /// Returns the caller's next step, with the system's clock for "until midnight".
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.disposition_at(SystemTime::now())
    }

    /// Returns the caller's next step at `now`. Pure.
    #[must_use]
    pub fn disposition_at(&self, now: SystemTime) -> Disposition {
        match self {
            Self::Accepted => Disposition::Accepted,
            Self::Refused(refusal) => refusal.disposition_at(now),
            Self::Released { .. } => Disposition::Retry,
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

    /// Whether the hub has certainly stored the message.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }
}

impl ConnectionFailure {
    /// Whether a new connection without any change can help. False for refused credentials and
    /// untrusted certificates.
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

    /// Whether the hub refused a link, session or connection because of the token.
    pub(crate) fn is_refused_link(&self) -> bool {
        matches!(self, Self::Ended { condition, .. } if condition == "amqp:unauthorized-access")
    }

    fn disposition(&self) -> Disposition {
        let unavailable = |reason| Disposition::HubUnavailable {
            reason,
            until: None,
        };
        match self {
            Self::Unauthorised { .. } => unavailable(HubUnavailableReason::Unauthorised),
            Self::NoToken(error) if !error.is_transient() => {
                unavailable(HubUnavailableReason::Unauthorised)
            }
            Self::Connect(error) if !error.is_transient() => {
                unavailable(HubUnavailableReason::Untrusted)
            }
            Self::Ended { condition, .. } => match condition.as_str() {
                "amqp:unauthorized-access" => unavailable(HubUnavailableReason::Unauthorised),
                "com.microsoft:iot-hub-suspended" => unavailable(HubUnavailableReason::Suspended),
                "com.microsoft:iot-hub-not-found-error" => {
                    unavailable(HubUnavailableReason::NotFound)
                }
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
            Self::Released {
                undeliverable: false,
            } => f.write_str("released by the hub"),
            Self::Released {
                undeliverable: true,
            } => f.write_str("released by the hub as undeliverable"),
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
            Self::Unknown(UnknownCause::Disconnected(failure)) => write!(f, "unknown: {failure}"),
            Self::Unknown(UnknownCause::Timeout) => f.write_str("unknown: no answer in time"),
            Self::Unknown(UnknownCause::Closed) => {
                f.write_str("unknown: sender closed before the answer")
            }
            Self::Unknown(UnknownCause::BadAnswer) => f.write_str("unknown: answer is not valid"),
        }
    }
}

/// Returns the first midnight UTC after `now`, the start of the hub's next daily quota.
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
    fn outcomes_other_than_refusals_have_dispositions() {
        let failure = Arc::new(ConnectionFailure::Stalled(Duration::from_secs(1)));
        let refused = Arc::new(ConnectionFailure::Unauthorised {
            identity: "policy \"service\"".into(),
            status: 401,
            description: String::new(),
        });
        let table = [
            (SendOutcome::Accepted, Disposition::Accepted),
            (
                SendOutcome::Released {
                    undeliverable: false,
                },
                Disposition::Retry,
            ),
            (
                SendOutcome::Released {
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
                Disposition::HubUnavailable {
                    reason: HubUnavailableReason::Unauthorised,
                    until: None,
                },
            ),
            (
                SendOutcome::Unknown(UnknownCause::Timeout),
                Disposition::Unknown,
            ),
            (
                SendOutcome::Unknown(UnknownCause::Disconnected(failure)),
                Disposition::Unknown,
            ),
            (
                SendOutcome::Unknown(UnknownCause::Closed),
                Disposition::Unknown,
            ),
            (
                SendOutcome::Unknown(UnknownCause::BadAnswer),
                Disposition::Unknown,
            ),
        ];
        for (outcome, disposition) in table {
            assert_eq!(outcome.disposition(), disposition, "{outcome}");
        }
    }
}
