//! What an Azure IoT hub takes of a cloud-to-device message: written once, for those who check specs, for the client,
//! and for the emulator.

use std::time::Duration;

/// The most bytes of a message with its properties (`iot-hub-devguide-messages-c2d`, `iot-hub-devguide-quotas-throttling`).
pub const LARGEST_MESSAGE: usize = 64 * 1024;

/// The longest time to live (`iot-hub-devguide-messages-c2d`).
pub const LONGEST_TTL: Duration = Duration::from_secs(48 * 60 * 60);

/// The most bytes of a device id (`iot-hub-devguide-identity-registry`).
pub const LONGEST_DEVICE_ID: usize = 128;

/// The most bytes of a message id, as recommended.
pub const LONGEST_MESSAGE_ID: usize = 128;

/// The text around a device's id in a message's address, `/devices/…/messages/devicebound`.
const ADDRESS: usize = "/devices/".len() + "/messages/devicebound".len();

/// The lengths, in bytes, of what a message consists of.
///
/// How a hub counts is not documented for messages to devices: of those from devices it counts the body, the values of
/// system properties, and names and values of the application's (`iot-hub-devguide-messages-construct`). The encoded
/// AMQP message has all of that and more, so a message that fits by [`MessageSize::encoded`] fits however it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSize {
    /// The device's id, percent-encoded: see [`encoded_id`].
    pub device_id: usize,
    /// The message id.
    pub message_id: usize,
    /// The correlation id, if there is one.
    pub correlation_id: Option<usize>,
    /// The content type, if there is one.
    pub content_type: Option<usize>,
    /// The content encoding, if there is one.
    pub content_encoding: Option<usize>,
    /// What the application properties take: the sum of [`property`].
    pub properties: usize,
    /// The value of `iothub-ack`, if it is sent.
    pub ack: Option<usize>,
    /// The body.
    pub body: usize,
}

impl MessageSize {
    /// The most bytes that the encoded message has (OASIS AMQP 1.0, part 1 section 1.6, part 3 section 3.2).
    #[must_use]
    pub fn encoded(&self) -> usize {
        /// A descriptor, size and count of a list or map of any length.
        const SECTION: usize = 3 + 1 + 4 + 4;
        /// The fields of the properties section that are never set.
        const NULLS: usize = 13;
        /// The expiry, which is counted whether it is sent or not.
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

    /// Whether a hub takes it.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.encoded() <= LARGEST_MESSAGE
    }
}

/// What an application property takes, by the lengths of its name and value.
#[must_use]
pub fn property(name: usize, value: usize) -> usize {
    text(name) + text(value)
}

/// The length of a device's id in a message's address: all but letters, digits and `-._~` is percent-encoded.
#[must_use]
pub fn encoded_id(id: &str) -> usize {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
}

/// The longest id, of characters that are all percent-encoded.
pub const LONGEST_ENCODED_ID: usize = 3 * LONGEST_DEVICE_ID;

/// A text or symbol of so many bytes.
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
        assert_eq!(more(|it| it.device_id = LONGEST_ENCODED_ID), 384);
        assert_eq!(more(|it| it.message_id = 128), 118);
        assert_eq!(more(|it| it.correlation_id = Some(7)), 9);
        assert_eq!(more(|it| it.content_type = Some(300)), 305);
        assert_eq!(more(|it| it.content_encoding = Some(5)), 7);
        assert_eq!(more(|it| it.properties = property(3, 256)), 5 + 261);
        assert_eq!(more(|it| it.ack = Some("full".len())), 12 + 6);
        assert_eq!(more(|it| it.body = 65_000), 64_900);
        let largest = MessageSize {
            body: LARGEST_MESSAGE - (least - 100),
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
        assert_eq!(encoded_id(&"%".repeat(128)), LONGEST_ENCODED_ID);
    }
}
