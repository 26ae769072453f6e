//! A queue within a process: a first-in-first-out queue per hub.
//!
//! A consumer remembers unacked deliveries. When the ticket or the consumer is dropped, the
//! dispatch goes back to the end of the queue, marked as redelivered. So a dispatch that no
//! consumer can work on now does not block the dispatches behind.
//!
//! The limit applies to waiting dispatches, not to unacked deliveries. A returned dispatch is
//! always accepted: the queue may exceed the limit by the number of unacked deliveries, which is
//! small.

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
    hub_queues: Arc<Mutex<HashMap<HubName, Arc<HubQueue>>>>,
}

/// The queue of a hub. The semaphore has a permit for each waiting entry, so a consumer with a
/// permit always finds an entry.
#[derive(Debug)]
struct HubQueue {
    waiting: Mutex<VecDeque<Waiting>>,
    ready: Semaphore,
    consumers: AtomicUsize,
}

#[derive(Debug)]
struct Waiting {
    dispatch: Dispatch,
    redelivered: bool,
}

/// The unacked deliveries of a consumer.
#[derive(Debug)]
struct Unacked {
    queue: Arc<HubQueue>,
    held: Mutex<BTreeMap<u64, Dispatch>>,
    /// A permit for each further delivery before the next ack.
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

/// An answer after the consumer was dropped.
#[derive(Debug, thiserror::Error)]
#[error("the consumer is gone, so the dispatch was requeued")]
struct ConsumerGone;

impl InProcessQueue {
    /// Creates a queue with at most `limit` waiting dispatches per hub.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            hub_queues: Arc::default(),
        }
    }

    fn hub_queue(&self, hub: &HubName) -> Arc<HubQueue> {
        let mut hub_queues = lock(&self.hub_queues);
        let queue = hub_queues.entry(hub.clone()).or_insert_with(|| {
            Arc::new(HubQueue {
                waiting: Mutex::default(),
                ready: Semaphore::new(0),
                consumers: AtomicUsize::new(0),
            })
        });
        Arc::clone(queue)
    }
}

#[async_trait]
impl Queue for InProcessQueue {
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError> {
        let queue = self.hub_queue(&dispatch.hub);
        let mut waiting = lock(&queue.waiting);
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
        queue.ready.add_permits(1);
        Ok(())
    }

    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError> {
        let queue = self.hub_queue(hub);
        queue.consumers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Consumer {
            next_tag: 0,
            unacked: Arc::new(Unacked {
                queue,
                held: Mutex::default(),
                room: Semaphore::new(at_once),
            }),
        }))
    }

    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError> {
        let queue = self.hub_queue(hub);
        Ok(Depth {
            waiting: lock(&queue.waiting).len(),
            consumers: queue.consumers.load(Ordering::Relaxed),
        })
    }
}

#[async_trait]
impl Deliveries for Consumer {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        // Cancel-safe: a dropped call returns unused room, and leaves an unreceived permit in the
        // queue.
        let room = self.unacked.room.acquire().await;
        let permit = self.unacked.queue.ready.acquire().await;
        for permit in [room, permit] {
            permit.expect("these semaphores are never closed").forget();
        }
        let entry = lock(&self.unacked.queue.waiting).pop_front();
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
        // The dispatch is back in any case: returned now, or when the consumer was dropped.
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
            self.unacked.queue.take_back([dispatch]);
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
        self.unacked.queue.consumers.fetch_sub(1, Ordering::Relaxed);
        self.unacked.queue.take_back(held.into_values());
    }
}

impl HubQueue {
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

/// No code panics while holding a lock of the queue, so a poisoned lock is as good as any.
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
