//! A clock that stands still until it is moved, and one that goes with the runtime's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::Clock;
use twincast_core::time::Timestamp;

/// Some time in 2026: not 0, at which a limiter's first permits would be a special case.
const START: Timestamp = Timestamp(1_790_000_000_000);

/// A [`Clock`] that goes with tokio's, so that paused time is one time.
#[derive(Debug, Clone, Copy)]
pub struct RuntimeClock(Instant);

impl Default for RuntimeClock {
    /// Starts now.
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl RuntimeClock {
    /// What it shows when it starts.
    #[must_use]
    pub fn start() -> Timestamp {
        START
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        START.plus(self.0.elapsed())
    }
}

/// A [`Clock`] that tests set. Clones show the same time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    /// Stands at some time in 2026.
    fn default() -> Self {
        Self::at(START)
    }
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(now.0)))
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).expect("tests span no ages");
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets it, backwards if need be.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
