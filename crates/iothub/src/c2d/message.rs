//! Messages: a template shared by many messages, plus device id and message id.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use thiserror::Error;
use twincast_hub_limits::{MessageSize, encoded_id, property};

pub use twincast_hub_limits::{
    MAX_DEVICE_ID_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_ID_BYTES, MAX_TTL,
};

/// Minimum distance between the time to live of [`Expiry::After`] and [`MAX_TTL`]. The hub
/// checks the limit by its own clock, and permanently refuses a message beyond the limit.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// The feedback requested from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ack {
    /// None.
    #[default]
    None,
    /// When the device completes the message.
    Positive,
    /// When the message ends in any other way: expired, rejected, delivered too often, purged.
    Negative,
    /// In both cases.
    Full,
}

impl Ack {
    /// The value of the application property `iothub-ack`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Positive => "positive",
            Self::Negative => "negative",
            Self::Full => "full",
        }
    }
}

/// When the hub discards a message not fetched by the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// After the hub's own default (1 h unless configured).
    #[default]
    HubDefault,
    /// This long after the handover to the link, by the hub's clock as far as known. Capped at
    /// [`MAX_TTL`] less [`EXPIRY_MARGIN`].
    After(Duration),
    /// At this time.
    At(SystemTime),
}

/// The shared part of the messages of one rollout. Immutable; pass it around in an [`Arc`].
///
/// The sender caches the encoded form of the last few templates, keyed by address. Share one `Arc`
/// instead of building equal templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct C2dTemplate {
    body: Bytes,
    content_type: Option<String>,
    content_encoding: Option<String>,
    correlation_id: Option<String>,
    properties: Vec<(String, String)>,
    ack: Ack,
    expiry: Expiry,
}

/// Builds a [`C2dTemplate`]; [`build`](C2dTemplateBuilder::build) validates the fields.
#[derive(Debug, Clone)]
#[must_use = "call build() to create the template"]
pub struct C2dTemplateBuilder(C2dTemplate);

/// Why a template or a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// Body, properties and ids exceed the hub's limit.
    #[error(
        "message has {found} bytes, including properties and ids; the hub accepts at most {}",
        MAX_MESSAGE_BYTES
    )]
    TooLarge {
        /// Bytes counted.
        found: usize,
    },
    /// The time to live is zero or longer than the hub allows.
    #[error("time to live is {found:?}; must be above zero and at most 48 h")]
    Ttl {
        /// The time to live.
        found: Duration,
    },
    /// A property has no name.
    #[error("application property {position} has no name")]
    EmptyPropertyName {
        /// The property's position, counted from one.
        position: usize,
    },
    /// A property name is reserved for the hub.
    #[error("application property {name:?} is reserved for the hub")]
    ReservedProperty {
        /// The property's name.
        name: String,
    },
    /// A property name is given twice.
    #[error("application property {name:?} is given twice")]
    RepeatedProperty {
        /// The property's name.
        name: String,
    },
    /// Content type or encoding is not ASCII, as AMQP symbols must be.
    #[error("{field} is not ASCII")]
    NotAscii {
        /// The field's name.
        field: &'static str,
    },
    /// A device id is empty or too long.
    #[error("device id has {found} bytes; must be 1 to {}", MAX_DEVICE_ID_BYTES)]
    DeviceId {
        /// The id's length in bytes.
        found: usize,
    },
    /// A message id is empty or too long.
    #[error("message id has {found} bytes; must be 1 to {}", MAX_MESSAGE_ID_BYTES)]
    MessageId {
        /// The id's length in bytes.
        found: usize,
    },
}

/// One message to one device: the template, the device id and the message id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct C2dMessage {
    pub(crate) device_id: String,
    pub(crate) message_id: String,
    pub(crate) template: Arc<C2dTemplate>,
}

impl C2dTemplate {
    /// Starts a template with `body`.
    pub fn builder(body: impl Into<Bytes>) -> C2dTemplateBuilder {
        C2dTemplateBuilder(Self {
            body: body.into(),
            content_type: None,
            content_encoding: None,
            correlation_id: None,
            properties: Vec::new(),
            ack: Ack::None,
            expiry: Expiry::HubDefault,
        })
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The content type, if set.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The content encoding, if set.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&str> {
        self.content_encoding.as_deref()
    }

    /// The correlation id, if set.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// The application's own properties, without `iothub-ack`.
    #[must_use]
    pub fn properties(&self) -> &[(String, String)] {
        &self.properties
    }

    /// The requested feedback.
    #[must_use]
    pub fn ack(&self) -> Ack {
        self.ack
    }

    /// When the hub discards an undelivered message.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Returns an upper bound of the size counted by the hub against [`MAX_MESSAGE_BYTES`], for a
    /// message with ids of the given lengths in bytes. The device id's length is the length after
    /// percent-encoding.
    fn size(&self, device_id: usize, message_id: usize) -> usize {
        let length = |value: &Option<String>| value.as_ref().map(String::len);
        let properties = self.properties.iter();
        let size = MessageSize {
            device_id,
            message_id,
            correlation_id: length(&self.correlation_id),
            content_type: length(&self.content_type),
            content_encoding: length(&self.content_encoding),
            properties: properties.map(|(k, v)| property(k.len(), v.len())).sum(),
            ack: (self.ack != Ack::None).then(|| self.ack.as_str().len()),
            body: self.body.len(),
        };
        size.encoded()
    }
}

impl C2dTemplateBuilder {
    /// Sets the content type, e.g. `application/json`.
    pub fn content_type(mut self, value: impl Into<String>) -> Self {
        self.0.content_type = Some(value.into());
        self
    }

    /// Sets the content encoding, e.g. `utf-8`.
    pub fn content_encoding(mut self, value: impl Into<String>) -> Self {
        self.0.content_encoding = Some(value.into());
        self
    }

    /// Sets the correlation id.
    pub fn correlation_id(mut self, value: impl Into<String>) -> Self {
        self.0.correlation_id = Some(value.into());
        self
    }

    /// Adds an application property. The hub accepts only text values.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.properties.push((name.into(), value.into()));
        self
    }

    /// Sets the requested feedback.
    pub fn ack(mut self, ack: Ack) -> Self {
        self.0.ack = ack;
        self
    }

    /// Sets when the hub discards an undelivered message.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.0.expiry = expiry;
        self
    }

    /// Validates the template.
    ///
    /// # Errors
    ///
    /// When the template is too large for the hub, a property is nameless, repeated or reserved for
    /// the hub, the time to live is out of bounds, or a symbol is not ASCII.
    pub fn build(self) -> Result<Arc<C2dTemplate>, InvalidMessage> {
        let template = self.0;
        // Counted with the shortest ids; [`C2dMessage::new`] counts the real ids.
        let found = template.size(1, 1);
        if found > MAX_MESSAGE_BYTES {
            return Err(InvalidMessage::TooLarge { found });
        }
        if let Expiry::After(found) = template.expiry
            && (found.is_zero() || found > MAX_TTL)
        {
            return Err(InvalidMessage::Ttl { found });
        }
        for (field, value) in [
            ("content type", &template.content_type),
            ("content encoding", &template.content_encoding),
        ] {
            if value.as_ref().is_some_and(|value| !value.is_ascii()) {
                return Err(InvalidMessage::NotAscii { field });
            }
        }
        for (index, (name, _)) in template.properties.iter().enumerate() {
            if name.is_empty() {
                return Err(InvalidMessage::EmptyPropertyName {
                    position: index + 1,
                });
            }
            if name.to_ascii_lowercase().starts_with("iothub-") {
                return Err(InvalidMessage::ReservedProperty { name: name.clone() });
            }
            if template.properties[..index]
                .iter()
                .any(|(earlier, _)| earlier == name)
            {
                return Err(InvalidMessage::RepeatedProperty { name: name.clone() });
            }
        }
        Ok(Arc::new(template))
    }
}

impl C2dMessage {
    /// Creates a message of `template` to `device_id`. Feedback refers to the message by
    /// `message_id`.
    ///
    /// The device id is percent-encoded on the wire, so every character is allowed here. The hub
    /// decides whether the device exists.
    ///
    /// # Errors
    ///
    /// When an id is empty or longer than 128 bytes, or the message with these ids exceeds the
    /// hub's limit.
    pub fn new(
        device_id: impl Into<String>,
        message_id: impl Into<String>,
        template: Arc<C2dTemplate>,
    ) -> Result<Self, InvalidMessage> {
        let (device_id, message_id) = (device_id.into(), message_id.into());
        if device_id.is_empty() || device_id.len() > MAX_DEVICE_ID_BYTES {
            return Err(InvalidMessage::DeviceId {
                found: device_id.len(),
            });
        }
        if message_id.is_empty() || message_id.len() > MAX_MESSAGE_ID_BYTES {
            return Err(InvalidMessage::MessageId {
                found: message_id.len(),
            });
        }
        let found = template.size(encoded_id(&device_id), message_id.len());
        if found > MAX_MESSAGE_BYTES {
            return Err(InvalidMessage::TooLarge { found });
        }
        Ok(Self {
            device_id,
            message_id,
            template,
        })
    }

    /// The id of the target device.
    #[must_use]
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The message id, repeated in feedback.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.message_id
    }

    /// The shared template.
    #[must_use]
    pub fn template(&self) -> &Arc<C2dTemplate> {
        &self.template
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_messages_are_refused_before_the_send() {
        use InvalidMessage as E;
        let build = |b: C2dTemplateBuilder| b.build().unwrap_err();
        let body = || C2dTemplate::builder("x");
        // Address, message id and sections take at least 90 bytes.
        let found = 65_447 + 90;
        assert_eq!(
            build(C2dTemplate::builder(vec![0; 65_447])),
            E::TooLarge { found }
        );
        let largest = C2dTemplate::builder(vec![0; 65_446]).build().unwrap();
        assert!(C2dMessage::new("d", "m", Arc::clone(&largest)).is_ok());
        for (device, id) in [("d2", "m"), ("d", "m2")] {
            let larger = C2dMessage::new(device, id, Arc::clone(&largest));
            assert_eq!(larger, Err(E::TooLarge { found }));
        }
        let encoded = C2dMessage::new("@", "m", largest);
        assert_eq!(encoded, Err(E::TooLarge { found: found + 1 }));
        assert_eq!(
            build(body().expiry(Expiry::After(Duration::ZERO))),
            E::Ttl {
                found: Duration::ZERO
            }
        );
        assert!(matches!(
            build(body().expiry(Expiry::After(MAX_TTL * 2))),
            E::Ttl { .. }
        ));
        assert_eq!(
            build(body().property("", "v")),
            E::EmptyPropertyName { position: 1 }
        );
        assert!(matches!(
            build(body().property("IoTHub-ack", "full")),
            E::ReservedProperty { .. }
        ));
        assert!(matches!(
            build(body().property("a", "1").property("a", "2")),
            E::RepeatedProperty { .. }
        ));
        assert!(matches!(
            build(body().content_type("é")),
            E::NotAscii { .. }
        ));
        let template = body().build().unwrap();
        assert_eq!(
            C2dMessage::new("", "m", template.clone()),
            Err(E::DeviceId { found: 0 })
        );
        assert_eq!(
            C2dMessage::new("d", "m".repeat(129), template),
            Err(E::MessageId { found: 129 })
        );
    }
}
