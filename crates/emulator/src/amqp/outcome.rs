//! Errors and delivery states, in the hub's wording.

use bytes::{BufMut, BytesMut};

use super::encode;
use crate::hub::Refusal;

/// An AMQP error: condition, text and the hub's details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AmqpError {
    pub(crate) condition: &'static str,
    pub(crate) description: String,
    pub(crate) tracking_id: String,
    pub(crate) code: u32,
}

impl AmqpError {
    /// Creates an error of the protocol, without an error code of the hub.
    pub(crate) fn plain(condition: &'static str, description: impl Into<String>) -> Self {
        Self {
            condition,
            description: description.into(),
            tracking_id: tracking_id(),
            code: 0,
        }
    }

    /// Writes the error.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        encode::described(out, 0x1d, |items| {
            items.symbol(self.condition).text(&self.description);
            items.with(|out| {
                encode::map(out, |items| {
                    items
                        .symbol("com.microsoft:tracking-id")
                        .text(&self.tracking_id);
                    if self.code != 0 {
                        items
                            .symbol("com.microsoft:error-code")
                            .i32(self.code.cast_signed());
                    }
                    items.symbol("com.microsoft:is-filtered").bool(false);
                });
            });
        });
    }
}

impl From<&Refusal> for AmqpError {
    /// Words a refusal as the hub does: the description is itself JSON.
    fn from(refusal: &Refusal) -> Self {
        let tracking_id = tracking_id();
        let description = serde_json::json!({
            "errorCode": refusal.code,
            "trackingId": tracking_id,
            "message": refusal.text,
            "timestampUtc": jiff::Timestamp::now().to_string(),
        });
        Self {
            condition: refusal.condition,
            description: description.to_string(),
            tracking_id,
            code: refusal.code,
        }
    }
}

/// Returns a new tracking id, of the form requested by Microsoft's support.
pub(crate) fn tracking_id() -> String {
    format!("{}-G:0", uuid::Uuid::new_v4().as_simple())
}

/// The hub's answer to one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The message is enqueued.
    Accepted,
    /// The message is refused.
    Rejected(Box<Refusal>),
    /// The message is not enqueued, and the sender may try again.
    Released,
    /// The message is not enqueued; the delivery state is `modified`.
    Modified,
    /// Never answered; the result of a fault.
    Silent,
}

impl Verdict {
    /// Writes the delivery state.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Accepted => out.put_slice(&[0x00, 0x53, 0x24, 0x45]),
            Self::Released => out.put_slice(&[0x00, 0x53, 0x26, 0x45]),
            Self::Modified => encode::described(out, 0x27, |items| {
                items.bool(true).bool(false);
            }),
            Self::Rejected(refusal) => encode::described(out, 0x25, |items| {
                items.with(|out| AmqpError::from(refusal.as_ref()).write(out));
            }),
            // Never written: a silent verdict has no disposition. Null stands for "no state".
            Self::Silent => out.put_u8(0x40),
        }
    }
}
