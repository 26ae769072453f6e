//! An Azure IoT hub's limits for a cloud-to-device message, shared by the validation of specs, the
//! client and the emulator.

use std::time::Duration;

/// The most bytes of a message including properties (`iot-hub-devguide-messages-c2d`,
/// `iot-hub-devguide-quotas-throttling`).
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// The longest time to live (`iot-hub-devguide-messages-c2d`).
pub const MAX_TTL: Duration = Duration::from_secs(48 * 60 * 60);

/// The most bytes of a device id (`iot-hub-devguide-identity-registry`).
pub const MAX_DEVICE_ID_BYTES: usize = 128;

/// The most bytes of a message id, as recommended by Microsoft.
pub const MAX_MESSAGE_ID_BYTES: usize = 128;

/// The length of the text around a device's id in a message's address,
/// `/devices/…/messages/devicebound`.
const ADDRESS: usize = "/devices/".len() + "/messages/devicebound".len();

/// The lengths of a message's parts, in bytes.
///
/// A hub's method of counting is undocumented for messages to devices. For messages from devices a
/// hub counts the body, the values of system properties, and the names and values of application
/// properties (`iot-hub-devguide-messages-construct`). The encoded AMQP message contains all of
/// these parts and more, so a message within the limit by [`MessageSize::encoded`] is within the
/// limit by any method of counting.
///
/// ```
/// use twincast_hub_limits::{MAX_MESSAGE_BYTES, MessageSize, encoded_id, property};
///
/// let size = MessageSize {
///     device_id: encoded_id("fridge-7"),
///     message_id: "rollout-7.fridge-7".len(),
///     correlation_id: None,
///     content_type: Some("application/json".len()),
///     content_encoding: None,
///     properties: property("kind".len(), "update".len()),
///     ack: Some("full".len()),
///     body: 1_000,
/// };
/// assert_eq!(size.encoded(), 1_164);
/// assert!(!MessageSize { body: MAX_MESSAGE_BYTES, ..size }.fits());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSize {
    /// The device's id, percent-encoded: see [`encoded_id`].
    pub device_id: usize,
    /// The message id.
    pub message_id: usize,
    /// The correlation id, if set.
    pub correlation_id: Option<usize>,
    /// The content type, if set.
    pub content_type: Option<usize>,
    /// The content encoding, if set.
    pub content_encoding: Option<usize>,
    /// The size of the application properties: the sum of [`property`].
    pub properties: usize,
    /// The value of `iothub-ack`, if sent.
    pub ack: Option<usize>,
    /// The body.
    pub body: usize,
}

impl MessageSize {
    /// Returns an upper bound of the encoded message's size in bytes (OASIS AMQP 1.0, part 1
    /// section 1.6, part 3 section 3.2).
    #[must_use]
    pub fn encoded(&self) -> usize {
        /// A descriptor, size and count of a list or map of any length.
        const SECTION: usize = 3 + 1 + 4 + 4;
        /// The properties section's unset fields, one byte each.
        const NULLS: usize = 13;
        /// The expiry, always counted, whether sent or not.
        const TIMESTAMP: usize = 1 + 8;
        let texts = [
            Some(ADDRESS + self.device_id),
            Some(self.message_id),
            self.correlation_id,
            self.content_type,
            self.content_encoding,
        ];
        let texts: usize = texts.into_iter().flatten().map(text).sum();
        let ack = self.ack.map_or(0, |ack| property("iothub-ack".len(), ack));
        let body = 3 + 1 + 4 + self.body;
        SECTION + texts + TIMESTAMP + NULLS + SECTION + self.properties + ack + body
    }

    /// Whether a hub accepts a message of this size.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.encoded() <= MAX_MESSAGE_BYTES
    }
}

/// Returns the size of an application property from the lengths of its name and value.
#[must_use]
pub fn property(name: usize, value: usize) -> usize {
    text(name) + text(value)
}

/// Returns the length of a device's id in a message's address: all characters but letters, digits
/// and `-._~` are percent-encoded.
#[must_use]
pub fn encoded_id(id: &str) -> usize {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
}

/// The longest encoded id: every character percent-encoded.
pub const MAX_ENCODED_ID_BYTES: usize = 3 * MAX_DEVICE_ID_BYTES;

/// Returns the size of a text or symbol with `bytes` bytes.
fn text(bytes: usize) -> usize {
    let head = if bytes > 255 { 5 } else { 2 };
    head + bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_count() {
        let size = MessageSize {
            device_id: 3,
            message_id: 10,
            correlation_id: None,
            content_type: None,
            content_encoding: None,
            properties: 0,
            ack: None,
            body: 100,
        };
        let least = size.encoded();
        assert_eq!(least, 12 + (2 + 33) + (2 + 10) + 9 + 13 + 12 + 8 + 100);
        let more = |change: fn(&mut MessageSize)| {
            let mut size = size;
            change(&mut size);
            size.encoded() - least
        };
        assert_eq!(more(|it| it.device_id = 4), 1);
        assert_eq!(more(|it| it.device_id = MAX_ENCODED_ID_BYTES), 384);
        assert_eq!(more(|it| it.message_id = 128), 118);
        assert_eq!(more(|it| it.correlation_id = Some(7)), 9);
        assert_eq!(more(|it| it.content_type = Some(300)), 305);
        assert_eq!(more(|it| it.content_encoding = Some(5)), 7);
        assert_eq!(more(|it| it.properties = property(3, 256)), 5 + 261);
        assert_eq!(more(|it| it.ack = Some("full".len())), 12 + 6);
        assert_eq!(more(|it| it.body = 65_000), 64_900);
        let largest = MessageSize {
            body: MAX_MESSAGE_BYTES - (least - 100),
            ..size
        };
        assert!(largest.fits());
        let body = largest.body + 1;
        assert!(!MessageSize { body, ..largest }.fits());
    }

    #[test]
    fn ids_are_percent_encoded() {
        assert_eq!(encoded_id("a-b.c_d~0"), 9);
        assert_eq!(encoded_id("dev@1 x"), "dev%401%20x".len());
        assert_eq!(encoded_id(&"%".repeat(128)), MAX_ENCODED_ID_BYTES);
    }
}
