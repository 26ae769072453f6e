//! The feedback queue of a [`ScriptedHub`](crate::ScriptedHub).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use twincast_core::ports::{
    Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket, HubError, HubTrouble,
};

/// A listener's answer to a feedback message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedbackAnswer {
    /// The message is completed; the queue has removed it.
    Completed,
    /// The message was released, and waits again in the old place.
    Released,
}

/// A recorded answer to a feedback message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedbackAnswered {
    /// The number of the message, counted from 0 in the order of the pushes.
    pub message: usize,
    /// The answer.
    pub answer: FeedbackAnswer,
    /// The time of the answer, on tokio's clock.
    pub at: Instant,
}

/// A single queue for all listeners, as on a hub. Clones share the queue.
#[derive(Clone)]
pub(crate) struct FeedbackQueue {
    state: Arc<Mutex<State>>,
    /// Notified after every change of the state.
    changed: Arc<watch::Sender<()>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Message>,
    pushed: usize,
    answered: Vec<FeedbackAnswered>,
    listeners: usize,
    refusals: usize,
}

#[derive(Debug, Clone)]
struct Message {
    number: usize,
    records: Vec<FeedbackRecord>,
    unreadable: u64,
}

impl Default for FeedbackQueue {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
        }
    }
}

impl FeedbackQueue {
    pub(crate) fn push(&self, records: Vec<FeedbackRecord>, unreadable: u64) {
        let mut state = self.state();
        let number = state.pushed;
        state.pushed += 1;
        state.waiting.push_back(Message {
            number,
            records,
            unreadable,
        });
        drop(state);
        self.changed.send_replace(());
    }

    pub(crate) fn refuse_next(&self, times: usize) {
        self.state().refusals = times;
    }

    pub(crate) fn listener(&self) -> Box<dyn Feedback> {
        self.state().listeners += 1;
        self.changed.send_replace(());
        Box::new(Listener(self.clone()))
    }

    pub(crate) fn listeners(&self) -> usize {
        self.state().listeners
    }

    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    pub(crate) fn answered(&self) -> Vec<FeedbackAnswered> {
        self.state().answered.clone()
    }

    pub(crate) async fn until_answered(&self, count: usize) {
        self.until(|state| (state.answered.len() >= count).then_some(()))
            .await;
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            let marked = changed.changed().await;
            marked.expect("this queue keeps the sender");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener(FeedbackQueue);

#[async_trait]
impl Feedback for Listener {
    async fn next(&mut self, quiet: Duration) -> Result<Option<FeedbackBatch>, HubError> {
        let next = |state: &mut State| {
            if state.refusals > 0 {
                state.refusals -= 1;
                return Some(Err(refused()));
            }
            state.waiting.pop_front().map(Ok)
        };
        let Ok(message) = tokio::time::timeout(quiet, self.0.until(next)).await else {
            return Ok(None);
        };
        let message: Message = message?;
        Ok(Some(FeedbackBatch {
            records: message.records.clone(),
            unreadable: message.unreadable,
            enqueued_at: None,
            ticket: Box::new(Ticket {
                queue: self.0.clone(),
                message: Some(message),
            }),
        }))
    }

    fn connection(&self) -> u64 {
        0
    }

    async fn pause(&mut self) {}
}

fn refused() -> HubError {
    HubError {
        doing: "receive feedback from the scripted hub".into(),
        trouble: HubTrouble::Unauthorized,
        source: "it refuses".into(),
    }
}

/// A ticket for a message. Without an answer before the drop, the message waits again at once: the
/// queue has no lock timeout.
struct Ticket {
    queue: FeedbackQueue,
    message: Option<Message>,
}

impl Ticket {
    fn answer(&mut self, answer: FeedbackAnswer) {
        if let Some(message) = &self.message {
            self.queue.state().answered.push(FeedbackAnswered {
                message: message.number,
                answer,
                at: Instant::now(),
            });
        }
        if answer == FeedbackAnswer::Completed {
            self.message = None;
        }
        self.queue.changed.send_replace(());
    }
}

#[async_trait]
impl FeedbackTicket for Ticket {
    async fn complete(mut self: Box<Self>) -> Result<(), HubError> {
        self.answer(FeedbackAnswer::Completed);
        Ok(())
    }

    async fn release(mut self: Box<Self>) -> Result<(), HubError> {
        self.answer(FeedbackAnswer::Released);
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.queue.state().waiting.push_front(message);
            self.queue.changed.send_replace(());
        }
    }
}
