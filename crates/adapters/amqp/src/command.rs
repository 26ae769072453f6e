//! Commands of people and pipelines, and the replies.
//!
//! This module transports commands, and does not interpret the content.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use tracing::warn;
use twincast_core::error::describe;
use twincast_core::trace::{TRACEPARENT, TraceContext};

use crate::channel::{OwnChannel, unless_lost};
use crate::connection::Amqp;
use crate::consumer::{Consumer, ConsumerSource, Item, PendingAck};
use crate::dead_letter::Letter;
use crate::error::AmqpError;
use crate::link::timeout_error;
use crate::message::{
    Message, REPLY_TYPE, Verdict, header_text, properties, text_of, text_value, to_queue,
};
use crate::publisher;
use crate::topology::short;

/// The largest command passed on whole, in bytes.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// The part kept of a larger command, in bytes: enough to recognize the command.
const HEAD_BYTES: usize = 64 * 1024;

/// RabbitMQ's pseudo-queue: replies come over the requesting channel, without a queue of their own.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

impl Amqp {
    /// Consumes commands, with up to `at_once` (from 1 to 65,535) unanswered commands at a time.
    ///
    /// # Errors
    /// When the broker is unavailable for longer than a publish may take, or the queue of commands
    /// exists with other arguments.
    pub async fn commands(&self, at_once: usize) -> Result<CommandConsumer, AmqpError> {
        let source = ConsumerSource::Shared(self.shared.names.commands());
        let consumer = Consumer::start(self, source, at_once).await?;
        Ok(CommandConsumer { consumer })
    }

    /// Sends a command. `Ok` means that the queue has the command. A command without a message id
    /// gets a new id.
    ///
    /// # Errors
    /// [`AmqpError::Full`], and when the broker is unavailable or does not confirm in time: the
    /// queue may then have the command or not. Cancel safety: likewise.
    pub async fn send_command(
        &self,
        body: Vec<u8>,
        content_type: &str,
        message_id: Option<&str>,
    ) -> Result<(), AmqpError> {
        let queue = self.shared.names.commands();
        let mut properties = properties(content_type)?;
        if let Some(id) = message_id {
            properties = properties.with_message_id(short("message id", id)?);
        }
        let message = to_queue(&queue.name, properties, body)?;
        self.shared.send(&queue, message).await
    }

    /// Sends a command, as part of the span `of` if given, and waits for the reply, for `within` in
    /// total.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), and [`AmqpError::TimedOut`] without a reply in
    /// time: the command may still be carried out. A reply to a lost connection is lost, too.
    pub async fn request(
        &self,
        body: Vec<u8>,
        content_type: &str,
        of: Option<TraceContext>,
        within: Duration,
    ) -> Result<Vec<u8>, AmqpError> {
        let queue = self.shared.names.commands_name();
        let exchange = async {
            // A channel of its own, because replies come back over the requesting channel.
            let mut channel = publisher::open(&self.shared).await?;
            let lost = channel.lost().clone();
            let asked = ask(&mut channel, &queue, body, content_type, of);
            let reply = tokio::select! {
                () = self.shared.closing.cancelled() => Err(AmqpError::Closed),
                reply = unless_lost(&lost, asked) => reply,
            };
            channel.close().await;
            reply
        };
        let reply = tokio::time::timeout(within, exchange).await;
        reply.unwrap_or_else(|_| Err(timeout_error(&self.shared.state.borrow(), within)))
    }
}

async fn ask(
    channel: &mut OwnChannel,
    queue: &str,
    body: Vec<u8>,
    content_type: &str,
    of: Option<TraceContext>,
) -> Result<Vec<u8>, AmqpError> {
    // The pseudo-queue does not support acks.
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    channel.consume(DIRECT_REPLY.into(), options).await?;
    let properties = properties(content_type)?;
    let id = properties.message_id().clone().unwrap_or_default();
    let mut properties = properties
        .with_correlation_id(id.clone())
        .with_reply_to(DIRECT_REPLY.into());
    if let Some(of) = of {
        let mut headers = FieldTable::default();
        headers.insert(TRACEPARENT.into(), text_value(&of.to_string()));
        properties = properties.with_headers(headers);
    }
    let message = to_queue(queue, properties, body)?;
    let queue = queue.to_owned();
    match publisher::publish_alone(channel, message).await? {
        Verdict::Kept => {}
        Verdict::Returned => return Err(AmqpError::NoQueue { queue }),
        Verdict::Refused => return Err(AmqpError::Full { queue }),
    }
    loop {
        let reply = channel.next().await.map_err(|_| AmqpError::Lost)?;
        if reply.properties.correlation_id().as_ref() == Some(&id) {
            return Ok(reply.data);
        }
    }
}

/// A consumer of commands. Dropping the consumer returns unanswered commands to the queue.
pub struct CommandConsumer {
    consumer: Consumer,
}

impl CommandConsumer {
    /// Waits for the next command, and for an unavailable broker. Cancel-safe.
    ///
    /// # Errors
    /// Permanent, when this process has closed the connection.
    pub async fn next(&mut self) -> Result<IncomingCommand, AmqpError> {
        loop {
            if let Item::Message(delivery, pending) = self.consumer.next().await? {
                let amqp = self.consumer.amqp().clone();
                return Ok(IncomingCommand::new(amqp, *delivery, pending));
            }
        }
    }
}

impl fmt::Debug for CommandConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandConsumer").finish_non_exhaustive()
    }
}

/// A command with a pending answer to the queue. A command dropped without [`ack`](Self::ack),
/// [`requeue`](Self::requeue) or [`dead_letter`](Self::dead_letter) comes again.
pub struct IncomingCommand {
    /// The body of the command.
    pub body: CommandBody,
    /// The content type of the command.
    pub content_type: Option<String>,
    /// The id of the command.
    pub message_id: Option<String>,
    /// The queue for the reply, if a reply is wanted.
    pub reply_to: Option<String>,
    /// The id that the reply must repeat.
    pub correlation_id: Option<String>,
    /// The sender's span, if given in a header; not checked.
    pub traceparent: Option<String>,
    /// The command was delivered before and came back.
    pub redelivered: bool,
    properties: BasicProperties,
    amqp: Amqp,
    pending: PendingAck,
}

/// The body of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandBody {
    /// The whole body, at most [`MAX_COMMAND_BYTES`].
    Whole(Vec<u8>),
    /// The body is larger than [`MAX_COMMAND_BYTES`], and must not be worked on.
    TooLarge {
        /// The size of the body, in bytes.
        size: usize,
        /// The first 64 KiB of the body.
        head: Vec<u8>,
    },
}

impl CommandBody {
    fn of(mut data: Vec<u8>) -> Self {
        let size = data.len();
        if size <= MAX_COMMAND_BYTES {
            return Self::Whole(data);
        }
        data.truncate(HEAD_BYTES);
        data.shrink_to_fit();
        Self::TooLarge { size, head: data }
    }
}

impl IncomingCommand {
    fn new(amqp: Amqp, delivery: Delivery, pending: PendingAck) -> Self {
        let properties = delivery.properties;
        let headers = properties.headers().as_ref();
        Self {
            body: CommandBody::of(delivery.data),
            content_type: text_of(properties.content_type()),
            message_id: text_of(properties.message_id()),
            reply_to: text_of(properties.reply_to()),
            correlation_id: text_of(properties.correlation_id()),
            traceparent: headers.and_then(|headers| header_text(headers, TRACEPARENT)),
            redelivered: delivery.redelivered,
            properties,
            amqp,
            pending,
        }
    }

    /// Sends a JSON reply, if a reply is wanted. The requester may be gone, so a failed reply is
    /// logged, and is not an error.
    pub async fn reply(&self, json: Vec<u8>) {
        let Some(reply_to) = self.properties.reply_to().clone() else {
            return;
        };
        let shared = &self.amqp.shared;
        if shared.names.is_own(reply_to.as_str()) {
            warn!(%reply_to, "reply not sent: reply_to names a queue of Twincast");
            return;
        }
        let sent = async {
            let message = self.reply_message(reply_to.clone(), json)?;
            shared.in_time(shared.publish(message)).await
        };
        match sent.await {
            Ok(Verdict::Kept) => {}
            Ok(verdict) => warn!(%reply_to, ?verdict, "reply not accepted"),
            Err(error) => warn!(%reply_to, why = describe(&error), "cannot send a reply"),
        }
    }

    fn reply_message(&self, reply_to: ShortString, json: Vec<u8>) -> Result<Message, AmqpError> {
        let mut properties = properties(REPLY_TYPE)?;
        if let Some(id) = self.properties.correlation_id() {
            properties = properties.with_correlation_id(id.clone());
        }
        Ok(Message {
            exchange: ShortString::default(),
            routing_key: reply_to,
            mandatory: false,
            properties,
            body: json,
        })
    }

    /// Acknowledges the command. Call after the effect is durable.
    ///
    /// # Errors
    /// When the broker has the command back already, or does not take the ack in time: the command
    /// may come again.
    pub async fn ack(self) -> Result<(), AmqpError> {
        self.pending.ack().await
    }

    /// Requeues the command, for any consumer. After 20 deliveries the broker moves the command to
    /// the dead letters.
    pub async fn requeue(self) {
        self.pending.requeue().await;
    }

    /// Moves the command to the dead letters, with a cause for programs and a detail for people
    /// (cut to 1 KiB). A too large command is kept in part.
    ///
    /// # Errors
    /// When the command cannot be added to the dead letters, or as [`ack`](Self::ack). The command
    /// then comes again, in the second case with a dead letter left behind.
    pub async fn dead_letter(self, cause: &str, detail: &str) -> Result<(), AmqpError> {
        let shared = Arc::clone(&self.amqp.shared);
        let (size, body) = match self.body {
            CommandBody::Whole(body) => (body.len(), body),
            CommandBody::TooLarge { size, head } => (size, head),
        };
        let letter = Letter {
            from: shared.names.commands_name(),
            properties: self.properties,
            body,
            size,
            cause: cause.to_owned(),
            detail: detail.to_owned(),
        };
        letter.replace(&shared, self.pending).await
    }
}

impl fmt::Debug for IncomingCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingCommand")
            .field("content_type", &self.content_type)
            .field("message_id", &self.message_id)
            .field("reply_to", &self.reply_to)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_command_body_is_truncated() {
        let most = vec![b'x'; MAX_COMMAND_BYTES];
        assert_eq!(CommandBody::of(most.clone()), CommandBody::Whole(most));
        let body = CommandBody::of(vec![b'x'; MAX_COMMAND_BYTES + 1]);
        let CommandBody::TooLarge { size, head } = body else {
            panic!("the oversized body is whole");
        };
        assert_eq!(size, MAX_COMMAND_BYTES + 1);
        assert_eq!((head.len(), head.capacity()), (HEAD_BYTES, HEAD_BYTES));
    }
}
