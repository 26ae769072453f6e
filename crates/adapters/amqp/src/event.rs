//! Events: published to all listeners.

use std::fmt;

use crate::connection::Amqp;
use crate::consumer::{Consumer, ConsumerSource, Item};
use crate::error::AmqpError;
use crate::message::{EVENT_TYPE, Message, Verdict, properties, text_of};
use crate::topology::short;

/// The most unacknowledged events sent ahead to a listener.
const MAX_UNACKED: usize = 100;

impl Amqp {
    /// Publishes an event, a CloudEvent in JSON, under a topic such as `rollout.running`. `Ok`
    /// means that the broker has passed the event to all listeners. There may be no listener.
    ///
    /// # Errors
    /// When the broker is unavailable or does not confirm in time, and [`AmqpError::Full`] when the
    /// queue of a listener refuses the event.
    pub async fn publish_event(&self, topic: &str, json: Vec<u8>) -> Result<(), AmqpError> {
        let exchange = self.shared.names.events();
        let message = Message {
            exchange: short("exchange name", &exchange)?,
            routing_key: short("topic", topic)?,
            mandatory: false,
            properties: properties(EVENT_TYPE)?,
            body: json,
        };
        match self.shared.in_time(self.shared.publish(message)).await? {
            Verdict::Kept | Verdict::Returned => Ok(()),
            Verdict::Refused => Err(AmqpError::Full { queue: exchange }),
        }
    }

    /// Listens from now on to events with a matching topic: `*` stands for a single word between
    /// dots, `#` for any number of words, as in `rollout.#`.
    ///
    /// # Errors
    /// When the broker is unavailable for longer than a publish may take.
    pub async fn events(&self, pattern: &str) -> Result<EventConsumer, AmqpError> {
        let source = ConsumerSource::Private {
            exchange: self.shared.names.events(),
            pattern: pattern.to_owned(),
        };
        let consumer = Consumer::start(self, source, MAX_UNACKED).await?;
        Ok(EventConsumer { consumer })
    }
}

/// A listener to events.
pub struct EventConsumer {
    consumer: Consumer,
}

/// An item received by a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventItem {
    /// An event.
    Event {
        /// The topic of the event.
        topic: String,
        /// The content type of the event.
        content_type: Option<String>,
        /// The body of the event.
        body: Vec<u8>,
    },
    /// The connection was lost and restored: events may have been missed in between.
    Gap,
}

impl EventConsumer {
    /// Waits for the next item, and for an unavailable broker. Cancel-safe.
    ///
    /// # Errors
    /// Permanent, when this process has closed the connection.
    pub async fn next(&mut self) -> Result<EventItem, AmqpError> {
        match self.consumer.next().await? {
            Item::Message(delivery, pending) => {
                // The private queue ends with the connection, so there is no need to wait for the
                // ack.
                pending.ack_in_background();
                Ok(EventItem::Event {
                    topic: delivery.routing_key.to_string(),
                    content_type: text_of(delivery.properties.content_type()),
                    body: delivery.data,
                })
            }
            Item::Gap => Ok(EventItem::Gap),
        }
    }
}

impl fmt::Debug for EventConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventConsumer").finish_non_exhaustive()
    }
}
