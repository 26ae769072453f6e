//! A batch: the outcomes of its devices, its lease, and all operations on it.
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
//! [`Batch`] decides without a clock and without a store: an operation changes a copy, and the
//! store [commits](crate::ports::Batches::commit) the copy unless the stored batch has changed
//! since the read. So every rule about a batch is written here, once, for all stores.
//!
//! Whether a batch is done is not stored but derived from the outcomes, so the two cannot differ.

mod attempts;
mod lease;
mod room;
mod status;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::budget::{BudgetUsage, GroupProgress};
use crate::ids::Attempt;
use crate::outcome::{Counts, Outcome, OutcomeList};
use crate::plan::BatchHeader;
use crate::rollout::{Adding, Directive, RolloutControl, ScanId};
use crate::time::Timestamp;

pub use attempts::Attempts;
pub use lease::{Fenced, Held, Lease, LeaseReply, LeaseRequest, LeaseState, MAX_FAILED_LEASES};
pub use room::{budget_groups, with_room};
pub use status::BatchStatus;

/// A batch with all of its mutable state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The immutable description of the batch.
    pub header: BatchHeader,
    /// When the store added the batch, by the store's clock.
    pub added_at: Timestamp,
    /// The outcomes of the devices, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The codes of devices whose outcome [has a code](Outcome::has_code), by position.
    pub codes: BTreeMap<u32, u32>,
    /// The attempts made at the devices.
    pub attempts: Attempts,
    /// The lease state.
    pub lease_state: LeaseState,
    /// The batch's budget usage. Unused without budgets.
    pub budget_usage: BudgetUsage,
}

/// A report on one device of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The device's position in the manifest.
    pub index: u32,
    /// The device's outcome.
    pub outcome: Outcome,
    /// The code, if the outcome [has a code](Outcome::has_code), otherwise 0. The first recorded
    /// code stands.
    pub code: u32,
}

/// The inputs of an operation besides the batch.
#[derive(Debug, Clone, Copy)]
pub struct LeaseContext<'a> {
    /// The state of the batch's rollout.
    pub rollout: &'a RolloutControl,
    /// The progress of the batch's budget groups, in the order of the header. Not needed for a
    /// batch that the budgets count already.
    pub budgets: &'a [GroupProgress],
    /// Whether the batch and its plan are safe from a crash of the store.
    pub durable: bool,
    /// The store's time.
    pub now: Timestamp,
}

/// Why reports were not recorded. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The lease no longer holds.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The batch has no device at this position.
    #[error("the batch has no device {0}")]
    NoDevice(u32),
}

/// The devices of a batch to exclude from sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// All unsettled devices, because the rollout is being aborted: `pending` becomes `skipped`,
    /// `attempting` becomes `unknown`.
    Remaining,
    /// Devices that left the target. Only `pending` devices are affected: `pending` becomes
    /// `skipped`.
    Departed {
        /// The scan of the target that found the devices missing.
        scan: ScanId,
        /// The positions of the devices in the manifest, ascending.
        devices: Vec<u32>,
    },
}

/// The result of reopening a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reopened {
    /// The number of devices made pending again; 0 if the batch was already reopened for this
    /// attempt or a newer one.
    Devices(u32),
    /// A worker still holds the batch; nothing was changed.
    Held(Held),
}

impl Batch {
    /// Creates a batch with all devices pending.
    #[must_use]
    pub fn new(header: BatchHeader, added_at: Timestamp) -> Self {
        Self {
            outcomes: OutcomeList::pending(header.devices as usize),
            header,
            added_at,
            codes: BTreeMap::new(),
            attempts: Attempts::default(),
            lease_state: LeaseState::default(),
            budget_usage: BudgetUsage::default(),
        }
    }

    /// Returns the number of devices with each outcome.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.outcomes.counts()
    }

    /// Returns whether a lease needs room in the batch's budgets, because the budgets do not count
    /// the batch yet.
    #[must_use]
    pub fn needs_room(&self) -> bool {
        !self.header.budgets.is_empty() && !self.budget_usage.is_open
    }

    /// Leases the batch to the requester, if the rollout's directive is to continue and no other
    /// worker holds the batch.
    ///
    /// Only a batch of a stage up to the rollout's current stage is leased, and only if all of its
    /// budgets have room for the batch. From then on the budgets count the batch
    /// ([`budget`](crate::budget)).
    pub fn lease(&mut self, request: &LeaseRequest, context: &LeaseContext<'_>) -> LeaseReply {
        let unsettled = self.counts().unsettled();
        if unsettled == 0 {
            return LeaseReply::Done;
        }
        let is_open = context.rollout.directive == Directive::Continue && context.durable;
        let is_early = self.header.stage > context.rollout.stage;
        if !is_open || is_early || (self.needs_room() && !self.has_room(unsettled, context.budgets))
        {
            return LeaseReply::NotWanted;
        }
        let version = context.rollout.revision.version;
        let given = self.lease_state.lease(request, version, context.now);
        if !self.header.budgets.is_empty() && matches!(given, LeaseReply::Granted(_)) {
            self.budget_usage.on_lease();
        }
        given
    }

    fn has_room(&self, devices: u64, budgets: &[GroupProgress]) -> bool {
        let mut groups = self.header.budgets.iter().zip(budgets);
        groups.all(|(group, progress)| progress.room(group.limit) >= devices)
    }

    /// Merges the reports of the holder of `lease`, and renews the lease until `ttl` from `now`.
    /// Without reports, the call is a heartbeat. A lapsed lease still holds if no other worker has
    /// taken the batch: no other holder has written.
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
        self.lease_state
            .renew(lease, !reports.is_empty(), now, ttl)?;
        let is_beyond = |report: &&Report| report.index >= self.header.devices;
        if let Some(beyond) = reports.iter().find(is_beyond) {
            return Err(Refused::NoDevice(beyond.index));
        }
        // The holder sends the newest attempt.
        self.merge(self.attempts.newest, reports);
        if !reports.is_empty() && !self.header.budgets.is_empty() {
            self.budget_usage.on_record(&self.counts(), now);
        }
        Ok(())
    }

    /// Merges reports from other sources than the holder, above all the hub's feedback. `attempt`
    /// is the attempt of the reported messages.
    ///
    /// Ignores reports that no longer apply to their device, see [`Attempts::admits`], and reports
    /// on unknown devices, from an older plan. Returns the number of reports on known devices.
    /// Idempotent: within an attempt, outcomes only rise.
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
        self.budget_usage.on_change(&self.counts());
        reports.len()
    }

    /// Releases the lease. A release by the last holder also clears the failed leases of a batch
    /// that was quarantined after its lease.
    ///
    /// # Errors
    /// [`Refused::Fenced`].
    pub fn release(&mut self, lease: &Lease) -> Result<(), Refused> {
        Ok(self.lease_state.release(lease)?)
    }

    /// Settles devices excluded from sending. Returns the holder if a worker holds the batch;
    /// nothing is changed then.
    pub fn skip(&mut self, which: &Skip, now: Timestamp) -> Option<Held> {
        let held = self.lease_state.held_at(now);
        if held.is_some() {
            return held;
        }
        for index in 0..self.header.devices {
            let known = self.outcomes.get(index as usize);
            if let Some(end) = which.end(index, known) {
                self.outcomes.merge(index as usize, end);
            }
        }
        self.budget_usage.on_change(&self.counts());
        None
    }

    /// Makes devices pending again for `attempt`, and forgets their codes. The devices are those
    /// with one of `outcomes`, as far as the outcome [can be retried](Outcome::can_be_retried).
    ///
    /// The last holder is fenced: any report not recorded by now is about an older attempt. Nothing
    /// is changed if there is no such device, or if the batch was already reopened for this attempt
    /// or a newer one.
    pub fn reopen(&mut self, attempt: Attempt, outcomes: &[Outcome], now: Timestamp) -> Reopened {
        if self.attempts.newest >= attempt {
            return Reopened::Devices(0);
        }
        if let Some(held) = self.lease_state.held_at(now) {
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
            self.lease_state.revoke();
        }
        Reopened::Devices(reopened)
    }
}

impl Skip {
    /// Returns the outcome to record for the device at `index` with the outcome `known`; `None` to
    /// leave the outcome.
    #[must_use]
    pub fn end(&self, index: u32, known: Outcome) -> Option<Outcome> {
        match (self, known) {
            (Self::Remaining, Outcome::Pending) => Some(Outcome::Skipped),
            (Self::Remaining, Outcome::Attempting) => Some(Outcome::Unknown),
            (Self::Departed { devices, .. }, Outcome::Pending) => {
                let has_departed = devices.binary_search(&index).is_ok();
                has_departed.then_some(Outcome::Skipped)
            }
            _ => None,
        }
    }

    /// Returns whether the state of the rollout allows the skip.
    #[must_use]
    pub fn is_allowed(&self, rollout: &RolloutControl) -> bool {
        match self {
            Self::Remaining => rollout.aborting,
            Self::Departed { scan, .. } => rollout.adding == Some(Adding::Scan(*scan)),
        }
    }
}

#[cfg(test)]
mod tests;
