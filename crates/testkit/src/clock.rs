//! Clocks for tests: a clock moved by the test, and a clock following the runtime's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::Clock;
use twincast_core::time::Timestamp;

/// Some time in 2026. Not 0: a limiter's first permits would be a special case at 0.
const START: Timestamp = Timestamp(1_790_000_000_000);

/// A [`Clock`] following tokio's clock, so that paused time holds for both.
#[derive(Debug, Clone, Copy)]
pub struct RuntimeClock(Instant);

impl Default for RuntimeClock {
    /// Starts now.
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl RuntimeClock {
    /// Returns the time shown at the start.
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

/// A [`Clock`] set by tests. Clones show the same time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    /// Stands at some time in 2026.
    fn default() -> Self {
        Self::at(START)
    }
}

impl ManualClock {
    /// Creates a clock showing `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(now.0)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).expect("the duration fits into a u64");
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the clock, also backwards.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
