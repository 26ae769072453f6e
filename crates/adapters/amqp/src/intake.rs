//! A consumer that outlives connections.
//!
//! One task per consumer owns its channel. It hands deliveries over one at a time, and when its
//! subscription ends it makes another: after a lost connection, when the broker closes the channel
//! because an ack took too long, when somebody deletes the queue. One that is idle is renewed now
//! and then. Until they are handed over, deliveries wait in the channel; the broker sends no more
//! of them than were asked for.

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
use twincast_core::error::in_words;

use crate::channel::OwnChannel;
use crate::connection::Amqp;
use crate::dead_letter::Letter;
use crate::error::AmqpError;
use crate::link::Wires;
use crate::message::header_number;
use crate::topology::{DELIVERY_LIMIT, QueueSpec, short};

/// Where deliveries come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A queue that all consumers of it share.
    Shared(QueueSpec),
    /// A queue of our own for the events of an exchange that match a pattern. It goes with the
    /// subscription.
    Private { exchange: String, pattern: String },
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Shared(queue) => &queue.name,
            Self::Private { exchange, .. } => exchange,
        }
    }
}

/// What a consumer hands over.
pub(crate) enum Taken {
    /// A message, and the answer that it is owed.
    Message(Box<Delivery>, Held),
    /// The subscription is a new one: a private queue has missed what came in between.
    Resumed,
}

/// A consumer. Dropping it hands back what it holds.
pub(crate) struct Intake {
    taken: mpsc::Receiver<Taken>,
    /// Where messages come from.
    queue: String,
    /// Keeps the connection.
    amqp: Amqp,
    _gone: DropGuard,
}

impl Intake {
    /// Subscribes; waits for a broker that is away for as long as a publish may take. From then on
    /// it sees to itself.
    pub(crate) async fn start(
        amqp: &Amqp,
        source: Source,
        at_once: usize,
    ) -> Result<Self, AmqpError> {
        let wires = Arc::clone(&amqp.wires);
        let gone = CancellationToken::new();
        let queue = source.name().to_owned();
        let subscriber = Subscriber {
            wires: Arc::clone(&wires),
            source,
            // 0 would be without limit.
            at_once: u16::try_from(at_once).unwrap_or(u16::MAX).max(1),
            gone: gone.clone(),
            held: Arc::default(),
        };
        let first = wires.in_time(subscriber.subscribe()).await?;
        let (out, taken) = mpsc::channel(1);
        wires.tasks.spawn(subscriber.run(first, out));
        Ok(Self {
            taken,
            queue,
            amqp: amqp.clone(),
            _gone: gone.drop_guard(),
        })
    }

    /// The next; waits for it, and for a broker that is away. Cancel-safe. An error is for good.
    pub(crate) async fn next(&mut self) -> Result<Taken, AmqpError> {
        loop {
            match self.taken.recv().await {
                // It came over a connection that has been lost since, so it will come again.
                Some(Taken::Message(_, held)) if held.is_stale() => {}
                Some(Taken::Message(message, held)) if is_handed_out_too_often(&message) => {
                    self.put_aside(*message, held);
                }
                Some(taken) => return Ok(taken),
                None => return Err(AmqpError::Closed),
            }
        }
    }

    pub(crate) fn amqp(&self) -> &Amqp {
        &self.amqp
    }

    fn put_aside(&self, message: Delivery, held: Held) {
        let queue = &self.queue;
        let detail = format!("handed out more than {DELIVERY_LIMIT} times without being done");
        warn!(queue, detail, "message put with the dead letters");
        // The cause has the name that the broker uses for its own dead letters.
        let letter = Letter::of(queue, message, "delivery_limit", detail);
        letter.replace_in_background(&self.amqp.wires, held);
    }
}

/// Whether a message has been handed out too often. The broker enforces the limit in most cases. From RabbitMQ 4.3 on, a
/// message held for longer than `consumer_timeout` does not count towards the limit, but its header still shows the number
/// of hand-outs.
fn is_handed_out_too_often(message: &Delivery) -> bool {
    // Headers of a first delivery are the publisher's.
    let headers = message.properties.headers().as_ref();
    let headers = headers.filter(|_| message.redelivered);
    let times = |name| headers.and_then(|headers| header_number(headers, name));
    let times = ["x-acquired-count", "x-delivery-count"].map(times);
    let mut times = times.into_iter().flatten();
    times.any(|times| times > DELIVERY_LIMIT.unsigned_abs())
}

/// The answer that a delivery is owed. Dropped without one, it is handed back.
pub(crate) struct Held {
    /// None once it is answered for.
    acker: Option<Acker>,
    wires: Arc<Wires>,
    /// The consumer is gone, and the broker has it back.
    gone: CancellationToken,
    /// One of those that the consumer holds.
    _one: Arc<()>,
}

impl Held {
    fn is_stale(&self) -> bool {
        self.gone.is_cancelled() || self.acker.as_ref().is_none_or(Acker::poisoned)
    }

    /// Done with. The protocol confirms no acks: one that is lost on the way makes the message
    /// come again.
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
        self.wires.in_time(acked).await
    }

    /// Done with, and nobody waits for it.
    pub(crate) fn ack_in_background(self) {
        let tasks = self.wires.tasks.clone();
        tasks.spawn(async move {
            // One that is lost makes the message come again.
            self.ack().await.ok();
        });
    }

    /// Not done: it comes again, here or elsewhere.
    pub(crate) async fn requeue(mut self) {
        if let Some(acker) = self.acker.take() {
            requeue(&self.wires, acker).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_stale() {
            return;
        }
        if let Some(acker) = self.acker.take() {
            let wires = Arc::clone(&self.wires);
            let tasks = wires.tasks.clone();
            tasks.spawn(async move { requeue(&wires, acker).await });
        }
    }
}

/// Gives a message back by `basic.reject`, which counts towards the delivery limit in every version of RabbitMQ. A
/// `basic.nack` does not from 4.3 on (docs/adr/0028-hand-outs-are-counted.md).
async fn requeue(wires: &Wires, acker: Acker) {
    let options = BasicRejectOptions { requeue: true };
    let back = async {
        // Failing, the channel is gone, and the broker has it back already.
        acker.reject(options).await.ok();
        Ok(())
    };
    // A broker that blocks us delays the answer, possibly for long. The answer goes out in the end.
    wires.in_time(back).await.ok();
}

/// One consumer's task.
struct Subscriber {
    wires: Arc<Wires>,
    source: Source,
    at_once: u16,
    gone: CancellationToken,
    /// Shared with each delivery that is not answered for.
    held: Arc<()>,
}

/// How a subscription ends.
enum Ended {
    /// By the broker, or with the connection.
    Broken,
    /// By us: nothing came for long.
    Idle,
}

impl Subscriber {
    async fn run(self, first: OwnChannel, out: mpsc::Sender<Taken>) {
        // Dropping the work closes its channel, which hands back what it was sent.
        tokio::select! {
            () = self.gone.cancelled() => {}
            () = self.wires.closing.cancelled() => {}
            () = self.work(first, out) => {}
        }
    }

    /// Goes on for ever.
    async fn work(&self, first: OwnChannel, out: mpsc::Sender<Taken>) {
        let reconnect = &self.wires.settings.reconnect;
        let mut delays = reconnect.delays();
        let mut channel = first;
        loop {
            let since = Instant::now();
            let ended = self.pump(channel, &out).await;
            // One that ends at once counts as an attempt that failed.
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
                        let (source, why) = (self.source.name(), in_words(&error));
                        warn!(source, why, "cannot subscribe");
                    }
                }
            };
            // Nobody there to hear it: we are about to end.
            out.send(Taken::Resumed).await.ok();
        }
    }

    /// Hands deliveries over until the subscription ends.
    async fn pump(&self, mut channel: OwnChannel, out: &mpsc::Sender<Taken>) -> Ended {
        let ended = loop {
            // Fails when nobody takes any more: we are about to end.
            let Ok(room) = out.reserve().await else {
                return Ended::Broken;
            };
            let idle = self.wires.settings.renew_idle_after;
            match tokio::time::timeout(idle, channel.next()).await {
                Ok(Ok(delivery)) => room.send(self.hold(delivery)),
                Ok(Err(why)) => {
                    self.tell(&channel, &why);
                    break Ended::Broken;
                }
                Err(_) if self.is_renewable() => break Ended::Idle,
                Err(_) => {}
            }
        };
        channel.close().await;
        ended
    }

    /// Nothing is lost or comes twice when the subscription is made anew.
    fn is_renewable(&self) -> bool {
        matches!(self.source, Source::Shared(_)) && Arc::strong_count(&self.held) == 1
    }

    fn tell(&self, channel: &OwnChannel, why: &str) {
        let source = self.source.name();
        if channel.lost().is_cancelled() {
            // The supervisor has said so, once for all.
            debug!(source, "subscription ended with the connection");
        } else {
            warn!(source, why, "subscription ended");
        }
    }

    fn hold(&self, delivery: Delivery) -> Taken {
        let held = Held {
            acker: Some(delivery.acker.clone()),
            wires: Arc::clone(&self.wires),
            gone: self.gone.clone(),
            _one: Arc::clone(&self.held),
        };
        Taken::Message(Box::new(delivery), held)
    }

    async fn subscribe(&self) -> Result<OwnChannel, AmqpError> {
        let link = self.wires.link().await?;
        let mut channel = link.channel(&self.wires.tasks).await?;
        let lost = link.lost.clone();
        tokio::select! {
            () = lost.cancelled() => return Err(AmqpError::Lost),
            done = self.set_up(&mut channel) => done?,
        }
        Ok(channel)
    }

    async fn set_up(&self, channel: &mut OwnChannel) -> Result<(), AmqpError> {
        let queue = match &self.source {
            Source::Shared(queue) => {
                queue.declare(channel).await?;
                short("queue name", &queue.name)?
            }
            Source::Private { exchange, pattern } => bind(channel, exchange, pattern).await?,
        };
        let qos = channel.basic_qos(self.at_once, BasicQosOptions::default());
        qos.await
            .map_err(|error| AmqpError::broker("limit what is sent at once", error))?;
        channel.consume(queue, BasicConsumeOptions::default()).await
    }
}

/// Makes a queue of our own that gets what matches; its name is the broker's.
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
