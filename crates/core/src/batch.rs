//! A batch: what is known of its devices, who works on it, and all that may happen to it.
//!
//! ```text
//!            lease                     last device settled
//!   Open ───────────▶ Open, leased ─────────────────────────▶ Done
//!    ▲                    │  │  ▲                               │
//!    │   release, lapse   │  └──┘ record (renews),              │
//!    ├────────────────────┘       lease by another, once lapsed │
//!    └──────────────────────────────────────────────────────────┘
//!        reopen, for a new attempt at some of its devices
//! ```
//!
//! [`Batch`] decides, without a clock and without a store: an operation changes a copy, and the store
//! [commits](crate::ports::Batches::commit) the copy if nobody else has changed the batch since it was read. So every
//! rule about a batch is written here, once, for all stores.
//!
//! Whether a batch is done is not stored: it follows from its outcomes, so the two cannot differ.

mod attempts;
mod giving;
mod lease;
mod status;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::budget::{Begun, GroupProgress};
use crate::ids::Attempt;
use crate::outcome::{Counts, Outcome, OutcomeList};
use crate::plan::BatchHeader;
use crate::rollout::{Adding, LookId, Stance, Wanted};
use crate::time::Timestamp;

pub use attempts::Attempts;
pub use giving::{groups_of, sort_out};
pub use lease::{Fenced, Held, Lease, LeaseReply, LeaseRequest, MAX_STRIKES, Tenancy};
pub use status::BatchStatus;

/// A batch with all that changes about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What it is. Never changes.
    pub header: BatchHeader,
    /// When the store took it in, by the store's clock.
    pub added_at: Timestamp,
    /// What is known of its devices, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The codes of devices whose outcome [has one](Outcome::has_code), by position.
    pub codes: BTreeMap<u32, u32>,
    /// Which attempts were made at its devices.
    pub attempts: Attempts,
    /// Who works on it.
    pub tenancy: Tenancy,
    /// Its part in its budgets; unused without budgets.
    pub begun: Begun,
}

/// A report on one device of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Its position in the manifest.
    pub index: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// Its code, if the outcome [has one](Outcome::has_code), else 0. The first that is recorded stands.
    pub code: u32,
}

/// What an operation depends on beside the batch.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The batch's rollout.
    pub rollout: &'a Stance,
    /// The groups of the batch's budgets, in the order of its header; none are needed once it is begun.
    pub budgets: &'a [GroupProgress],
    /// A crash of the store can undo neither the batch nor its plan any more.
    pub durable: bool,
    /// The store's time.
    pub now: Timestamp,
}

/// Why reports were not recorded. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The lease does not hold any more.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The batch has no device at this position.
    #[error("the batch has no device {0}")]
    NoDevice(u32),
}

/// Which devices of a batch will not be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// All that are left, for the rollout is being aborted: `pending` becomes `skipped`, `attempting` becomes `unknown`.
    Rest,
    /// Those that have left the target, as far as they are `pending`, which becomes `skipped`.
    Left {
        /// The look that has found it.
        look: LookId,
        /// Their positions in the manifest, ascending.
        devices: Vec<u32>,
    },
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

impl Batch {
    /// A new one: all of its devices are pending.
    #[must_use]
    pub fn new(header: BatchHeader, added_at: Timestamp) -> Self {
        Self {
            outcomes: OutcomeList::pending(header.devices as usize),
            header,
            added_at,
            codes: BTreeMap::new(),
            attempts: Attempts::default(),
            tenancy: Tenancy::default(),
            begun: Begun::default(),
        }
    }

    /// Its outcomes, counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.outcomes.counts()
    }

    /// Its budgets are to count it from the next lease on, so they must have room for it.
    #[must_use]
    pub fn needs_room(&self) -> bool {
        !self.header.budgets.is_empty() && !self.begun.is_open
    }

    /// Gives the batch to whoever asks for it, if the rollout wants it to be worked on now, and nobody else has it.
    ///
    /// Only a batch of the stages up to the rollout's current one is given, and only one that all of its budgets have room
    /// for: from then on they count it ([`budget`](crate::budget)).
    pub fn lease(&mut self, request: &LeaseRequest, around: &Surroundings<'_>) -> LeaseReply {
        let unsettled = self.counts().unsettled();
        if unsettled == 0 {
            return LeaseReply::Done;
        }
        let is_open = around.rollout.wanted == Wanted::GoOn && around.durable;
        let is_early = self.header.stage > around.rollout.stage;
        if !is_open || is_early || (self.needs_room() && !self.has_room(unsettled, around.budgets))
        {
            return LeaseReply::NotWanted;
        }
        let version = around.rollout.revision.version;
        let given = self.tenancy.lease(request, version, around.now);
        if !self.header.budgets.is_empty() && matches!(given, LeaseReply::Granted(_)) {
            self.begun.given();
        }
        given
    }

    fn has_room(&self, devices: u64, budgets: &[GroupProgress]) -> bool {
        let mut groups = self.header.budgets.iter().zip(budgets);
        groups.all(|(group, progress)| progress.room(group.limit) >= devices)
    }

    /// Merges what the holder of `lease` reports, and renews the lease until `ttl` from `now`. With no reports it is a
    /// heartbeat. A lease that lapsed and was taken by nobody still holds: nobody else has written.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn record(
        &mut self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(), Refused> {
        self.tenancy.renew(lease, !reports.is_empty(), now, ttl)?;
        let is_beyond = |report: &&Report| report.index >= self.header.devices;
        if let Some(beyond) = reports.iter().find(is_beyond) {
            return Err(Refused::NoDevice(beyond.index));
        }
        // Whoever holds the batch sends its newest attempt.
        self.merge(self.attempts.newest, reports);
        if !reports.is_empty() && !self.header.budgets.is_empty() {
            self.begun.recorded(&self.counts(), now);
        }
        Ok(())
    }

    /// Merges what others than the batch's holder have learned, the hub's feedback above all. `attempt` is that of the
    /// messages which the reports are about; those that say nothing of their device any more are passed over, see
    /// [`Attempts::admits`]. Those on devices that the batch does not have, of an older plan, are passed over, too; gives how
    /// many the others are. Idempotent: within an attempt outcomes only rise.
    pub fn merge(&mut self, attempt: Attempt, reports: &[Report]) -> usize {
        let is_there = |report: &&Report| report.index < self.header.devices;
        let reports: Vec<_> = reports.iter().filter(is_there).collect();
        for report in &reports {
            let known = self.outcomes.get(report.index as usize);
            if !self.attempts.admits(attempt, known, report.outcome) {
                continue;
            }
            let (was, merged) = self.outcomes.merge(report.index as usize, report.outcome);
            if was != merged {
                self.codes.remove(&report.index);
            }
            if merged.has_code() && report.outcome == merged && report.code != 0 {
                self.codes.entry(report.index).or_insert(report.code);
            }
        }
        self.begun.settled(&self.counts());
        reports.len()
    }

    /// Takes the batch back from the holder of `lease`. A word from the last holder acquits a batch that was taken from it
    /// because of its strikes, too.
    ///
    /// # Errors
    /// [`Refused::Fenced`].
    pub fn release(&mut self, lease: &Lease) -> Result<(), Refused> {
        Ok(self.tenancy.release(lease)?)
    }

    /// Settles devices that will not be sent to. Gives the holder if somebody works on the batch; then nothing is changed.
    pub fn skip(&mut self, which: &Skip, now: Timestamp) -> Option<Held> {
        let held = self.tenancy.held_at(now);
        if held.is_some() {
            return held;
        }
        for index in 0..self.header.devices {
            let known = self.outcomes.get(index as usize);
            if let Some(end) = which.end(index, known) {
                self.outcomes.merge(index as usize, end);
            }
        }
        self.begun.settled(&self.counts());
        None
    }

    /// Makes the devices pending again that have one of `outcomes` (of those that
    /// [can be retried](Outcome::can_be_retried)), as `attempt`, and forgets the hub's codes for them. Whoever had the
    /// batch last is fenced: what they have not recorded by now is about an older attempt. With no such device, and when it
    /// was reopened for this attempt or a newer one, nothing is changed.
    pub fn reopen(&mut self, attempt: Attempt, outcomes: &[Outcome], now: Timestamp) -> Reopened {
        if self.attempts.newest >= attempt {
            return Reopened::Devices(0);
        }
        if let Some(held) = self.tenancy.held_at(now) {
            return Reopened::Held(held);
        }
        let mut reopened = 0;
        let mut had_failed = false;
        for index in 0..self.header.devices {
            let known = self.outcomes.get(index as usize);
            if known.can_be_retried() && outcomes.contains(&known) {
                had_failed |= known == Outcome::Failed;
                self.outcomes.reopen(index as usize);
                self.codes.remove(&index);
                reopened += 1;
            }
        }
        if reopened > 0 {
            self.attempts.reopen(attempt, outcomes, had_failed);
            self.tenancy.vacate();
        }
        Reopened::Devices(reopened)
    }
}

impl Skip {
    /// What is to be recorded of the device at `index` whose outcome is `known`.
    #[must_use]
    pub fn end(&self, index: u32, known: Outcome) -> Option<Outcome> {
        match (self, known) {
            (Self::Rest, Outcome::Pending) => Some(Outcome::Skipped),
            (Self::Rest, Outcome::Attempting) => Some(Outcome::Unknown),
            (Self::Left { devices, .. }, Outcome::Pending) => {
                let has_left = devices.binary_search(&index).is_ok();
                has_left.then_some(Outcome::Skipped)
            }
            _ => None,
        }
    }

    /// Whether that may happen to a batch of a rollout as it is.
    #[must_use]
    pub fn is_allowed(&self, rollout: &Stance) -> bool {
        match self {
            Self::Rest => rollout.aborting,
            Self::Left { look, .. } => rollout.adding == Some(Adding::Look(*look)),
        }
    }
}

#[cfg(test)]
mod tests;
