//! A consumer that outlives connections.
//!
//! A task per consumer owns the channel, and passes deliveries on one at a time. When the
//! subscription ends, the task subscribes again: after a lost connection, after the broker closed
//! the channel because an ack took too long, or after the queue was deleted. An idle subscription
//! is renewed now and then. Deliveries wait in the channel until passed on; the broker sends no
//! more unanswered deliveries than requested.

use std::sync::Arc;

use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};
use twincast_core::error::describe;

use crate::channel::{OwnChannel, unless_lost};
use crate::connection::Amqp;
use crate::dead_letter::Letter;
use crate::error::AmqpError;
use crate::link::Shared;
use crate::message::header_number;
use crate::topology::{DELIVERY_LIMIT, QueueSpec, short};

/// The source of deliveries.
#[derive(Debug, Clone)]
pub(crate) enum ConsumerSource {
    /// A queue shared by all consumers of the queue.
    Shared(QueueSpec),
    /// A private queue for the events of an exchange that match a pattern. The queue ends with the
    /// subscription.
    Private { exchange: String, pattern: String },
}

impl ConsumerSource {
    fn name(&self) -> &str {
        match self {
            Self::Shared(queue) => &queue.name,
            Self::Private { exchange, .. } => exchange,
        }
    }
}

/// An item received from a consumer.
pub(crate) enum Item {
    /// A message, and the pending answer to the broker.
    Message(Box<Delivery>, PendingAck),
    /// A new subscription has begun. A private queue has missed all events since the end of the
    /// last subscription.
    Gap,
}

/// A consumer. Dropping the consumer returns unanswered messages to the queue.
pub(crate) struct Consumer {
    items: mpsc::Receiver<Item>,
    /// The name of the source, for logs and dead letters.
    queue: String,
    /// Keeps the connection open.
    amqp: Amqp,
    _drop_guard: DropGuard,
}

impl Consumer {
    /// Subscribes. Waits for an unavailable broker for as long as a publish may take. Afterwards
    /// the consumer resubscribes without the caller.
    pub(crate) async fn start(
        amqp: &Amqp,
        source: ConsumerSource,
        at_once: usize,
    ) -> Result<Self, AmqpError> {
        let shared = Arc::clone(&amqp.shared);
        let consumer_dropped = CancellationToken::new();
        let queue = source.name().to_owned();
        let subscriber = Subscriber {
            shared: Arc::clone(&shared),
            source,
            // 0 would be without limit.
            at_once: u16::try_from(at_once).unwrap_or(u16::MAX).max(1),
            consumer_dropped: consumer_dropped.clone(),
            unanswered: Arc::default(),
        };
        let first = shared.in_time(subscriber.subscribe()).await?;
        let (out, items) = mpsc::channel(1);
        shared.tasks.spawn(subscriber.run(first, out));
        Ok(Self {
            items,
            queue,
            amqp: amqp.clone(),
            _drop_guard: consumer_dropped.drop_guard(),
        })
    }

    /// Waits for the next item, and for an unavailable broker. Cancel-safe. An error is permanent.
    pub(crate) async fn next(&mut self) -> Result<Item, AmqpError> {
        loop {
            match self.items.recv().await {
                // The delivery came over a connection lost since, so the broker redelivers the
                // message.
                Some(Item::Message(_, pending)) if pending.is_stale() => {}
                Some(Item::Message(message, pending)) if exceeds_delivery_limit(&message) => {
                    self.dead_letter(*message, pending);
                }
                Some(item) => return Ok(item),
                None => return Err(AmqpError::Closed),
            }
        }
    }

    pub(crate) fn amqp(&self) -> &Amqp {
        &self.amqp
    }

    fn dead_letter(&self, message: Delivery, pending: PendingAck) {
        let queue = &self.queue;
        let detail = format!("delivered more than {DELIVERY_LIMIT} times without being processed");
        warn!(queue, detail, "message moved to the dead letters");
        // The cause has the name used by the broker in dead letters of its own.
        let letter = Letter::of(queue, message, "delivery_limit", detail);
        letter.replace_in_background(&self.amqp.shared, pending);
    }
}

/// Returns whether a message was handed out too often. The broker enforces the limit in most cases.
/// From RabbitMQ 4.3 on, a message held for longer than `consumer_timeout` does not count towards
/// the limit, but the message's header still shows the number of hand-outs.
fn exceeds_delivery_limit(message: &Delivery) -> bool {
    // The headers of a first delivery are set by the publisher.
    let headers = message.properties.headers().as_ref();
    let headers = headers.filter(|_| message.redelivered);
    let times = |name| headers.and_then(|headers| header_number(headers, name));
    let times = ["x-acquired-count", "x-delivery-count"].map(times);
    let mut times = times.into_iter().flatten();
    times.any(|times| times > DELIVERY_LIMIT.unsigned_abs())
}

/// The pending answer to a delivery. Dropping an unanswered value requeues the message.
pub(crate) struct PendingAck {
    /// `None` after an answer.
    acker: Option<Acker>,
    shared: Arc<Shared>,
    /// Cancelled when the connection is lost: the broker has the message back.
    lost: CancellationToken,
    /// Cancelled when the consumer is dropped, likewise.
    consumer_dropped: CancellationToken,
    /// Counts as an unanswered delivery of the consumer.
    _one: Arc<()>,
}

impl PendingAck {
    fn is_stale(&self) -> bool {
        let is_cancelled = self.lost.is_cancelled() || self.consumer_dropped.is_cancelled();
        is_cancelled || self.acker.as_ref().is_none_or(Acker::poisoned)
    }

    /// Acknowledges the message. The protocol does not confirm acks: after a lost ack, the broker
    /// redelivers the message.
    pub(crate) async fn ack(mut self) -> Result<(), AmqpError> {
        let stale = self.is_stale();
        let Some(acker) = self.acker.take().filter(|_| !stale) else {
            return Err(AmqpError::Stale);
        };
        let acked = async {
            match acker.ack(BasicAckOptions::default()).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(AmqpError::Stale),
                Err(error) => Err(AmqpError::broker("acknowledge a message", error)),
            }
        };
        let acked = self.shared.in_time(unless_lost(&self.lost, acked)).await;
        acked.map_err(|error| match error {
            AmqpError::Lost => AmqpError::Stale,
            error => error,
        })
    }

    /// Acknowledges the message without waiting.
    pub(crate) fn ack_in_background(self) {
        let tasks = self.shared.tasks.clone();
        tasks.spawn(async move {
            // After a lost ack, the broker redelivers the message.
            self.ack().await.ok();
        });
    }

    /// Requeues the message, for any consumer.
    pub(crate) async fn requeue(mut self) {
        if let Some(acker) = self.acker.take() {
            requeue(&self.shared, acker, &self.lost).await;
        }
    }
}

impl Drop for PendingAck {
    fn drop(&mut self) {
        if self.is_stale() {
            return;
        }
        if let Some(acker) = self.acker.take() {
            let (shared, lost) = (Arc::clone(&self.shared), self.lost.clone());
            let tasks = shared.tasks.clone();
            tasks.spawn(async move { requeue(&shared, acker, &lost).await });
        }
    }
}

/// Returns a message by `basic.reject`, which counts towards the delivery limit in every version of
/// RabbitMQ. From 4.3 on, a `basic.nack` does not count (docs/adr/0028-deliveries-are-counted.md).
async fn requeue(shared: &Shared, acker: Acker, lost: &CancellationToken) {
    let options = BasicRejectOptions { requeue: true };
    let back = async {
        // A failure means that the channel is gone, and the broker has the message back.
        acker.reject(options).await.ok();
        Ok(())
    };
    // A broker that blocks the connection delays the answer, possibly for long. The answer is sent
    // in the end.
    shared.in_time(unless_lost(lost, back)).await.ok();
}

/// The task of a consumer.
struct Subscriber {
    shared: Arc<Shared>,
    source: ConsumerSource,
    at_once: u16,
    consumer_dropped: CancellationToken,
    /// Shared with each unanswered delivery.
    unanswered: Arc<()>,
}

/// The end of a subscription.
enum Ended {
    /// Ended by the broker, or with the connection.
    Broken,
    /// Ended by the consumer after a long time without a delivery.
    Idle,
}

impl Subscriber {
    async fn run(self, first: OwnChannel, out: mpsc::Sender<Item>) {
        // Dropping the work closes the channel, which returns unanswered deliveries to the queue.
        tokio::select! {
            () = self.consumer_dropped.cancelled() => {}
            () = self.shared.closing.cancelled() => {}
            () = self.work(first, out) => {}
        }
    }

    /// Subscribes and passes deliveries on, for ever.
    async fn work(&self, first: OwnChannel, out: mpsc::Sender<Item>) {
        let reconnect = &self.shared.settings.reconnect;
        let mut delays = reconnect.delays();
        let mut channel = first;
        loop {
            let since = Instant::now();
            let ended = self.pump(channel, &out).await;
            // A subscription that ends at once counts as a failed attempt.
            if since.elapsed() > reconnect.max() {
                delays.reset();
            }
            let mut at_once = matches!(ended, Ended::Idle);
            channel = loop {
                if !std::mem::take(&mut at_once) {
                    let delay = delays.next_delay().unwrap_or_else(|| reconnect.max());
                    tokio::time::sleep(delay).await;
                }
                match self.subscribe().await {
                    Ok(channel) => break channel,
                    Err(error) => {
                        let (source, why) = (self.source.name(), describe(&error));
                        warn!(source, why, "cannot subscribe");
                    }
                }
            };
            // Without a receiver the consumer is gone, and the task ends next.
            out.send(Item::Gap).await.ok();
        }
    }

    /// Passes deliveries on until the subscription ends.
    async fn pump(&self, mut channel: OwnChannel, out: &mpsc::Sender<Item>) -> Ended {
        let ended = loop {
            // Fails when the consumer is gone: the task ends next.
            let Ok(room) = out.reserve().await else {
                return Ended::Broken;
            };
            let idle = self.shared.settings.renew_idle_after;
            match tokio::time::timeout(idle, channel.next()).await {
                Ok(Ok(delivery)) => room.send(self.item(delivery, &channel)),
                Ok(Err(why)) => {
                    self.log_end(&channel, &why);
                    break Ended::Broken;
                }
                Err(_) if self.is_renewable() => break Ended::Idle,
                Err(_) => {}
            }
        };
        channel.close().await;
        ended
    }

    /// Returns whether a new subscription loses and repeats no message.
    fn is_renewable(&self) -> bool {
        matches!(self.source, ConsumerSource::Shared(_)) && Arc::strong_count(&self.unanswered) == 1
    }

    fn log_end(&self, channel: &OwnChannel, why: &str) {
        let source = self.source.name();
        if channel.lost().is_cancelled() {
            // The supervisor has logged the loss, once for all subscriptions.
            debug!(source, "subscription ended with the connection");
        } else {
            warn!(source, why, "subscription ended");
        }
    }

    fn item(&self, delivery: Delivery, channel: &OwnChannel) -> Item {
        let pending = PendingAck {
            acker: Some(delivery.acker.clone()),
            shared: Arc::clone(&self.shared),
            lost: channel.lost().clone(),
            consumer_dropped: self.consumer_dropped.clone(),
            _one: Arc::clone(&self.unanswered),
        };
        Item::Message(Box::new(delivery), pending)
    }

    async fn subscribe(&self) -> Result<OwnChannel, AmqpError> {
        let link = self.shared.link().await?;
        let mut channel = link.channel(&self.shared.tasks).await?;
        unless_lost(&link.lost, self.set_up(&mut channel)).await?;
        Ok(channel)
    }

    async fn set_up(&self, channel: &mut OwnChannel) -> Result<(), AmqpError> {
        let queue = match &self.source {
            ConsumerSource::Shared(queue) => {
                queue.declare(channel).await?;
                short("queue name", &queue.name)?
            }
            ConsumerSource::Private { exchange, pattern } => {
                bind(channel, exchange, pattern).await?
            }
        };
        let qos = channel.basic_qos(self.at_once, BasicQosOptions::default());
        qos.await
            .map_err(|error| AmqpError::broker("set the prefetch limit", error))?;
        channel.consume(queue, BasicConsumeOptions::default()).await
    }
}

/// Declares a private queue, named by the broker, for matching events.
async fn bind(
    channel: &OwnChannel,
    exchange: &str,
    pattern: &str,
) -> Result<ShortString, AmqpError> {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel.queue_declare(ShortString::default(), options, FieldTable::default());
    let queue = queue.await;
    let queue = queue.map_err(|error| AmqpError::broker("declare a private queue", error))?;
    let bound = channel.queue_bind(
        queue.name().clone(),
        short("exchange name", exchange)?,
        short("pattern", pattern)?,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    let doing = || format!("bind a private queue to {exchange}");
    bound
        .await
        .map_err(|error| AmqpError::broker(doing(), error))?;
    Ok(queue.name().clone())
}
