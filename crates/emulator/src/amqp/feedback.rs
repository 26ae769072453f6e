//! Feedback messages in the form for services.

use bytes::{BufMut, BytesMut};

use super::encode;

/// The content type of feedback messages.
pub(crate) const FEEDBACK_CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

/// Encodes a feedback message from the records' JSON.
pub(crate) fn encode_message(host_name: &str, enqueued_ms: u64, json: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(json.len() + 256);
    out.put_slice(&[0x00, 0x53, 0x72]);
    encode::map(&mut out, |items| {
        items
            .symbol("iothub-enqueuedtime")
            .timestamp(enqueued_ms.cast_signed());
    });
    encode::described(&mut out, 0x73, |items| {
        items
            .null()
            .binary(host_name.as_bytes())
            .null()
            .null()
            .null()
            .null()
            .symbol(FEEDBACK_CONTENT_TYPE);
    });
    out.put_slice(&[0x00, 0x53, 0x75]);
    encode::binary(&mut out, json);
    out
}
