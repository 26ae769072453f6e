//! Who may work on a batch.

use std::time::Duration;

use crate::ids::{BatchId, Epoch, Holder, RolloutName, Version};
use crate::time::Timestamp;

/// A holder's claim on a batch. Every write to the batch carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// Whose claim it is.
    pub holder: Holder,
    /// Which claim it is; writes under an older one are refused.
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

/// A wish to work on a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The rollout.
    pub rollout: RolloutName,
    /// The batch.
    pub batch: BatchId,
    /// Who wants it.
    pub holder: Holder,
    /// For how long, unless renewed.
    pub ttl: Duration,
}

/// What became of the wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseReply {
    /// Here it is.
    Granted(Lease),
    /// Somebody has it.
    Held(Held),
    /// Nothing is left to do on the batch.
    Done,
    /// The rollout does not want the batch to be worked on now, or does not want any.
    NotWanted,
    /// It has brought down its holders so often ([`MAX_STRIKES`])
    /// that nobody is to touch it until somebody has looked.
    Quarantined,
}

/// Why a lease was not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Who holds it.
    pub by: Holder,
    /// Until when, unless it is renewed.
    pub until: Timestamp,
}

/// A lease that no longer holds: somebody else has the batch, or had it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of epoch {held} was superseded, the batch is at epoch {current}")]
pub struct Fenced {
    /// The epoch of the refused write.
    pub held: Epoch,
    /// The batch's epoch.
    pub current: Epoch,
}

/// A batch that was left by this many holders in a row without a word and without one outcome
/// recorded is suspected of bringing them down, and is left alone. The count begins anew when
/// the rollout's record changes: somebody has looked, and lets it go on.
pub const MAX_STRIKES: u32 = 5;

/// Who holds a batch, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenancy {
    /// The newest lease's.
    pub epoch: Epoch,
    /// Who holds it until when; `None` when the lease was given back or taken away.
    pub current: Option<(Holder, Timestamp)>,
    /// How many holders in a row have left it without a word.
    pub strikes: u32,
    /// The version of the rollout's record in which the strikes were counted.
    pub counted_in: Version,
}

impl Tenancy {
    /// Gives the lease until the request's `ttl` from `now`. Whoever holds it already may ask again (its answer was lost),
    /// and gets a new lease. `version` is that of the rollout's record.
    ///
    /// Epochs follow the clock, so none is given again by a store that lost its last writes.
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
        if version != self.counted_in {
            (self.counted_in, self.strikes) = (version, 0);
        } else if is_left {
            self.strikes += 1;
        }
        if self.strikes >= MAX_STRIKES {
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

    /// Makes sure that `lease` is the newest, and renews it until `ttl` from `now`.
    /// `progress` says that outcomes are recorded with it, which is what acquits a batch.
    ///
    /// # Errors
    /// [`Fenced`] when a newer lease was given, or this one was released.
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
                    self.strikes = 0;
                }
                Ok(())
            }
            _ => Err(Fenced {
                held: lease.epoch,
                current: self.epoch,
            }),
        }
    }

    /// Gives the lease back. Giving it back twice changes nothing.
    ///
    /// # Errors
    /// [`Fenced`] when it is not the newest.
    pub fn release(&mut self, lease: &Lease) -> Result<(), Fenced> {
        let is_others = |(by, _): &(Holder, Timestamp)| *by != lease.holder;
        if lease.epoch != self.epoch || self.current.as_ref().is_some_and(is_others) {
            return Err(Fenced {
                held: lease.epoch,
                current: self.epoch,
            });
        }
        self.vacate();
        Ok(())
    }

    /// Takes the batch from whoever had it last: nothing is recorded any more under a lease that was
    /// given so far. The count of strikes begins anew.
    pub fn vacate(&mut self) {
        self.current = None;
        self.strikes = 0;
    }

    /// Who holds the batch at `now`.
    #[must_use]
    pub fn held_at(&self, now: Timestamp) -> Option<Held> {
        let (by, until) = self.current.as_ref().filter(|(_, until)| *until > now)?;
        Some(Held {
            by: by.clone(),
            until: *until,
        })
    }

    /// Its lease is over, but was not given back.
    #[must_use]
    pub fn has_lapsed_at(&self, now: Timestamp) -> bool {
        self.current
            .as_ref()
            .is_some_and(|(_, until)| *until <= now)
    }

    /// Nobody is to touch the batch while the rollout's record has this version.
    #[must_use]
    pub fn is_quarantined(&self, version: Version) -> bool {
        self.strikes >= MAX_STRIKES && self.counted_in == version
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

    /// Asks for the batch; gives the lease, or why not.
    fn ask(tenancy: &mut Tenancy, by: &str, now: u64) -> Result<Lease, LeaseReply> {
        match tenancy.lease(&request(by), V, Timestamp(now)) {
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
    fn one_holder_at_a_time_and_old_ones_are_fenced() {
        let mut tenancy = Tenancy::default();
        let first = ask(&mut tenancy, "a", 0).unwrap();
        assert_eq!(ask(&mut tenancy, "b", 9_999), Err(held("a", 10_000)));
        assert_eq!(tenancy.renew(&first, false, Timestamp(5_000), TTL), Ok(()));
        let renewed = ask(&mut tenancy, "b", 10_000);
        assert_eq!(renewed, Err(held("a", 15_000)), "it was renewed");
        let second = ask(&mut tenancy, "b", 15_000).unwrap();
        assert_eq!(
            tenancy.renew(&first, false, Timestamp(15_001), TTL),
            Err(Fenced {
                held: first.epoch,
                current: second.epoch
            })
        );
        assert!(tenancy.release(&first).is_err());
        assert!(
            tenancy.held_at(Timestamp(15_001)).is_some(),
            "an old holder cannot release a new one's lease"
        );
        let again = ask(&mut tenancy, "b", 15_002).expect("its answer was lost");
        let late = tenancy.renew(&second, false, Timestamp(15_003), TTL);
        assert!(late.is_err());
        tenancy.release(&again).unwrap();
        assert_eq!(tenancy.held_at(Timestamp(15_004)), None);
        let late = tenancy.renew(&again, false, Timestamp(15_004), TTL);
        assert!(late.is_err(), "a released lease is gone");
    }

    /// Also when several are given in a millisecond, and when the clock goes back.
    #[test]
    fn epochs_only_rise_and_follow_the_clock() {
        let mut tenancy = Tenancy::default();
        let mut last = Epoch(0);
        for now in [7, 7, 3, 1_000] {
            let epoch = ask(&mut tenancy, "a", now).unwrap().epoch;
            assert!(epoch > last && epoch.0 >= now, "{epoch} at {now}");
            last = epoch;
        }
    }

    #[test]
    fn a_lapsed_lease_that_nobody_took_still_holds() {
        let mut tenancy = Tenancy::default();
        let lease = ask(&mut tenancy, "a", 0).unwrap();
        assert_eq!(tenancy.held_at(Timestamp(60_000)), None);
        assert_eq!(tenancy.renew(&lease, false, Timestamp(60_000), TTL), Ok(()));
    }

    #[test]
    fn a_batch_that_is_taken_away_is_nobodys() {
        let mut tenancy = Tenancy::default();
        let lease = ask(&mut tenancy, "a", 0).unwrap();
        tenancy.vacate();
        assert_eq!(tenancy.held_at(Timestamp(1)), None);
        assert!(!tenancy.has_lapsed_at(Timestamp(60_000)));
        assert!(tenancy.renew(&lease, true, Timestamp(1), TTL).is_err());
        assert!(ask(&mut tenancy, "b", 1).is_ok());
    }

    /// Gives the batch to `count` holders who each vanish; gives the last lease.
    fn vanish(tenancy: &mut Tenancy, from: u64, count: u64) -> Result<Lease, LeaseReply> {
        let mut last = None;
        for n in from..from + count {
            last = Some(ask(tenancy, &format!("w{n}"), n * 60_000)?);
        }
        Ok(last.expect("somebody"))
    }

    #[test]
    fn a_batch_that_brings_down_its_holders_is_left_alone() {
        let mut tenancy = Tenancy::default();
        assert!(vanish(&mut tenancy, 1, 5).is_ok());
        assert!(!tenancy.is_quarantined(V));
        for n in [6, 7] {
            assert_eq!(vanish(&mut tenancy, n, 1), Err(LeaseReply::Quarantined));
            assert!(tenancy.is_quarantined(V));
        }
        let later = Version(2);
        assert!(!tenancy.is_quarantined(later), "somebody has looked");
        let given = tenancy.lease(&request("x"), later, Timestamp(900_000));
        assert!(matches!(given, LeaseReply::Granted(_)));
    }

    #[test]
    fn a_word_or_an_outcome_acquits_it() {
        let mut tenancy = Tenancy::default();
        let last = vanish(&mut tenancy, 1, 5).unwrap();
        let now = Timestamp(5 * 60_000);
        assert_eq!(tenancy.renew(&last, true, now, TTL), Ok(()));
        let last = vanish(&mut tenancy, 6, 4).unwrap();
        tenancy.release(&last).unwrap();
        assert!(vanish(&mut tenancy, 10, 5).is_ok());
    }
}
