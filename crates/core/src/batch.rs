//! A batch's life: who may work on it, and whether anything is left to do.
//!
//! ```text
//!            lease                     last device settled
//!   Open ───────────▶ Open, leased ─────────────────────────▶ Done
//!    ▲                    │  │  ▲
//!    │   release, lapse   │  └──┘ record (renews), take over (next epoch)
//!    └────────────────────┘
//! ```
//!
//! Whether a batch is done is not stored: it follows from its outcomes, so the two cannot differ.

use std::time::Duration;

use crate::ids::{BatchId, Epoch, Holder, RolloutName};
use crate::outcome::Counts;
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
    /// The epoch that the store has seen.
    pub current: Epoch,
}

impl Tenancy {
    /// Gives `holder` the lease until `ttl` from now. With `takeover` a lease that has not lapsed
    /// is taken too: for a caller who knows that its holder is gone.
    ///
    /// # Errors
    /// [`Held`] when another one has it.
    pub fn lease(
        &mut self,
        holder: &Holder,
        now: Timestamp,
        ttl: Duration,
        takeover: bool,
    ) -> Result<Epoch, Held> {
        if let Some((by, until)) = &self.current
            && *until > now
            && by != holder
            && !takeover
        {
            return Err(Held {
                by: by.clone(),
                until: *until,
            });
        }
        self.epoch.0 += 1;
        self.current = Some((holder.clone(), now.plus(ttl)));
        Ok(self.epoch)
    }

    /// Makes sure that `epoch` is the newest, and renews its lease until `ttl` from now.
    ///
    /// A lease that lapsed but was taken by nobody is still good: nobody else has written.
    ///
    /// # Errors
    /// [`Fenced`] when a newer lease was given, or this one was released.
    pub fn renew(&mut self, epoch: Epoch, now: Timestamp, ttl: Duration) -> Result<(), Fenced> {
        match &mut self.current {
            Some((_, until)) if epoch == self.epoch => {
                *until = now.plus(ttl);
                Ok(())
            }
            _ => Err(Fenced {
                held: epoch,
                current: self.epoch,
            }),
        }
    }

    /// Gives the lease back; does nothing if it is no longer held.
    pub fn release(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            self.current = None;
        }
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

    #[test]
    fn one_holder_at_a_time_and_old_ones_are_fenced() {
        let (a, b) = (holder("a"), holder("b"));
        let ttl = Duration::from_secs(10);
        let mut tenancy = Tenancy::default();
        let first = tenancy.lease(&a, Timestamp(0), ttl, false).unwrap();
        assert_eq!(
            tenancy.lease(&b, Timestamp(9_999), ttl, false),
            Err(Held {
                by: a.clone(),
                until: Timestamp(10_000)
            })
        );
        assert_eq!(tenancy.renew(first, Timestamp(5_000), ttl), Ok(()));
        assert!(
            tenancy.lease(&b, Timestamp(10_000), ttl, false).is_err(),
            "it was renewed"
        );
        let second = tenancy.lease(&b, Timestamp(15_000), ttl, false).unwrap();
        assert!(second > first);
        assert_eq!(
            tenancy.renew(first, Timestamp(15_001), ttl),
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
        let third = tenancy.lease(&a, Timestamp(15_002), ttl, true).unwrap();
        assert!(
            tenancy.renew(second, Timestamp(15_003), ttl).is_err(),
            "a takeover fences at once"
        );
        tenancy.release(third);
        assert_eq!(tenancy.held_at(Timestamp(15_004)), None);
        assert!(
            tenancy.renew(third, Timestamp(15_004), ttl).is_err(),
            "a released lease is gone"
        );
    }

    #[test]
    fn a_lapsed_lease_that_nobody_took_still_holds() {
        let mut tenancy = Tenancy::default();
        let epoch = tenancy
            .lease(&holder("a"), Timestamp(0), Duration::from_secs(1), false)
            .unwrap();
        assert_eq!(tenancy.held_at(Timestamp(60_000)), None);
        assert_eq!(
            tenancy.renew(epoch, Timestamp(60_000), Duration::from_secs(1)),
            Ok(())
        );
    }
}
