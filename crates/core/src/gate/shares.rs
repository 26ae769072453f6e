//! The rules of a gate about shares of devices.

use crate::answer::Answered;
use crate::outcome::{Counts, Outcome};
use crate::spec::{Gate, Rung, Unconfirmed};
use crate::time::Timestamp;

/// How many devices have applied the change, according to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// How many.
    pub applied: u64,
    /// How many devices of the stage had failed by then. These were not asked for.
    pub failed: u64,
    /// Everything that devices have reported by then is counted: the time of the query, less the lag of the hub's queries.
    pub as_of: Timestamp,
    /// The time of the query.
    pub asked_at: Timestamp,
}

impl From<Answered> for Measured {
    fn from(answered: Answered) -> Self {
        Self {
            applied: answered.applied,
            failed: answered.known_failed,
            as_of: answered.as_of,
            asked_at: answered.asked_at,
        }
    }
}

impl Measured {
    /// Devices that have failed since, and may be among those that had applied the change.
    pub(super) fn in_doubt(self, counts: &Counts) -> u64 {
        counts.failed().saturating_sub(self.failed)
    }

    /// The same without devices in doubt: at least so many have applied the change.
    pub(super) fn at_least(self, counts: &Counts) -> Self {
        Self {
            applied: self.applied.saturating_sub(self.in_doubt(counts)),
            ..self
        }
    }
}

/// Devices, as counted by a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sorted {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    /// Sent to, without a known result.
    pub(super) silent: u64,
    /// Still to be sent to.
    pub(super) unsent: u64,
}

impl Sorted {
    pub(super) fn of(rung: Rung, counts: &Counts, measured: Option<Measured>) -> Self {
        let failed = counts.failed();
        let unsent = counts.unsettled();
        let sent = counts.total() - failed - unsent - counts.get(Outcome::Skipped);
        let delivered =
            counts.sum_of(|outcome| outcome >= Outcome::Delivered && !outcome.is_failure());
        let succeeded = match (rung, measured) {
            (Rung::Delivered, _) => delivered,
            (Rung::Applied, Some(measured)) => measured.applied.min(sent),
            // Until the hub is asked, every device that was sent to counts.
            (Rung::Enqueued, _) | (Rung::Applied, None) => sent,
        };
        // A message that the hub accepted was enqueued, even if the device did not take it.
        let later = counts.sum_of(|outcome| outcome.is_failure() && outcome.was_enqueued());
        let (succeeded, failed) = match rung {
            Rung::Enqueued => (succeeded + later, failed - later),
            Rung::Delivered | Rung::Applied => (succeeded, failed),
        };
        Self {
            succeeded,
            failed,
            silent: counts.total() - counts.get(Outcome::Skipped) - succeeded - failed - unsent,
            unsent,
        }
    }

    pub(super) fn measured(&self) -> u64 {
        self.succeeded + self.failed
    }

    pub(super) fn all(&self) -> u64 {
        self.measured() + self.silent + self.unsent
    }

    /// Counts silent devices as `unconfirmed` says, once the wait for answers is over.
    pub(super) fn resolved(mut self, unconfirmed: Unconfirmed) -> Self {
        match unconfirmed {
            Unconfirmed::Neither => return self,
            Unconfirmed::LeftOut => {}
            Unconfirmed::AsFailed => self.failed += self.silent,
            Unconfirmed::AsSucceeded => self.succeeded += self.silent,
        }
        self.silent = 0;
        self
    }
}

/// The failure rule while answers are pending: on a large enough sample, or when the other devices cannot undo it.
pub(super) fn has_failed(gate: &Gate, sorted: Sorted) -> Option<String> {
    if sorted.measured() >= u64::from(gate.min_sample).min(sorted.all()) {
        return exceeds(gate, sorted);
    }
    whatever_others_do(gate, sorted)
}

/// The failure rule where devices answer, while answers are pending. A device that answers takes longer than a hub that refuses
/// it, so the devices that failed on their own are a share of those that have answered for good, and all others that failed
/// one of those that a send was tried to.
pub(super) fn has_failed_by_answers(
    gate: &Gate,
    counts: &Counts,
    sorted: Sorted,
) -> Option<String> {
    let above = gate.failure_above?;
    let all = sorted.all();
    let enough = u64::from(gate.min_sample).min(all);
    let own = counts.get(Outcome::Failed);
    let samples = [
        (own, sorted.succeeded + own, "devices that have answered"),
        (
            sorted.failed - own.min(sorted.failed),
            all - sorted.unsent,
            "devices that were sent to",
        ),
    ];
    let mut failed = samples.into_iter().filter(|(_, of, _)| *of >= enough);
    let failed = failed.find(|(failed, of, _)| above.is_exceeded_by(*failed, *of));
    if let Some((failed, of, devices)) = failed {
        return Some(format!(
            "{failed} of {of} {devices} failed ({}), more than {above}",
            share(failed, of)
        ));
    }
    whatever_others_do(gate, sorted)
}

/// So many devices have failed that the failure rule cannot hold, whatever the other devices do.
fn whatever_others_do(gate: &Gate, sorted: Sorted) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, all) = (sorted.failed, sorted.all());
    above.is_exceeded_by(failed, all).then(|| {
        format!(
            "{failed} of {all} devices failed ({}), more than {above}, whatever the others do",
            share(failed, all)
        )
    })
}

/// The failure rule of a stage with more devices to come: a few devices are no sample, even if no more exist yet.
pub(super) fn has_failed_so_far(
    gate: &Gate,
    counts: &Counts,
    measured: Option<Measured>,
) -> Option<String> {
    let sorted = Sorted::of(gate.counts, counts, measured);
    let is_sample = sorted.measured() >= u64::from(gate.min_sample);
    exceeds(gate, sorted).filter(|_| is_sample)
}

/// The failure rule for the measured devices: strictly more.
pub(super) fn exceeds(gate: &Gate, sorted: Sorted) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, measured) = (sorted.failed, sorted.measured());
    above.is_exceeded_by(failed, measured).then(|| {
        format!(
            "{failed} of {measured} measured devices failed ({}), more than {above}",
            share(failed, measured)
        )
    })
}

/// The rule that does not hold, if any, once the wait for answers is over.
pub(super) fn fails_in_the_end(gate: &Gate, sorted: Sorted) -> Option<String> {
    exceeds(gate, sorted).or_else(|| has_not_succeeded(gate, sorted))
}

/// So many devices have failed that the success rule cannot hold, whatever the other devices do.
pub(super) fn cannot_succeed(gate: &Gate, sorted: Sorted) -> Option<String> {
    let wanted = gate.success_at_least?;
    let (failed, all) = (sorted.failed, sorted.all());
    let word = word(gate.counts);
    (!wanted.is_reached_by(all - failed, all)).then(|| {
        format!(
            "{failed} of {all} devices failed ({}), so that {wanted} cannot be {word} any more",
            share(failed, all)
        )
    })
}

/// The success rule, once the wait for answers is over.
pub(super) fn has_not_succeeded(gate: &Gate, sorted: Sorted) -> Option<String> {
    let wanted = gate.success_at_least?;
    let word = word(gate.counts);
    let (succeeded, all) = (sorted.succeeded, sorted.all());
    (!wanted.is_reached_by(succeeded, all)).then(|| {
        format!(
            "{succeeded} of {all} devices {word} ({}), less than {wanted}",
            share(succeeded, all)
        )
    })
}

pub(super) fn word(rung: Rung) -> &'static str {
    match rung {
        Rung::Enqueued => "enqueued",
        Rung::Delivered => "delivered",
        Rung::Applied => "applied",
    }
}

/// A rounded share, as text for people. Comparisons use the exact share.
fn share(part: u64, whole: u64) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    };
    format!("{:.1}%", share * 100.0)
}
