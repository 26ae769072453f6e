//! A hub's feedback queue: late, repeated, out of order, and not complete.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use twincast_core::ids::HubName;
use twincast_core::message::{Ack, Outbound};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket, HubError, HubTrouble,
};

use super::hub::Connection;
use super::process::{Odds, lock};
use super::{Process, Sky, Witnessed};

/// Records in one message, at the most.
const RECORDS: usize = 16;
/// How often a message of others is handed out before it is thrown away. A hub's own is ten.
const HAND_OUTS: u32 = 10;

/// How a hub tells of what became of messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telling {
    /// This part of all records is lost, or is handed to another application, which is the same.
    pub lost: f64,
    /// This part of them is there twice.
    pub doubled: f64,
    /// A record is there after so long, at the most. Each takes its own time.
    pub late: Duration,
    /// Messages of other applications, by when they are there in the world's age.
    pub foreign: Vec<Duration>,
}

/// A hub's feedback queue. Clones are the same queue.
#[derive(Clone, Default)]
pub struct Post(Arc<Queue>);

#[derive(Default)]
struct Queue {
    letters: Mutex<Letters>,
    changed: Notify,
}

#[derive(Default)]
struct Letters {
    waiting: Vec<Letter>,
    last: u64,
}

struct Letter {
    number: u64,
    /// When it can be handed out, or again.
    due: Instant,
    /// How often it was.
    handed_out: u32,
    record: FeedbackRecord,
    is_foreign: bool,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} waiting", lock(&self.0.letters).waiting.len())
    }
}

impl Post {
    /// For how long a message is nobody else's that was handed out. A hub's own is a minute.
    pub const LOCK: Duration = Duration::from_secs(10);

    /// Messages of other applications will be there.
    pub fn add_foreign(&self, times: &[Duration]) {
        let mut letters = lock(&self.0.letters);
        for after in times {
            letters.last += 1;
            let number = letters.last;
            letters.waiting.push(Letter {
                number,
                due: Instant::now() + *after,
                handed_out: 0,
                record: FeedbackRecord {
                    message_id: format!("somebody-elses-{number}"),
                    outcome: Outcome::Delivered,
                    at: None,
                },
                is_foreign: true,
            });
        }
    }

    /// The device of a message will have done something with it after some time. `process` is the one that sent the
    /// message: its dice say what becomes of the record.
    pub(super) fn add(
        &self,
        process: &Process,
        telling: &Telling,
        message: &Outbound,
        (outcome, after): (Outcome, Duration),
        hub: &HubName,
    ) {
        let is_asked_for = match message.content.ack {
            Ack::None => false,
            Ack::Positive => outcome == Outcome::Delivered,
            Ack::Negative => outcome != Outcome::Delivered,
            Ack::Full => true,
        };
        let mut dice = process.dice("feedback", &message.id);
        if !is_asked_for || dice.happens(telling.lost) {
            return;
        }
        let copies = 1 + usize::from(dice.happens(telling.doubled));
        let mut letters = lock(&self.0.letters);
        for _ in 0..copies {
            letters.last += 1;
            let number = letters.last;
            let due = Instant::now() + after + dice.time(Duration::ZERO..=telling.late);
            let record = FeedbackRecord {
                message_id: message.id.clone(),
                outcome,
                at: None,
            };
            process.witness(&Witnessed::Posted(hub, &record, due));
            letters.waiting.push(Letter {
                number,
                due,
                handed_out: 0,
                record,
                is_foreign: false,
            });
        }
        drop(letters);
        self.0.changed.notify_waiters();
    }

    /// Hands out what can be: each record with its letter's number and how often that was handed out.
    fn hand_out(&self) -> Vec<((u64, u32), FeedbackRecord)> {
        let now = Instant::now();
        let mut letters = lock(&self.0.letters);
        letters
            .waiting
            .retain(|letter| !letter.is_foreign || letter.handed_out < HAND_OUTS);
        let mut due = letters
            .waiting
            .iter_mut()
            .filter(|letter| letter.due <= now)
            .peekable();
        // Each message of others comes alone.
        let is_foreign = due.peek().is_some_and(|letter| letter.is_foreign);
        let many = if is_foreign { 1 } else { RECORDS };
        due.filter(|letter| letter.is_foreign == is_foreign)
            .take(many)
            .map(|letter| {
                letter.due = now + Self::LOCK;
                letter.handed_out += 1;
                ((letter.number, letter.handed_out), letter.record.clone())
            })
            .collect()
    }

    /// Forgets letters, unless somebody else was handed them since. Says which were there.
    fn forget(&self, held: &[(u64, u32)]) -> Vec<FeedbackRecord> {
        let mut gone = Vec::new();
        lock(&self.0.letters).waiting.retain(|letter| {
            let is_held = held.contains(&(letter.number, letter.handed_out));
            gone.extend(is_held.then(|| letter.record.clone()));
            !is_held
        });
        gone
    }

    fn give_back(&self, held: &[(u64, u32)]) {
        for letter in &mut lock(&self.0.letters).waiting {
            if held.contains(&(letter.number, letter.handed_out)) {
                letter.due = Instant::now();
            }
        }
        self.0.changed.notify_waiters();
    }
}

/// One process' way to the queue.
pub(super) struct Receiver(pub(super) Connection);

impl Receiver {
    fn post(&self) -> &Post {
        &self.0.hub.post
    }

    async fn until_there_is_some(&self) {
        let queue = &self.post().0;
        loop {
            let changed = queue.changed.notified();
            let soonest = lock(&queue.letters)
                .waiting
                .iter()
                .map(|letter| letter.due)
                .min();
            match soonest {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::select! {
                    biased;
                    () = sleep_until(due) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }
}

#[async_trait]
impl Feedback for Receiver {
    async fn next(&mut self, quiet: Duration) -> Result<Option<FeedbackBatch>, HubError> {
        loop {
            if matches!(self.0.sky(), Some(Sky::Unreachable | Sky::Shut { .. })) {
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            let there_is_some = timeout(quiet, self.until_there_is_some()).await;
            self.0.process.until_awake().await;
            if matches!(self.0.sky(), Some(Sky::Unreachable | Sky::Shut { .. })) {
                continue;
            }
            if there_is_some.is_err() {
                return Ok(None);
            }
            let (held, records): (Vec<_>, Vec<_>) = self.post().hand_out().into_iter().unzip();
            if held.is_empty() {
                continue;
            }
            let witnessed = Witnessed::Reported(&self.0.hub.name, &records);
            self.0.process.witness(&witnessed);
            let ticket = Ticket {
                process: self.0.process.clone(),
                post: self.post().clone(),
                hub: self.0.hub.name.clone(),
                held,
            };
            return Ok(Some(FeedbackBatch {
                records,
                unreadable: 0,
                enqueued_at: None,
                ticket: Box::new(ticket),
            }));
        }
    }

    fn connection(&self) -> u64 {
        0
    }

    async fn rest(&mut self) {}
}

struct Ticket {
    process: Process,
    post: Post,
    hub: HubName,
    held: Vec<(u64, u32)>,
}

impl Ticket {
    async fn answer(&self, op: &'static str, completes: bool) -> Result<(), HubError> {
        let (post, held, hub) = (self.post.clone(), self.held.clone(), self.hub.clone());
        let by = self.process.clone();
        let effect = async move {
            if completes {
                let gone = post.forget(&held);
                by.witness(&Witnessed::Completed(&hub, &gone));
            } else {
                post.give_back(&held);
            }
        };
        let about = self.hub.to_string();
        let answered = self.process.call(Odds::default(), op, about, effect).await;
        answered.map_err(|lost| HubError {
            doing: format!("{op} feedback of hub {}", self.hub),
            trouble: HubTrouble::Unreachable,
            source: Box::new(lost),
        })
    }
}

#[async_trait]
impl FeedbackTicket for Ticket {
    async fn complete(self: Box<Self>) -> Result<(), HubError> {
        self.answer("complete", true).await
    }

    async fn release(self: Box<Self>) -> Result<(), HubError> {
        self.answer("give back", false).await
    }
}
