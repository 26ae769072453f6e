//! The test at the end of a stage.
//!
//! [`judge`] looks at a stage as it is now and says whether its gate has passed, has failed, or what it
//! waits for. Failure is looked at before success, and from the first device on. Silence counts only when it is known
//! that an answer would have been heard ([`crate::evidence`]). A gate never passes because little was measured, and never
//! waits without saying for what.

pub mod advice;
pub mod metric;
mod next;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::evidence::{Evidence, EvidenceClock, MARGIN};
use crate::ids::MetricName;
use crate::outcome::{Counts, Outcome};
use crate::rollout::StageProgress;
use crate::spec::{Gate, Percent, Rung, TooLittle, Unconfirmed};
use crate::time::{Timestamp, friendly};

#[cfg(test)]
pub(crate) use next::next_when_heard;
pub use next::{Next, Seen, next};

/// How long messages live that do not say so: the hub's own default (`iot-hub-devguide-messages-c2d`).
pub const TTL: Duration = Duration::from_secs(3600);

/// How long it takes after a send until nothing more is to be heard of it: the message's life, and the time in which the
/// hub tells that it has ended.
#[must_use]
pub fn answered_within(ttl: Option<Duration>, batching: Duration) -> Duration {
    ttl.unwrap_or(TTL) + batching + MARGIN
}

/// How long a gate waits for silent devices once all were sent to.
#[must_use]
pub fn deadline(gate: &Gate, ttl: Option<Duration>, batching: Duration) -> Duration {
    let own = gate.deadline.map(|span| span.0);
    own.unwrap_or_else(|| answered_within(ttl, batching))
}

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
    /// How far the hubs of its silent devices were heard.
    pub evidence: &'a Evidence,
    /// What it has baked, and for how long nothing more was learned.
    pub clock: &'a EvidenceClock,
}

impl View<'_> {
    /// What is left of the bake.
    fn to_bake(&self) -> Duration {
        let bake = self.gate.bake.map_or(Duration::ZERO, |bake| bake.0);
        bake.saturating_sub(self.clock.baked())
    }

    /// Nothing can be said before more is heard: it is waited for that, up to a bound.
    fn not_measured(&self, devices: u64) -> Verdict {
        let in_the_way = match self.clock.not_asked() {
            Some(why) => why.to_owned(),
            None => self.evidence.in_the_way().to_owned(),
        };
        if self.clock.unheard() < self.gate.evidence_within() {
            return Verdict::Waits(WaitsFor::Evidence {
                devices,
                in_the_way,
            });
        }
        let within = friendly(self.gate.evidence_within());
        Verdict::Undecided {
            because: not_measured(devices, within, &in_the_way),
        }
    }
}

/// Why nothing can be said, for people.
fn not_measured(devices: u64, within: String, in_the_way: &str) -> String {
    let colon = if in_the_way.is_empty() { "" } else { ": " };
    format!(
        "not measured: nothing was heard for {within} of {devices} silent devices{colon}{in_the_way}"
    )
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
    /// The hub's word, without which silence means nothing.
    Evidence {
        /// How many devices are silent.
        devices: u64,
        /// What is in the way, for people; empty when nothing is known to be.
        in_the_way: String,
    },
    /// Devices to answer, when all is sent and all gates have passed.
    Answers {
        /// How many have not.
        devices: u64,
        /// When the last of their messages is over.
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
            Self::Evidence {
                devices,
                in_the_way,
            } => {
                let colon = if in_the_way.is_empty() { "" } else { ": " };
                write!(f, "evidence of {devices} silent devices{colon}{in_the_way}")
            }
            Self::Answers { devices, until } => {
                write!(f, "the answers of {devices} devices, until {until}")
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
    // Twins are asked for when the change had its time.
    if gate.counts == Rung::Applied
        && let Some(verdict) = bake(view, sorted, now)
    {
        return verdict;
    }
    let measured = match measure(view, sorted, now) {
        Ok(because) => because,
        Err(verdict) => return verdict,
    };
    if let Some(verdict) = bake(view, sorted, now) {
        return verdict;
    }
    if let metric::Sum::Waits { metric, left } = metrics {
        return Verdict::Waits(WaitsFor::Metric { metric, left });
    }
    approval(view, measured.as_deref(), now)
}

/// What the bake waits for; `None` when it is over.
fn bake(view: View<'_>, sorted: Sorted, now: Timestamp) -> Option<Verdict> {
    let left = view.to_bake();
    if left.is_zero() {
        return None;
    }
    Some(if view.evidence.is_current(now) {
        Verdict::Waits(WaitsFor::Bake {
            until: now.plus(left),
        })
    } else {
        view.not_measured(sorted.silent)
    })
}

/// What the devices say: why the shares hold, or what stands against it.
fn measure(view: View<'_>, sorted: Sorted, now: Timestamp) -> Result<Option<String>, Verdict> {
    let gate = view.gate;
    if !gate.measures() {
        return Ok(None);
    }
    // All were sent to, and this is about to be noted.
    let sent_at = view.progress.sent_at.unwrap_or(now);
    let deadline = sent_at.plus(deadline(gate, view.ttl, view.evidence.batching()));
    if gate.counts == Rung::Applied && !is_fresh(view.measured, deadline, now) {
        let is_given_up =
            view.clock.not_asked().is_some() && view.clock.unheard() >= gate.evidence_within();
        return Err(if is_given_up {
            view.not_measured(sorted.all())
        } else {
            Verdict::Measure
        });
    }
    // Silent devices that can change nothing are not waited for.
    let at_worst = sorted.resolved(Unconfirmed::AsFailed);
    let is_settled = sorted.measured() > 0 && fails_in_the_end(gate, at_worst).is_none();
    if sorted.silent > 0 && !is_settled {
        if now < deadline {
            return Err(Verdict::Waits(WaitsFor::Silent {
                devices: sorted.silent,
                until: deadline.max(now.plus(view.to_bake())),
            }));
        }
        if !view.evidence.covers(deadline) {
            return Err(view.not_measured(sorted.silent));
        }
        if let Some(verdict) = bake(view, sorted, now) {
            return Err(verdict);
        }
    }
    if !is_settled {
        in_the_end(gate, sorted)?;
    }
    let Sorted {
        succeeded,
        failed,
        silent,
        ..
    } = sorted;
    let (word, all) = (word(gate.counts), sorted.all());
    Ok(Some(format!(
        "{succeeded} of {all} devices {word}, {failed} failed, {silent} silent"
    )))
}

/// The last verdict on the shares: everything that was measured counts, and it must be enough.
fn in_the_end(gate: &Gate, sorted: Sorted) -> Result<(), Verdict> {
    let resolved = sorted.resolved(gate.unconfirmed);
    let (measured, all) = (resolved.measured(), sorted.all());
    if let Some(because) = exceeds(gate, resolved) {
        return Err(Verdict::Failed { because });
    }
    let enough = u64::from(gate.min_sample).min(all);
    if gate.too_little == TooLittle::Pause && (measured < enough || all == 0) {
        let because = if all == 0 {
            "too little measured: no device was left to measure".to_owned()
        } else {
            format!(
                "too little measured: {measured} of {all} devices, {} silent; {enough} are needed",
                sorted.silent
            )
        };
        return Err(Verdict::Undecided { because });
    }
    match has_not_succeeded(gate, resolved) {
        Some(because) => Err(Verdict::Failed { because }),
        None => Ok(()),
    }
}

/// What was measured of twins is new enough: a minute, and from the deadline on for the last time.
fn is_fresh(measured: Option<Measured>, deadline: Timestamp, now: Timestamp) -> bool {
    measured.is_some_and(|measured| {
        if now < deadline {
            now.since(measured.at) < MEASURED_EVERY
        } else {
            measured.at >= deadline
        }
    })
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
    let until = rule.within.zip(view.progress.ripe_at);
    let until = until.map(|(within, since)| since.plus(within.0));
    if let Some(approval) = &view.progress.approved
        && until.is_none_or(|until| approval.at < until)
    {
        return Verdict::Passed {
            because: because(Some(format!("approved by {}", approval.word))),
        };
    }
    if view.progress.ripe_at.is_none() {
        return Verdict::Waits(WaitsFor::ApprovalToBeNoted);
    }
    match until {
        Some(until) if now >= until => Verdict::Failed {
            because: format!("nobody approved until {until}"),
        },
        until => Verdict::Waits(WaitsFor::Approval { until }),
    }
}

/// The failure rule while devices are to be heard: on a large enough sample, or when the others cannot undo it.
fn has_failed(gate: &Gate, sorted: Sorted) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, all) = (sorted.failed, sorted.all());
    if sorted.measured() >= u64::from(gate.min_sample).min(all) {
        return exceeds(gate, sorted);
    }
    above.is_exceeded_by(failed, all).then(|| {
        format!(
            "{failed} of {all} devices failed ({}), more than {above}, whatever the others do",
            share(failed, all)
        )
    })
}

/// The failure rule of a stage to which more devices will come: a few of them are no sample, though they are all there are.
fn has_failed_so_far(gate: &Gate, counts: &Counts) -> Option<String> {
    let sorted = Sorted::of(gate.counts, counts, None);
    let is_sample = sorted.measured() >= u64::from(gate.min_sample);
    exceeds(gate, sorted).filter(|_| is_sample)
}

/// The failure rule on what is measured: strictly more.
fn exceeds(gate: &Gate, sorted: Sorted) -> Option<String> {
    let above = gate.failure_above?;
    let (failed, measured) = (sorted.failed, sorted.measured());
    above.is_exceeded_by(failed, measured).then(|| {
        format!(
            "{failed} of {measured} measured devices failed ({}), more than {above}",
            share(failed, measured)
        )
    })
}

/// Whichever rule does not hold when nobody is waited for any more.
fn fails_in_the_end(gate: &Gate, sorted: Sorted) -> Option<String> {
    exceeds(gate, sorted).or_else(|| has_not_succeeded(gate, sorted))
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
