//! An IoT hub, as the engine needs it: find devices, send to them.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::ids::DeviceId;
use crate::message::Outbound;
use crate::outcome::Outcome;
use crate::query::TagPath;

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
    /// The values of the tags that were asked for, in that order, as text; `None` where the
    /// device does not have the tag.
    pub tags: Vec<Option<String>>,
}

/// What the matter is with a hub, so that a caller can tell what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubTrouble {
    /// No connection: name, address, port, or the network.
    Unreachable,
    /// The hub's certificate is not trusted, or is for another name.
    Certificate,
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
    /// Anything else.
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
    /// the end. An error ends it too.
    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<Vec<DeviceRow>, HubError>>;

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

    /// What keeps sends from leaving right now, if that is known. For showing, and for deciding
    /// when waiting makes no sense any more; never for deciding about a message.
    fn hindrance(&self) -> Option<Hindrance> {
        None
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
