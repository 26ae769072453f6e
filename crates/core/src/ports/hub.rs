//! An IoT hub, as the engine needs it: find devices, send to them, hear what became of it.

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

/// Which devices, and which of their tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceQuery {
    /// The condition in the hub's language; empty for all.
    pub condition: String,
    /// Tags whose values are wanted with each device.
    pub tags: Vec<TagPath>,
}

/// One device of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its id.
    pub device: DeviceId,
    /// The values of the tags that were asked for, in that order; `None` where the device does not
    /// have the tag, which is also what null means.
    pub tags: Vec<Option<Value>>,
}

/// Characters of an odd row that are kept: an id has 128 at the most.
const FOUND_CHARS: usize = 140;

/// A row of an answer that is not understood. It costs its own device, and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OddRow {
    /// Its device, if that is understood.
    pub device: Option<DeviceId>,
    /// The device's id as the hub gives it, or the whole row if there is none; 140 characters and a mark at the most.
    pub found: String,
    /// What is wrong with it, in words.
    pub reason: String,
}

impl OddRow {
    /// A row whose device is not known.
    #[must_use]
    pub fn new(found: &str, reason: impl Into<String>) -> Self {
        Self {
            device: None,
            found: cut(found, FOUND_CHARS),
            reason: reason.into(),
        }
    }

    /// A row of `device`, something else of which is odd.
    #[must_use]
    pub fn of(device: DeviceId, reason: impl Into<String>) -> Self {
        let row = Self::new(device.as_str(), reason);
        Self {
            device: Some(device),
            ..row
        }
    }
}

/// A page of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicePage {
    /// The devices; may be none.
    pub rows: Vec<DeviceRow>,
    /// What is not understood.
    pub odd: Vec<OddRow>,
}

/// What the matter is with a hub, so that a caller can tell what to do.
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
    /// Something answers at the hub's address, and does not speak TLS as the hub does.
    Tls,
    /// The key or token is wrong, or lacks a permission.
    Unauthorized,
    /// The hub does not understand the query.
    BadQuery,
    /// Too many requests, for longer than we wait.
    Throttled,
    /// The hub's daily quota is used up. It opens again by itself.
    QuotaUsedUp,
    /// The hub exists but serves nothing for now: suspended.
    Shut,
    /// The hub refuses when messages expire, by its own clock: this machine's is wrong.
    Clock,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// A request to a hub that failed, after its own retries.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct HubError {
    /// What was being done, to which hub.
    pub doing: String,
    /// What the matter is.
    pub trouble: HubTrouble,
    /// What the client says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl HubError {
    /// What is to be done about it: a hub that is out of reach, throttles or is shut may answer later; one that refuses the
    /// key or the question waits for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self.trouble {
            HubTrouble::Unreachable
            | HubTrouble::CertificateDates
            | HubTrouble::Tls
            | HubTrouble::Throttled
            | HubTrouble::QuotaUsedUp
            | HubTrouble::Shut
            | HubTrouble::Clock => Disposition::Retry,
            HubTrouble::Certificate
            | HubTrouble::CertificateName
            | HubTrouble::Unauthorized
            | HubTrouble::BadQuery
            | HubTrouble::Other => Disposition::Fatal,
        }
    }
}

/// What became of one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendResult {
    /// The hub has stored the message for the device.
    Enqueued,
    /// The hub refused it for good: trying again cannot help.
    Final {
        /// [`Outcome::NotFound`], [`Outcome::QueueFull`] or [`Outcome::Refused`].
        outcome: Outcome,
        /// The hub's error code, 0 if it gave none.
        code: u32,
        /// The hub's words.
        detail: String,
    },
    /// The hub does not have it, and may take it later.
    NotSent {
        /// Why.
        cause: NotSent,
        /// How long to wait, if the hub says.
        retry_after: Option<Duration>,
        /// Why, in words.
        detail: String,
    },
    /// It was on its way when the connection was lost or the answer did not come: the hub may
    /// have it.
    Unknown {
        /// Why.
        detail: String,
    },
    /// The hub takes nothing for now, from anyone. The message was not taken.
    HubShut {
        /// For how long, if that is known (daily quota: until midnight UTC).
        retry_after: Option<Duration>,
        /// Why, for people.
        reason: String,
        /// What the matter is.
        trouble: HubTrouble,
    },
}

/// Why a message was not sent, though it may be later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The hub refused it for its quota: everyone should slow down.
    Throttled,
    /// The hub could not take it just now, and gave this code (0 for none). Trying this message
    /// again may go on failing, so tries are counted.
    Refused(u32),
    /// There was no connection. Says nothing about the message, so it does not count as a try.
    NoConnection,
}

/// One hub.
#[async_trait]
pub trait Hub: Send + Sync + 'static {
    /// How many devices match a condition.
    async fn count(&self, condition: &str) -> Result<u64, HubError>;

    /// The devices that match, in pages. Pages may be short or empty; the end of the stream is
    /// the end. An error ends it too; a row that is not understood is no error. A device whose twin changes meanwhile may be
    /// named more than once, or be missed.
    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>>;

    /// How many devices have answered what, of those that match a condition: states with their numbers. Devices without a
    /// state are left out.
    async fn count_states(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError>;

    /// The answers of the devices that match, in pages, like [`devices`](Self::devices). An answer without an id is left out.
    fn answers(
        &self,
        condition: &str,
        property: &PropertyName,
    ) -> BoxStream<'_, Result<Vec<Answer>, HubError>>;

    /// Sends one message and waits for the hub's answer. Many may be under way at once; the
    /// implementation bounds them, and bounds the wait. Never fails: the result says all.
    ///
    /// Cancel safety: if dropped, it is unknown whether the hub has the message.
    async fn send(&self, message: Outbound) -> SendResult;

    /// Whether a send would leave now. While it would not, nobody should take a permit for one:
    /// permits that pile up behind a broken connection would all be used at once.
    fn is_ready(&self) -> bool {
        true
    }

    /// Whether there is a link that messages can leave over. `None` before one was first needed, and while the first
    /// one is being opened.
    fn has_link(&self) -> Option<bool> {
        Some(true)
    }

    /// What keeps sends from leaving right now, if that is known. For showing, and for deciding
    /// when waiting makes no sense any more; never for deciding about a message.
    fn hindrance(&self) -> Option<Hindrance> {
        None
    }

    /// How many milliseconds the hub's clock is ahead of this machine's, as far as that is known: zero for clocks that
    /// may agree, negative when it is behind. For showing.
    fn clock_ahead_ms(&self) -> Option<i64> {
        None
    }

    /// The same of questions: what keeps counts and lists of devices from being answered right now.
    fn asking_hindrance(&self) -> Option<Hindrance> {
        None
    }

    /// A new receiver of the hub's feedback, `None` if the hub gives none. Nothing is dialled
    /// before its first [`next`](Feedback::next).
    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        None
    }
}

/// Takes feedback from a hub.
///
/// A hub has one feedback queue, and every application that listens takes from it (AMQP, from
/// `/messages/serviceBound/feedback`). So any of them can be handed our records, and we theirs:
/// feedback is an addition to what is known from sends, and never the only way to learn it.
#[async_trait]
pub trait Feedback: Send + 'static {
    /// The next message of the feedback queue; `None` when the queue was reached for all of `quiet`, and gave none.
    /// Reconnects for as long as it takes. A few
    /// messages may be on their way when it returns, and come with the next call; see [`rest`](Self::rest).
    ///
    /// An error is for good: the hub refuses us, and would say so again. A new receiver may fare better later.
    ///
    /// Cancel safety: if dropped, nothing is lost. A message that was just arriving comes with
    /// the next call, or is handed out again.
    async fn next(&mut self, quiet: Duration) -> Result<Option<FeedbackBatch>, HubError>;

    /// The number of the connection that messages come over. With another number, messages that were on their way over the
    /// one before are lost, and the hub hands them out again when its locks on them are over.
    fn connection(&self) -> u64;

    /// Asks for no message until the next call of [`next`](Self::next).
    async fn rest(&mut self);
}

/// A message of the feedback queue: what became of up to 64 messages, of any application.
pub struct FeedbackBatch {
    /// Its records, except those that cannot be understood. May be empty.
    pub records: Vec<FeedbackRecord>,
    /// How many records were left out; one for a message of which nothing can be understood.
    pub unreadable: u64,
    /// When the hub has put the message into the queue, on this machine's clock, and rather earlier than later. `None`
    /// when the hub does not say it, and while its clock is not known. Messages are handed out in the order in which they
    /// were put there, but for those that come again.
    pub enqueued_at: Option<Timestamp>,
    /// To answer for it.
    pub ticket: Box<dyn FeedbackTicket>,
}

/// What became of one message that a hub had accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedbackRecord {
    /// The id that the message was sent with; ours are [`MessageId`](crate::message::MessageId)s.
    pub message_id: String,
    /// [`Outcome::Delivered`], [`Outcome::Expired`], [`Outcome::Rejected`],
    /// [`Outcome::Undeliverable`] or [`Outcome::Purged`].
    pub outcome: Outcome,
    /// When, by the hub's clock, if it says so.
    pub at: Option<Timestamp>,
}

/// The answer that a feedback message is owed. Dropped without one, or not given before the
/// hub's lock on the message is over (60 s unless its owner changed it), somebody is handed the
/// message again.
///
/// An error of either says that the answer did not reach the hub: the message comes again.
///
/// Cancel safety: if dropped, it may or may not have been answered.
#[async_trait]
pub trait FeedbackTicket: Send + Sync + 'static {
    /// Done with: the hub forgets the message. Called after its records are durable.
    async fn complete(self: Box<Self>) -> Result<(), HubError>;
    /// Not for us: anybody else, or we again, get it at once. The hub counts these, and throws a
    /// message away that was handed out too often (10 times unless its owner changed it).
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

/// What keeps sends from leaving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// What the matter is.
    pub trouble: HubTrouble,
    /// For how long it has been so.
    pub lasting: Duration,
    /// Why, for people.
    pub reason: String,
}
