//! Reads the parts of a message relevant to the hub, in one pass and without copying.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::decode::{DecodeError, Reader};

const ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION_PROPERTIES: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;

/// The application property with the requested feedback.
pub(crate) const ACK_PROPERTY: &str = "iothub-ack";

/// The parts of a message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Message<'a> {
    /// The message id as encoded.
    pub(crate) message_id: Option<&'a [u8]>,
    /// The destination address.
    pub(crate) to: Option<&'a str>,
    /// The expiry, in milliseconds since 1970.
    pub(crate) expiry_ms: Option<i64>,
    /// The value of `iothub-ack`; `None` if absent or not a string.
    pub(crate) ack: Option<&'a str>,
    /// Whether `iothub-ack` is present and not a string.
    pub(crate) ack_not_text: bool,
    /// The user id, correlation id, content type and content encoding, as encoded.
    pub(crate) system: SystemFields<'a>,
    /// The message annotations' map, as encoded.
    pub(crate) annotations: &'a [u8],
    /// The application properties' map, as encoded.
    pub(crate) application_properties: &'a [u8],
    /// The body sections, as encoded.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a whole message.
    pub(crate) fn read(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let before = reader.rest();
            match reader.descriptor()? {
                ANNOTATIONS => message.annotations = reader.raw()?,
                PROPERTIES => message.read_properties(&mut reader)?,
                APPLICATION_PROPERTIES => {
                    let raw = reader.raw()?;
                    message.application_properties = raw;
                    message.find_ack(raw)?;
                }
                DATA | SEQUENCE | VALUE => {
                    reader.skip()?;
                    let len = before.len() - reader.rest().len();
                    if message.body.is_empty() {
                        message.body = &before[..len];
                    } else {
                        // Data sections follow each other, so the body grows in place.
                        let start = payload.len() - before.len() - message.body.len();
                        message.body = &payload[start..payload.len() - reader.rest().len()];
                    }
                }
                _ => reader.skip()?,
            }
        }
        Ok(message)
    }

    fn read_properties(&mut self, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        let mut fields = reader.list()?;
        self.message_id = fields.raw()?;
        self.message_id.map_or(Ok(()), check_id)?;
        self.system.user_id = fields.raw()?;
        self.to = fields.get(Reader::text)?;
        fields.skip(2)?;
        self.system.correlation_id = fields.raw()?;
        self.system.content_type = fields.raw()?;
        self.system.content_encoding = fields.raw()?;
        self.expiry_ms = fields.get(Reader::timestamp)?;
        Ok(())
    }

    fn find_ack(&mut self, raw: &'a [u8]) -> Result<(), DecodeError> {
        let mut items = Reader::new(raw).map()?;
        while let Some(key) = items.next() {
            let key = key.raw()?;
            let Some(value) = items.next() else { break };
            let value = value.raw()?;
            if matches!(key, [0xa1 | 0xa3, _, name @ ..] if name == ACK_PROPERTY.as_bytes()) {
                match Reader::new(value).text() {
                    Ok(text) => self.ack = text,
                    Err(_) => self.ack_not_text = true,
                }
            }
        }
        Ok(())
    }

    /// Returns the message id as text: uuids hyphenated, numbers in decimal, binary in hexadecimal.
    pub(crate) fn message_id_text(&self) -> Cow<'a, str> {
        self.message_id.map_or(Cow::Borrowed(""), id_text)
    }

    /// Returns the content of the body, as [`body_bytes`].
    #[cfg(test)]
    pub(crate) fn body_bytes(&self) -> Vec<u8> {
        body_bytes(self.body)
    }
}

/// The system fields a service may set and a device receives, each as encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SystemFields<'a> {
    pub(crate) user_id: Option<&'a [u8]>,
    pub(crate) correlation_id: Option<&'a [u8]>,
    pub(crate) content_type: Option<&'a [u8]>,
    pub(crate) content_encoding: Option<&'a [u8]>,
}

/// Returns the encoded value for `name` in an encoded map.
pub(crate) fn value_in<'a>(map: &'a [u8], name: &str) -> Option<&'a [u8]> {
    Reader::new(map).map().ok()?.value_of(name)
}

/// Returns the text for `name` in an encoded map.
pub(crate) fn text_in<'a>(map: &'a [u8], name: &str) -> Option<&'a str> {
    Reader::new(value_in(map, name)?).text().ok()?
}

/// AMQP's null.
const NULL: &[u8] = &[0x40];

impl<'a> SystemFields<'a> {
    /// Encodes the four fields in order. Returns no bytes if all fields are absent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        if *self == Self::default() {
            return Vec::new();
        }
        let fields = [
            self.user_id,
            self.correlation_id,
            self.content_type,
            self.content_encoding,
        ];
        fields.map(|field| field.unwrap_or(NULL)).concat()
    }

    /// Decodes the result of [`SystemFields::encode`].
    pub(crate) fn decode(encoded: &'a [u8]) -> Self {
        let mut reader = Reader::new(encoded);
        let mut next = || {
            let raw = reader.raw().ok()?;
            (raw != NULL).then_some(raw)
        };
        Self {
            user_id: next(),
            correlation_id: next(),
            content_type: next(),
            content_encoding: next(),
        }
    }
}

/// Checks the type of a message id: `ulong`, uuid, binary or string (AMQP 1.0, part 3, section
/// 3.2.4). The hub echoes the id unchanged.
fn check_id(raw: &[u8]) -> Result<(), DecodeError> {
    match raw {
        [0x44 | 0x53 | 0x80 | 0x98 | 0xa0 | 0xb0, ..] => Ok(()),
        [0xa1 | 0xb1, ..] => Reader::new(raw).text().map(|_| ()),
        _ => Err(DecodeError::Unexpected {
            code: raw.first().copied().unwrap_or_default(),
            expected: "a message id",
        }),
    }
}

/// Returns a field's value as text: uuids hyphenated, numbers in decimal.
pub(crate) fn field_text(raw: &[u8]) -> String {
    let mut reader = Reader::new(raw);
    match raw {
        // A user id is binary in AMQP and text for a device.
        [0xa0 | 0xb0, ..] => {
            let bytes = reader.binary().ok().flatten().unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        }
        [0xa3 | 0xb3, ..] => reader.text().ok().flatten().unwrap_or_default().to_owned(),
        _ => id_text(raw).into_owned(),
    }
}

fn id_text(raw: &[u8]) -> Cow<'_, str> {
    let mut reader = Reader::new(raw);
    match raw {
        [0x98, bytes @ ..] => match uuid::Uuid::from_slice(bytes) {
            Ok(uuid) => Cow::Owned(uuid.hyphenated().to_string()),
            Err(_) => Cow::Borrowed(""),
        },
        [0xa1 | 0xb1, ..] => Cow::Borrowed(reader.text().ok().flatten().unwrap_or_default()),
        [0xa0 | 0xb0, ..] => {
            let bytes = reader.binary().ok().flatten().unwrap_or_default();
            Cow::Owned(hex(bytes))
        }
        _ => Cow::Owned(
            reader
                .u64()
                .ok()
                .flatten()
                .map_or_else(String::new, |n| n.to_string()),
        ),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Returns the content of the encoded body sections: the bytes of data sections and strings, and
/// the encoding of other values.
pub(crate) fn body_bytes(sections: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = Reader::new(sections);
    while !reader.is_empty() {
        let Ok(descriptor) = reader.descriptor() else {
            break;
        };
        let mut probe = reader;
        match (descriptor, probe.binary(), probe) {
            (DATA, Ok(Some(data)), after) => {
                bytes.extend_from_slice(data);
                reader = after;
            }
            _ => {
                let Ok(raw) = reader.raw() else { break };
                let text = Reader::new(raw).text().ok().flatten();
                bytes.extend_from_slice(text.map_or(raw, str::as_bytes));
            }
        }
    }
    bytes
}

/// An application property, with name and value as text.
pub(crate) type PropertyPair = (String, String);

/// Returns the application properties as text, in order.
pub(crate) fn application_properties(raw: &[u8]) -> Vec<PropertyPair> {
    let mut pairs = Vec::new();
    let Ok(mut items) = Reader::new(raw).map() else {
        return pairs;
    };
    while let Some(key) = items.next() {
        let Ok(key) = key.raw() else { break };
        let Some(Ok(value)) = items.next().map(Reader::raw) else {
            break;
        };
        pairs.push((scalar_text(key), scalar_text(value)));
    }
    pairs
}

fn scalar_text(raw: &[u8]) -> String {
    let reader = Reader::new(raw);
    if let Ok(Some(text)) = reader.clone_text() {
        return text.to_owned();
    }
    if let Ok(Some(value)) = { reader }.bool() {
        return value.to_string();
    }
    id_text(raw).into_owned()
}

impl<'a> Reader<'a> {
    fn clone_text(self) -> Result<Option<&'a str>, DecodeError> {
        let mut copy = self;
        copy.text()
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};

    use super::super::encode;
    use super::*;

    fn sample(id: impl FnOnce(&mut encode::Items<'_>)) -> BytesMut {
        let mut out = BytesMut::new();
        encode::described(&mut out, 0x73, |items| {
            id(items);
            items
                .null()
                .text("/devices/a/messages/devicebound")
                .null()
                .null()
                .null()
                .null()
                .null();
            items.timestamp(1234);
        });
        out.put_slice(&[0x00, 0x53, 0x74]);
        encode::map(&mut out, |items| {
            items
                .text("kind")
                .text("test")
                .text(ACK_PROPERTY)
                .text("full");
        });
        for part in [b"he", b"y!"] {
            out.put_slice(&[0x00, 0x53, 0x75]);
            encode::binary(&mut out, part);
        }
        out
    }

    #[test]
    fn message_ids_of_invalid_types_are_refused() {
        for bad in [
            // A boolean, a byte, a uint, a symbol, a list; text that is not UTF-8.
            &[0x42][..],
            &[0x50, 1],
            &[0x43],
            &[0xa3, 1, b'a'],
            &[0x45],
            &[0xa1, 1, 0xff],
        ] {
            let payload = sample(|items| {
                items.raw(Some(bad));
            });
            assert!(Message::read(&payload).is_err(), "{bad:x?}");
        }
        for good in [
            &[0x44][..],
            &[0x53, 7],
            &[0x80, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0x40],
        ] {
            let payload = sample(|items| {
                items.raw(Some(good));
            });
            assert!(Message::read(&payload).is_ok(), "{good:x?}");
        }
    }

    #[test]
    fn the_parts_the_hub_acts_on_are_found() {
        let payload = sample(|items| {
            items.text("id-1");
        });
        let message = Message::read(&payload).unwrap();
        assert_eq!(message.message_id_text(), "id-1");
        assert_eq!(message.to, Some("/devices/a/messages/devicebound"));
        assert_eq!(message.expiry_ms, Some(1234));
        assert_eq!(message.ack, Some("full"));
        assert_eq!(message.body_bytes(), b"hey!");
        let pairs = application_properties(message.application_properties);
        assert_eq!(pairs[0], ("kind".to_owned(), "test".to_owned()));
    }

    #[test]
    fn message_ids_of_every_type_become_text() {
        let uuid = uuid::uuid!("5a1c8d2e-0000-4000-8000-00000000000f");
        let as_uuid = sample(|items| {
            items.with(|out| {
                out.put_u8(0x98);
                out.put_slice(uuid.as_bytes());
            });
        });
        assert_eq!(
            Message::read(&as_uuid).unwrap().message_id_text(),
            uuid.to_string()
        );
        let as_number = sample(|items| {
            items.u64(42);
        });
        assert_eq!(Message::read(&as_number).unwrap().message_id_text(), "42");
        let as_binary = sample(|items| {
            items.binary(&[0xab, 0x01]);
        });
        assert_eq!(Message::read(&as_binary).unwrap().message_id_text(), "ab01");
    }

    #[test]
    fn a_cut_message_is_an_error_and_never_a_panic() {
        let payload = sample(|items| {
            items.text("id");
        });
        for end in 1..payload.len() {
            // A cut between sections gives a shorter message; any other cut is an error. Neither
            // panics.
            let _ = Message::read(&payload[..end]);
        }
    }
}
