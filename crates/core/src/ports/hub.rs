//! An IoT hub, as needed by the engine: find devices, send messages, receive feedback.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::Answer;
use crate::ids::DeviceId;
use crate::message::Outbound;
use crate::outcome::Outcome;
use crate::query::{PropertyName, TagPath};
use crate::text::cut;
use crate::time::Timestamp;

use super::Disposition;

/// A query for devices, with some of their tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceQuery {
    /// The condition in the hub's query language; empty for all devices.
    pub condition: String,
    /// The tags to return with each device.
    pub tags: Vec<TagPath>,
}

/// One device of a query result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The id.
    pub device: DeviceId,
    /// The values of the requested tags, in the requested order; `None` for an absent tag, and for
    /// null, which means the same.
    pub tags: Vec<Option<Value>>,
}

/// The most characters kept of a malformed row: an id has at most 128.
const FOUND_CHARS: usize = 140;

/// A malformed row of a query result. Only the row's own device is affected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedRow {
    /// The device of the row, if understood.
    pub device: Option<DeviceId>,
    /// The device's id as returned by the hub, or the whole row without an id; at most 140
    /// characters, followed by `…` if cut.
    pub found: String,
    /// What is wrong with the row, human-readable.
    pub reason: String,
}

impl MalformedRow {
    /// Creates a row with an unknown device.
    #[must_use]
    pub fn new(found: &str, reason: impl Into<String>) -> Self {
        Self {
            device: None,
            found: cut(found, FOUND_CHARS),
            reason: reason.into(),
        }
    }

    /// Creates a row of `device` with another defect than the id.
    #[must_use]
    pub fn of(device: DeviceId, reason: impl Into<String>) -> Self {
        let row = Self::new(device.as_str(), reason);
        Self {
            device: Some(device),
            ..row
        }
    }
}

/// A page of a query result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicePage {
    /// The devices; may be empty.
    pub rows: Vec<DeviceRow>,
    /// The malformed rows.
    pub malformed_rows: Vec<MalformedRow>,
}

/// The kind of trouble with a hub, for decisions of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HubTrouble {
    /// No connection: name, address, port, or the network.
    Unreachable,
    /// The hub's certificate is signed by an authority that is not trusted.
    Certificate,
    /// The hub's certificate is for another name.
    CertificateName,
    /// The hub's certificate is not valid at this time, by this machine's clock.
    CertificateDates,
    /// A server at the hub's address does not speak TLS like the hub.
    Tls,
    /// The key or token is wrong, or lacks a permission.
    Unauthorized,
    /// The hub does not understand the query.
    BadQuery,
    /// The hub has throttled requests for longer than the longest wait.
    Throttled,
    /// The hub's daily quota is used up. The hub accepts messages again by itself.
    QuotaUsedUp,
    /// The hub exists and is suspended: it serves nothing for now.
    Unavailable,
    /// The hub refuses messages by their expiry time, because this machine's clock is wrong
    /// according to the hub's clock.
    Clock,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// A request to a hub that failed after its retries.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct HubError {
    /// The attempted operation, with the hub.
    pub doing: String,
    /// The kind of trouble.
    pub trouble: HubTrouble,
    /// The error of the client.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl HubError {
    /// Returns how to handle the error. An unreachable, throttling or suspended hub may answer
    /// later; a refused key or query needs an operator.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self.trouble {
            HubTrouble::Unreachable
            | HubTrouble::CertificateDates
            | HubTrouble::Tls
            | HubTrouble::Throttled
            | HubTrouble::QuotaUsedUp
            | HubTrouble::Unavailable
            | HubTrouble::Clock => Disposition::Retry,
            HubTrouble::Certificate
            | HubTrouble::CertificateName
            | HubTrouble::Unauthorized
            | HubTrouble::BadQuery
            | HubTrouble::Other => Disposition::Fatal,
        }
    }
}

/// The result of one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendResult {
    /// The hub has stored the message for the device.
    Enqueued,
    /// The hub refused the message permanently: retries cannot help.
    Final {
        /// [`Outcome::NotFound`], [`Outcome::QueueFull`] or [`Outcome::Refused`].
        outcome: Outcome,
        /// The hub's error code; 0 without a code.
        code: u32,
        /// The hub's error text.
        detail: String,
    },
    /// The hub does not have the message, and may accept it later.
    NotSent {
        /// The cause.
        cause: NotSent,
        /// The time to wait, if given by the hub.
        retry_after: Option<Duration>,
        /// The cause, human-readable.
        detail: String,
    },
    /// The connection was lost, or the answer did not come, while the message was on its way: the
    /// hub may have the message.
    Unknown {
        /// The cause.
        detail: String,
    },
    /// The hub accepts nothing for now, from any sender. The message was not accepted.
    HubUnavailable {
        /// For how long, if known (daily quota: until midnight UTC).
        retry_after: Option<Duration>,
        /// The reason, human-readable.
        reason: String,
        /// The kind of trouble.
        trouble: HubTrouble,
    },
}

/// Why a message was not sent now and may be sent later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The hub refused the message for its quota: all senders should slow down.
    Throttled,
    /// The hub could not accept the message just now, with this code (0 for none). Retries of this
    /// message may fail again and again, so they are counted.
    Refused(u32),
    /// There was no connection. The message is not to blame, so the try is not counted.
    NoConnection,
}

/// A hub.
#[async_trait]
pub trait Hub: Send + Sync + 'static {
    /// Returns the number of devices matching a condition.
    async fn count(&self, condition: &str) -> Result<u64, HubError>;

    /// Returns the matching devices, in pages. Pages may be short or empty; only the end of the
    /// stream ends the result. An error also ends the stream; a malformed row is no
    /// error. A device whose twin changes during the query may be returned repeatedly, or not at
    /// all.
    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>>;

    /// Returns the number of answered devices for each state, among the devices matching a
    /// condition. Devices without a state are left out.
    async fn count_states(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError>;

    /// Returns the answers of the matching devices, in pages, like [`devices`](Self::devices).
    /// Answers without an id are left out.
    fn answers(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> BoxStream<'_, Result<Vec<Answer>, HubError>>;

    /// Sends one message and waits for the hub's answer. Many sends may be under way at once; the
    /// implementation bounds their number and the wait. Never fails: the result covers every case.
    ///
    /// # Cancel safety
    /// If dropped, it is unknown whether the hub has the message.
    async fn send(&self, message: Outbound) -> SendResult;

    /// Returns whether a send would leave now. Otherwise, no permit should be taken for a send:
    /// permits piling up behind a broken connection would all be used at once.
    fn is_ready(&self) -> bool {
        true
    }

    /// Returns whether there is a link for messages. `None` before a link is first needed, and
    /// while the first link is being opened.
    fn has_link(&self) -> Option<bool> {
        Some(true)
    }

    /// Returns the current obstacle to sends, if known. Serves for display, and to decide when
    /// further waiting is pointless; never to decide about a message.
    fn obstacle(&self) -> Option<HubObstacle> {
        None
    }

    /// Returns how far the hub's clock is ahead of this machine's clock in milliseconds, if known:
    /// zero if the clocks may agree, negative if the hub's clock is behind. For display.
    fn clock_ahead_ms(&self) -> Option<i64> {
        None
    }

    /// Returns the current obstacle to queries, if known: to counting devices and listing devices.
    fn query_obstacle(&self) -> Option<HubObstacle> {
        None
    }

    /// Returns a new receiver of the hub's feedback; `None` if the hub provides no feedback. The
    /// receiver connects at its first [`next`](Feedback::next).
    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        None
    }
}

/// Receives feedback from a hub.
///
/// A hub has one feedback queue, and every listening application takes from it (AMQP, from
/// `/messages/serviceBound/feedback`). So another application may receive Twincast's records, and
/// Twincast may receive foreign records. Feedback adds to the knowledge from sends, and must never
/// be the only source of a fact.
#[async_trait]
pub trait Feedback: Send + 'static {
    /// Returns the next message of the feedback queue; `None` after the queue was reachable for all
    /// of `quiet` and empty. Reconnects for as long as necessary. A few messages may still be on
    /// their way at the return, and come with the next call; see [`pause`](Self::pause).
    ///
    /// An error is permanent: the hub refuses this receiver, and would refuse again. A new receiver
    /// may succeed later.
    ///
    /// # Cancel safety
    /// If dropped, nothing is lost. An arriving message comes with the next call, or the hub hands
    /// it out again.
    async fn next(&mut self, quiet: Duration) -> Result<Option<FeedbackBatch>, HubError>;

    /// Returns the number of the connection for messages. After a change of the number, messages on
    /// their way over the old connection are lost, and the hub hands them out again after the end
    /// of its locks on them.
    fn connection(&self) -> u64;

    /// Requests no message until the next call of [`next`](Self::next).
    async fn pause(&mut self);
}

/// A message of the feedback queue: the fates of up to 64 messages, of any application.
pub struct FeedbackBatch {
    /// The records, except those that are not understood. May be empty.
    pub records: Vec<FeedbackRecord>,
    /// The number of omitted records; 1 for a message without any understood part.
    pub unreadable: u64,
    /// When the hub put the message into the queue, on this machine's clock; in doubt, an earlier
    /// time. `None` without a time from the hub, and while the hub's clock is unknown. Messages are
    /// handed out in the order of their arrival in the queue, except for redelivered messages.
    pub enqueued_at: Option<Timestamp>,
    /// Answers the message.
    pub ticket: Box<dyn FeedbackTicket>,
}

/// The fate of one message accepted by a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedbackRecord {
    /// The message id given by the sender; Twincast's ids are
    /// [`MessageId`](crate::message::MessageId)s.
    pub message_id: String,
    /// [`Outcome::Delivered`], [`Outcome::Expired`], [`Outcome::Rejected`],
    /// [`Outcome::Undeliverable`] or [`Outcome::Purged`].
    pub outcome: Outcome,
    /// The time by the hub's clock, if given by the hub.
    pub at: Option<Timestamp>,
}

/// The required answer to a feedback message. The hub hands the message out again if the ticket is
/// dropped without an answer, or not answered before the end of the hub's lock on the message (60 s
/// unless the hub is configured otherwise).
///
/// An error of either method means that the answer did not reach the hub: the message comes again.
///
/// # Cancel safety
/// If dropped, the message may or may not have been answered.
#[async_trait]
pub trait FeedbackTicket: Send + Sync + 'static {
    /// Completes the message: the hub deletes it. Called after the records are durable.
    async fn complete(self: Box<Self>) -> Result<(), HubError>;
    /// Releases a foreign message: any listener, including this one, gets it at once. The hub
    /// counts deliveries, and deletes a message after too many of them (10 unless the hub is
    /// configured otherwise).
    async fn release(self: Box<Self>) -> Result<(), HubError>;
}

impl std::fmt::Debug for FeedbackBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeedbackBatch")
            .field("records", &self.records)
            .field("unreadable", &self.unreadable)
            .finish_non_exhaustive()
    }
}

/// An obstacle to sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubObstacle {
    /// The kind of trouble.
    pub trouble: HubTrouble,
    /// The duration so far.
    pub lasting: Duration,
    /// The reason, human-readable.
    pub reason: String,
}
