//! Dead letters: what could not be worked on, kept with the reason.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::connection::Wires;
use crate::error::AmqpError;
use crate::message::{PERSISTENT, cut, now_ms, text_value, to_queue};

/// Why it is here, for programs.
const CAUSE: &str = "x-twincast-cause";
/// Why it is here, for people.
const DETAIL: &str = "x-twincast-detail";
/// The queue that it came from.
const QUEUE: &str = "x-twincast-queue";
/// When it came here, in milliseconds since 1970.
const AT: &str = "x-twincast-at";
/// Its body is only the beginning of what it was.
const TRUNCATED: &str = "x-twincast-truncated";
/// How long the whole body was, in bytes.
const SIZE: &str = "x-twincast-size";

/// The longest detail that is kept, in bytes.
const DETAIL_BYTES: usize = 1024;
/// What is kept of a body that is too large to be worked on, in bytes: enough to see what it was.
pub(crate) const KEPT_BYTES: usize = 64 * 1024;

/// The causes that this crate gives. Others are the callers'.
pub(crate) struct Cause;

impl Cause {
    pub(crate) const UNKNOWN_VERSION: &'static str = "unknown_version";
    pub(crate) const MALFORMED: &'static str = "malformed";
}

/// Publishes a copy of a message to the dead letters. `Ok` means that they have it, and the
/// original may be acked. `size` is the length of the whole body, of which `body` may be a part.
pub(crate) async fn bury(
    wires: &Wires,
    from: &str,
    properties: BasicProperties,
    body: Vec<u8>,
    size: usize,
    cause: &str,
    detail: &str,
) -> Result<(), AmqpError> {
    let properties = with_reason(properties, from, body.len(), size, cause, detail);
    let dead = wires.names.dead();
    wires
        .send(&dead, to_queue(&dead.name, properties, body)?)
        .await
}

fn with_reason(
    properties: BasicProperties,
    from: &str,
    kept: usize,
    size: usize,
    cause: &str,
    detail: &str,
) -> BasicProperties {
    let properties = for_another_publish(&properties);
    let mut headers = properties.headers().clone().unwrap_or_default();
    let mut put = |name: &str, value| {
        headers.insert(ShortString::from(name), value);
    };
    put(CAUSE, text_value(cause));
    put(DETAIL, text_value(cut(detail, DETAIL_BYTES)));
    put(QUEUE, text_value(from));
    put(AT, AMQPValue::LongLongInt(now_ms().cast_signed()));
    if kept < size {
        put(TRUNCATED, true.into());
        put(
            SIZE,
            AMQPValue::LongLongInt(i64::try_from(size).unwrap_or(i64::MAX)),
        );
    }
    properties.with_headers(headers)
}

/// What of a message's properties can be published again, by us. Left out are a lifetime, which
/// would let the letter go; the user, whom the broker compares with ours, closing the channel; and
/// further recipients, who have it.
fn for_another_publish(properties: &BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if !["CC", "BCC"].contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let texts: [(
        &Option<ShortString>,
        fn(BasicProperties, ShortString) -> BasicProperties,
    ); 7] = [
        (
            properties.content_type(),
            BasicProperties::with_content_type,
        ),
        (
            properties.content_encoding(),
            BasicProperties::with_content_encoding,
        ),
        (
            properties.correlation_id(),
            BasicProperties::with_correlation_id,
        ),
        (properties.reply_to(), BasicProperties::with_reply_to),
        (properties.message_id(), BasicProperties::with_message_id),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
    ];
    let mut copy = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    for (text, with) in texts {
        if let Some(text) = text {
            copy = with(copy, text.clone());
        }
    }
    match properties.timestamp() {
        Some(at) => copy.with_timestamp(*at),
        None => copy,
    }
}
