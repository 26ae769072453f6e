//! What the hub says became of messages: taken from its feedback queue, merged into outcomes.
//!
//! ```text
//!  hub ──message──▶ records of ours? ──yes──▶ merge ──▶ complete ──▶ the next one
//!                         └──────────no──▶ hold ──▶ the next one ... the queue is empty ──▶ release all, pause
//! ```
//!
//! A message is completed when its records are durable. Records come late, twice, before the send
//! that caused them is recorded, or never: outcomes are a join, so none of that does harm.
//!
//! # How far the hub was heard
//!
//! The listener reports to the store about once a second until when it has heard ([`twincast_core::evidence`]): the
//! last moment at which the queue was empty, or its newest message was put there, with everything merged that the
//! listener had been handed. When it loses messages (its link breaks, the store does not take them), the hub hides them for
//! the length of its lock. The listener then ends with a last report that says so, and begins again under another id.
//!
//! # Other applications of the hub
//!
//! A hub has *one* feedback queue. Whoever listens is handed any message, and a message holds the
//! records of all applications as they came (up to 64, or what came within 15 s). There is no
//! asking for one's own. The hub's configuration says whose the queue is.
//!
//! *Exclusive*: what is not ours is completed, so that nothing of ours stands behind it.
//!
//! *Shared*: a message without any record of ours is held, unanswered, to see what stands behind it. When the queue is empty,
//! or the first lock is about to end, all that is held is released, and nothing is taken for a while: another
//! application that listens is handed the messages in that time. The hub counts how often it hands a message out, and throws
//! it away after the tenth time by default. The pause grows from 1 s to 30 s while only such messages come, so an
//! application that is being restarted finds its messages still there. Any record of ours ends the pauses.
//!
//! A message with records of both is completed. The other application loses its part of it, as
//! it would to any second listener, and as we do to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::error::in_words;
use twincast_core::evidence::{ListenerReport, ListenerState, MARGIN};
use twincast_core::hub::{FeedbackQueue, FeedbackRules};
use twincast_core::ids::{Attempt, BatchId, Holder, RolloutName};
use twincast_core::message::MessageId;
use twincast_core::ports::{
    Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket, HubError, Report, StoreError,
};
use twincast_core::time::Timestamp;
use uuid::Uuid;

use crate::WorkerError;
use crate::hub_loop::Inner;

/// The queue is empty when it has given nothing for so long. Much longer than a message takes from the hub.
const QUIET: Duration = Duration::from_secs(1);
/// A hub that has not answered for so long cannot be reached.
const AWAY: Duration = Duration::from_secs(3);
/// How often the listener reports.
const REPORT: Duration = Duration::from_secs(1);
/// How long a report may take.
const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// How far the hub's clock may be ahead of ours.
const SKEW: Duration = Duration::from_secs(5);
/// Messages of others that are held at once. Each takes some 300 bytes.
const HELD: usize = 32_768;
/// The first pause after messages that are not for us.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// When a hub that refuses us is asked again: somebody has to do something about it first.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// What a message was to us.
enum Found {
    /// Records of ours, which are durable now. The message is answered.
    Ours,
    /// Nothing.
    Foreign(Box<dyn FeedbackTicket>),
    /// Records of ours, which the store did not take. The hub hands the message out again when its lock is over.
    Unstored,
}

/// Reports by batch and attempt, in the order in which they came.
type ByBatch = BTreeMap<(BatchId, Attempt), Vec<Report>>;

/// Listens from the first rollout on that wants feedback until `stop`. Then it takes nothing
/// more, and has [`WorkerConfig::drain`](crate::WorkerConfig::drain) to finish what is in hand.
///
/// Feedback never fails a worker: what is wrong with the store, the batch runs meet too.
pub(crate) async fn listen(inner: Arc<Inner>, stop: CancellationToken) -> Result<(), WorkerError> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = inner.feedback_wanted.notified() => {}
    }
    let Some(mut feedback) = inner.hub.hub.feedback() else {
        tracing::warn!(hub = %inner.hub.name, "feedback is asked for, and the hub gives none");
        return Ok(());
    };
    let mut listener = Listener::new(inner, stop);
    while let Some(heard) = listener.next(&mut *feedback).await {
        let goes_on = match heard {
            Heard::Message(batch) => listener.take(batch).await,
            Heard::Nothing { since } => {
                listener.heard = listener.heard.max(Some(since));
                listener.give_back(&mut *feedback).await
            }
            Heard::Refused(error) => {
                tracing::error!(hub = %listener.inner.hub.name, error = in_words(&error), "no feedback, the hub refuses");
                listener.lose(&in_words(&error)).await;
                let goes_on = listener.wait(REFUSED_PAUSE).await;
                match listener.inner.hub.hub.feedback() {
                    Some(new) => feedback = new,
                    None => break,
                }
                goes_on
            }
        };
        if !goes_on {
            break;
        }
        listener.look_again(&mut *feedback).await;
    }
    listener.end().await;
    Ok(())
}

/// What came of waiting for the hub.
enum Heard {
    /// A message.
    Message(FeedbackBatch),
    /// The queue was empty from then on, for as long as was waited.
    Nothing { since: Timestamp },
    /// The hub refuses us.
    Refused(HubError),
}

struct Listener {
    inner: Arc<Inner>,
    stop: CancellationToken,
    rules: FeedbackRules,
    id: Holder,
    /// Since when it has this id.
    began_at: Instant,
    /// Until when it has heard, since it has this id.
    heard: Option<Timestamp>,
    /// Why the hub cannot be reached, while that is so.
    trouble: Option<String>,
    /// The connection that the hub hands messages over.
    connection: Option<u64>,
    /// Messages of others that are not answered, and since when the first of them is held.
    held: Vec<Box<dyn FeedbackTicket>>,
    held_since: Option<Instant>,
    /// Messages of others that stood in front the last time.
    foreign: u64,
    pause: Duration,
    reported_at: Option<Instant>,
}

impl Listener {
    fn new(inner: Arc<Inner>, stop: CancellationToken) -> Self {
        Self {
            rules: inner.hub.limits.feedback,
            inner,
            stop,
            id: new_id(),
            began_at: Instant::now(),
            heard: None,
            trouble: None,
            connection: None,
            held: Vec::new(),
            held_since: None,
            foreign: 0,
            pause: Duration::ZERO,
            reported_at: None,
        }
    }

    /// Waits for a message, or for the queue to be empty; `None` when told to stop. Reports when the hub is away.
    async fn next(&mut self, feedback: &mut dyn Feedback) -> Option<Heard> {
        let since = self.inner.clock().now();
        let stop = self.stop.clone();
        let mut next = feedback.next(QUIET);
        let heard = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                next = &mut next => break match next {
                    Ok(Some(batch)) => Heard::Message(batch),
                    Ok(None) => Heard::Nothing { since },
                    Err(error) => Heard::Refused(error),
                },
                () = sleep(AWAY) => {
                    let hindrance = self.inner.hub.hub.hindrance();
                    let why = hindrance.map_or_else(|| "no connection".to_owned(), |it| it.reason);
                    self.lose(&why).await;
                }
            }
        };
        drop(next);
        let connection = Some(feedback.connection());
        if self.connection != connection || self.trouble.is_some() {
            if self.connection.is_some() && self.trouble.is_none() {
                self.lose("the connection was lost").await;
            }
            self.begin_anew();
        }
        self.connection = connection;
        Some(heard)
    }

    /// Merges what is ours, and holds or completes what is not. False when told to stop.
    async fn take(&mut self, batch: FeedbackBatch) -> bool {
        let enqueued_at = batch.enqueued_at;
        let found = tokio::select! {
            found = self.inner.take_in(batch) => found,
            // What is unanswered is handed out again.
            () = drained(&self.stop, self.inner.config.drain) => return false,
        };
        match found {
            Found::Ours => self.pause = Duration::ZERO,
            Found::Foreign(ticket) => match self.rules.queue {
                FeedbackQueue::Shared => {
                    self.held.push(ticket);
                    self.held_since.get_or_insert_with(Instant::now);
                    self.foreign = self.foreign.max(self.held.len() as u64);
                }
                FeedbackQueue::Exclusive => self.inner.answered(ticket.complete().await),
            },
            Found::Unstored => {
                self.lose("the store does not take what was heard").await;
                self.begin_anew();
                self.pause = next_pause(self.pause);
                return self.wait(self.pause).await;
            }
        }
        // Messages are handed out in the order in which they came: all before this one were taken.
        if let Some(at) = enqueued_at {
            let at = at.min(self.inner.clock().now()).minus(SKEW);
            self.heard = self.heard.max(Some(at));
        }
        true
    }

    /// Gives back what is held for too long, or more of it than can be held.
    async fn look_again(&mut self, feedback: &mut dyn Feedback) -> bool {
        let limit = self.rules.lock / 4 * 3;
        let is_late = self
            .held_since
            .is_some_and(|since| since.elapsed() >= limit);
        if is_late || self.held.len() >= HELD {
            self.give_back(feedback).await
        } else {
            self.report_when_due().await;
            true
        }
    }

    /// Releases what is held, and takes nothing for a while. False when told to stop.
    async fn give_back(&mut self, feedback: &mut dyn Feedback) -> bool {
        self.foreign = self.held.len() as u64;
        if self.held.is_empty() {
            self.report_when_due().await;
            return true;
        }
        feedback.rest().await;
        self.release_held().await;
        self.pause = next_pause(self.pause);
        self.wait(self.pause).await
    }

    async fn release_held(&mut self) {
        self.held_since = None;
        for ticket in std::mem::take(&mut self.held) {
            self.inner.answered(ticket.release().await);
        }
    }

    /// The hub cannot be reached, or messages are lost: others are handed what this listener had when its lock is over.
    async fn lose(&mut self, why: &str) {
        if self.trouble.is_none() {
            self.held.clear();
            self.held_since = None;
        }
        self.trouble = Some(why.to_owned());
        self.report().await;
    }

    /// Begins to listen as another one, which was handed nothing yet.
    fn begin_anew(&mut self) {
        (self.id, self.began_at) = (new_id(), Instant::now());
        (self.heard, self.trouble) = (None, None);
    }

    /// Nothing more is taken. What the hub has sent, and was not taken, it hands out again when its lock is over.
    async fn end(&mut self) {
        self.release_held().await;
        self.lose("the worker has ended").await;
    }

    /// Waits, reporting meanwhile; false when told to stop.
    async fn wait(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            self.report_when_due().await;
            let now = Instant::now();
            if now >= until {
                return true;
            }
            if !slept(REPORT.min(until - now), &self.stop).await {
                return false;
            }
        }
    }

    async fn report_when_due(&mut self) {
        if self.reported_at.is_none_or(|at| at.elapsed() >= REPORT) {
            self.report().await;
        }
    }

    async fn report(&mut self) {
        self.reported_at = Some(Instant::now());
        let heard_ago = self.heard.map(|at| self.inner.clock().now().since(at));
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
            heard_ago,
            state: match &self.trouble {
                Some(why) => state.troubled_by(why),
                None => state,
            },
        };
        let unheard = heard_ago.unwrap_or_else(|| self.began_at.elapsed());
        self.inner.status.metrics().heard(unheard, self.foreign);
        let hub = &self.inner.hub.name;
        let reported = self.inner.store.report_listener(hub, &report);
        if !matches!(timeout(REPORT_WITHIN, reported).await, Ok(Ok(()))) {
            tracing::debug!(%hub, "the store does not take how far the hub was heard");
        }
    }
}

fn new_id() -> Holder {
    Holder::new(Uuid::new_v4().simple().to_string()).expect("hexadecimal digits")
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Inner {
    /// Merges what is ours, and completes a message that has some of it. Waits for a store that is away.
    ///
    /// Cancel safety: if dropped, the message is not answered, and some of it may be merged.
    async fn take_in(&self, batch: FeedbackBatch) -> Found {
        let FeedbackBatch {
            records, ticket, ..
        } = batch;
        let all = records.len();
        let ours = match self.merge(records).await {
            Ok(ours) => ours,
            Err(error) => {
                // Unanswered, so that it is not counted: it comes again when its lock is over.
                tracing::error!(hub = %self.hub.name, error = in_words(&error), "feedback not recorded");
                return Found::Unstored;
            }
        };
        let foreign = (all - ours) as u64;
        self.status.metrics().feedback_foreign.inc_by(foreign);
        if ours == 0 {
            return Found::Foreign(ticket);
        }
        self.answered(ticket.complete().await);
        Found::Ours
    }

    fn answered(&self, answered: Result<(), HubError>) {
        if let Err(error) = answered {
            tracing::debug!(hub = %self.hub.name, ?error, "feedback message not answered, it comes again");
        }
    }

    /// Merges the records of rollouts that the store knows, and says how many records that were.
    async fn merge(&self, records: Vec<FeedbackRecord>) -> Result<usize, StoreError> {
        let mut ours = 0;
        for (name, batches) in by_rollout(records) {
            let known = self.persistently(|| self.store.version(&name)).await?;
            if known.is_none() {
                continue;
            }
            for ((batch, attempt), reports) in batches {
                ours += reports.len();
                let merge = || self.store.merge(&name, batch, attempt, &reports);
                match self.persistently(merge).await {
                    Ok(()) => {
                        let merged = reports.len() as u64;
                        self.status.metrics().feedback_merged.inc_by(merged);
                    }
                    // Of an older plan, or of another store's rollout of this name.
                    Err(StoreError::NotFound { what }) => {
                        tracing::debug!(rollout = %name, what, "feedback on something that does not exist");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(ours)
    }

    /// [`patiently`](Inner::patiently), also while the worker is stopping: the caller bounds it.
    async fn persistently<T, F>(&self, call: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let never = CancellationToken::new();
        let result = self.patiently(&never, call).await?;
        Ok(result.expect("nobody cancels it"))
    }
}

/// Sleeps; false when told to stop.
async fn slept(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = sleep(pause) => true,
    }
}

/// Returns when a worker that was told to stop waits no longer.
async fn drained(stop: &CancellationToken, drain: Duration) {
    stop.cancelled().await;
    sleep(drain).await;
}

/// The records that may be ours, by rollout, batch and attempt.
fn by_rollout(records: Vec<FeedbackRecord>) -> BTreeMap<RolloutName, ByBatch> {
    let mut rollouts: BTreeMap<RolloutName, ByBatch> = BTreeMap::new();
    for record in records {
        let Ok(id) = record.message_id.parse::<MessageId>() else {
            continue;
        };
        let batches = rollouts.entry(id.rollout).or_default();
        let reports = batches.entry((id.batch, id.attempt)).or_default();
        reports.push(Report {
            index: id.index,
            outcome: record.outcome,
            code: 0,
        });
    }
    rollouts
}

/// How long nothing is taken after messages of others, when the pause before it was `last`.
fn next_pause(last: Duration) -> Duration {
    (last * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
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
    fn records_are_sorted_and_those_of_others_left_out() {
        let sorted = by_rollout(vec![
            record("r.1.7.1", Outcome::Delivered),
            record("5f0e3c1e-6d8e-4a8e-9c6b-1f1d2a3b4c5d", Outcome::Delivered),
            record("s.0.a.1", Outcome::Expired),
            record("r.1.3.1", Outcome::Rejected),
            record("r.1.3.2", Outcome::Delivered),
            record("r.0.0.1", Outcome::Purged),
        ]);
        let flat: Vec<_> = sorted
            .iter()
            .flat_map(|(name, batches)| batches.iter().map(move |(batch, of)| (name, batch, of)))
            .flat_map(|(name, batch, of)| of.iter().map(move |r| (name, batch, r)))
            .map(|(name, (batch, of), r)| (name.as_str(), batch.0, of.0, r.index, r.outcome))
            .collect();
        assert_eq!(
            flat,
            [
                ("r", 0, 1, 0, Outcome::Purged),
                ("r", 1, 1, 7, Outcome::Delivered),
                ("r", 1, 1, 3, Outcome::Rejected),
                ("r", 1, 2, 3, Outcome::Delivered),
                ("s", 0, 1, 10, Outcome::Expired),
            ]
        );
    }

    #[test]
    fn pauses_grow_while_only_others_messages_come() {
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
