//! The machine's clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use twincast_core::ports::Clock;
use twincast_core::time::Timestamp;

/// The time of day at the start of the process, plus the elapsed time. Setting the machine's clock
/// does not affect leases and permits.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started_at: Timestamp,
    started: Instant,
}

impl SystemClock {
    /// Starts a clock at the machine's time of day.
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
