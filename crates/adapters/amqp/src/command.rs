//! Commands: what people and pipelines ask for, and what is answered.
//!
//! This carries them and knows nothing of what they say.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use tracing::warn;
use twincast_core::error::in_words;
use twincast_core::trace::{TRACEPARENT, TraceContext};

use crate::channel::OwnChannel;
use crate::connection::Amqp;
use crate::dead_letter::Letter;
use crate::error::AmqpError;
use crate::intake::{Held, Intake, Source, Taken};
use crate::link::too_late;
use crate::message::{
    Message, REPLY_TYPE, Verdict, header_text, properties, text_of, text_value, to_queue,
};
use crate::publisher;
use crate::topology::short;

/// The largest command that is worked on, in bytes.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// What is kept of a larger one, in bytes: enough to see what it was.
const HEAD_BYTES: usize = 64 * 1024;

/// RabbitMQ's pseudo-queue: replies come over the channel that asked, without a queue of its own.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

impl Amqp {
    /// Takes commands, up to `at_once` (from 1 to 65,535) that are not answered for.
    ///
    /// # Errors
    /// When the broker is away for longer than a publish may take, or the queue of commands is not
    /// as it must be.
    pub async fn commands(&self, at_once: usize) -> Result<CommandConsumer, AmqpError> {
        let source = Source::Shared(self.wires.names.commands());
        let intake = Intake::start(self, source, at_once).await?;
        Ok(CommandConsumer { intake })
    }

    /// Sends a command. `Ok` means that the queue has it. Without a message id it gets a new one.
    ///
    /// # Errors
    /// [`AmqpError::Full`], and when the broker is away or does not confirm in time: then it may
    /// have it or not. Cancel safety: likewise.
    pub async fn send_command(
        &self,
        body: Vec<u8>,
        content_type: &str,
        message_id: Option<&str>,
    ) -> Result<(), AmqpError> {
        let queue = self.wires.names.commands();
        let mut properties = properties(content_type)?;
        if let Some(id) = message_id {
            properties = properties.with_message_id(short("message id", id)?);
        }
        let message = to_queue(&queue.name, properties, body)?;
        self.wires.send(&queue, message).await
    }

    /// Sends a command, as part of the span `of` if there is one, and waits for the answer, `within` in all.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), and [`AmqpError::TimedOut`] when no answer came:
    /// the command may still be carried out. An answer to a connection that was lost is lost too.
    pub async fn request(
        &self,
        body: Vec<u8>,
        content_type: &str,
        of: Option<TraceContext>,
        within: Duration,
    ) -> Result<Vec<u8>, AmqpError> {
        let queue = self.wires.names.commands_name();
        let asked = async {
            // A channel of its own, since replies come back over the one that asked.
            let mut channel = publisher::open(&self.wires).await?;
            let lost = channel.lost().clone();
            let reply = tokio::select! {
                () = self.wires.closing.cancelled() => Err(AmqpError::Closed),
                () = lost.cancelled() => Err(AmqpError::Lost),
                reply = ask(&mut channel, &queue, body, content_type, of) => reply,
            };
            channel.close().await;
            reply
        };
        let asked = tokio::time::timeout(within, asked).await;
        asked.unwrap_or_else(|_| Err(too_late(&self.wires.state.borrow(), within)))
    }
}

async fn ask(
    channel: &mut OwnChannel,
    queue: &str,
    body: Vec<u8>,
    content_type: &str,
    of: Option<TraceContext>,
) -> Result<Vec<u8>, AmqpError> {
    // The pseudo-queue knows no acks.
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

/// Takes commands from the queue. Dropping it hands back what it holds.
pub struct CommandConsumer {
    intake: Intake,
}

impl CommandConsumer {
    /// The next command; waits for one, and for a broker that is away. Cancel-safe.
    ///
    /// # Errors
    /// For good, when the connection was closed by this process.
    pub async fn next(&mut self) -> Result<IncomingCommand, AmqpError> {
        loop {
            if let Taken::Message(delivery, held) = self.intake.next().await? {
                let amqp = self.intake.amqp().clone();
                return Ok(IncomingCommand::new(amqp, *delivery, held));
            }
        }
    }
}

impl fmt::Debug for CommandConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandConsumer").finish_non_exhaustive()
    }
}

/// A command that is owed an answer. Dropped without [`ack`](Self::ack),
/// [`requeue`](Self::requeue) or [`dead_letter`](Self::dead_letter), it comes again.
pub struct IncomingCommand {
    /// What it says.
    pub body: CommandBody,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its id.
    pub message_id: Option<String>,
    /// The queue that wants a reply.
    pub reply_to: Option<String>,
    /// What the reply is to be told apart by.
    pub correlation_id: Option<String>,
    /// The span of whoever gave it, if a header says so; not checked.
    pub traceparent: Option<String>,
    /// It was handed out before and came back.
    pub redelivered: bool,
    properties: BasicProperties,
    amqp: Amqp,
    held: Held,
}

/// What a command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandBody {
    /// All of it, at most [`MAX_COMMAND_BYTES`].
    Whole(Vec<u8>),
    /// It is larger than that, and not to be worked on.
    TooLarge {
        /// How large, in bytes.
        size: usize,
        /// How it begins: 64 KiB.
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
    fn new(amqp: Amqp, delivery: Delivery, held: Held) -> Self {
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
            held,
        }
    }

    /// Answers who asked, with JSON, if a reply is wanted. Who asked may be gone, so a reply that
    /// does not arrive is logged and no error.
    pub async fn reply(&self, json: Vec<u8>) {
        let Some(reply_to) = self.properties.reply_to().clone() else {
            return;
        };
        let wires = &self.amqp.wires;
        if wires.names.is_ours(reply_to.as_str()) {
            warn!(%reply_to, "reply not sent: it would go to a queue of ours");
            return;
        }
        let sent = async {
            let message = self.reply_message(reply_to.clone(), json)?;
            wires.in_time(wires.publish(message)).await
        };
        match sent.await {
            Ok(Verdict::Kept) => {}
            Ok(verdict) => warn!(%reply_to, ?verdict, "reply not taken"),
            Err(error) => warn!(%reply_to, why = in_words(&error), "cannot send a reply"),
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

    /// Done with. Called when the effect is durable.
    ///
    /// # Errors
    /// When the command is on its way back already, or the broker does not take the ack in time:
    /// it comes again.
    pub async fn ack(self) -> Result<(), AmqpError> {
        self.held.ack().await
    }

    /// Not done: another consumer, or this one later, gets it. After 20 times the broker puts it
    /// with the dead letters.
    pub async fn requeue(self) {
        self.held.requeue().await;
    }

    /// Puts it with the dead letters, with a cause for programs and a detail for people of which
    /// 1 KiB is kept. What is too large is kept in part.
    ///
    /// # Errors
    /// When the dead letters cannot take it, or as [`ack`](Self::ack). It comes again, in the
    /// second case with a letter left behind.
    pub async fn dead_letter(self, cause: &str, detail: &str) -> Result<(), AmqpError> {
        let wires = Arc::clone(&self.amqp.wires);
        let (size, body) = match self.body {
            CommandBody::Whole(body) => (body.len(), body),
            CommandBody::TooLarge { size, head } => (size, head),
        };
        let letter = Letter {
            from: wires.names.commands_name(),
            properties: self.properties,
            body,
            size,
            cause: cause.to_owned(),
            detail: detail.to_owned(),
        };
        letter.replace(&wires, self.held).await
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
    fn what_is_too_large_is_kept_in_part() {
        let most = vec![b'x'; MAX_COMMAND_BYTES];
        assert_eq!(CommandBody::of(most.clone()), CommandBody::Whole(most));
        let body = CommandBody::of(vec![b'x'; MAX_COMMAND_BYTES + 1]);
        let CommandBody::TooLarge { size, head } = body else {
            panic!("it is taken as whole");
        };
        assert_eq!(size, MAX_COMMAND_BYTES + 1);
        assert_eq!((head.len(), head.capacity()), (HEAD_BYTES, HEAD_BYTES));
    }
}
