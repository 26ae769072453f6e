//! What the hub says became of messages: taken from its feedback queue, merged into outcomes.
//!
//! ```text
//!  hub ──message──▶ records of ours? ──yes──▶ merge ──▶ complete ──▶ the next one at once
//!                         └──────────no──▶ release ──▶ pause ───▶ the next one
//! ```
//!
//! A message is completed when its records are durable. Records come late, twice, before the send
//! that caused them is recorded, or never: outcomes are a join, so none of that does harm.
//!
//! # Other applications of the hub
//!
//! A hub has *one* feedback queue. Whoever listens is handed any message, and a message holds the
//! records of all applications as they came (up to 64, or what came within 15 s). There is no
//! asking for one's own. What is not ours can be treated in three ways, and none is free:
//!
//! * *completed*: the other application never sees it;
//! * *kept* until the hub's lock on it is over (60 s by default): the other one gets it late;
//! * *released*: it is there again at once, but the hub counts, and throws away what was handed
//!   out too often (10 times by default).
//!
//! So a message without any record of ours is released, and then nothing is taken for a while:
//! the client asks for one message at a time, so nothing else is locked for us either. If the
//! other application listens, it is handed the message in that time, and the count stays far from
//! ten, with many workers too: each of them pauses. The pause grows from 1 s to 30 s while only
//! such messages come, so an application that is being restarted finds its messages still there:
//! to be handed a message ten times takes one worker two and a half minutes, and five once the
//! pauses have grown. Any record of ours ends them.
//!
//! A message with records of both is completed. The other application loses its part of it, as
//! it would to any second listener, and as we do to it.
//!
//! When nobody reads the other application's feedback, what we wait for stands behind it, until
//! the hub throws that away: after ten times, or an hour. It comes late then, and is not lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use twincast_core::error::in_words;
use twincast_core::ids::{Attempt, BatchId, RolloutName};
use twincast_core::message::MessageId;
use twincast_core::ports::{Feedback, FeedbackBatch, FeedbackRecord, Report, StoreError};

use crate::WorkerError;
use crate::hub_loop::Inner;

/// The first pause after a message that is not for us.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// When a hub that refuses us is asked again: somebody has to do something about it first.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// What a message was to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Records of ours, which are durable now.
    Ours,
    /// Nothing.
    Foreign,
    /// Records of ours, which the store did not take.
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
    let Some(feedback) = inner.hub.hub.feedback() else {
        tracing::warn!(hub = %inner.hub.name, "feedback is asked for, and the hub gives none");
        return Ok(());
    };
    let mut listener = Listener {
        inner,
        stop,
        feedback,
        pause: Duration::ZERO,
    };
    listener.run().await;
    Ok(())
}

struct Listener {
    inner: Arc<Inner>,
    stop: CancellationToken,
    feedback: Box<dyn Feedback>,
    pause: Duration,
}

impl Listener {
    async fn run(&mut self) {
        while let Some(batch) = self.next().await {
            let found = tokio::select! {
                found = self.inner.take_in(batch) => found,
                // What is unanswered is handed out again.
                () = drained(&self.stop, self.inner.config.drain) => return,
            };
            self.pause = next_pause(self.pause, found);
            if !slept(self.pause, &self.stop).await {
                return;
            }
        }
    }

    /// The next message; `None` when told to stop.
    async fn next(&mut self) -> Option<FeedbackBatch> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                next = self.feedback.next() => next,
            };
            match next {
                Ok(batch) => return Some(batch),
                Err(error) => {
                    tracing::error!(hub = %self.inner.hub.name, error = in_words(&error), "no feedback, the hub refuses");
                    if !slept(REFUSED_PAUSE, &self.stop).await {
                        return None;
                    }
                    self.feedback = self.inner.hub.hub.feedback()?;
                }
            }
        }
    }
}

impl Inner {
    /// Merges what is ours and answers for the message. Waits for a store that is away.
    ///
    /// Cancel safety: if dropped, the message is not answered, and some of it may be merged.
    async fn take_in(&self, batch: FeedbackBatch) -> Found {
        let FeedbackBatch { records, ticket } = batch;
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
        let (found, answered) = if ours > 0 {
            (Found::Ours, ticket.complete().await)
        } else {
            (Found::Foreign, ticket.release().await)
        };
        if let Err(error) = answered {
            tracing::debug!(hub = %self.hub.name, ?error, "feedback message not answered, it comes again");
        }
        found
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

/// How long nothing is taken after a message, when the pause before it was `last`.
fn next_pause(last: Duration, found: Found) -> Duration {
    match found {
        Found::Ours => Duration::ZERO,
        Found::Foreign | Found::Unstored => (last * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
    }
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
                pause = next_pause(pause, Found::Foreign);
                pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(next_pause(pause, Found::Ours), Duration::ZERO);
    }
}
