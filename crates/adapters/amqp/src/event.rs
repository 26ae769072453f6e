//! Events: what is told to whoever listens.

use std::fmt;

use crate::connection::Amqp;
use crate::error::AmqpError;
use crate::intake::{Intake, Source, Taken};
use crate::message::{EVENT_TYPE, Message, Verdict, properties, text_of};
use crate::topology::short;

/// Events that a listener is sent ahead of its asking.
const AT_ONCE: usize = 100;

impl Amqp {
    /// Publishes an event, a CloudEvent in JSON, under a topic such as `rollout.running`. `Ok`
    /// means that the broker has handed it to all who listen, of whom there may be none.
    ///
    /// # Errors
    /// When the broker is away or does not confirm in time, and [`AmqpError::Full`] when a queue
    /// of somebody who listens does not take it.
    pub async fn publish_event(&self, topic: &str, json: Vec<u8>) -> Result<(), AmqpError> {
        let exchange = self.wires.names.events();
        let message = Message {
            exchange: short("exchange name", &exchange)?,
            routing_key: short("topic", topic)?,
            mandatory: false,
            properties: properties(EVENT_TYPE)?,
            body: json,
        };
        match self.wires.in_time(self.wires.publish(message)).await? {
            Verdict::Kept | Verdict::Returned => Ok(()),
            Verdict::Refused => Err(AmqpError::Full { queue: exchange }),
        }
    }

    /// Listens from now on to events whose topic matches: `*` stands for one word between dots,
    /// `#` for any number, as in `rollout.#`.
    ///
    /// # Errors
    /// When the broker is away for longer than a publish may take.
    pub async fn events(&self, pattern: &str) -> Result<EventConsumer, AmqpError> {
        let source = Source::Private {
            exchange: self.wires.names.events(),
            pattern: pattern.to_owned(),
        };
        let intake = Intake::start(self, source, AT_ONCE).await?;
        Ok(EventConsumer { intake })
    }
}

/// Listens to events.
pub struct EventConsumer {
    intake: Intake,
}

/// What is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// An event.
    Event {
        /// What it was published under.
        topic: String,
        /// Its content type.
        content_type: Option<String>,
        /// What it says.
        body: Vec<u8>,
    },
    /// The connection was lost and is back: events may have been missed in between.
    Gap,
}

impl EventConsumer {
    /// What is heard next; waits for it, and for a broker that is away. Cancel-safe.
    ///
    /// # Errors
    /// For good, when the connection was closed by this process.
    pub async fn next(&mut self) -> Result<Heard, AmqpError> {
        match self.intake.next().await? {
            Taken::Message(delivery, held) => {
                // It would go with the connection, so there is nothing to wait for.
                held.ack_in_background();
                Ok(Heard::Event {
                    topic: delivery.routing_key.to_string(),
                    content_type: text_of(delivery.properties.content_type()),
                    body: delivery.data,
                })
            }
            Taken::Resumed => Ok(Heard::Gap),
        }
    }
}

impl fmt::Debug for EventConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventConsumer").finish_non_exhaustive()
    }
}
