//! Dead letters: messages that could not be worked on, kept with the reason.
//!
//! A dead letter is written by this crate, with the reason in headers, or by the broker, with the
//! reason in `x-death`, after too many deliveries of a message.
//!
//! Reading letters takes the letters out of the queue and puts them back, because the broker has no
//! other way. The letters are marked as redelivered afterwards, and a concurrent reader sees only
//! letters not taken by the first reader. The broker adds a letter behind all letters put back
//! earlier. So even to read a single letter, a reader takes up to 1,000 letters and puts all of
//! them back: up to this number of letters, the order is kept. The queue keeps the newest 100,000
//! letters or 1 GiB.

use std::fmt::Write as _;
use std::sync::Arc;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties};
use sha2::{Digest, Sha256};
use tracing::warn;
use twincast_core::error::describe;

use crate::channel::OwnChannel;
use crate::connection::Amqp;
use crate::consumer::PendingAck;
use crate::error::AmqpError;
use crate::link::Shared;
use crate::message::{
    PERSISTENT, cut, header_number, header_text, now_ms, number_value, text_of, text_value,
    to_queue,
};
use crate::topology::{Names, QueueSpec, short};

/// The header with the cause, for programs.
const CAUSE: &str = "x-twincast-cause";
/// The header with the detail, for people.
const DETAIL: &str = "x-twincast-detail";
/// The header with the name of the original queue.
const QUEUE: &str = "x-twincast-queue";
/// The header with the time of the dead letter, in milliseconds since 1970.
const AT: &str = "x-twincast-at";
/// The header of a letter with only the first part of the original body.
const TRUNCATED: &str = "x-twincast-truncated";
/// The header with the size of the whole body, in bytes.
const SIZE: &str = "x-twincast-size";

/// The longest kept detail, in bytes.
const DETAIL_BYTES: usize = 1024;

/// The number of letters that keep the order when some letters are read. Taking this many letters
/// takes about a second.
const ORDERED_LETTERS: usize = 1000;

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The id: 12 hexadecimal digits derived from the content. Letters with identical content have
    /// the same id.
    pub id: String,
    /// The cause, for programs: the cause given to [`IncomingCommand::dead_letter`];
    /// `unsupported_version` or `unreadable` for a dispatch; `delivery_limit` for a message
    /// delivered too often. `None` if no cause is known.
    ///
    /// [`IncomingCommand::dead_letter`]: crate::IncomingCommand::dead_letter
    pub cause: Option<String>,
    /// The detail, for people.
    pub detail: Option<String>,
    /// The original queue.
    pub queue: Option<String>,
    /// The time of the dead letter, in milliseconds since 1970.
    pub at: Option<u64>,
    /// The id of the original message.
    pub message_id: Option<String>,
    /// The content type of the original message.
    pub content_type: Option<String>,
    /// The body of the original message, or the first part.
    pub body: Vec<u8>,
    /// The size of the original body in bytes, if only the first part was kept.
    pub truncated_from: Option<u64>,
}

impl DeadLetter {
    fn read(properties: &BasicProperties, body: Vec<u8>) -> Self {
        let none = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&none);
        let death = Death::last(headers);
        let truncated = headers.inner().get(TRUNCATED) == Some(&AMQPValue::Boolean(true));
        let mut letter = Self {
            id: String::new(),
            cause: header_text(headers, CAUSE).or(death.reason),
            detail: header_text(headers, DETAIL),
            queue: header_text(headers, QUEUE).or(death.queue),
            at: header_number(headers, AT).or(death.at),
            message_id: text_of(properties.message_id()),
            content_type: text_of(properties.content_type()),
            body,
            truncated_from: header_number(headers, SIZE).filter(|_| truncated),
        };
        letter.id = letter.digest();
        letter
    }

    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for text in [&self.cause, &self.detail, &self.queue, &self.message_id] {
            hash.update(text.as_deref().unwrap_or_default());
            hash.update([0]);
        }
        hash.update(self.at.unwrap_or_default().to_be_bytes());
        hash.update(&self.body);
        let mut id = String::new();
        for byte in &hash.finalize()[..6] {
            write!(id, "{byte:02x}").expect("a string takes what is written");
        }
        id
    }

    /// Returns the queue for a replay, or why the letter cannot be replayed.
    fn destination(&self, names: &Names) -> Result<QueueSpec, String> {
        if let Some(size) = self.truncated_from {
            let kept = self.body.len();
            return Err(format!("only {kept} of its {size} bytes were kept"));
        }
        let Some(queue) = &self.queue else {
            return Err("it does not name its original queue".into());
        };
        let work_queue = names.work_queue(queue);
        work_queue.ok_or_else(|| format!("{queue:?} is not a queue of commands or dispatches"))
    }
}

/// The broker's account of the last time the message became a dead letter.
#[derive(Default)]
struct Death {
    reason: Option<String>,
    queue: Option<String>,
    at: Option<u64>,
}

impl Death {
    fn last(headers: &FieldTable) -> Self {
        let deaths = headers.inner().get("x-death");
        let deaths = deaths.and_then(AMQPValue::as_array);
        let Some(AMQPValue::FieldTable(death)) = deaths.and_then(|all| all.as_slice().first())
        else {
            return Self::default();
        };
        let at = match death.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => Some(seconds * 1000),
            _ => None,
        };
        Self {
            reason: header_text(death, "reason"),
            queue: header_text(death, "queue"),
            at,
        }
    }
}

impl Amqp {
    /// Returns the approximate number of dead letters.
    ///
    /// # Errors
    /// When the broker is unavailable. Cancel-safe.
    pub async fn dead_letters_waiting(&self) -> Result<usize, AmqpError> {
        let queue = self.shared.names.dead_name();
        let depth = self.shared.depth(&queue);
        Ok(self.shared.in_time(depth).await?.waiting)
    }

    /// Returns the oldest dead letters, at most `most`.
    ///
    /// # Errors
    /// When the broker is unavailable or the connection is lost. Cancel-safe: if dropped, the
    /// letters go back.
    pub async fn dead_letters(&self, most: usize) -> Result<Vec<DeadLetter>, AmqpError> {
        let mut reader = Reader::open(&self.shared).await?;
        let letters = reader.first(most).await;
        reader.close().await;
        letters
    }

    /// Returns a single dead letter.
    ///
    /// # Errors
    /// [`AmqpError::NoLetter`] when no letter has this id, and as
    /// [`dead_letters`](Self::dead_letters).
    pub async fn dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.shared).await?;
        let found = reader.find(id).await;
        reader.close().await;
        found.map(|(letter, _)| letter)
    }

    /// Sends the original message of a dead letter again to the original queue, removes the letter,
    /// and returns the letter. If the connection is lost in between, the message may have been sent
    /// and the letter may still exist.
    ///
    /// # Errors
    /// [`AmqpError::NotReplayable`] when the letter was truncated, or has no original queue;
    /// [`AmqpError::Full`] when the queue is full; and as [`dead_letter`](Self::dead_letter). The
    /// letter is kept in all of these cases.
    pub async fn replay_dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.shared).await?;
        let replayed = reader.replay(id).await;
        reader.close().await;
        replayed
    }

    /// Removes a dead letter permanently, and returns the letter.
    ///
    /// # Errors
    /// As [`dead_letter`](Self::dead_letter).
    pub async fn discard_dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.shared).await?;
        let discarded = reader.discard(id).await;
        reader.close().await;
        discarded
    }
}

/// Takes letters out of the queue to read them, the oldest first, and puts them back in order. A
/// dropped reader also returns the letters, in an order chosen by the broker.
struct Reader<'a> {
    shared: &'a Shared,
    channel: OwnChannel,
    queue: ShortString,
    taken: Vec<Acker>,
    /// The number of letters left of the letters present at the first read: later letters are not
    /// waited for.
    left: Option<u32>,
}

impl<'a> Reader<'a> {
    async fn open(shared: &'a Shared) -> Result<Self, AmqpError> {
        let channel = async { shared.link().await?.channel(&shared.tasks).await };
        Ok(Self {
            shared,
            channel: shared.in_time(channel).await?,
            queue: short("queue name", &shared.names.dead_name())?,
            taken: Vec::new(),
            left: None,
        })
    }

    async fn next(&mut self) -> Result<Option<(DeadLetter, BasicProperties)>, AmqpError> {
        let delivery = self.take().await?;
        Ok(delivery.map(|delivery| {
            let letter = DeadLetter::read(&delivery.properties, delivery.data);
            (letter, delivery.properties)
        }))
    }

    async fn take(&mut self) -> Result<Option<Delivery>, AmqpError> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let get = async {
            let options = BasicGetOptions { no_ack: false };
            let got = self.channel.basic_get(self.queue.clone(), options).await;
            got.map_err(|error| AmqpError::broker(format!("get from {}", self.queue), error))
        };
        let Some(message) = self.shared.in_time(self.channel.unless_lost(get)).await? else {
            return Ok(None);
        };
        self.left = Some(self.left.unwrap_or(message.message_count + 1) - 1);
        self.taken.push(message.delivery.acker.clone());
        Ok(Some(message.delivery))
    }

    async fn first(&mut self, most: usize) -> Result<Vec<DeadLetter>, AmqpError> {
        let mut letters = Vec::new();
        while letters.len() < most {
            let Some((letter, _)) = self.next().await? else {
                break;
            };
            letters.push(letter);
        }
        Ok(letters)
    }

    /// Takes letters until the letter with this id is found.
    async fn find(&mut self, id: &str) -> Result<(DeadLetter, BasicProperties), AmqpError> {
        while let Some((letter, properties)) = self.next().await? {
            if letter.id == id {
                return Ok((letter, properties));
            }
        }
        Err(AmqpError::NoLetter { id: id.to_owned() })
    }

    async fn replay(&mut self, id: &str) -> Result<DeadLetter, AmqpError> {
        let (letter, properties) = self.find(id).await?;
        let queue = letter.destination(&self.shared.names);
        let queue = queue.map_err(|why| AmqpError::NotReplayable {
            id: id.to_owned(),
            why,
        })?;
        let message = to_queue(
            &queue.name,
            without_reason(&properties),
            letter.body.clone(),
        )?;
        self.shared.send(&queue, message).await?;
        self.remove_last().await?;
        Ok(letter)
    }

    async fn discard(&mut self, id: &str) -> Result<DeadLetter, AmqpError> {
        let (letter, _) = self.find(id).await?;
        self.remove_last().await?;
        Ok(letter)
    }

    async fn remove_last(&mut self) -> Result<(), AmqpError> {
        let Some(last) = self.taken.pop() else {
            return Ok(());
        };
        let ack = async {
            let acked = last.ack(BasicAckOptions::default()).await;
            acked.map_err(|error| AmqpError::broker("remove a dead letter", error))
        };
        let acked = self.shared.in_time(self.channel.unless_lost(ack)).await?;
        if acked { Ok(()) } else { Err(AmqpError::Stale) }
    }

    async fn close(mut self) {
        while self.taken.len() < ORDERED_LETTERS && matches!(self.take().await, Ok(Some(_))) {}
        let back = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        let put_back = async {
            for letter in self.taken {
                // Separate nacks keep the order. A failure means that the broker has the letters
                // back already.
                letter.nack(back).await.ok();
            }
            Ok(())
        };
        let put_back = self.channel.unless_lost(put_back);
        self.shared.in_time(put_back).await.ok();
        self.channel.close().await;
    }
}

/// A dead letter to be written.
pub(crate) struct Letter {
    /// The original queue.
    pub(crate) from: String,
    /// The properties of the original message.
    pub(crate) properties: BasicProperties,
    /// The body of the original message, or the first part.
    pub(crate) body: Vec<u8>,
    /// The size of the whole body, in bytes.
    pub(crate) size: usize,
    pub(crate) cause: String,
    pub(crate) detail: String,
}

impl Letter {
    /// Creates a letter from a message.
    pub(crate) fn of(from: &str, message: Delivery, cause: &str, detail: String) -> Self {
        Self {
            from: from.to_owned(),
            properties: message.properties,
            size: message.data.len(),
            body: message.data,
            cause: cause.to_owned(),
            detail,
        }
    }

    /// Like [`replace`](Self::replace), in a task, so that the next message need not wait. The
    /// number of tasks is limited by the number of unanswered messages of the consumer.
    pub(crate) fn replace_in_background(self, shared: &Arc<Shared>, pending: PendingAck) {
        let (shared, tasks) = (Arc::clone(shared), shared.tasks.clone());
        tasks.spawn(async move {
            let queue = self.from.clone();
            // The broker redelivers the message.
            if let Err(error) = self.replace(&shared, pending).await {
                let why = describe(&error);
                warn!(queue, why, "cannot move a message to the dead letters");
            }
        });
    }

    /// Publishes the letter to the dead letters, and then acks the original message. If this fails
    /// or is dropped, the original message comes again, which may lead to two letters.
    pub(crate) async fn replace(
        self,
        shared: &Shared,
        pending: PendingAck,
    ) -> Result<(), AmqpError> {
        let dead = shared.names.dead();
        let properties = with_reason(&self);
        let message = to_queue(&dead.name, properties, self.body)?;
        shared.send(&dead, message).await?;
        pending.ack().await
    }
}

fn with_reason(letter: &Letter) -> BasicProperties {
    let properties = for_another_publish(&letter.properties);
    let mut headers = properties.headers().clone().unwrap_or_default();
    let mut put = |name: &str, value| {
        headers.insert(name.into(), value);
    };
    put(CAUSE, text_value(&letter.cause));
    put(DETAIL, text_value(cut(&letter.detail, DETAIL_BYTES)));
    put(QUEUE, text_value(&letter.from));
    put(AT, number_value(now_ms()));
    if letter.body.len() < letter.size {
        put(TRUNCATED, true.into());
        put(SIZE, number_value(letter.size as u64));
    }
    properties.with_headers(headers)
}

/// Returns the properties of the original message of a letter.
fn without_reason(properties: &BasicProperties) -> BasicProperties {
    let copy = for_another_publish(properties);
    let mut headers = FieldTable::default();
    for (name, value) in copy.headers().iter().flat_map(FieldTable::inner) {
        let added = [
            "x-twincast-",
            "x-death",
            "x-first-death-",
            "x-last-death-",
            "x-delivery-",
            "x-acquired-",
        ];
        if !added.iter().any(|prefix| name.as_str().starts_with(prefix)) {
            headers.insert(name.clone(), value.clone());
        }
    }
    copy.with_headers(headers)
}

/// Returns the properties of a message that this client can publish again. Omitted are: the
/// expiration, which would remove the letter; the user id, because the broker compares it with the
/// connection's user and closes the channel; and further recipients (`CC`, `BCC`), which have the
/// message already.
fn for_another_publish(properties: &BasicProperties) -> BasicProperties {
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(_, Setter); 7] = [
        (
            properties.content_type(),
            BasicProperties::with_content_type,
        ),
        (
            properties.content_encoding(),
            BasicProperties::with_content_encoding,
        ),
        (
            properties.correlation_id(),
            BasicProperties::with_correlation_id,
        ),
        (properties.reply_to(), BasicProperties::with_reply_to),
        (properties.message_id(), BasicProperties::with_message_id),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
    ];
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if !["CC", "BCC"].contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut copy = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    for (text, with) in texts {
        if let Some(text) = text {
            copy = with(copy, text.clone());
        }
    }
    match properties.timestamp() {
        Some(at) => copy.with_timestamp(*at),
        None => copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(body: &[u8], size: usize) -> Letter {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), text_value("00-1"));
        headers.insert("CC".into(), text_value("elsewhere"));
        Letter {
            from: "t.commands".into(),
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_message_id("m1".into())
                .with_expiration("1000".into())
                .with_user_id("somebody".into())
                .with_headers(headers),
            body: body.to_vec(),
            size,
            cause: "unreadable".into(),
            detail: "ä".repeat(DETAIL_BYTES),
        }
    }

    #[test]
    fn dead_letter_keeps_reason_and_drops_expiration_and_user_id() {
        let properties = with_reason(&letter(b"x", 1));
        assert_eq!(properties.expiration(), &None);
        assert_eq!(properties.user_id(), &None);
        let read = DeadLetter::read(&properties, b"x".to_vec());
        assert_eq!(read.cause.as_deref(), Some("unreadable"));
        assert_eq!(read.detail.as_ref().map(String::len), Some(DETAIL_BYTES));
        assert_eq!(read.queue.as_deref(), Some("t.commands"));
        assert_eq!(read.message_id.as_deref(), Some("m1"));
        assert_eq!(read.truncated_from, None);
        assert!(read.at.is_some());
        assert_eq!(read.id.len(), 12);
        let other = DeadLetter::read(&properties, b"y".to_vec());
        assert_ne!(read.id, other.id);
        let destination = read.destination(&Names::new("t", 1)).unwrap();
        assert_eq!(destination.name, "t.commands");
    }

    #[test]
    fn replay_restores_the_original_properties() {
        let replayed = without_reason(&with_reason(&letter(b"x", 1)));
        let names: Vec<_> = replayed
            .headers()
            .iter()
            .flat_map(FieldTable::inner)
            .collect();
        assert_eq!(names, [(&"traceparent".into(), &text_value("00-1"))]);
        assert_eq!(text_of(replayed.message_id()).as_deref(), Some("m1"));
    }

    #[test]
    fn refused_replay_reports_the_reason() {
        let names = Names::new("t", 1);
        let truncated = DeadLetter::read(&with_reason(&letter(b"x", 9)), b"x".to_vec());
        assert_eq!(truncated.truncated_from, Some(9));
        let why = truncated.destination(&names).unwrap_err();
        assert_eq!(why, "only 1 of its 9 bytes were kept");
        let stray = DeadLetter::read(&BasicProperties::default(), Vec::new());
        let why = stray.destination(&names).unwrap_err();
        assert!(why.contains("does not name"), "{why}");
        let of_others = Letter {
            from: "payments".into(),
            ..letter(b"", 0)
        };
        let of_others = DeadLetter::read(&with_reason(&of_others), Vec::new());
        let why = of_others.destination(&names).unwrap_err();
        assert!(why.contains("\"payments\""), "{why}");
    }
}
