//! Leases: the right of a worker to work on a batch.

use std::time::Duration;

use crate::ids::{BatchId, Epoch, Holder, RolloutName, Version};
use crate::time::Timestamp;

/// A holder's claim on a batch. Every write to the batch carries the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// The holder of the lease.
    pub holder: Holder,
    /// The fencing token; a write with an older epoch is refused.
    pub epoch: Epoch,
}

impl std::fmt::Display for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the lease on batch {} of rollout {}",
            self.batch, self.rollout
        )
    }
}

/// A request for the lease on a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// The requesting worker.
    pub holder: Holder,
    /// The duration of the lease, unless renewed.
    pub ttl: Duration,
}

/// The reply to a lease request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseReply {
    /// The lease is granted.
    Granted(Lease),
    /// Another worker holds the batch.
    Held(Held),
    /// Nothing is left to do on the batch.
    Done,
    /// The rollout does not allow work on the batch now, or on any batch.
    NotWanted,
    /// The batch has so many failed leases ([`MAX_FAILED_LEASES`]) that no worker may touch the
    /// batch until an operator has intervened.
    Quarantined,
}

/// The current holder of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The holder.
    pub by: Holder,
    /// The end of the lease, unless renewed.
    pub until: Timestamp,
}

/// A lease that no longer holds: another worker holds the batch, or held it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of epoch {held} was superseded, the batch is at epoch {current}")]
pub struct Fenced {
    /// The epoch of the refused write.
    pub held: Epoch,
    /// The batch's epoch.
    pub current: Epoch,
}

/// The number of consecutive failed leases that quarantines a batch, because the batch may crash
/// its holders. A lease fails when it lapses without a release; recorded outcomes reset the count.
/// The count also restarts when the rollout's record changes: an operator has intervened.
pub const MAX_FAILED_LEASES: u32 = 5;

/// The stored lease state of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseState {
    /// The epoch of the newest lease.
    pub epoch: Epoch,
    /// The holder and the end of the lease; `None` after a release or a revocation.
    pub current: Option<(Holder, Timestamp)>,
    /// The number of consecutive failed leases.
    pub failed_leases: u32,
    /// The version of the rollout's record to which `failed_leases` belongs.
    pub failed_in_version: Version,
}

impl LeaseState {
    /// Grants the lease until the request's `ttl` from `now`. The current holder may ask again,
    /// because a reply may be lost, and gets a new lease. `version` is the version of the rollout's
    /// record.
    ///
    /// Epochs follow the clock, so a store that lost its last writes never grants an epoch twice.
    ///
    /// # Example
    /// ```
    /// # use std::time::Duration;
    /// use twincast_core::batch::{Fenced, LeaseReply, LeaseRequest, LeaseState};
    /// # use twincast_core::ids::{BatchId, Epoch, Holder, RolloutName, Version};
    /// # use twincast_core::time::Timestamp;
    ///
    /// let ttl = Duration::from_secs(10);
    /// let request = |holder: &str| LeaseRequest {
    ///     rollout: RolloutName::new("firmware-1.4.2").unwrap(),
    ///     batch: BatchId(0),
    ///     holder: Holder::new(holder).unwrap(),
    ///     ttl,
    /// };
    /// let mut state = LeaseState::default();
    /// let granted = state.lease(&request("worker-1"), Version(1), Timestamp(1_000));
    /// let LeaseReply::Granted(lease) = granted else { panic!("{granted:?}") };
    /// // The lease lapses, and another worker takes the batch.
    /// _ = state.lease(&request("worker-2"), Version(1), Timestamp(12_000));
    /// let renewed = state.renew(&lease, true, Timestamp(12_500), ttl);
    /// let fenced = Fenced { held: Epoch(1_000), current: Epoch(12_000) };
    /// assert_eq!(renewed, Err(fenced));
    /// ```
    pub fn lease(
        &mut self,
        request: &LeaseRequest,
        version: Version,
        now: Timestamp,
    ) -> LeaseReply {
        let is_left = match &self.current {
            Some((by, until)) if *until > now && *by != request.holder => {
                return LeaseReply::Held(Held {
                    by: by.clone(),
                    until: *until,
                });
            }
            Some((by, _)) => *by != request.holder,
            None => false,
        };
        if version != self.failed_in_version {
            (self.failed_in_version, self.failed_leases) = (version, 0);
        } else if is_left {
            self.failed_leases += 1;
        }
        if self.failed_leases >= MAX_FAILED_LEASES {
            self.current = None;
            return LeaseReply::Quarantined;
        }
        self.epoch = Epoch(now.0.max(self.epoch.0 + 1));
        self.current = Some((request.holder.clone(), now.plus(request.ttl)));
        LeaseReply::Granted(Lease {
            rollout: request.rollout.clone(),
            batch: request.batch,
            holder: request.holder.clone(),
            epoch: self.epoch,
        })
    }

    /// Checks that `lease` is the newest lease, and renews it until `ttl` from `now`. `progress`
    /// says whether outcomes are recorded in the same step; progress resets the count of failed
    /// leases.
    ///
    /// # Errors
    /// [`Fenced`] when a newer lease was granted, or this lease was released.
    pub fn renew(
        &mut self,
        lease: &Lease,
        progress: bool,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<(), Fenced> {
        match &mut self.current {
            Some((by, until)) if lease.epoch == self.epoch && lease.holder == *by => {
                *until = now.plus(ttl);
                if progress {
                    self.failed_leases = 0;
                }
                Ok(())
            }
            _ => Err(Fenced {
                held: lease.epoch,
                current: self.epoch,
            }),
        }
    }

    /// Releases the lease. A repeated release changes nothing.
    ///
    /// # Errors
    /// [`Fenced`] when the lease is not the newest.
    pub fn release(&mut self, lease: &Lease) -> Result<(), Fenced> {
        let is_others = |(by, _): &(Holder, Timestamp)| *by != lease.holder;
        if lease.epoch != self.epoch || self.current.as_ref().is_some_and(is_others) {
            return Err(Fenced {
                held: lease.epoch,
                current: self.epoch,
            });
        }
        self.revoke();
        Ok(())
    }

    /// Revokes the lease: nothing is recorded any more under any lease granted so far. The count of
    /// failed leases restarts.
    pub fn revoke(&mut self) {
        self.current = None;
        self.failed_leases = 0;
    }

    /// Returns the holder of the batch at `now`.
    #[must_use]
    pub fn held_at(&self, now: Timestamp) -> Option<Held> {
        let (by, until) = self.current.as_ref().filter(|(_, until)| *until > now)?;
        Some(Held {
            by: by.clone(),
            until: *until,
        })
    }

    /// Returns whether the lease has lapsed without a release.
    #[must_use]
    pub fn has_lapsed_at(&self, now: Timestamp) -> bool {
        self.current
            .as_ref()
            .is_some_and(|(_, until)| *until <= now)
    }

    /// Returns whether the batch is quarantined while the rollout's record has this version.
    #[must_use]
    pub fn is_quarantined(&self, version: Version) -> bool {
        self.failed_leases >= MAX_FAILED_LEASES && self.failed_in_version == version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const V: Version = Version(1);

    fn request(by: &str) -> LeaseRequest {
        LeaseRequest {
            rollout: RolloutName::new("r").unwrap(),
            batch: BatchId(0),
            holder: Holder::new(by).unwrap(),
            ttl: TTL,
        }
    }

    /// Requests the batch; returns the lease, or the refusal.
    fn ask(lease_state: &mut LeaseState, by: &str, now: u64) -> Result<Lease, LeaseReply> {
        match lease_state.lease(&request(by), V, Timestamp(now)) {
            LeaseReply::Granted(lease) => Ok(lease),
            other => Err(other),
        }
    }

    fn held(by: &str, until: u64) -> LeaseReply {
        LeaseReply::Held(Held {
            by: Holder::new(by).unwrap(),
            until: Timestamp(until),
        })
    }

    #[test]
    fn lease_has_single_holder_and_fences_old_holders() {
        let mut lease_state = LeaseState::default();
        let first = ask(&mut lease_state, "a", 0).unwrap();
        assert_eq!(ask(&mut lease_state, "b", 9_999), Err(held("a", 10_000)));
        assert_eq!(
            lease_state.renew(&first, false, Timestamp(5_000), TTL),
            Ok(())
        );
        let renewed = ask(&mut lease_state, "b", 10_000);
        assert_eq!(renewed, Err(held("a", 15_000)), "the lease is renewed");
        let second = ask(&mut lease_state, "b", 15_000).unwrap();
        assert_eq!(
            lease_state.renew(&first, false, Timestamp(15_001), TTL),
            Err(Fenced {
                held: first.epoch,
                current: second.epoch
            })
        );
        assert!(lease_state.release(&first).is_err());
        assert!(
            lease_state.held_at(Timestamp(15_001)).is_some(),
            "a former holder cannot release a newer lease"
        );
        let again = ask(&mut lease_state, "b", 15_002).expect("the holder may lease again");
        let late = lease_state.renew(&second, false, Timestamp(15_003), TTL);
        assert!(late.is_err());
        lease_state.release(&again).unwrap();
        assert_eq!(lease_state.held_at(Timestamp(15_004)), None);
        let late = lease_state.renew(&again, false, Timestamp(15_004), TTL);
        assert!(late.is_err(), "a released lease cannot be renewed");
    }

    /// Covers several leases in one millisecond, and a clock set back.
    #[test]
    fn epochs_only_rise_and_follow_the_clock() {
        let mut lease_state = LeaseState::default();
        let mut last = Epoch(0);
        for now in [7, 7, 3, 1_000] {
            let epoch = ask(&mut lease_state, "a", now).unwrap().epoch;
            assert!(epoch > last && epoch.0 >= now, "{epoch} at {now}");
            last = epoch;
        }
    }

    #[test]
    fn lapsed_lease_can_be_renewed_until_regranted() {
        let mut lease_state = LeaseState::default();
        let lease = ask(&mut lease_state, "a", 0).unwrap();
        assert_eq!(lease_state.held_at(Timestamp(60_000)), None);
        assert_eq!(
            lease_state.renew(&lease, false, Timestamp(60_000), TTL),
            Ok(())
        );
    }

    #[test]
    fn revoked_lease_has_no_holder() {
        let mut lease_state = LeaseState::default();
        let lease = ask(&mut lease_state, "a", 0).unwrap();
        lease_state.revoke();
        assert_eq!(lease_state.held_at(Timestamp(1)), None);
        assert!(!lease_state.has_lapsed_at(Timestamp(60_000)));
        assert!(lease_state.renew(&lease, true, Timestamp(1), TTL).is_err());
        assert!(ask(&mut lease_state, "b", 1).is_ok());
    }

    /// Leases the batch to `count` holders in turn, each of which vanishes; returns the last lease.
    fn vanish(lease_state: &mut LeaseState, from: u64, count: u64) -> Result<Lease, LeaseReply> {
        let mut last = None;
        for n in from..from + count {
            last = Some(ask(lease_state, &format!("w{n}"), n * 60_000)?);
        }
        Ok(last.expect("at least one holder"))
    }

    #[test]
    fn batch_is_quarantined_after_repeated_lapsed_leases() {
        let mut lease_state = LeaseState::default();
        assert!(vanish(&mut lease_state, 1, 5).is_ok());
        assert!(!lease_state.is_quarantined(V));
        for n in [6, 7] {
            assert_eq!(vanish(&mut lease_state, n, 1), Err(LeaseReply::Quarantined));
            assert!(lease_state.is_quarantined(V));
        }
        let later = Version(2);
        assert!(!lease_state.is_quarantined(later), "quarantine is lifted");
        let given = lease_state.lease(&request("x"), later, Timestamp(900_000));
        assert!(matches!(given, LeaseReply::Granted(_)));
    }

    #[test]
    fn a_release_or_an_outcome_resets_the_count() {
        let mut lease_state = LeaseState::default();
        let last = vanish(&mut lease_state, 1, 5).unwrap();
        let now = Timestamp(5 * 60_000);
        assert_eq!(lease_state.renew(&last, true, now, TTL), Ok(()));
        let last = vanish(&mut lease_state, 6, 4).unwrap();
        lease_state.release(&last).unwrap();
        assert!(vanish(&mut lease_state, 10, 5).is_ok());
    }
}
