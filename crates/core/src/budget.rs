//! How many devices of a place may be in progress at once.
//!
//! A device is *in progress* from the moment on at which its batch is given to a worker until it has confirmed the
//! message, has failed, or has been silent for so long that it is given up on.
//!
//! It is counted by batch, and where batches are given: the store gives one only if all of its groups have room for
//! all of it, which is one step with the giving. From then on the batch is *begun*, and counts:
//!
//! ```text
//!   given ──▶ all that is to be sent to, and all that is silent
//!               │  (a crash changes nothing: it is given to the next worker)
//!               ▼
//!   all sent ─▶ what is silent, until so long after its last send
//! ```
//!
//! So it does not matter who rings for what: neither a stale dispatch nor two drivers can break a budget. What is
//! begun is always given again, so a group that is full because of it empties. A batch is never larger than what its
//! groups allow ([`BatchSizes`](crate::plan::BatchSizes)), so in an empty group any batch has room: nothing waits for ever.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::BatchId;
use crate::outcome::{Counts, Outcome};
use crate::time::Timestamp;

/// Devices of which only so many may be in progress: a part of a batch's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetGroup {
    /// The tag and the value that they share: `site=4711`. Devices without the tag are in no group.
    pub group: String,
    /// How many.
    pub limit: Limit,
    /// After so many milliseconds, from their batch's last send on, silent devices are given up on.
    pub silent_ms: u64,
}

/// How many devices of a group may be in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So many.
    Devices(u32),
    /// So many millionths of the group's devices, rounded down, and at least one.
    Millionths(u32),
}

impl Limit {
    /// How many of a group with `devices` devices; at least one.
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

/// What is known of a batch's part in budgets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// It was given to a worker, and something of it is still to be sent.
    pub is_open: bool,
    /// When something of it was last recorded as sent; 0 before.
    pub sent_at: Timestamp,
}

impl Begun {
    /// It was given to a worker.
    pub fn given(&mut self) {
        self.is_open = true;
    }

    /// A worker has recorded something, after which the outcomes are these.
    pub fn recorded(&mut self, counts: &Counts, now: Timestamp) {
        self.sent_at = now;
        self.settled(counts);
    }

    /// The outcomes are these.
    pub fn settled(&mut self, counts: &Counts) {
        if counts.unsettled() == 0 {
            self.is_open = false;
        }
    }

    /// How many of the batch's devices are in progress at `now`.
    #[must_use]
    pub fn in_progress(self, counts: &Counts, silent_ms: u64, now: Timestamp) -> u64 {
        let unsent = if self.is_open { counts.unsettled() } else { 0 };
        let is_given_up = now >= self.sent_at.plus(Duration::from_millis(silent_ms));
        let silent = if is_given_up {
            0
        } else {
            counts.get(Outcome::Enqueued)
        };
        unsent + silent
    }
}

/// A group as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// Its devices, in all stages and on all hubs.
    pub devices: u64,
    /// How many of them are in progress.
    pub in_progress: u64,
    /// Its begun batches that have no device in progress any more: they need not be counted again.
    pub over: Vec<BatchId>,
}

impl GroupProgress {
    /// A group of so many devices at `now`, from the batches that its budget counts.
    #[must_use]
    pub fn of(
        devices: u64,
        counted: impl IntoIterator<Item = (BatchId, Begun, Counts)>,
        silent_ms: u64,
        now: Timestamp,
    ) -> Self {
        let mut progress = Self {
            devices,
            in_progress: 0,
            over: Vec::new(),
        };
        for (batch, begun, counts) in counted {
            match begun.in_progress(&counts, silent_ms, now) {
                0 => progress.over.push(batch),
                own => progress.in_progress += own,
            }
        }
        progress
    }

    /// How many more may be, by `limit`.
    #[must_use]
    pub fn room(&self, limit: Limit) -> u64 {
        limit.of(self.devices).saturating_sub(self.in_progress)
    }
}

/// A group that has no room for a batch of its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullGroup {
    /// The tag and the value.
    pub group: String,
    /// How many of its devices are in progress.
    pub in_progress: u64,
    /// How many may be.
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
    fn what_is_in_progress() {
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
        let at =
            |now, begun: Begun, counts: &Counts| begun.in_progress(counts, 1_000, Timestamp(now));
        let untouched = Begun::default();
        assert_eq!(at(5_000, untouched, &some), 0, "nobody has had it");
        let mut begun = untouched;
        begun.given();
        let unsent = counts(&[(Pending, 9)]);
        assert_eq!(at(5_000, begun, &unsent), 9);
        begun.recorded(&some, Timestamp(5_000));
        assert_eq!(at(5_999, begun, &some), 1 + 2 + 4);
        assert_eq!(
            at(6_000, begun, &some),
            1 + 2,
            "what is to be sent never lapses"
        );
        begun.recorded(&all_sent, Timestamp(7_000));
        assert_eq!(at(7_999, begun, &all_sent), 4);
        assert_eq!(at(8_000, begun, &all_sent), 0);
        // Tried again, it is as one that nobody has had.
        assert_eq!(at(9_000, begun, &some), 0);
    }
}
