//! A hub's feedback queue: late, repeated, out of order, and incomplete.

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
use super::process::{FaultRates, lock};
use super::{Effect, HubFault, Process};

/// The largest number of records in a message.
const MAX_RECORDS: usize = 16;
/// The number of times a foreign message is handed out before the removal. The number of a real hub
/// is ten.
const MAX_HAND_OUTS: u32 = 10;

/// The faults of a hub's feedback.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackFaults {
    /// The part of all records that is lost. A record handed to another application counts as lost.
    pub lost: f64,
    /// The part of all records that is doubled.
    pub doubled: f64,
    /// The longest delay of a record. Each record has a separate delay.
    pub late: Duration,
    /// The arrivals of messages of other applications, as ages of the world.
    pub foreign: Vec<Duration>,
}

/// A hub's feedback queue. Clones share the queue.
#[derive(Clone, Default)]
pub struct SimFeedbackQueue(Arc<Queue>);

#[derive(Default)]
struct Queue {
    records: Mutex<QueuedRecords>,
    changed: Notify,
}

#[derive(Default)]
struct QueuedRecords {
    waiting: Vec<QueuedRecord>,
    last: u64,
}

struct QueuedRecord {
    number: u64,
    /// The earliest time of the next hand-out.
    due: Instant,
    /// The number of hand-outs.
    handed_out: u32,
    record: FeedbackRecord,
    is_foreign: bool,
}

impl fmt::Debug for SimFeedbackQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} waiting", lock(&self.0.records).waiting.len())
    }
}

impl SimFeedbackQueue {
    /// The time of the lock on a message handed out. The lock of a real hub takes a minute.
    pub const LOCK: Duration = Duration::from_secs(10);

    /// Schedules messages of other applications.
    pub fn add_foreign(&self, times: &[Duration]) {
        let mut records = lock(&self.0.records);
        for after in times {
            records.last += 1;
            let number = records.last;
            records.waiting.push(QueuedRecord {
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

    /// Schedules a device's reaction to a message, after some time. `process` is the sender of the
    /// message: the sender's dice decide the fate of the record.
    pub(super) fn add(
        &self,
        process: &Process,
        feedback_faults: &FeedbackFaults,
        message: &Outbound,
        (outcome, after): (Outcome, Duration),
        hub: &HubName,
    ) {
        let is_requested = match message.content.ack {
            Ack::None => false,
            Ack::Positive => outcome == Outcome::Delivered,
            Ack::Negative => outcome != Outcome::Delivered,
            Ack::Full => true,
        };
        let mut dice = process.dice("feedback", &message.id);
        if !is_requested || dice.happens(feedback_faults.lost) {
            return;
        }
        let copies = 1 + usize::from(dice.happens(feedback_faults.doubled));
        let mut records = lock(&self.0.records);
        for _ in 0..copies {
            records.last += 1;
            let number = records.last;
            let due = Instant::now() + after + dice.time(Duration::ZERO..=feedback_faults.late);
            let record = FeedbackRecord {
                message_id: message.id.clone(),
                outcome,
                at: None,
            };
            process.observe(&Effect::FeedbackScheduled(hub, &record, due));
            records.waiting.push(QueuedRecord {
                number,
                due,
                handed_out: 0,
                record,
                is_foreign: false,
            });
        }
        drop(records);
        self.0.changed.notify_waiters();
    }

    /// Hands out all due records, each with the record's number and the number of hand-outs.
    fn hand_out(&self) -> Vec<((u64, u32), FeedbackRecord)> {
        let now = Instant::now();
        let mut records = lock(&self.0.records);
        records
            .waiting
            .retain(|queued| !queued.is_foreign || queued.handed_out < MAX_HAND_OUTS);
        let mut due = records
            .waiting
            .iter_mut()
            .filter(|queued| queued.due <= now)
            .peekable();
        // Each foreign message is handed out alone.
        let is_foreign = due.peek().is_some_and(|queued| queued.is_foreign);
        let limit = if is_foreign { 1 } else { MAX_RECORDS };
        due.filter(|queued| queued.is_foreign == is_foreign)
            .take(limit)
            .map(|queued| {
                queued.due = now + Self::LOCK;
                queued.handed_out += 1;
                ((queued.number, queued.handed_out), queued.record.clone())
            })
            .collect()
    }

    /// Removes records, unless another receiver got them since. Returns the removed
    /// records.
    fn remove(&self, held: &[(u64, u32)]) -> Vec<FeedbackRecord> {
        let mut removed = Vec::new();
        lock(&self.0.records).waiting.retain(|queued| {
            let is_held = held.contains(&(queued.number, queued.handed_out));
            removed.extend(is_held.then(|| queued.record.clone()));
            !is_held
        });
        removed
    }

    fn release(&self, held: &[(u64, u32)]) {
        for queued in &mut lock(&self.0.records).waiting {
            if held.contains(&(queued.number, queued.handed_out)) {
                queued.due = Instant::now();
            }
        }
        self.0.changed.notify_waiters();
    }
}

/// A process's connection to the queue.
pub(super) struct Receiver(pub(super) Connection);

impl Receiver {
    fn queue(&self) -> &SimFeedbackQueue {
        &self.0.hub.feedback_queue
    }

    async fn until_due(&self) {
        let queue = &self.queue().0;
        loop {
            let changed = queue.changed.notified();
            let soonest = lock(&queue.records)
                .waiting
                .iter()
                .map(|queued| queued.due)
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
            if matches!(
                self.0.fault(),
                Some(HubFault::Unreachable | HubFault::Unavailable { .. })
            ) {
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            let waited = timeout(quiet, self.until_due()).await;
            self.0.process.until_responsive().await;
            if matches!(
                self.0.fault(),
                Some(HubFault::Unreachable | HubFault::Unavailable { .. })
            ) {
                continue;
            }
            if waited.is_err() {
                return Ok(None);
            }
            let (held, records): (Vec<_>, Vec<_>) = self.queue().hand_out().into_iter().unzip();
            if held.is_empty() {
                continue;
            }
            let effect = Effect::FeedbackHandedOut(&self.0.hub.name, &records);
            self.0.process.observe(&effect);
            let ticket = Ticket {
                process: self.0.process.clone(),
                queue: self.queue().clone(),
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

    async fn pause(&mut self) {}
}

struct Ticket {
    process: Process,
    queue: SimFeedbackQueue,
    hub: HubName,
    held: Vec<(u64, u32)>,
}

impl Ticket {
    async fn answer(&self, op: &'static str, completes: bool) -> Result<(), HubError> {
        let (queue, held, hub) = (self.queue.clone(), self.held.clone(), self.hub.clone());
        let by = self.process.clone();
        let effect = async move {
            if completes {
                let removed = queue.remove(&held);
                by.observe(&Effect::FeedbackCompleted(&hub, &removed));
            } else {
                queue.release(&held);
            }
        };
        let about = self.hub.to_string();
        let answered = self
            .process
            .call(FaultRates::default(), op, about, effect)
            .await;
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
