//! How a driver works.

use std::time::Duration;

use twincast_core::evidence::DRIVEN;

/// How a driver works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverConfig {
    /// Batches of a rollout that are on each hub's queue or being worked on, at the most: so many
    /// for each consumer of the queue ...
    pub per_consumer: usize,
    /// ... and so many more. A rollout that came first must not fill the workers for those that
    /// come later, and yet no worker may wait for work.
    pub ahead: usize,
    /// How often it looks whether more can be released, while there is something to release.
    pub pass: Duration,
    /// How often it looks when there was nothing to do.
    pub longest_pass: Duration,
    /// How often it looks, at the least, when nothing is to be sent and nothing has changed for long. Below [`DRIVEN`], with
    /// room for the calls of a look: else no bake would end.
    pub idle_pass: Duration,
    /// When a batch is released again that was released, is worked on by nobody, and whose
    /// dispatch cannot be on the queue, because that is empty.
    pub lost_after: Duration,
    /// When a batch is released again that is worked on by nobody, whatever is on the queue.
    pub ring_again: Duration,
    /// Driving ends when a stage waits for an approval, or the rollout for another one of its group: while this process
    /// has the store, nobody can give the one or drive the other.
    pub leave_at_approval: bool,
    /// Driving ends when only answers of devices are missing.
    pub leave_when_sent: bool,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            per_consumer: 2,
            ahead: 4,
            pass: Duration::from_millis(100),
            longest_pass: Duration::from_secs(1),
            idle_pass: DRIVEN * 4 / 5,
            lost_after: Duration::from_secs(2),
            ring_again: Duration::from_secs(60),
            leave_at_approval: false,
            leave_when_sent: false,
        }
    }
}
