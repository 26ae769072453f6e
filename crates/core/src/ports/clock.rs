//! Time, as the store and the drivers see it.

use crate::time::Timestamp;

/// The time of day. Waiting is not here: that is the runtime's, whose timers tests can pause.
pub trait Clock: Send + Sync + 'static {
    /// Now. Never goes back while the process lives, and does not jump: leases and permits depend
    /// on it.
    fn now(&self) -> Timestamp;
}
