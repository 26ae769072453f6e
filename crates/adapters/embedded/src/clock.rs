//! The machine's clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use twincast_core::ports::Clock;
use twincast_core::time::Timestamp;

/// The time of day when the process started, and how long that is ago. When somebody sets the
/// machine's clock, leases and permits are not disturbed.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started_at: Timestamp,
    started: Instant,
}

impl SystemClock {
    /// Starts at the machine's time of day.
    #[must_use]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started_at: Timestamp::default().plus(since_epoch),
            started: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.started_at.plus(self.started.elapsed())
    }
}
