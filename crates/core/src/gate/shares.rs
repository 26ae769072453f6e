//! The rules of a gate about shares of devices.

use crate::answer::Answered;
use crate::outcome::{Counts, Outcome};
use crate::spec::{Gate, SuccessLevel, Unconfirmed};
use crate::time::Timestamp;

/// The number of devices that have applied the change, according to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedCount {
    /// The number of devices.
    pub applied: u64,
    /// The number of failed devices in the stage at that time. The query left these devices out.
    pub failed: u64,
    /// All reports made by devices until this time are counted: the time of the query, less the lag
    /// of the hub's queries.
    pub as_of: Timestamp,
    /// The time of the query.
    pub queried_at: Timestamp,
}

impl From<Answered> for AppliedCount {
    fn from(answered: Answered) -> Self {
        Self {
            applied: answered.applied,
            failed: answered.known_failed,
            as_of: answered.as_of,
            queried_at: answered.asked_at,
        }
    }
}

impl AppliedCount {
    /// Returns the number of devices that failed after the query. Some of these devices may be
    /// among the applied devices.
    pub(super) fn in_doubt(self, counts: &Counts) -> u64 {
        counts.failed().saturating_sub(self.failed)
    }

    /// Returns the measurement without devices in doubt: a lower bound for the number of applied
    /// devices.
    pub(super) fn at_least(self, counts: &Counts) -> Self {
        Self {
            applied: self.applied.saturating_sub(self.in_doubt(counts)),
            ..self
        }
    }
}

/// The devices of a stage, as counted by a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceShares {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    /// Devices without a known result after a send.
    pub(super) silent: u64,
    /// Devices not yet sent to.
    pub(super) unsent: u64,
}

impl DeviceShares {
    pub(super) fn of(
        level: SuccessLevel,
        counts: &Counts,
        applied_count: Option<AppliedCount>,
    ) -> Self {
        let failed = counts.failed();
        let unsent = counts.unsettled();
        let sent = counts.total() - failed - unsent - counts.get(Outcome::Skipped);
        let delivered =
            counts.sum_of(|outcome| outcome >= Outcome::Delivered && !outcome.is_failure());
        let succeeded = match (level, applied_count) {
            (SuccessLevel::Delivered, _) => delivered,
            (SuccessLevel::Applied, Some(count)) => count.applied.min(sent),
            // Before the first query, every device sent to counts.
            (SuccessLevel::Enqueued, _) | (SuccessLevel::Applied, None) => sent,
        };
        // A message accepted by the hub was enqueued, even if the device did not take the message.
        let later = counts.sum_of(|outcome| outcome.is_failure() && outcome.was_enqueued());
        let (succeeded, failed) = match level {
            SuccessLevel::Enqueued => (succeeded + later, failed - later),
            SuccessLevel::Delivered | SuccessLevel::Applied => (succeeded, failed),
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

    /// Counts silent devices according to `unconfirmed`, once the wait for answers is over.
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

/// Applies the failure rule while answers are pending: to a large enough sample, or when the other
/// devices cannot undo the failure.
pub(super) fn early_failure(gate: &Gate, shares: DeviceShares) -> Option<String> {
    if shares.measured() >= u64::from(gate.min_sample).min(shares.all()) {
        return failure_rule_violation(gate, shares);
    }
    certain_failure(gate, shares)
}

/// Applies the failure rule where devices answer in their twins, while answers are pending. An
/// answer of a device takes longer than a refusal by the hub, so the rule uses two shares. Failures
/// answered by devices are a share of the devices with a final answer. All other failures are a
/// share of the devices with an attempted send.
pub(super) fn early_failure_by_answers(
    gate: &Gate,
    counts: &Counts,
    shares: DeviceShares,
) -> Option<String> {
    let above = gate.failure_above?;
    let all = shares.all();
    let enough = u64::from(gate.min_sample).min(all);
    let own = counts.get(Outcome::Failed);
    let samples = [
        (own, shares.succeeded + own, "devices that have answered"),
        (
            shares.failed - own.min(shares.failed),
            all - shares.unsent,
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
    certain_failure(gate, shares)
}

/// Returns the reason if the failure rule is violated regardless of the other devices.
fn certain_failure(gate: &Gate, shares: DeviceShares) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, all) = (shares.failed, shares.all());
    above.is_exceeded_by(failed, all).then(|| {
        format!(
            "{failed} of {all} devices failed ({}), more than {above}, regardless of the other \
             devices",
            share(failed, all)
        )
    })
}

/// Applies the failure rule to a stage with more devices to come: a few devices are no sample, even
/// if no more exist yet.
pub(super) fn open_stage_failure(
    gate: &Gate,
    counts: &Counts,
    applied_count: Option<AppliedCount>,
) -> Option<String> {
    let shares = DeviceShares::of(gate.counts, counts, applied_count);
    let is_sample = shares.measured() >= u64::from(gate.min_sample);
    failure_rule_violation(gate, shares).filter(|_| is_sample)
}

/// Applies the failure rule to the measured devices: strictly more than `failure_above`.
pub(super) fn failure_rule_violation(gate: &Gate, shares: DeviceShares) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, measured) = (shares.failed, shares.measured());
    above.is_exceeded_by(failed, measured).then(|| {
        format!(
            "{failed} of {measured} measured devices failed ({}), more than {above}",
            share(failed, measured)
        )
    })
}

/// Returns the violated rule, if any, once the wait for answers is over.
pub(super) fn violated_rule(gate: &Gate, shares: DeviceShares) -> Option<String> {
    failure_rule_violation(gate, shares).or_else(|| success_rule_violation(gate, shares))
}

/// Returns the reason if the success rule cannot be fulfilled any more, regardless of the other
/// devices.
pub(super) fn success_out_of_reach(gate: &Gate, shares: DeviceShares) -> Option<String> {
    let required = gate.success_at_least?;
    let (failed, all) = (shares.failed, shares.all());
    let level = level_name(gate.counts);
    (!required.is_reached_by(all - failed, all)).then(|| {
        format!(
            "{failed} of {all} devices failed ({}), so {required} can no longer be {level}",
            share(failed, all)
        )
    })
}

/// Applies the success rule, once the wait for answers is over.
pub(super) fn success_rule_violation(gate: &Gate, shares: DeviceShares) -> Option<String> {
    let required = gate.success_at_least?;
    let level = level_name(gate.counts);
    let (succeeded, all) = (shares.succeeded, shares.all());
    (!required.is_reached_by(succeeded, all)).then(|| {
        format!(
            "{succeeded} of {all} devices {level} ({}), less than {required}",
            share(succeeded, all)
        )
    })
}

pub(super) fn level_name(level: SuccessLevel) -> &'static str {
    match level {
        SuccessLevel::Enqueued => "enqueued",
        SuccessLevel::Delivered => "delivered",
        SuccessLevel::Applied => "applied",
    }
}

/// Formats a rounded share for people. Comparisons use the exact share.
fn share(part: u64, whole: u64) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    };
    format!("{:.1}%", share * 100.0)
}
