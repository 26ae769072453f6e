//! Messages: what they are called on the wire, and how ours are made.

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

/// A message outlives a restart of the broker.
pub(crate) const PERSISTENT: u8 = 2;

/// Properties of a message of ours: persistent, with an id and the time.
pub(crate) fn properties(content_type: &str) -> Result<BasicProperties, AmqpError> {
    Ok(BasicProperties::default()
        .with_content_type(short("content type", content_type)?)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(Uuid::now_v7().to_string().into())
        .with_timestamp(now_ms() / 1000))
}

/// A message to a queue, which must be there.
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

/// Milliseconds since 1970, by this machine's clock. For people.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A header's text, if it is there and is one.
pub(crate) fn header_text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// A header's number, if it is there and is one.
pub(crate) fn header_number(headers: &FieldTable, name: &str) -> Option<u64> {
    let number = headers.inner().get(name)?.as_long_long_int()?;
    u64::try_from(number).ok()
}

/// A property's text.
pub(crate) fn text_of(property: &Option<ShortString>) -> Option<String> {
    property.as_ref().map(ToString::to_string)
}

pub(crate) fn number_value(number: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(crate) fn text_value(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// At most `most` bytes of a text, cut between characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// A message on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// The broker returns it if no queue takes it.
    pub(crate) mandatory: bool,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The queues that it was for have it. Not mandatory, there may be none.
    Kept,
    /// It is mandatory, and no queue is there for it.
    Returned,
    /// A queue does not take it: it is full, or was being deleted.
    Refused,
}

/// A message, and who waits for its verdict.
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
