//! A batch's life: who may work on it, and whether anything is left to do.
//!
//! ```text
//!            lease                     last device settled
//!   Open ───────────▶ Open, leased ─────────────────────────▶ Done
//!    ▲                    │  │  ▲                               │
//!    │   release, lapse   │  └──┘ record (renews),              │
//!    ├────────────────────┘       take over (next epoch)        │
//!    └──────────────────────────────────────────────────────────┘
//!        reopened, for a new attempt at some of its devices
//! ```
//!
//! Whether a batch is done is not stored: it follows from its outcomes, so the two cannot differ.

use std::time::Duration;

use crate::ids::{Attempt, BatchId, Epoch, Holder, RolloutName, Version};
use crate::outcome::{Counts, Outcome};
use crate::plan::BatchHeader;
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
    /// Which claim it is; the store refuses writes under an older one.
    pub epoch: Epoch,
}

/// Who holds a batch, as the store keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenancy {
    epoch: Epoch,
    current: Option<(Holder, Timestamp)>,
    strikes: u32,
    /// The rollout's version in which the strikes were counted.
    counted_in: Version,
}

/// A batch that was left by this many holders in a row without a word and without one outcome
/// recorded is suspected of bringing them down, and is left alone. The count begins anew when
/// the rollout's record changes: somebody has looked, and lets it go on.
pub const MAX_STRIKES: u32 = 5;

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
    /// The epoch that the store has seen.
    pub current: Epoch,
}

/// Why a lease was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseRefused {
    /// Another one has it.
    Held(Held),
    /// It has [`MAX_STRIKES`].
    Quarantined,
}

impl Tenancy {
    /// Gives `holder` the lease `next` until `ttl` from now. Whoever holds it already may ask
    /// again (its answer was lost), and gets a new lease. `next` must be an epoch that was never
    /// given; `version` is that of the rollout's record.
    ///
    /// # Errors
    /// [`LeaseRefused`]; then nothing changed but the count of strikes.
    pub fn lease(
        &mut self,
        holder: &Holder,
        next: Epoch,
        version: Version,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<(), LeaseRefused> {
        let left = match &self.current {
            Some((by, until)) if *until > now && by != holder => {
                return Err(LeaseRefused::Held(Held {
                    by: by.clone(),
                    until: *until,
                }));
            }
            Some((by, _)) => by != holder,
            None => false,
        };
        if version != self.counted_in {
            (self.counted_in, self.strikes) = (version, 0);
        } else if left {
            self.strikes += 1;
        }
        if self.strikes >= MAX_STRIKES {
            self.current = None;
            return Err(LeaseRefused::Quarantined);
        }
        self.epoch = next;
        self.current = Some((holder.clone(), now.plus(ttl)));
        Ok(())
    }

    /// Makes sure that `epoch` is the newest, and renews its lease until `ttl` from now.
    /// `progress` says that outcomes are recorded with it, which is what acquits a batch.
    ///
    /// A lease that lapsed but was taken by nobody is still good: nobody else has written.
    ///
    /// # Errors
    /// [`Fenced`] when a newer lease was given, or this one was released.
    pub fn renew(
        &mut self,
        epoch: Epoch,
        progress: bool,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<(), Fenced> {
        match &mut self.current {
            Some((_, until)) if epoch == self.epoch => {
                *until = now.plus(ttl);
                if progress {
                    self.strikes = 0;
                }
                Ok(())
            }
            _ => Err(Fenced {
                held: epoch,
                current: self.epoch,
            }),
        }
    }

    /// Whether a write under `epoch` is the newest holder's.
    #[must_use]
    pub fn holds(&self, epoch: Epoch) -> bool {
        self.current.is_some() && epoch == self.epoch
    }

    /// Gives the lease back; does nothing if it is no longer held.
    pub fn release(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            self.current = None;
            self.strikes = 0;
        }
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

/// The attempts at a batch's devices, as far as they are told apart: by batch and not by device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The one that is made at all of its devices that are pending.
    pub newest: Attempt,
    /// The newest that was made at its silent devices too: since then, no message of an older one
    /// is the last that its device was sent, unless it failed for good and was left at that.
    pub silent: Attempt,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            newest: Attempt::FIRST,
            silent: Attempt::FIRST,
        }
    }
}

impl Attempts {
    /// Devices with one of these outcomes are made pending again, as `attempt`.
    pub fn reopen(&mut self, attempt: Attempt, outcomes: &[Outcome]) {
        self.newest = attempt;
        if outcomes.contains(&Outcome::Enqueued) {
            self.silent = attempt;
        }
    }

    /// Whether `report`, which is about a message of attempt `of`, is to be merged into the outcome of
    /// a device that is `known`.
    ///
    /// What is told of the newest attempt always is, and that a device has the message always is,
    /// whichever attempt brought it. A failure of an older attempt counts only for a device whose
    /// message that still is. One that is not yet sent to again is not `enqueued` (nor anything
    /// above). One that is may have been chosen for the new attempt only if the silent ones were,
    /// and then all of them were: failed ones have had all the feedback that they get.
    #[must_use]
    pub fn admits(&self, of: Attempt, known: Outcome, report: Outcome) -> bool {
        of >= self.newest
            || report >= Outcome::Delivered
            || (of >= self.silent && known.was_enqueued())
    }
}

/// What became of the wish to reopen a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reopened {
    /// So many devices are pending again; none, if the batch had been reopened for this attempt, or a
    /// newer one, before.
    Devices(u32),
    /// Somebody still works on the batch; nothing was changed.
    Held(Held),
}

/// A batch as the store shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchStatus {
    /// What it is.
    pub header: BatchHeader,
    /// Its outcomes, counted.
    pub counts: Counts,
    /// Who works on it.
    pub held: Option<Held>,
    /// Nobody holds it now, but somebody did who has not let go of it.
    pub lapsed: bool,
    /// Nobody is to work on it: see [`MAX_STRIKES`].
    pub quarantined: bool,
    /// Its budgets count it already, so it is always given again. `false` without budgets.
    pub begun: bool,
}

impl BatchStatus {
    /// Nothing is owed to any of its devices.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.counts.unsettled() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder::new(name).unwrap()
    }

    const TTL: Duration = Duration::from_secs(10);
    const V: Version = Version(1);

    fn until(by: &str, until: u64) -> LeaseRefused {
        LeaseRefused::Held(Held {
            by: holder(by),
            until: Timestamp(until),
        })
    }

    #[test]
    fn one_holder_at_a_time_and_old_ones_are_fenced() {
        let (a, b) = (holder("a"), holder("b"));
        let (first, second) = (Epoch(7), Epoch(8));
        let mut tenancy = Tenancy::default();
        assert_eq!(tenancy.lease(&a, first, V, Timestamp(0), TTL), Ok(()));
        assert_eq!(
            tenancy.lease(&b, second, V, Timestamp(9_999), TTL),
            Err(until("a", 10_000))
        );
        assert_eq!(tenancy.renew(first, false, Timestamp(5_000), TTL), Ok(()));
        assert_eq!(
            tenancy.lease(&b, second, V, Timestamp(10_000), TTL),
            Err(until("a", 15_000)),
            "it was renewed"
        );
        assert_eq!(tenancy.lease(&b, second, V, Timestamp(15_000), TTL), Ok(()));
        assert_eq!(
            tenancy.renew(first, false, Timestamp(15_001), TTL),
            Err(Fenced {
                held: first,
                current: second
            })
        );
        tenancy.release(first);
        assert!(
            tenancy.held_at(Timestamp(15_001)).is_some(),
            "an old holder cannot release a new one's lease"
        );
        assert_eq!(
            tenancy.lease(&b, Epoch(9), V, Timestamp(15_002), TTL),
            Ok(()),
            "its answer was lost"
        );
        assert!(
            tenancy
                .renew(second, false, Timestamp(15_003), TTL)
                .is_err()
        );
        tenancy.release(Epoch(9));
        assert_eq!(tenancy.held_at(Timestamp(15_004)), None);
        assert!(
            tenancy
                .renew(Epoch(9), false, Timestamp(15_004), TTL)
                .is_err(),
            "a released lease is gone"
        );
    }

    #[test]
    fn a_lapsed_lease_that_nobody_took_still_holds() {
        let mut tenancy = Tenancy::default();
        let leased = tenancy.lease(&holder("a"), Epoch(1), V, Timestamp(0), TTL);
        assert_eq!(leased, Ok(()));
        assert_eq!(tenancy.held_at(Timestamp(60_000)), None);
        assert_eq!(
            tenancy.renew(Epoch(1), false, Timestamp(60_000), TTL),
            Ok(())
        );
    }

    #[test]
    fn a_batch_that_is_taken_away_is_nobodys() {
        let mut tenancy = Tenancy::default();
        let leased = tenancy.lease(&holder("a"), Epoch(1), V, Timestamp(0), TTL);
        assert_eq!(leased, Ok(()));
        tenancy.vacate();
        assert_eq!(tenancy.held_at(Timestamp(1)), None);
        assert!(!tenancy.holds(Epoch(1)) && !tenancy.has_lapsed_at(Timestamp(60_000)));
        assert!(tenancy.renew(Epoch(1), true, Timestamp(1), TTL).is_err());
        let leased = tenancy.lease(&holder("b"), Epoch(2), V, Timestamp(1), TTL);
        assert_eq!(leased, Ok(()));
    }

    #[test]
    fn feedback_counts_for_the_message_that_it_is_about() {
        use Outcome as O;
        let (first, second, third) = (Attempt(1), Attempt(2), Attempt(3));
        let mut attempts = Attempts::default();
        assert!(
            attempts.admits(first, O::Pending, O::Expired),
            "it overtook the send's record"
        );

        attempts.reopen(second, &[O::Rejected, O::NotFound]);
        assert!(attempts.admits(second, O::Pending, O::Expired));
        assert!(
            !attempts.admits(first, O::Pending, O::Rejected),
            "it is to be sent to again"
        );
        assert!(
            attempts.admits(first, O::Pending, O::Delivered),
            "it has the message after all"
        );
        assert!(
            attempts.admits(first, O::Enqueued, O::Expired),
            "it was not chosen"
        );
        assert!(attempts.admits(first, O::Expired, O::Purged));

        attempts.reopen(third, &[O::Enqueued]);
        assert!(
            !attempts.admits(second, O::Enqueued, O::Expired),
            "another message replaced that"
        );
        assert!(attempts.admits(first, O::Enqueued, O::Delivered));
        assert!(attempts.admits(third, O::Enqueued, O::Expired));
    }

    /// Leases the batch to `count` holders who each vanish.
    fn vanish(tenancy: &mut Tenancy, from: u64, count: u64) -> Result<(), LeaseRefused> {
        for n in from..from + count {
            let by = holder(&format!("w{n}"));
            tenancy.lease(&by, Epoch(n), V, Timestamp(n * 60_000), TTL)?;
        }
        Ok(())
    }

    #[test]
    fn a_batch_that_brings_down_its_holders_is_left_alone() {
        let mut tenancy = Tenancy::default();
        assert_eq!(vanish(&mut tenancy, 1, 5), Ok(()));
        assert!(!tenancy.is_quarantined(V));
        assert_eq!(vanish(&mut tenancy, 6, 1), Err(LeaseRefused::Quarantined));
        assert!(tenancy.is_quarantined(V));
        assert_eq!(vanish(&mut tenancy, 7, 1), Err(LeaseRefused::Quarantined));

        let later = Version(2);
        assert!(!tenancy.is_quarantined(later), "somebody has looked");
        let leased = tenancy.lease(&holder("x"), Epoch(9), later, Timestamp(900_000), TTL);
        assert_eq!(leased, Ok(()));
    }

    #[test]
    fn a_word_or_an_outcome_acquits_it() {
        let mut tenancy = Tenancy::default();
        assert_eq!(vanish(&mut tenancy, 1, 5), Ok(()));
        let now = Timestamp(5 * 60_000);
        assert_eq!(tenancy.renew(Epoch(5), true, now, TTL), Ok(()));
        assert_eq!(vanish(&mut tenancy, 6, 4), Ok(()));
        tenancy.release(Epoch(9));
        assert_eq!(vanish(&mut tenancy, 10, 5), Ok(()));
    }
}
