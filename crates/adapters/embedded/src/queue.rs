//! A queue within one process: one first-in-first-out line per hub.
//!
//! What is handed out and not acked is remembered by its consumer. When the ticket or the
//! consumer is dropped it goes back to the end of the line, marked as redelivered, so a dispatch
//! that nobody can work on now does not keep the others waiting.
//!
//! The bound counts what waits, not what is handed out. What comes back is always taken: the
//! line can be longer than its bound by the deliveries that consumers hold, of which there are
//! few.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use twincast_core::ids::HubName;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};

/// A [`Queue`] in memory, for one process. Cheap to clone; clones are the same queue.
#[derive(Debug, Clone)]
pub struct InProcessQueue {
    limit: usize,
    lines: Arc<Mutex<HashMap<HubName, Arc<Line>>>>,
}

/// One hub's line. The semaphore has one permit for each waiting entry, so a consumer that has
/// a permit finds an entry.
#[derive(Debug)]
struct Line {
    waiting: Mutex<VecDeque<Waiting>>,
    ready: Semaphore,
    consumers: AtomicUsize,
}

#[derive(Debug)]
struct Waiting {
    dispatch: Dispatch,
    redelivered: bool,
}

/// What one consumer was handed and has not answered for.
#[derive(Debug)]
struct Unacked {
    line: Arc<Line>,
    held: Mutex<BTreeMap<u64, Dispatch>>,
    /// For what it may still be handed before it answers.
    room: Semaphore,
}

struct Consumer {
    next_tag: u64,
    unacked: Arc<Unacked>,
}

struct Answer {
    tag: u64,
    unacked: Arc<Unacked>,
}

/// An answer that came after the consumer had gone.
#[derive(Debug, thiserror::Error)]
#[error("its consumer is gone, so the dispatch was handed back")]
struct ConsumerGone;

impl InProcessQueue {
    /// A queue in which up to `limit` dispatches of each hub may wait.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            lines: Arc::default(),
        }
    }

    fn line(&self, hub: &HubName) -> Arc<Line> {
        let mut lines = lock(&self.lines);
        let line = lines.entry(hub.clone()).or_insert_with(|| {
            Arc::new(Line {
                waiting: Mutex::default(),
                ready: Semaphore::new(0),
                consumers: AtomicUsize::new(0),
            })
        });
        Arc::clone(line)
    }
}

#[async_trait]
impl Queue for InProcessQueue {
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError> {
        let line = self.line(&dispatch.hub);
        let mut waiting = lock(&line.waiting);
        if waiting.len() >= self.limit {
            return Err(QueueError::Full {
                hub: dispatch.hub.clone(),
                limit: self.limit,
            });
        }
        waiting.push_back(Waiting {
            dispatch: dispatch.clone(),
            redelivered: false,
        });
        line.ready.add_permits(1);
        Ok(())
    }

    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError> {
        let line = self.line(hub);
        line.consumers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Consumer {
            next_tag: 0,
            unacked: Arc::new(Unacked {
                line,
                held: Mutex::default(),
                room: Semaphore::new(at_once),
            }),
        }))
    }

    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError> {
        let line = self.line(hub);
        Ok(Depth {
            waiting: lock(&line.waiting).len(),
            consumers: line.consumers.load(Ordering::Relaxed),
        })
    }
}

#[async_trait]
impl Deliveries for Consumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        // Cancel-safe: room that is not used is given back when this is dropped, and a permit of
        // the line that was not received stays.
        let room = self.unacked.room.acquire().await;
        let permit = self.unacked.line.ready.acquire().await;
        for permit in [room, permit] {
            permit.expect("these semaphores are never closed").forget();
        }
        let entry = lock(&self.unacked.line.waiting).pop_front();
        let entry = entry.expect("there is a permit for each waiting entry");
        let tag = self.next_tag;
        self.next_tag += 1;
        lock(&self.unacked.held).insert(tag, entry.dispatch.clone());
        Ok(Delivery {
            dispatch: entry.dispatch,
            redelivered: entry.redelivered,
            ticket: Box::new(Answer {
                tag,
                unacked: Arc::clone(&self.unacked),
            }),
        })
    }
}

#[async_trait]
impl Ticket for Answer {
    async fn ack(self: Box<Self>) -> Result<(), QueueError> {
        match self.settle() {
            Some(_) => Ok(()),
            None => Err(late("acknowledge a dispatch")),
        }
    }

    async fn requeue(self: Box<Self>) -> Result<(), QueueError> {
        // It is back in any case: handed back now, or when the consumer went.
        self.hand_back();
        Ok(())
    }
}

impl Answer {
    fn settle(&self) -> Option<Dispatch> {
        let dispatch = lock(&self.unacked.held).remove(&self.tag)?;
        self.unacked.room.add_permits(1);
        Some(dispatch)
    }

    fn hand_back(&self) {
        if let Some(dispatch) = self.settle() {
            self.unacked.line.take_back([dispatch]);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.hand_back();
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *lock(&self.unacked.held));
        self.unacked.line.consumers.fetch_sub(1, Ordering::Relaxed);
        self.unacked.line.take_back(held.into_values());
    }
}

impl Line {
    fn take_back(&self, dispatches: impl IntoIterator<Item = Dispatch>) {
        let mut waiting = lock(&self.waiting);
        let before = waiting.len();
        waiting.extend(dispatches.into_iter().map(|dispatch| Waiting {
            dispatch,
            redelivered: true,
        }));
        self.ready.add_permits(waiting.len() - before);
    }
}

fn late(doing: &'static str) -> QueueError {
    QueueError::Unavailable {
        doing,
        source: Box::new(ConsumerGone),
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn make(limit: usize) -> InProcessQueue {
        InProcessQueue::new(limit)
    }

    twincast_testkit::queue_conformance!(make);
}
