//! Dispatches of batches leased to other holders, to be tried again after the leases may have
//! lapsed.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use twincast_core::ports::Dispatch;

/// The most dispatches to remember, many times the batches left behind by a crashed worker. The
/// driver redispatches further batches, like batches with a lost dispatch.
const CAPACITY: usize = 256;

/// Dispatches, each with the time of the next try.
pub(crate) struct RetryQueue {
    after: Duration,
    waiting: VecDeque<(Instant, Dispatch)>,
}

impl RetryQueue {
    /// Creates an empty queue. Each dispatch becomes due `after` a fixed time.
    pub(crate) fn new(after: Duration) -> Self {
        Self {
            after,
            waiting: VecDeque::new(),
        }
    }

    /// Adds a dispatch, unless the dispatch is already queued, or the queue is full.
    pub(crate) fn push(&mut self, dispatch: Dispatch, now: Instant) {
        let is_there = self.waiting.iter().any(|(_, other)| *other == dispatch);
        if !is_there && self.waiting.len() < CAPACITY {
            self.waiting.push_back((now + self.after, dispatch));
        }
    }

    /// Waits for the next due dispatch, and returns the dispatch.
    ///
    /// Cancel safety: if dropped, nothing is lost.
    pub(crate) async fn next(&mut self) -> Dispatch {
        match self.waiting.front() {
            Some((at, _)) => sleep_until(*at).await,
            None => pending().await,
        }
        let (_, dispatch) = self.waiting.pop_front().expect("it was just there");
        dispatch
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::ids::BatchId;
    use twincast_testkit::build;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_dispatch_is_retried_once_and_the_queue_is_bounded() {
        let after = Duration::from_secs(10);
        let mut queue = RetryQueue::new(after);
        let dispatch = |batch| Dispatch {
            rollout: build::name("r"),
            batch: BatchId(batch),
            hub: build::hub("a"),
        };
        let began = Instant::now();
        for batch in 0..1_000 {
            queue.push(dispatch(batch % 500), began);
        }
        for batch in 0..CAPACITY as u32 {
            assert_eq!(queue.next().await, dispatch(batch));
        }
        assert_eq!(began.elapsed(), after);
        assert!(queue.waiting.is_empty());
    }
}
