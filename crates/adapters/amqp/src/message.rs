//! Messages on the wire: content types, properties, headers.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::error::AmqpError;
use crate::topology::short;

/// The content type of a dispatch.
pub const DISPATCH_TYPE: &str = "application/vnd.twincast.dispatch.v1+json";
/// The content type of a command.
pub const COMMAND_TYPE: &str = "application/vnd.twincast.command.v1+json";
/// The content type of an event.
pub const EVENT_TYPE: &str = "application/cloudevents+json";
/// The content type of a reply.
pub const REPLY_TYPE: &str = "application/json";

/// The delivery mode of a message that survives a restart of the broker.
pub(crate) const PERSISTENT: u8 = 2;

/// Creates the properties of a new message: persistent, with an id and the time.
pub(crate) fn properties(content_type: &str) -> Result<BasicProperties, AmqpError> {
    Ok(BasicProperties::default()
        .with_content_type(short("content type", content_type)?)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(Uuid::now_v7().to_string().into())
        .with_timestamp(now_ms() / 1000))
}

/// Creates a message to a queue. The queue must exist.
pub(crate) fn to_queue(
    queue: &str,
    properties: BasicProperties,
    body: Vec<u8>,
) -> Result<Message, AmqpError> {
    Ok(Message {
        exchange: ShortString::default(),
        routing_key: short("queue name", queue)?,
        mandatory: true,
        properties,
        body,
    })
}

/// Returns the milliseconds since 1970 by this machine's clock. For display only.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Returns the text of a header, if present and a text.
pub(crate) fn header_text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Returns the number of a header, if present and a number.
pub(crate) fn header_number(headers: &FieldTable, name: &str) -> Option<u64> {
    let number = headers.inner().get(name)?.as_long_long_int()?;
    u64::try_from(number).ok()
}

/// Returns the text of a property.
pub(crate) fn text_of(property: &Option<ShortString>) -> Option<String> {
    property.as_ref().map(ToString::to_string)
}

pub(crate) fn number_value(number: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(crate) fn text_value(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Cuts a text to at most `most` bytes, between characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// An outgoing message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// The broker returns the message if no queue takes it.
    pub(crate) mandatory: bool,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

/// The broker's verdict on a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All addressed queues have the message. A message that is not mandatory may have no queue.
    Kept,
    /// The message is mandatory, and there is no queue for the message.
    Returned,
    /// A queue refuses the message: the queue is full, or was being deleted.
    Refused,
}

/// A message to publish, and the receiver of the verdict.
pub(crate) struct Request {
    pub(crate) message: Message,
    pub(crate) answer: Answer,
}

pub(crate) type Answer = oneshot::Sender<Result<Verdict, AmqpError>>;

impl Request {
    pub(crate) fn new(message: Message) -> (Self, oneshot::Receiver<Result<Verdict, AmqpError>>) {
        let (answer, verdict) = oneshot::channel();
        (Self { message, answer }, verdict)
    }
}
