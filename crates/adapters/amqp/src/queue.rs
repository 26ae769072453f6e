//! The queue port: dispatches.
//!
//! A dispatch is a small JSON document of a known version. The consumer acks a dispatch of a newer
//! version: the driver redispatches the batch until a newer worker takes the dispatch. An
//! unreadable dispatch goes to the dead letters with the reason; such a dispatch neither stops the
//! consumer nor comes again.

use async_trait::async_trait;
use lapin::BasicProperties;
use tracing::{debug, warn};
use twincast_core::error::describe;
use twincast_core::ids::HubName;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};

use crate::connection::Amqp;
use crate::consumer::{Consumer, ConsumerSource, Item, PendingAck};
use crate::dead_letter::Letter;
use crate::error::AmqpError;
use crate::message::{DISPATCH_TYPE, Message, properties, to_queue};

/// A [`Queue`] on RabbitMQ: a quorum queue per hub. Cheap to clone.
///
/// A requeued message comes again before waiting messages, marked as redelivered. So does a message
/// still unseen in the consumer when the consumer is dropped. After 20 deliveries the broker moves
/// the message to the dead letters.
#[derive(Debug, Clone)]
pub struct AmqpQueue {
    amqp: Amqp,
}

impl Amqp {
    /// Returns the queues of dispatches.
    #[must_use]
    pub fn queue(&self) -> AmqpQueue {
        AmqpQueue { amqp: self.clone() }
    }
}

#[async_trait]
impl Queue for AmqpQueue {
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError> {
        let shared = &self.amqp.shared;
        let queue = shared.names.dispatch(&dispatch.hub);
        let sent = match message(&queue.name, dispatch) {
            Ok(message) => shared.send(&queue, message).await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| match error {
            AmqpError::Full { .. } => QueueError::Full {
                hub: dispatch.hub.clone(),
                limit: shared.settings.dispatch_limit,
            },
            error => unavailable("publish a dispatch", error),
        })
    }

    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError> {
        let queue = self.amqp.shared.names.dispatch(hub);
        let name = queue.name.clone();
        let consumer = Consumer::start(&self.amqp, ConsumerSource::Shared(queue), at_once).await;
        let consumer = consumer.map_err(|error| unavailable("consume dispatches", error))?;
        Ok(Box::new(DispatchConsumer {
            queue: name,
            consumer,
            logged_newer: false,
        }))
    }

    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError> {
        let shared = &self.amqp.shared;
        let queue = shared.names.dispatch_name(hub);
        let depth = shared.in_time(shared.depth(&queue)).await;
        depth.map_err(|error| unavailable("count the waiting dispatches", error))
    }
}

fn message(queue: &str, dispatch: &Dispatch) -> Result<Message, AmqpError> {
    let body = serde_json::to_vec(dispatch).expect("ids are strings and numbers");
    to_queue(queue, properties(DISPATCH_TYPE)?, body)
}

struct DispatchConsumer {
    queue: String,
    consumer: Consumer,
    logged_newer: bool,
}

#[async_trait]
impl Deliveries for DispatchConsumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        loop {
            let item = self.consumer.next().await;
            let item = item.map_err(|error| unavailable("take a dispatch", error))?;
            let Item::Message(raw, pending) = item else {
                continue;
            };
            match read(&raw.properties, &raw.data) {
                Ok(dispatch) => {
                    return Ok(Delivery {
                        dispatch,
                        redelivered: raw.redelivered,
                        ticket: Box::new(Answer { pending }),
                    });
                }
                Err(Unreadable::Newer(version)) => self.ack_newer(pending, version).await,
                Err(unreadable) => {
                    let (queue, detail) = (&self.queue, unreadable.to_string());
                    warn!(queue, detail, "dispatch cannot be read");
                    let letter = Letter::of(queue, *raw, unreadable.cause(), detail);
                    letter.replace_in_background(&self.consumer.amqp().shared, pending);
                }
            }
        }
    }
}

impl DispatchConsumer {
    /// Acks a dispatch that only newer workers understand. After a failed ack, the dispatch comes
    /// again.
    async fn ack_newer(&mut self, pending: PendingAck, version: u32) {
        if !std::mem::replace(&mut self.logged_newer, true) {
            warn!(
                queue = self.queue,
                version, "dispatches of a newer release are left to newer workers"
            );
        }
        if let Err(error) = pending.ack().await {
            debug!(why = describe(&error), "dispatch not acknowledged");
        }
    }
}

/// Why a message is not a readable dispatch.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it is a dispatch of version {0}, and this release knows version 1")]
    Newer(u32),
    #[error("content type is {0:?}, not {DISPATCH_TYPE:?}")]
    Version(String),
    #[error("it is not a dispatch: {0}")]
    Body(serde_json::Error),
}

impl Unreadable {
    fn cause(&self) -> &'static str {
        match self {
            Self::Newer(_) | Self::Version(_) => "unsupported_version",
            Self::Body(_) => "unreadable",
        }
    }
}

fn read(properties: &BasicProperties, body: &[u8]) -> Result<Dispatch, Unreadable> {
    let content_type = properties.content_type().as_ref();
    let content_type = content_type.map_or("", |text| text.as_str());
    if let Some(version) = newer(content_type) {
        return Err(Unreadable::Newer(version));
    }
    if content_type != DISPATCH_TYPE {
        return Err(Unreadable::Version(content_type.to_owned()));
    }
    serde_json::from_slice(body).map_err(Unreadable::Body)
}

/// Returns the version of a dispatch, if newer than the known version.
fn newer(content_type: &str) -> Option<u32> {
    let (before, after) = DISPATCH_TYPE.split_once('1')?;
    let version = content_type.strip_prefix(before)?.strip_suffix(after)?;
    version.parse().ok().filter(|version| *version > 1)
}

struct Answer {
    pending: PendingAck,
}

#[async_trait]
impl Ticket for Answer {
    async fn ack(self: Box<Self>) -> Result<(), QueueError> {
        let acked = self.pending.ack().await;
        acked.map_err(|error| unavailable("acknowledge a dispatch", error))
    }

    async fn requeue(self: Box<Self>) -> Result<(), QueueError> {
        self.pending.requeue().await;
        Ok(())
    }
}

fn unavailable(doing: &'static str, error: AmqpError) -> QueueError {
    match error {
        AmqpError::Closed => QueueError::Closed { doing },
        error => QueueError::Unavailable {
            doing,
            source: Box::new(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_type(content_type: &str) -> BasicProperties {
        BasicProperties::default().with_content_type(content_type.into())
    }

    #[test]
    fn a_dispatch_reads_back() {
        let body = br#"{"rollout":"r","batch":7,"hub":"eu"}"#;
        let dispatch = read(&of_type(DISPATCH_TYPE), body).unwrap();
        let sent = message("q", &dispatch).unwrap();
        assert_eq!(sent.body, body);
        assert_eq!(*sent.properties.delivery_mode(), Some(2));
        assert!(sent.properties.message_id().is_some());
        assert!(sent.mandatory);
    }

    #[test]
    fn unreadable_dispatch_is_reported_with_cause() {
        let newer = of_type("application/vnd.twincast.dispatch.v2+json");
        let error = read(&newer, b"{}").unwrap_err();
        assert!(matches!(error, Unreadable::Newer(2)), "{error}");
        let other = of_type("application/vnd.twincast.dispatch.vv+json");
        let error = read(&other, b"{}").unwrap_err();
        assert!(matches!(error, Unreadable::Version(_)));
        assert!(error.to_string().contains("dispatch.vv+json"), "{error}");
        let error = read(&BasicProperties::default(), b"{}").unwrap_err();
        assert!(matches!(error, Unreadable::Version(_)));
        let error = read(&of_type(DISPATCH_TYPE), br#"{"rollout":"a b"}"#).unwrap_err();
        assert!(error.to_string().contains("rollout name"), "{error}");
    }
}
