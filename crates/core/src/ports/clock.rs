//! The time of day, for the store and the drivers.

use crate::time::Timestamp;

/// The time of day. Timers are not part of this port: they belong to the runtime, and tests can
/// pause the runtime's timers.
pub trait Clock: Send + Sync + 'static {
    /// Returns the current time. The time never goes back during the life of the process, and does
    /// not jump: leases and permits depend on it.
    fn now(&self) -> Timestamp;
}
