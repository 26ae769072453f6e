//! Receives a hub's feedback on messages, and merges the feedback into outcomes.
//!
//! ```text
//!  hub ──messages──▶ own records? ──yes──▶ merge ──▶ complete ──▶ next messages
//!                         └────────no───▶ hold ──▶ next messages ... the queue is empty ──▶ release all, pause
//! ```
//!
//! Messages received at the same time are merged together: a merge writes the whole state of a
//! batch, and most batches have records in many messages.
//!
//! Records are *own* records if the store knows the rollout. A message is completed when the own
//! records of the message are durable. Records may arrive late, twice, before the record of their
//! send, or never. None of these cases does harm, because merging outcomes is idempotent and
//! independent of the order.
//!
//! # The heard-until time
//!
//! About once a second the listener reports the heard-until time to the store
//! ([`twincast_core::evidence`]): the latest moment at which the queue was empty or the newest
//! received message was enqueued, with all received messages merged. When the listener loses
//! messages (a broken link, a failing store), the hub hides the lost messages until the lock ends.
//! The listener then ends with a last report of the loss, and begins again under another id.
//!
//! # Other applications of the hub
//!
//! A hub has a *single* feedback queue. Any receiver may receive any message, and a message holds
//! records of all applications in order of arrival (up to 64 records, or the records of 15 s). A
//! receiver cannot ask for own records only. The hub's configuration names the owner of the queue.
//!
//! *Exclusive*: messages without own records are completed, to receive own messages further back.
//!
//! *Shared*: a message without own records is held, unanswered, to receive the messages further
//! back. When the queue is empty, or the first lock is about to end, all held messages are
//! released, and the listener pauses: another listening application receives the messages in the
//! pause. The hub counts deliveries, and drops a message after 10 deliveries by default. While only
//! such messages arrive, the pause grows from 1 s to 30 s, so that a restarting application still
//! finds the messages. Any own record ends the pauses.
//!
//! A message with records of both applications is completed. The other application loses records,
//! as with any second listener, and Twincast loses records to the other application in the same
//! way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::error::describe;
use twincast_core::evidence::{ListenerReport, ListenerState, MARGIN};
use twincast_core::hub::{FeedbackQueue, FeedbackRules};
use twincast_core::ids::{Attempt, BatchId, Holder, RolloutId, RolloutName};
use twincast_core::message::MessageId;
use twincast_core::ports::{
    Disposition, Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket, HubError, Report,
    StoreError,
};
use twincast_core::time::{Timestamp, ms};
use uuid::Uuid;

use crate::config::WorkerError;
use crate::shared::Shared;

/// The queue counts as empty after this time without a message. Much longer than a delivery by the
/// hub takes.
const EMPTY_AFTER: Duration = Duration::from_secs(1);
/// A longer wait for a message contains a pause of this process, or of the connection.
const MAX_EMPTY_WAIT: Duration = EMPTY_AFTER.saturating_mul(2);
/// The hub counts as unreachable after this time without an answer.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(3);
/// The interval between two reports of the listener.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How far the clocks of a hub's machines may differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5);
/// The most messages of other applications held at a time. A message takes some 300 bytes.
const MAX_HELD: usize = 32_768;
/// The most messages waiting for durable records. A message takes some 8 KiB.
const MAX_UNCOMPLETED: usize = 1_024;
/// The most messages merged together. The hub sends no more ahead.
const MAX_MESSAGES_PER_MERGE: usize = 16;
/// The most batches merged at the same time.
const MAX_CONCURRENT_MERGES: usize = 16;
/// The first pause after messages of other applications.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after messages of other applications.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The wait after a refusal by the hub, to be resolved by a person.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// Messages received together, with the own records already in the store.
struct SortedMessages {
    /// The messages with own records.
    own: Merged,
    /// The messages without own records.
    foreign: Vec<Box<dyn FeedbackTicket>>,
}

/// Messages with records in the store, to be completed when the records are durable: the hub never
/// sends a completed message again.
struct Merged {
    tickets: Vec<Box<dyn FeedbackTicket>>,
    records: Vec<FeedbackRecord>,
    at: Instant,
}

/// The own records among received records.
#[derive(Default)]
struct OwnRecords {
    /// The known rollouts named by the records.
    rollouts: BTreeSet<RolloutName>,
    /// How many records were merged.
    merged: usize,
}

/// Reports by batch and attempt, in order of arrival.
type ByBatch = BTreeMap<(BatchId, Attempt), Vec<Report>>;

/// Listens from the first rollout that asks for feedback until `stop`. After `stop`, receives
/// nothing more, and finishes started work within
/// [`WorkerConfig::drain`](crate::config::WorkerConfig::drain).
///
/// Feedback never fails a worker: the batch runs meet any trouble with the store, too.
pub(crate) async fn listen(
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> Result<(), WorkerError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        () = shared.feedback_requested.notified() => {}
    }
    let Some(mut feedback) = shared.hub.hub.feedback() else {
        tracing::warn!(hub = %shared.hub.name, "feedback is requested, but the hub provides none");
        return Ok(());
    };
    let mut listener = Listener::new(shared, stop);
    while let Some(received) = listener.next(&mut *feedback).await {
        let goes_on = match received {
            Received::Messages(messages) => listener.handle(messages).await,
            Received::Nothing { since } => {
                listener.received_until = listener.received_until.max(since);
                listener.release_and_pause(&mut *feedback).await
            }
            Received::Refused(error) => {
                tracing::error!(hub = %listener.shared.hub.name, error = describe(&error), "hub \
                     refuses to deliver feedback");
                listener.report_loss(&describe(&error)).await;
                let pause = match error.disposition() {
                    Disposition::Retry => MAX_PAUSE,
                    Disposition::Superseded | Disposition::Fatal => REFUSED_PAUSE,
                };
                let goes_on = listener.wait(pause).await;
                match listener.shared.hub.hub.feedback() {
                    Some(new) => feedback = new,
                    None => break,
                }
                goes_on
            }
        };
        if !goes_on {
            break;
        }
        listener.release_when_due(&mut *feedback).await;
    }
    listener.end().await;
    Ok(())
}

/// The result of waiting for the hub.
enum Received {
    /// Messages, in their order.
    Messages(Vec<FeedbackBatch>),
    /// The queue was empty from `since` until the end of the wait. `None` after a pause of this
    /// process: messages may wait to be read.
    Nothing { since: Option<Timestamp> },
    /// The hub refuses to give feedback.
    Refused(HubError),
}

struct Listener {
    shared: Arc<Shared>,
    stop: CancellationToken,
    rules: FeedbackRules,
    id: Holder,
    /// The start of the current id.
    began_at: Instant,
    /// The heard-until time under the current id.
    received_until: Option<Timestamp>,
    /// Why feedback is not being received, if so.
    trouble: Option<String>,
    /// The number of the connection over which the hub delivers messages.
    connection: Option<u64>,
    /// Messages to be completed, the oldest first.
    merged: VecDeque<Merged>,
    /// Unanswered messages of other applications, and the arrival time of the first message.
    held: Vec<Box<dyn FeedbackTicket>>,
    held_since: Option<Instant>,
    /// The last known number of messages of other applications at the front of the queue.
    foreign: u64,
    pause: Duration,
    reported_at: Option<Instant>,
}

impl Listener {
    fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self {
            rules: shared.hub.limits.feedback,
            shared,
            stop,
            id: new_id(),
            began_at: Instant::now(),
            received_until: None,
            trouble: None,
            connection: None,
            merged: VecDeque::new(),
            held: Vec::new(),
            held_since: None,
            foreign: 0,
            pause: Duration::ZERO,
            reported_at: None,
        }
    }

    /// Waits for messages or an empty queue, reporting while the hub is unavailable. `None` after
    /// `stop`.
    async fn next(&mut self, feedback: &mut dyn Feedback) -> Option<Received> {
        let (since, began) = (self.shared.clock.now(), Instant::now());
        let stop = self.stop.clone();
        let mut next = feedback.next(EMPTY_AFTER);
        let mut received = loop {
            tokio::select! {
               biased;
                () = stop.cancelled() => return None,
                next = &mut next => break match next {
                    Ok(Some(first)) => Received::Messages(vec![first]),
                    Ok(None) => Received::Nothing {
                        since: (began.elapsed() <= MAX_EMPTY_WAIT).then_some(since),
                    },
                    Err(error) => Received::Refused(error),
                },
                () = sleep(UNREACHABLE_AFTER) => {
                    let obstacle = self.shared.hub.hub.obstacle();
                    let why = obstacle.map_or_else(|| "no connection".to_owned(), |it| it.reason);
                    self.report_loss(&why).await;
                }
            }
        };
        drop(next);
        if let Received::Messages(messages) = &mut received {
            // A refusal comes again with the next call.
            while messages.len() < MAX_MESSAGES_PER_MERGE
                && let Some(Ok(Some(there))) = feedback.next(EMPTY_AFTER).now_or_never()
            {
                messages.push(there);
            }
        }
        let connection = Some(feedback.connection());
        if self.connection != connection || self.trouble.is_some() {
            if self.connection.is_some() && self.trouble.is_none() {
                self.report_loss("the connection was lost").await;
            }
            self.restart();
        }
        self.connection = connection;
        Some(received)
    }

    /// Merges own records, and holds or completes messages without own records. False after `stop`.
    async fn handle(&mut self, messages: Vec<FeedbackBatch>) -> bool {
        let enqueued_at = messages.iter().filter_map(|it| it.enqueued_at).max();
        let found = tokio::select! {
            biased;
            found = self.shared.merge_own(messages) => found,
            // The hub redelivers unanswered messages.
            () = drained(&self.stop, self.shared.config.drain) => return false,
        };
        let Some(SortedMessages { own, foreign }) = found else {
            self.report_loss("the store does not record feedback").await;
            self.restart();
            self.pause = next_pause(self.pause);
            return self.wait(self.pause).await;
        };
        match self.rules.queue {
            FeedbackQueue::Exclusive => self.shared.complete(foreign).await,
            FeedbackQueue::Shared if foreign.is_empty() => {}
            FeedbackQueue::Shared => {
                self.held.extend(foreign);
                self.held_since.get_or_insert_with(Instant::now);
                self.foreign = self.foreign.max(self.held.len() as u64);
            }
        }
        if !own.tickets.is_empty() {
            self.pause = Duration::ZERO;
            self.merged.push_back(own);
            if !self.complete_durable().await {
                return false;
            }
        }
        // The hub delivers messages in order, so all messages enqueued before were received.
        if let Some(at) = enqueued_at {
            let at = at.min(self.shared.clock.now()).minus(MAX_CLOCK_SKEW);
            self.received_until = self.received_until.max(Some(at));
        }
        true
    }

    /// Completes messages with durable records. The records are merged once more before, because
    /// the store may have lost its last writes. Waits only if too many messages are to be
    /// completed. False after `stop`.
    async fn complete_durable(&mut self) -> bool {
        let durable_after = self.shared.store.durable_after();
        while let Some(oldest) = self.merged.front() {
            let wait = durable_after.saturating_sub(oldest.at.elapsed());
            let waiting: usize = self.merged.iter().map(|it| it.tickets.len()).sum();
            if !wait.is_zero() && waiting < MAX_UNCOMPLETED {
                return true;
            }
            if !wait.is_zero() && !slept(wait, &self.stop).await {
                return false;
            }
            let Some(Merged {
                tickets, records, ..
            }) = self.merged.pop_front()
            else {
                return true;
            };
            if !durable_after.is_zero() && self.shared.merge(&records).await.is_err() {
                // The hub sends the messages again when their locks end.
                continue;
            }
            self.shared.complete(tickets).await;
        }
        true
    }

    /// Releases held messages when the lock is about to end or too many are held.
    async fn release_when_due(&mut self, feedback: &mut dyn Feedback) {
        self.complete_durable().await;
        let limit = self.rules.lock / 4 * 3;
        let is_late = self
            .held_since
            .is_some_and(|since| since.elapsed() >= limit);
        if is_late || self.held.len() >= MAX_HELD {
            // After `stop`, the next wait for a message ends at once.
            self.release_and_pause(feedback).await;
        } else {
            self.report_when_due().await;
        }
    }

    /// Releases the held messages, and pauses. False after `stop`.
    async fn release_and_pause(&mut self, feedback: &mut dyn Feedback) -> bool {
        self.foreign = self.held.len() as u64;
        if self.held.is_empty() {
            self.report_when_due().await;
            return true;
        }
        feedback.pause().await;
        self.release_held().await;
        self.pause = next_pause(self.pause);
        self.wait(self.pause).await
    }

    async fn release_held(&mut self) {
        self.held_since = None;
        for ticket in std::mem::take(&mut self.held) {
            self.shared.answered(ticket.release().await);
        }
    }

    /// Reports an unreachable hub or lost messages. The hub redelivers the messages of this
    /// listener to other listeners when the locks end.
    async fn report_loss(&mut self, why: &str) {
        if self.trouble.is_none() {
            self.held.clear();
            self.held_since = None;
            self.merged.clear();
        }
        self.trouble = Some(why.to_owned());
        self.report().await;
    }

    /// Begins to listen under a new id, without any delivered messages.
    fn restart(&mut self) {
        (self.id, self.began_at) = (new_id(), Instant::now());
        (self.received_until, self.trouble) = (None, None);
    }

    /// Ends listening. The hub redelivers messages sent and not taken when the locks end.
    async fn end(&mut self) {
        self.complete_durable().await;
        self.release_held().await;
        self.report_loss("the worker that received it has ended")
            .await;
    }

    /// Waits for `pause`, reporting meanwhile. False after `stop`.
    async fn wait(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            self.report_when_due().await;
            let now = Instant::now();
            if now >= until {
                return true;
            }
            if !slept(REPORT_INTERVAL.min(until - now), &self.stop).await {
                return false;
            }
        }
    }

    async fn report_when_due(&mut self) {
        if self
            .reported_at
            .is_none_or(|at| at.elapsed() >= REPORT_INTERVAL)
        {
            self.report().await;
        }
    }

    async fn report(&mut self) {
        self.reported_at = Some(Instant::now());
        let received_ago = self
            .received_until
            .map(|at| self.shared.clock.now().since(at));
        let hidden = match self.connection {
            Some(_) => self.rules.lock + MARGIN,
            None => Duration::ZERO,
        };
        let state = ListenerState {
            listening: self.trouble.is_none(),
            hidden_ms: ms(hidden),
            foreign: self.foreign,
            batching_ms: ms(self.rules.batching),
            trouble: None,
        };
        let report = ListenerReport {
            listener: self.id.clone(),
            received_ago,
            state: match &self.trouble {
                Some(why) => state.troubled_by(why),
                None => state,
            },
        };
        let lag = received_ago.unwrap_or_else(|| self.began_at.elapsed());
        self.shared
            .status
            .metrics()
            .set_feedback_lag(lag, self.foreign);
        let hub = &self.shared.hub.name;
        let reported = self.shared.store.report_listener(hub, &report);
        if !matches!(timeout(REPORT_TIMEOUT, reported).await, Ok(Ok(()))) {
            tracing::debug!(%hub, "the store does not record the listener's report");
        }
    }
}

fn new_id() -> Holder {
    Holder::new(Uuid::new_v4().simple().to_string()).expect("hexadecimal digits")
}

impl Shared {
    /// Merges own records. Waits for an unavailable store. Returns `None` if the store does not
    /// take the records: the hub redelivers the messages when the locks end.
    ///
    /// Cancel safety: if dropped, the messages are not answered, and some of their records may be
    /// merged.
    async fn merge_own(&self, messages: Vec<FeedbackBatch>) -> Option<SortedMessages> {
        let metrics = self.status.metrics();
        let unreadable = messages.iter().map(|it| it.unreadable).sum();
        metrics.feedback_unreadable.inc_by(unreadable);
        let records = messages.iter().flat_map(|it| &it.records);
        let mut records: Vec<_> = records.cloned().collect();
        let OwnRecords { rollouts, merged } = match self.merge(&records).await {
            Ok(own) => own,
            Err(error) => {
                // The messages are not answered, and so not counted.
                tracing::error!(hub = %self.hub.name, error = describe(&error), "feedback not recorded");
                return None;
            }
        };
        let is_own = |record: &FeedbackRecord| {
            let id = record.message_id.parse::<MessageId>();
            id.is_ok_and(|id| rollouts.contains(&id.rollout))
        };
        let all = records.len();
        records.retain(is_own);
        metrics
            .feedback_foreign
            .inc_by((all - records.len()) as u64);
        metrics.feedback_merged.inc_by(merged as u64);
        let (own, foreign): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .partition(|it| it.records.iter().any(is_own));
        let tickets = |of: Vec<FeedbackBatch>| of.into_iter().map(|it| it.ticket).collect();
        Some(SortedMessages {
            own: Merged {
                tickets: tickets(own),
                records,
                at: Instant::now(),
            },
            foreign: tickets(foreign),
        })
    }

    async fn complete(&self, tickets: Vec<Box<dyn FeedbackTicket>>) {
        for ticket in tickets {
            self.answered(ticket.complete().await);
        }
    }

    fn answered(&self, answered: Result<(), HubError>) {
        if let Err(error) = answered {
            tracing::debug!(hub = %self.hub.name, error = describe(&error), "feedback message not settled, the hub \
                 delivers it again");
        }
    }

    /// Merges the records of known rollouts.
    async fn merge(&self, records: &[FeedbackRecord]) -> Result<OwnRecords, StoreError> {
        let mut own = OwnRecords::default();
        for ((name, id), batches) in by_rollout(records) {
            let known = self.retry_past_stop(|| self.store.revision(&name)).await?;
            if known.is_none() {
                continue;
            }
            own.rollouts.insert(name.clone());
            let merges = batches.iter();
            let merges = merges.map(|(of, reports)| self.merge_one(&name, id, *of, reports));
            let merges: Vec<_> = merges.collect();
            let mut merges = stream::iter(merges).buffer_unordered(MAX_CONCURRENT_MERGES);
            while let Some(reports) = merges.try_next().await? {
                own.merged += reports;
            }
        }
        Ok(own)
    }

    /// Merges reports on a batch. Returns the number of merged reports.
    async fn merge_one(
        &self,
        name: &RolloutName,
        id: RolloutId,
        (batch, attempt): (BatchId, Attempt),
        reports: &[Report],
    ) -> Result<usize, StoreError> {
        let merge = || self.store.merge(name, id, batch, attempt, reports);
        match self.retry_past_stop(merge).await {
            Ok(merged) => Ok(merged),
            // Feedback on an older plan, or on another rollout of this name.
            Err(error) if error.disposition() == Disposition::Superseded => {
                tracing::debug!(rollout = %name, error = describe(&error), "feedback for a missing \
                     rollout or batch");
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Like [`retry_until_stop`](Shared::retry_until_stop), but goes on while the worker is
    /// stopping. The caller bounds the time.
    async fn retry_past_stop<T, F>(&self, call: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let never = CancellationToken::new();
        let result = self.retry_until_stop(&never, call).await?;
        Ok(result.expect("the token is never cancelled"))
    }
}

/// Sleeps. False after `stop`.
async fn slept(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = sleep(pause) => true,
    }
}

/// Returns when `drain` has passed after `stop`.
async fn drained(stop: &CancellationToken, drain: Duration) {
    stop.cancelled().await;
    sleep(drain).await;
}

/// The records with a message id of Twincast, by rollout, batch and attempt.
fn by_rollout(records: &[FeedbackRecord]) -> BTreeMap<(RolloutName, RolloutId), ByBatch> {
    let mut rollouts: BTreeMap<_, ByBatch> = BTreeMap::new();
    for record in records {
        let Ok(id) = record.message_id.parse::<MessageId>() else {
            continue;
        };
        let batches = rollouts.entry((id.rollout, id.id)).or_default();
        let reports = batches.entry((id.batch, id.attempt)).or_default();
        reports.push(Report {
            index: id.index,
            outcome: record.outcome,
            code: 0,
        });
    }
    rollouts
}

/// The next pause after messages of other applications, given the `last` pause.
fn next_pause(last: Duration) -> Duration {
    (last * 2).clamp(MIN_PAUSE, MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use twincast_core::outcome::Outcome;

    use super::*;

    fn record(message_id: &str, outcome: Outcome) -> FeedbackRecord {
        FeedbackRecord {
            message_id: message_id.into(),
            outcome,
            at: None,
        }
    }

    #[test]
    fn records_are_grouped_and_foreign_records_are_dropped() {
        let sorted = by_rollout(&[
            record("r.z.0.1.7.1", Outcome::Delivered),
            record("5f0e3c1e-6d8e-4a8e-9c6b-1f1d2a3b4c5d", Outcome::Delivered),
            record("s.z.0.0.a.1", Outcome::Expired),
            record("r.z.0.1.3.1", Outcome::Rejected),
            record("r.z.0.1.3.2", Outcome::Delivered),
            record("r.y.0.1.3.1", Outcome::Delivered),
            record("r.z.0.0.0.1", Outcome::Purged),
        ]);
        let flat: Vec<_> = sorted
            .iter()
            .flat_map(|(rollout, batches)| {
                batches.iter().map(move |(batch, of)| (rollout, batch, of))
            })
            .flat_map(|(rollout, batch, of)| of.iter().map(move |r| (rollout, batch, r)))
            .map(|((name, id), (batch, of), r)| {
                let name = format!("{name}.{id}");
                (name, batch.0, of.0, r.index, r.outcome)
            })
            .collect();
        assert_eq!(
            flat,
            [
                ("r.y", 1, 1, 3, Outcome::Delivered),
                ("r.z", 0, 1, 0, Outcome::Purged),
                ("r.z", 1, 1, 7, Outcome::Delivered),
                ("r.z", 1, 1, 3, Outcome::Rejected),
                ("r.z", 1, 2, 3, Outcome::Delivered),
                ("s.z", 0, 1, 10, Outcome::Expired),
            ]
            .map(|(name, batch, attempt, index, outcome)| {
                (name.to_owned(), batch, attempt, index, outcome)
            })
        );
    }

    #[test]
    fn pauses_grow_while_only_foreign_messages_arrive() {
        let mut pause = Duration::ZERO;
        let pauses: Vec<_> = (0..7)
            .map(|_| {
                pause = next_pause(pause);
                pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }
}
