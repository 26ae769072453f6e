//! Time, as the store and the drivers see it.

use crate::time::Timestamp;

/// The time of day. Waiting is not here: that is the runtime's, whose timers tests can pause.
pub trait Clock: Send + Sync + 'static {
    /// Now. May jump; only leases, records and permits depend on it, and they tolerate that.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}
