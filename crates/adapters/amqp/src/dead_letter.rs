//! Dead letters: what could not be worked on, kept with the reason.
//!
//! A letter is written by us, with the reason in headers, or by the broker, which gives its own
//! account in `x-death`, when a message was handed out too often.
//!
//! Looking at letters takes them out of the queue and puts them back: the broker knows no other
//! way. They are marked as redelivered then; who looks at the same time sees only what the other
//! one has not taken. The broker puts what comes back behind what came back before, so whoever
//! looks at one letter takes up to 1,000 and puts them all back: as long as there are no more, they
//! keep their order. The queue keeps the newest 100,000 letters or 1 GiB.

use std::fmt::Write as _;
use std::sync::Arc;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties};
use sha2::{Digest, Sha256};
use tracing::warn;
use twincast_core::error::in_words;

use crate::channel::OwnChannel;
use crate::connection::Amqp;
use crate::error::AmqpError;
use crate::intake::Held;
use crate::link::Wires;
use crate::message::{
    PERSISTENT, cut, header_number, header_text, now_ms, number_value, text_of, text_value,
    to_queue,
};
use crate::topology::{Names, QueueSpec, short};

/// Why it is here, for programs.
const CAUSE: &str = "x-twincast-cause";
/// Why it is here, for people.
const DETAIL: &str = "x-twincast-detail";
/// The queue that it came from.
const QUEUE: &str = "x-twincast-queue";
/// When it came here, in milliseconds since 1970.
const AT: &str = "x-twincast-at";
/// Its body is only the beginning of what it was.
const TRUNCATED: &str = "x-twincast-truncated";
/// How long the whole body was, in bytes.
const SIZE: &str = "x-twincast-size";

/// The longest detail that is kept, in bytes.
const DETAIL_BYTES: usize = 1024;

/// How many letters keep their order when some of them are looked at. Taking so many takes about a
/// second.
const TURN: usize = 1000;

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// What it is called: 12 hexadecimal digits that follow from what it says. Letters that say
    /// the same in all have the same.
    pub id: String,
    /// Why it is here, for programs: what [`IncomingCommand::dead_letter`] was given,
    /// `unsupported_version` or `unreadable` for a dispatch, `delivery_limit` for a message that
    /// was handed out too often. None if nobody has said.
    ///
    /// [`IncomingCommand::dead_letter`]: crate::IncomingCommand::dead_letter
    pub cause: Option<String>,
    /// Why it is here, for people.
    pub detail: Option<String>,
    /// The queue that it came from.
    pub queue: Option<String>,
    /// When it came here, in milliseconds since 1970.
    pub at: Option<u64>,
    /// The message's own id.
    pub message_id: Option<String>,
    /// The message's content type.
    pub content_type: Option<String>,
    /// The message's body, or the beginning of it.
    pub body: Vec<u8>,
    /// How long the body was, in bytes, if only the beginning of it was kept.
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

    /// Where it can be sent again, or why not.
    fn destination(&self, names: &Names) -> Result<QueueSpec, String> {
        if let Some(size) = self.truncated_from {
            let kept = self.body.len();
            return Err(format!("only {kept} of its {size} bytes were kept"));
        }
        let Some(queue) = &self.queue else {
            return Err("it does not say which queue it came from".into());
        };
        let workable = names.workable(queue);
        workable.ok_or_else(|| format!("{queue:?} is no queue of commands or dispatches"))
    }
}

/// The broker's account of the last time that it made a dead letter of a message.
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
    /// How many dead letters there are, about now.
    ///
    /// # Errors
    /// When the broker is away. Cancel-safe.
    pub async fn dead_letters_waiting(&self) -> Result<usize, AmqpError> {
        let queue = self.wires.names.dead_name();
        let depth = self.wires.depth(&queue);
        Ok(self.wires.in_time(depth).await?.waiting)
    }

    /// The oldest dead letters, at most so many.
    ///
    /// # Errors
    /// When the broker is away or breaks off. Cancel-safe: if dropped, the letters go back.
    pub async fn dead_letters(&self, most: usize) -> Result<Vec<DeadLetter>, AmqpError> {
        let mut reader = Reader::open(&self.wires).await?;
        let letters = reader.first(most).await;
        reader.close().await;
        letters
    }

    /// One dead letter.
    ///
    /// # Errors
    /// [`AmqpError::NoLetter`] when none has this id, and as [`dead_letters`](Self::dead_letters).
    pub async fn dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.wires).await?;
        let found = reader.find(id).await;
        reader.close().await;
        found.map(|(letter, _)| letter)
    }

    /// Sends a dead letter again to the queue that it came from, as it was, and removes it. Gives
    /// what it was. If the connection is lost in between, it may have been sent and still be here.
    ///
    /// # Errors
    /// [`AmqpError::NotReplayable`] when it was truncated, or does not say where it came from;
    /// [`AmqpError::Full`] when there is no room; and as [`dead_letter`](Self::dead_letter). It is
    /// still here then.
    pub async fn replay_dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.wires).await?;
        let replayed = reader.replay(id).await;
        reader.close().await;
        replayed
    }

    /// Removes a dead letter for good. Gives what it was.
    ///
    /// # Errors
    /// As [`dead_letter`](Self::dead_letter).
    pub async fn discard_dead_letter(&self, id: &str) -> Result<DeadLetter, AmqpError> {
        let mut reader = Reader::open(&self.wires).await?;
        let discarded = reader.discard(id).await;
        reader.close().await;
        discarded
    }
}

/// Takes letters out to look at them, the oldest first, and puts them back in order. Dropped, it
/// hands them back too, in whatever order the broker takes them.
struct Reader<'a> {
    wires: &'a Wires,
    channel: OwnChannel,
    queue: ShortString,
    taken: Vec<Acker>,
    /// How many were there at first: what comes in later is not waited for.
    left: Option<u32>,
}

impl<'a> Reader<'a> {
    async fn open(wires: &'a Wires) -> Result<Self, AmqpError> {
        let channel = async { wires.link().await?.channel(&wires.tasks).await };
        Ok(Self {
            wires,
            channel: wires.in_time(channel).await?,
            queue: short("queue name", &wires.names.dead_name())?,
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
        let Some(message) = self.wires.in_time(get).await? else {
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

    /// Takes letters until it has this one.
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
        let queue = letter.destination(&self.wires.names);
        let queue = queue.map_err(|why| AmqpError::NotReplayable {
            id: id.to_owned(),
            why,
        })?;
        let message = to_queue(
            &queue.name,
            without_reason(&properties),
            letter.body.clone(),
        )?;
        self.wires.send(&queue, message).await?;
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
        let acked = last.ack(BasicAckOptions::default()).await;
        let acked = acked.map_err(|error| AmqpError::broker("remove a dead letter", error))?;
        if acked { Ok(()) } else { Err(AmqpError::Stale) }
    }

    async fn close(mut self) {
        while self.taken.len() < TURN && matches!(self.take().await, Ok(Some(_))) {}
        let back = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        let put_back = async {
            for letter in self.taken {
                // One by one keeps their order. Failing, the broker has them back already.
                letter.nack(back).await.ok();
            }
            Ok(())
        };
        self.wires.in_time(put_back).await.ok();
        self.channel.close().await;
    }
}

/// A dead letter to be.
pub(crate) struct Letter {
    /// The queue that the message came from.
    pub(crate) from: String,
    /// The message's own.
    pub(crate) properties: BasicProperties,
    /// Its body, or the beginning of it.
    pub(crate) body: Vec<u8>,
    /// How long its whole body is, in bytes.
    pub(crate) size: usize,
    pub(crate) cause: String,
    pub(crate) detail: String,
}

impl Letter {
    /// A letter made of a message.
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

    /// As [`replace`](Self::replace), in a task of its own, so that the next message need not wait. There are at most as
    /// many as a consumer may hold: each message is owed an answer until then.
    pub(crate) fn replace_in_background(self, wires: &Arc<Wires>, held: Held) {
        let (wires, tasks) = (Arc::clone(wires), wires.tasks.clone());
        tasks.spawn(async move {
            let queue = self.from.clone();
            // The message comes again.
            if let Err(error) = self.replace(&wires, held).await {
                let why = in_words(&error);
                warn!(queue, why, "cannot put a message with the dead letters");
            }
        });
    }

    /// Puts it with the dead letters, and when they have it acks the message that it stands for.
    /// If this fails or is dropped, that comes again, and there may be two letters then.
    pub(crate) async fn replace(self, wires: &Wires, held: Held) -> Result<(), AmqpError> {
        let dead = wires.names.dead();
        let properties = with_reason(&self);
        let message = to_queue(&dead.name, properties, self.body)?;
        wires.send(&dead, message).await?;
        held.ack().await
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

/// The properties of the message that a letter stands for.
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

/// What of a message's properties can be published again, by us. Left out are a lifetime, which
/// would let the letter go; the user, whom the broker compares with ours, closing the channel; and
/// further recipients, who have it.
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
    fn a_letter_reads_back_with_its_reason_and_without_what_would_undo_it() {
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
    fn what_is_replayed_is_what_it_was() {
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
    fn what_cannot_be_replayed_says_why() {
        let names = Names::new("t", 1);
        let truncated = DeadLetter::read(&with_reason(&letter(b"x", 9)), b"x".to_vec());
        assert_eq!(truncated.truncated_from, Some(9));
        let why = truncated.destination(&names).unwrap_err();
        assert_eq!(why, "only 1 of its 9 bytes were kept");
        let stray = DeadLetter::read(&BasicProperties::default(), Vec::new());
        let why = stray.destination(&names).unwrap_err();
        assert!(why.contains("does not say"), "{why}");
        let of_others = Letter {
            from: "payments".into(),
            ..letter(b"", 0)
        };
        let of_others = DeadLetter::read(&with_reason(&of_others), Vec::new());
        let why = of_others.destination(&names).unwrap_err();
        assert!(why.contains("\"payments\""), "{why}");
    }
}
