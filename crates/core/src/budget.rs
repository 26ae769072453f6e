//! Budgets: how many devices of a site may be in progress at once.
//!
//! A device is *in progress* from the lease of its batch to a worker until the device has confirmed
//! the message, has failed, or was silent for too long.
//!
//! Devices are counted by batch, at the lease. The store leases a batch only if all of its budget
//! groups have room for the whole batch; the check and the lease are one step. From then on the
//! budgets count the batch:
//!
//! ```text
//!   leased ──▶ unsent and silent devices
//!               │  (a crash changes nothing: the next worker gets the batch)
//!               ▼
//!   all sent ─▶ silent devices, until the limit for silence after the last send
//! ```
//!
//! So neither a stale dispatch nor a second driver can break a budget. A counted batch is always
//! leased again, so a group filled by such batches empties. A batch is never larger than the limits
//! of its groups ([`BatchSizes`](crate::plan::BatchSizes)), so an empty group has room for any
//! batch: no batch waits for ever.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::BatchId;
use crate::outcome::{Counts, Outcome};
use crate::time::Timestamp;

/// A budget group: devices with a limit on how many are in progress. Part of a batch's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetGroup {
    /// The tag and the value shared by the devices: `site=4711`. Devices without the tag are in no
    /// group.
    pub group: String,
    /// The limit.
    pub limit: Limit,
    /// How long silent devices count after the last send of their batch, in milliseconds.
    pub silent_ms: u64,
}

/// The limit on the devices of a group in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// A number of devices.
    Devices(u32),
    /// Millionths of the group's devices, rounded down, and at least one device.
    Millionths(u32),
}

impl Limit {
    /// Returns the limit of a group with `devices` devices; at least one.
    #[must_use]
    pub fn of(self, devices: u64) -> u64 {
        let allowed = match self {
            Self::Devices(devices) => u64::from(devices),
            Self::Millionths(part) => {
                let part = u128::from(devices) * u128::from(part) / 1_000_000;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        };
        allowed.max(1)
    }
}

/// The budget usage of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetUsage {
    /// Whether the batch was leased and still has unsent devices.
    pub is_open: bool,
    /// When a worker last recorded outcomes of the batch; 0 before.
    pub recorded_at: Timestamp,
}

impl BudgetUsage {
    /// Notes a lease of the batch.
    pub fn on_lease(&mut self) {
        self.is_open = true;
    }

    /// Notes a record of the holder, with the outcomes after it.
    pub fn on_record(&mut self, counts: &Counts, now: Timestamp) {
        self.recorded_at = now;
        self.on_change(counts);
    }

    /// Notes the current outcomes.
    pub fn on_change(&mut self, counts: &Counts) {
        if counts.unsettled() == 0 {
            self.is_open = false;
        }
    }

    /// Returns the number of the batch's devices in progress at `now`.
    #[must_use]
    pub fn in_progress(self, counts: &Counts, silent_ms: u64, now: Timestamp) -> u64 {
        let unsent = if self.is_open { counts.unsettled() } else { 0 };
        let is_given_up = now >= self.recorded_at.plus(Duration::from_millis(silent_ms));
        let silent = if is_given_up {
            0
        } else {
            counts.get(Outcome::Enqueued)
        };
        unsent + silent
    }
}

/// The progress of a budget group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// The number of the group's devices, in all stages and on all hubs.
    pub devices: u64,
    /// The number of these devices in progress.
    pub in_progress: u64,
    /// Counted batches without devices in progress; they need not be counted again.
    pub finished: Vec<BatchId>,
}

impl GroupProgress {
    /// Returns the progress of a group with `devices` devices at `now`, from the batches counted by
    /// the group's budget.
    ///
    /// # Example
    /// ```
    /// use twincast_core::budget::{BudgetUsage, GroupProgress, Limit};
    /// use twincast_core::ids::BatchId;
    /// use twincast_core::outcome::Counts;
    /// use twincast_core::time::Timestamp;
    ///
    /// // A group of 20 devices. A worker has leased a batch with 3 of the devices.
    /// let mut usage = BudgetUsage::default();
    /// usage.on_lease();
    /// let batch = (BatchId(0), usage, Counts::pending(3));
    /// let progress = GroupProgress::of(20, [batch], 60_000, Timestamp(1_000));
    /// assert_eq!(progress.in_progress, 3);
    /// assert_eq!(progress.room(Limit::Devices(5)), 2);
    /// assert_eq!(progress.room(Limit::Millionths(200_000)), 1);
    /// ```
    #[must_use]
    pub fn of(
        devices: u64,
        counted: impl IntoIterator<Item = (BatchId, BudgetUsage, Counts)>,
        silent_ms: u64,
        now: Timestamp,
    ) -> Self {
        let mut progress = Self {
            devices,
            in_progress: 0,
            finished: Vec::new(),
        };
        for (batch, usage, counts) in counted {
            match usage.in_progress(&counts, silent_ms, now) {
                0 => progress.finished.push(batch),
                own => progress.in_progress += own,
            }
        }
        progress
    }

    /// Returns how many more devices may be in progress under `limit`.
    #[must_use]
    pub fn room(&self, limit: Limit) -> u64 {
        limit.of(self.devices).saturating_sub(self.in_progress)
    }
}

/// A budget group without room for one of its batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullGroup {
    /// The tag and the value.
    pub group: String,
    /// The number of the group's devices in progress.
    pub in_progress: u64,
    /// The limit.
    pub at_most: u64,
}

impl fmt::Display for FullGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, many, most) = (&self.group, self.in_progress, self.at_most);
        write!(f, "{group} ({many} of {most} devices in progress)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rounded_down_and_at_least_one() {
        for (limit, devices, allowed) in [
            (Limit::Devices(3), 0, 3),
            (Limit::Devices(3), 2, 3),
            (Limit::Millionths(100_000), 0, 1),
            (Limit::Millionths(100_000), 1, 1),
            (Limit::Millionths(100_000), 9, 1),
            (Limit::Millionths(100_000), 19, 1),
            (Limit::Millionths(100_000), 20, 2),
            (Limit::Millionths(1_000_000), 7, 7),
            (Limit::Millionths(1), 10_000_000, 10),
        ] {
            assert_eq!(limit.of(devices), allowed, "{limit:?} of {devices}");
        }
    }

    fn counts(of: &[(Outcome, u64)]) -> Counts {
        let mut counts = Counts::pending(of.iter().map(|(_, n)| n).sum());
        for (outcome, n) in of {
            (0..*n).for_each(|_| counts.shift(Outcome::Pending, *outcome));
        }
        counts
    }

    #[test]
    fn devices_in_progress_are_counted() {
        use Outcome::{Attempting, Delivered, Enqueued, Expired, Pending, Unknown};
        let some = counts(&[
            (Pending, 1),
            (Attempting, 2),
            (Enqueued, 4),
            (Delivered, 8),
            (Expired, 16),
            (Unknown, 32),
        ]);
        let all_sent = counts(&[(Enqueued, 4), (Delivered, 8)]);
        let at = |now, usage: BudgetUsage, counts: &Counts| {
            usage.in_progress(counts, 1_000, Timestamp(now))
        };
        let untouched = BudgetUsage::default();
        assert_eq!(at(5_000, untouched, &some), 0, "the batch was never leased");
        let mut usage = untouched;
        usage.on_lease();
        let unsent = counts(&[(Pending, 9)]);
        assert_eq!(at(5_000, usage, &unsent), 9);
        usage.on_record(&some, Timestamp(5_000));
        assert_eq!(at(5_999, usage, &some), 1 + 2 + 4);
        assert_eq!(
            at(6_000, usage, &some),
            1 + 2,
            "unsent devices count indefinitely"
        );
        usage.on_record(&all_sent, Timestamp(7_000));
        assert_eq!(at(7_999, usage, &all_sent), 4);
        assert_eq!(at(8_000, usage, &all_sent), 0);
        // A retried batch counts like a batch without a lease.
        assert_eq!(at(9_000, usage, &some), 0);
    }
}
