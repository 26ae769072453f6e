//! Batches that somebody else holds, to be asked for again when their leases may be over.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use twincast_core::ports::Dispatch;

/// So many are remembered, many times what one worker leaves behind when it crashes. Others are rung for again by whoever
/// drives their rollout, as lost dispatches are.
const MOST: usize = 256;

/// Dispatches, each with its time.
pub(crate) struct Later {
    after: Duration,
    waiting: VecDeque<(Instant, Dispatch)>,
}

impl Later {
    /// Each dispatch comes up `after` a time.
    pub(crate) fn new(after: Duration) -> Self {
        Self {
            after,
            waiting: VecDeque::new(),
        }
    }

    /// Remembers a dispatch, unless it is remembered already, or too many are.
    pub(crate) fn put(&mut self, dispatch: Dispatch, now: Instant) {
        let is_there = self.waiting.iter().any(|(_, other)| *other == dispatch);
        if !is_there && self.waiting.len() < MOST {
            self.waiting.push_back((now + self.after, dispatch));
        }
    }

    /// The next one, when its time has come.
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
    async fn each_comes_up_once_in_its_time_and_not_too_many() {
        let after = Duration::from_secs(10);
        let mut later = Later::new(after);
        let dispatch = |batch| Dispatch {
            rollout: build::name("r"),
            batch: BatchId(batch),
            hub: build::hub("a"),
        };
        let began = Instant::now();
        for batch in 0..1_000 {
            later.put(dispatch(batch % 500), began);
        }
        for batch in 0..MOST as u32 {
            assert_eq!(later.next().await, dispatch(batch));
        }
        assert_eq!(began.elapsed(), after);
        assert!(later.waiting.is_empty());
    }
}
