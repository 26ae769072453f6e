//! The test at the end of a stage.
//!
//! [`judge`] looks at a stage as it is now and says whether its gate has passed, has failed, or what it
//! waits for. Failure is looked at before success, and from the first device on. A gate never passes
//! because nothing was measured, and never waits without saying for what.

pub mod metric;
mod next;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::ids::MetricName;
use crate::outcome::{Counts, Outcome};
use crate::rollout::StageProgress;
use crate::spec::{Gate, Percent, Rung, Unconfirmed};
use crate::time::Timestamp;

pub use next::{Next, next};

/// How long silent devices are waited for when neither the gate nor the message says: the hub's
/// own default time to live (`iot-hub-devguide-messages-c2d`).
pub const DEADLINE: Duration = Duration::from_secs(3600);

/// How many devices have applied the change, as the hub has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// How many.
    pub applied: u64,
    /// When the hub was asked.
    pub at: Timestamp,
}

/// A stage as it is now.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The stage's gate.
    pub gate: &'a Gate,
    /// Its devices' outcomes.
    pub counts: &'a Counts,
    /// How far it is.
    pub progress: &'a StageProgress,
    /// What was measured last, with `counts: applied`.
    pub measured: Option<Measured>,
    /// The message's time to live.
    pub ttl: Option<Duration>,
}

/// What a gate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The next stage may start.
    Passed {
        /// Why, for people.
        because: String,
    },
    /// It does not hold.
    Failed {
        /// Why, for people.
        because: String,
    },
    /// It cannot be said: people must look.
    Undecided {
        /// Why, for people.
        because: String,
    },
    /// It may hold yet.
    Waits(WaitsFor),
    /// Ask the hub how many devices have applied the change, and judge again.
    Measure,
}

/// What a gate waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// Devices that are still to be sent to.
    Sends {
        /// How many.
        left: u64,
    },
    /// Devices that have not been heard of.
    Silent {
        /// How many.
        devices: u64,
        /// Until when they are waited for.
        until: Timestamp,
    },
    /// Devices that are to be sent to again.
    Retry,
    /// Devices that join the target.
    Joiners {
        /// When it is looked for them; `None` while it is.
        look: Option<Timestamp>,
    },
    /// The end of the bake.
    Bake {
        /// When that is.
        until: Timestamp,
    },
    /// A metric to be as it should be.
    Metric {
        /// The metric.
        metric: MetricName,
        /// Measurements that are to succeed yet.
        left: u32,
    },
    /// An approval, of which it is not noted yet that it is all that is missing.
    ApprovalToBeNoted,
    /// An approval.
    Approval {
        /// Until when, if not for ever.
        until: Option<Timestamp>,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { left } => write!(f, "{left} devices to be sent to"),
            Self::Silent { devices, until } => {
                write!(f, "{devices} silent devices to be heard of, until {until}")
            }
            Self::Retry => f.write_str("its retry to be prepared"),
            Self::Joiners { look: Some(at) } => {
                write!(f, "devices to join: the next look is at {at}")
            }
            Self::Joiners { look: None } => f.write_str("devices to join: a look is under way"),
            Self::Bake { until } => write!(f, "the end of its bake at {until}"),
            Self::Metric { metric, left } => {
                write!(f, "{left} more measurements of metric {metric} to succeed")
            }
            Self::ApprovalToBeNoted | Self::Approval { until: None } => f.write_str("an approval"),
            Self::Approval { until: Some(until) } => write!(f, "an approval, until {until}"),
        }
    }
}

/// Devices, as a gate counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sorted {
    succeeded: u64,
    failed: u64,
    /// Sent to, and no word yet.
    silent: u64,
    /// To be sent to.
    unsent: u64,
}

impl Sorted {
    fn of(rung: Rung, counts: &Counts, measured: Option<Measured>) -> Self {
        let failed = counts.failed();
        let unsent = counts.unsettled();
        let sent = counts.total() - failed - unsent - counts.get(Outcome::Skipped);
        let delivered = counts.sum_of(|outcome| outcome >= Outcome::Delivered);
        let succeeded = match (rung, measured) {
            (Rung::Delivered, _) => delivered,
            (Rung::Applied, Some(measured)) => measured.applied.min(sent),
            // Until the hub is asked, all that is known is that they were sent to.
            (Rung::Enqueued, _) | (Rung::Applied, None) => sent,
        };
        // What the hub took and the device then rejected was enqueued all the same.
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

    fn measured(&self) -> u64 {
        self.succeeded + self.failed
    }

    fn all(&self) -> u64 {
        self.measured() + self.silent + self.unsent
    }

    /// Silent devices as the gate wants them counted when they are waited for no longer.
    fn resolved(mut self, unconfirmed: Unconfirmed) -> Self {
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

/// Judges a stage's gate at `now`.
#[must_use]
pub fn judge(view: View<'_>, now: Timestamp) -> Verdict {
    let View { gate, counts, .. } = view;
    let sorted = Sorted::of(gate.counts, counts, view.measured);
    if let Some(because) = has_failed(gate, sorted).or_else(|| cannot_succeed(gate, sorted)) {
        return Verdict::Failed { because };
    }
    let metrics = match metric::judge(gate, view.progress) {
        metric::Sum::Failed { because } => return Verdict::Failed { because },
        metric::Sum::Undecided { because } => return Verdict::Undecided { because },
        other => other,
    };
    if sorted.unsent > 0 {
        return Verdict::Waits(WaitsFor::Sends {
            left: sorted.unsent,
        });
    }
    // All were sent to, and this is about to be noted.
    let sent_at = view.progress.sent_at.unwrap_or(now);
    let baked_at = sent_at.plus(gate.bake.map_or(Duration::ZERO, |bake| bake.0));
    let deadline = sent_at.plus(
        gate.deadline
            .map(|span| span.0)
            .or(view.ttl)
            .unwrap_or(DEADLINE),
    );
    if gate.counts == Rung::Applied && now < baked_at {
        return Verdict::Waits(WaitsFor::Bake { until: baked_at });
    }
    let measured = match measure(view, sorted, baked_at.max(deadline), now) {
        Ok(because) => because,
        Err(verdict) => return verdict,
    };
    if now < baked_at {
        return Verdict::Waits(WaitsFor::Bake { until: baked_at });
    }
    if let metric::Sum::Waits { metric, left } = metrics {
        return Verdict::Waits(WaitsFor::Metric { metric, left });
    }
    approval(view, measured.as_deref(), now)
}

/// What the devices say: why the shares hold, or what stands against it.
fn measure(
    view: View<'_>,
    sorted: Sorted,
    last: Timestamp,
    now: Timestamp,
) -> Result<Option<String>, Verdict> {
    let gate = view.gate;
    if gate.success_at_least.is_none() && gate.failure_above.is_none() {
        return Ok(None);
    }
    if gate.counts == Rung::Applied {
        // Once a minute, and once more when nobody is waited for any longer.
        let is_fresh = |measured: Measured| {
            if now < last {
                now.since(measured.at) < MEASURED_EVERY
            } else {
                measured.at >= last
            }
        };
        if !view.measured.is_some_and(is_fresh) {
            return Err(Verdict::Measure);
        }
    }
    // As soon as the silent devices can change nothing, they are not waited for.
    let at_worst = sorted.resolved(Unconfirmed::AsFailed);
    let is_settled = sorted.measured() > 0
        && has_failed(gate, at_worst).is_none()
        && cannot_succeed(gate, at_worst).is_none();
    if sorted.silent > 0 && now < last && !is_settled {
        return Err(Verdict::Waits(WaitsFor::Silent {
            devices: sorted.silent,
            until: last,
        }));
    }
    let silent = sorted.silent;
    let resolved = sorted.resolved(gate.unconfirmed);
    if resolved.measured() == 0 {
        let because = match silent {
            0 => "no device was left to measure".to_owned(),
            silent => format!("nothing was measured: all {silent} devices are silent"),
        };
        return Err(Verdict::Failed { because });
    }
    let failed = has_failed(gate, resolved).or_else(|| has_not_succeeded(gate, resolved));
    if let Some(because) = failed.filter(|_| !is_settled) {
        return Err(Verdict::Failed { because });
    }
    let word = word(gate.counts);
    Ok(Some(format!(
        "{} of {} devices {word}, {} failed, {silent} silent",
        sorted.succeeded,
        sorted.all(),
        sorted.failed
    )))
}

/// How often the hub is asked how many devices have applied the change.
const MEASURED_EVERY: Duration = Duration::from_secs(60);

fn approval(view: View<'_>, measured: Option<&str>, now: Timestamp) -> Verdict {
    let because = |approved: Option<String>| {
        let measured = measured.map(str::to_owned);
        let metrics = metric::found(view.gate, view.progress);
        let parts: Vec<_> = [measured, metrics, approved]
            .into_iter()
            .flatten()
            .collect();
        if parts.is_empty() {
            "its bake is over".to_owned()
        } else {
            parts.join("; ")
        }
    };
    let Some(rule) = &view.gate.approval else {
        return Verdict::Passed {
            because: because(None),
        };
    };
    if let Some(word) = &view.progress.approved {
        return Verdict::Passed {
            because: because(Some(format!("approved by {word}"))),
        };
    }
    let Some(since) = view.progress.ripe_at else {
        return Verdict::Waits(WaitsFor::ApprovalToBeNoted);
    };
    let until = rule.within.map(|within| since.plus(within.0));
    match until {
        Some(until) if now >= until => Verdict::Failed {
            because: format!("nobody approved until {until}"),
        },
        until => Verdict::Waits(WaitsFor::Approval { until }),
    }
}

/// The failure rule: strictly more than so much of what is measured, once that is enough.
fn has_failed(gate: &Gate, sorted: Sorted) -> Option<String> {
    let enough = u64::from(gate.min_sample).min(sorted.all());
    exceeds(gate, sorted, enough)
}

/// The failure rule of a stage to which more devices will come: a few of them are no sample, though they are all there are.
fn has_failed_so_far(gate: &Gate, counts: &Counts) -> Option<String> {
    let sorted = Sorted::of(gate.counts, counts, None);
    exceeds(gate, sorted, u64::from(gate.min_sample))
}

fn exceeds(gate: &Gate, sorted: Sorted, enough: u64) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, measured) = (sorted.failed, sorted.measured());
    (measured >= enough && above.is_exceeded_by(failed, measured)).then(|| {
        format!(
            "{failed} of {measured} measured devices failed ({}), more than {above}",
            share(failed, measured)
        )
    })
}

/// So many have failed that the success rule cannot hold any more, whatever the others do.
fn cannot_succeed(gate: &Gate, sorted: Sorted) -> Option<String> {
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

/// The success rule, when nobody is waited for any more.
fn has_not_succeeded(gate: &Gate, sorted: Sorted) -> Option<String> {
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

fn word(rung: Rung) -> &'static str {
    match rung {
        Rung::Enqueued => "enqueued",
        Rung::Delivered => "delivered",
        Rung::Applied => "applied",
    }
}

/// A share for people. What is compared is the exact one.
fn share(part: u64, whole: u64) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    };
    format!("{:.1}%", share * 100.0)
}

/// A gate in a few words: what it asks.
#[must_use]
pub fn in_words(gate: &Gate) -> String {
    let word = word(gate.counts);
    let percent =
        |text: &str, percent: Option<Percent>| percent.map(|percent| format!("{text}{percent}"));
    let parts = [
        percent(&format!("{word} >= "), gate.success_at_least),
        percent("failed <= ", gate.failure_above),
        gate.bake.map(|bake| format!("bake {bake}")),
        gate.approval.as_ref().map(|_| "approval".to_owned()),
    ];
    let metrics = gate.metrics.iter();
    let metrics = metrics.map(|metric| format!("{} {}", metric.name, metric::wanted(metric)));
    let parts = parts.into_iter().flatten().chain(metrics);
    parts.collect::<Vec<_>>().join(", ")
}
