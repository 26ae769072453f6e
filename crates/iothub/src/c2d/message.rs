//! What is sent: a template shared by many messages, and the two things that differ.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use thiserror::Error;
use twincast_hub_limits::{MessageSize, encoded_id, property};

pub use twincast_hub_limits::{
    LARGEST_MESSAGE, LONGEST_DEVICE_ID, LONGEST_MESSAGE_ID, LONGEST_TTL,
};

/// How far within [`LONGEST_TTL`] a message is made to expire: the hub judges that by its own clock, and refuses the
/// message for good if it is beyond.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// Which feedback the hub shall produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ack {
    /// None.
    #[default]
    None,
    /// When the device has completed the message.
    Positive,
    /// When the message ended in any other way: expired, rejected, delivered too often, purged.
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

/// When the hub gives a message up that no device fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// After the hub's own default (1 h unless configured).
    #[default]
    HubDefault,
    /// So long after it is handed to the link, by the hub's clock as far as that is known; less [`EXPIRY_MARGIN`] of
    /// the longest time to live.
    After(Duration),
    /// At this time.
    At(SystemTime),
}

/// Everything that the messages of one rollout share. Immutable; pass it around in an [`Arc`].
///
/// The sender keeps the encoded form of the last few templates, told apart by their address, so share one `Arc` rather
/// than making equal templates.
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

/// Collects what a [`C2dTemplate`] holds; [`build`](C2dTemplateBuilder::build) checks it.
#[derive(Debug, Clone)]
#[must_use = "a template is made by build()"]
pub struct C2dTemplateBuilder(C2dTemplate);

/// Why a template or a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// Body, properties and ids are larger than the hub takes.
    #[error(
        "message has {found} bytes with its properties and ids, the hub takes {}",
        LARGEST_MESSAGE
    )]
    TooLarge {
        /// Bytes counted.
        found: usize,
    },
    /// The time to live is zero or longer than the hub allows.
    #[error("time to live {found:?} is not above zero and at most 48 h")]
    Ttl {
        /// The time to live.
        found: Duration,
    },
    /// A property has no name.
    #[error("application property {position} has no name")]
    EmptyPropertyName {
        /// Which one, from one.
        position: usize,
    },
    /// A property name is the hub's own.
    #[error("application property {name:?} is reserved for the hub")]
    ReservedProperty {
        /// Its name.
        name: String,
    },
    /// A property name is given twice.
    #[error("application property {name:?} is given twice")]
    RepeatedProperty {
        /// Its name.
        name: String,
    },
    /// Content type or encoding is not ASCII, as AMQP symbols must be.
    #[error("{field} is not ASCII")]
    NotAscii {
        /// Which field.
        field: &'static str,
    },
    /// A device id is empty or too long.
    #[error(
        "device id of {found} bytes is not between 1 and {}",
        LONGEST_DEVICE_ID
    )]
    DeviceId {
        /// Its length in bytes.
        found: usize,
    },
    /// A message id is empty or too long.
    #[error(
        "message id of {found} bytes is not between 1 and {}",
        LONGEST_MESSAGE_ID
    )]
    MessageId {
        /// Its length in bytes.
        found: usize,
    },
}

/// One message to one device: the template and what is its own.
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

    /// Which feedback is asked for.
    #[must_use]
    pub fn ack(&self) -> Ack {
        self.ack
    }

    /// When the hub gives the message up.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// From above, what the hub counts against [`LARGEST_MESSAGE`] of a message with ids of so many bytes, that of the
    /// device percent-encoded.
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

    /// Adds an application property. The hub takes texts only.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.properties.push((name.into(), value.into()));
        self
    }

    /// Sets which feedback is asked for.
    pub fn ack(mut self, ack: Ack) -> Self {
        self.0.ack = ack;
        self
    }

    /// Sets when the hub gives the message up.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.0.expiry = expiry;
        self
    }

    /// Checks all of it.
    ///
    /// # Errors
    ///
    /// When it is too large for the hub, a property is nameless, repeated or the hub's own, the time to live is out of
    /// bounds, or a symbol is not ASCII.
    pub fn build(self) -> Result<Arc<C2dTemplate>, InvalidMessage> {
        let template = self.0;
        // With the shortest ids; those of each message are counted when it is made.
        let found = template.size(1, 1);
        if found > LARGEST_MESSAGE {
            return Err(InvalidMessage::TooLarge { found });
        }
        if let Expiry::After(found) = template.expiry
            && (found.is_zero() || found > LONGEST_TTL)
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
    /// One message of `template` to `device_id`, with `message_id` to find its feedback by.
    ///
    /// The device id is percent-encoded on the wire, so every character is allowed here; whether such a device exists
    /// is for the hub to say.
    ///
    /// # Errors
    ///
    /// When an id is empty or longer than 128 bytes, or the message with these ids is larger than the hub takes.
    pub fn new(
        device_id: impl Into<String>,
        message_id: impl Into<String>,
        template: Arc<C2dTemplate>,
    ) -> Result<Self, InvalidMessage> {
        let (device_id, message_id) = (device_id.into(), message_id.into());
        if device_id.is_empty() || device_id.len() > LONGEST_DEVICE_ID {
            return Err(InvalidMessage::DeviceId {
                found: device_id.len(),
            });
        }
        if message_id.is_empty() || message_id.len() > LONGEST_MESSAGE_ID {
            return Err(InvalidMessage::MessageId {
                found: message_id.len(),
            });
        }
        let found = template.size(encoded_id(&device_id), message_id.len());
        if found > LARGEST_MESSAGE {
            return Err(InvalidMessage::TooLarge { found });
        }
        Ok(Self {
            device_id,
            message_id,
            template,
        })
    }

    /// The device it is for.
    #[must_use]
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// Its id, repeated in feedback.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.message_id
    }

    /// What it shares with others.
    #[must_use]
    pub fn template(&self) -> &Arc<C2dTemplate> {
        &self.template
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hub_would_refuse_is_refused_before_it_is_sent() {
        use InvalidMessage as E;
        let build = |b: C2dTemplateBuilder| b.build().unwrap_err();
        let body = || C2dTemplate::builder("x");
        // 90 bytes are an address, a message id and sections, at the least.
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
            build(body().expiry(Expiry::After(LONGEST_TTL * 2))),
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
