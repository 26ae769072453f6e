//! The configuration of a driver.

use std::time::Duration;

use twincast_core::evidence::MAX_PASS_GAP;

/// The configuration of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverConfig {
    /// The number of batches of a rollout on each hub's queue or at work, per consumer of the
    /// queue. [`ahead`](DriverConfig::ahead) comes on top.
    pub per_consumer: usize,
    /// The number of batches on each hub's queue or at work beyond
    /// [`per_consumer`](DriverConfig::per_consumer). An earlier rollout must not fill the workers
    /// before later rollouts, and yet no worker may run idle.
    pub ahead: usize,
    /// The interval between two passes while batches are being released.
    pub pass: Duration,
    /// The longest interval between two passes without anything to release while sends are pending.
    pub longest_pass: Duration,
    /// The longest interval between two passes when no sends are pending and nothing has changed
    /// for long. Must be below [`MAX_PASS_GAP`], with room for the calls of a pass; otherwise no
    /// bake would end.
    pub idle_pass: Duration,
    /// The time after which a released batch without a worker is released again if the queue is
    /// empty, so that the dispatch must be lost.
    pub redispatch_if_queue_empty_after: Duration,
    /// The time after which a released batch without a worker is released again, whatever is on the
    /// queue.
    pub redispatch_after: Duration,
    /// Driving ends when a stage waits for an approval, or the rollout for another rollout of its
    /// concurrency group. While this process holds the store, no other process can approve or
    /// drive.
    pub stop_at_approval: bool,
    /// Driving ends when only device answers are missing.
    pub stop_when_sent: bool,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            per_consumer: 2,
            ahead: 4,
            pass: Duration::from_millis(100),
            longest_pass: Duration::from_secs(1),
            idle_pass: MAX_PASS_GAP * 4 / 5,
            redispatch_if_queue_empty_after: Duration::from_secs(2),
            redispatch_after: Duration::from_secs(60),
            stop_at_approval: false,
            stop_when_sent: false,
        }
    }
}
