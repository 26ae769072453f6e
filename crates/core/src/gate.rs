//! The test at the end of a stage.
//!
//! [`judge`] evaluates a stage in its current state: the gate has passed, has failed, or waits for a named condition.
//! Failure is tested before success, from the first device on. Silence counts only if an answer would have been
//! received ([`crate::evidence`]). A gate never passes because too little was measured, and never waits without a
//! stated reason.

pub mod advice;
pub mod metric;
mod next;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::evidence::{Evidence, EvidenceClock, MARGIN};
use crate::ids::MetricName;
use crate::message::TTL;
use crate::outcome::{Counts, Outcome, thousands};
use crate::rollout::StageProgress;
use crate::spec::{Gate, Percent, Rung, TooLittle, Unconfirmed};
use crate::time::{Timestamp, friendly};

#[cfg(test)]
pub(crate) use next::next_when_heard;
pub use next::{Next, Seen, Way, next};

/// How long after a send the fate of a message is certain: its time to live, and the time in which the hub reports that
/// the message has expired.
#[must_use]
pub fn answered_within(ttl: Option<Duration>, batching: Duration) -> Duration {
    ttl.unwrap_or(TTL) + batching + MARGIN
}

/// How long a gate waits for silent devices once all devices were sent to.
#[must_use]
pub fn deadline(gate: &Gate, ttl: Option<Duration>, batching: Duration) -> Duration {
    let own = gate.deadline.map(|span| span.0);
    own.unwrap_or_else(|| answered_within(ttl, batching))
}

/// How many devices have applied the change, according to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// How many.
    pub applied: u64,
    /// How many devices of the stage had failed by then. These were not asked for.
    pub failed: u64,
    /// The time of the query.
    pub at: Timestamp,
}

impl Measured {
    /// Devices that have failed since, and may be among those that had applied the change.
    fn in_doubt(self, counts: &Counts) -> u64 {
        counts.failed().saturating_sub(self.failed)
    }

    /// The same without devices in doubt: at least so many have applied the change.
    fn at_least(self, counts: &Counts) -> Self {
        Self {
            applied: self.applied.saturating_sub(self.in_doubt(counts)),
            ..self
        }
    }
}

/// The current state of a stage.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The stage's gate.
    pub gate: &'a Gate,
    /// The outcomes of the stage's devices.
    pub counts: &'a Counts,
    /// A send is owed to a device of this stage or, after a retry, of a stage before.
    pub left: bool,
    /// The progress of the stage.
    pub progress: &'a StageProgress,
    /// The newest measurement, with `counts: applied`.
    pub measured: Option<Measured>,
    /// The message's time to live.
    pub ttl: Option<Duration>,
    /// How far the feedback about the stage's silent devices was received.
    pub evidence: &'a Evidence,
    /// The bake time so far, and how long no new evidence has arrived.
    pub clock: &'a EvidenceClock,
}

impl View<'_> {
    /// The remaining bake time.
    fn bake_left(&self) -> Duration {
        let bake = self.gate.bake.map_or(Duration::ZERO, |bake| bake.0);
        bake.saturating_sub(self.clock.baked())
    }

    /// The verdict while evidence is missing: wait for `evidence_within`, then undecided.
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
        let within = self.gate.evidence_within();
        Verdict::Undecided {
            because: not_measured(devices, within, &in_the_way),
        }
    }
}

/// The reason for an undecided gate, for people.
fn not_measured(devices: u64, within: Duration, in_the_way: &str) -> String {
    let within = friendly(within);
    let colon = if in_the_way.is_empty() { "" } else { ": " };
    format!(
        "not measured: nothing was heard for {within} of {devices} silent devices{colon}{in_the_way}"
    )
}

/// The verdict of a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The next stage may start.
    Passed {
        /// Why, for people.
        because: String,
    },
    /// The gate does not hold.
    Failed {
        /// Why, for people.
        because: String,
    },
    /// No verdict is possible, and people must look.
    Undecided {
        /// Why, for people.
        because: String,
    },
    /// The gate may still hold.
    Waits(WaitsFor),
    /// Ask the hub how many devices have applied the change, and judge again.
    Measure,
}

/// What a gate or a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// Devices still to be sent to.
    Sends {
        /// How many.
        left: u64,
    },
    /// Devices without feedback so far.
    Silent {
        /// How many.
        devices: u64,
        /// The end of the wait.
        until: Timestamp,
    },
    /// Feedback of the hub, without which silence is meaningless.
    Evidence {
        /// How many devices are silent.
        devices: u64,
        /// The obstacles, for people; empty if none is known.
        in_the_way: String,
    },
    /// Answers of devices, after everything was sent and all gates have passed.
    Answers {
        /// How many devices have not answered.
        devices: u64,
        /// When every message has been answered or has expired.
        until: Timestamp,
    },
    /// The preparation of a retry.
    Retry,
    /// Devices joining the target.
    Joiners {
        /// The time of the next look for new devices; `None` during a look.
        look: Option<Timestamp>,
    },
    /// The end of the bake.
    Bake {
        /// The time of the end.
        until: Timestamp,
    },
    /// A metric that does not yet hold.
    Metric {
        /// The metric.
        metric: MetricName,
        /// Successful measurements still needed.
        left: u32,
    },
    /// An approval, the last missing condition, still to be noted.
    ApprovalToBeNoted,
    /// An approval.
    Approval {
        /// The end of the wait; `None` for an unlimited wait.
        until: Option<Timestamp>,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { left } => write!(f, "{} devices to be sent to", thousands(*left)),
            Self::Silent { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "{devices} silent devices to be heard of, until {until}")
            }
            Self::Evidence {
                devices,
                in_the_way,
            } => {
                let colon = if in_the_way.is_empty() { "" } else { ": " };
                let devices = thousands(*devices);
                write!(f, "evidence of {devices} silent devices{colon}{in_the_way}")
            }
            Self::Answers { devices, until } => {
                let devices = thousands(*devices);
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

/// Devices, as counted by a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sorted {
    succeeded: u64,
    failed: u64,
    /// Sent to, without a known result.
    silent: u64,
    /// Still to be sent to.
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

    fn measured(&self) -> u64 {
        self.succeeded + self.failed
    }

    fn all(&self) -> u64 {
        self.measured() + self.silent + self.unsent
    }

    /// Counts silent devices as `unconfirmed` says, once the wait for answers is over.
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
    if sorted.unsent > 0 || view.left {
        return Verdict::Waits(WaitsFor::Sends {
            left: sorted.unsent,
        });
    }
    // Twins are asked after the bake, which gives devices time to apply the change.
    if gate.counts == Rung::Applied
        && let Some(verdict) = bake(view, sorted, now)
    {
        return verdict;
    }
    let measured = match measure(view, now) {
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

/// The verdict of the bake; `None` after its end.
fn bake(view: View<'_>, sorted: Sorted, now: Timestamp) -> Option<Verdict> {
    let left = view.bake_left();
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

/// Judges the devices' answers. `Ok`: why the shares hold, or `None` without shares. `Err`: the verdict.
fn measure(view: View<'_>, now: Timestamp) -> Result<Option<String>, Verdict> {
    let View { gate, counts, .. } = view;
    if !gate.measures() {
        return Ok(None);
    }
    let measured = view.measured.map(|measured| measured.at_least(counts));
    let sorted = Sorted::of(gate.counts, counts, measured);
    // All devices were sent to, which is about to be noted.
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
    // Silent devices that cannot change the verdict are not waited for.
    let at_worst = sorted.resolved(Unconfirmed::AsFailed);
    let is_settled = sorted.measured() > 0 && fails_in_the_end(gate, at_worst).is_none();
    if sorted.silent > 0 && !is_settled {
        if now < deadline {
            return Err(Verdict::Waits(WaitsFor::Silent {
                devices: sorted.silent,
                until: deadline.max(now.plus(view.bake_left())),
            }));
        }
        if !view.evidence.covers(deadline) {
            return Err(view.not_measured(sorted.silent));
        }
        if let Some(verdict) = bake(view, sorted, now) {
            return Err(verdict);
        }
    }
    if !is_settled && let Err(verdict) = in_the_end(gate, sorted) {
        let in_doubt = view.measured.map_or(0, |it| it.in_doubt(counts));
        return Err(match in_doubt {
            0 => verdict,
            _ => Verdict::Measure,
        });
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

/// The last verdict on the shares: all measured devices count, and must be a large enough sample.
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

/// Whether the twins' measurement is fresh: less than a minute old, or, from the deadline on, no older than the
/// deadline.
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

/// The failure rule while answers are pending: on a large enough sample, or when the other devices cannot undo it.
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

/// The failure rule of a stage with more devices to come: a few devices are no sample, even if no more exist yet.
fn has_failed_so_far(gate: &Gate, counts: &Counts) -> Option<String> {
    let sorted = Sorted::of(gate.counts, counts, None);
    let is_sample = sorted.measured() >= u64::from(gate.min_sample);
    exceeds(gate, sorted).filter(|_| is_sample)
}

/// The failure rule for the measured devices: strictly more.
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

/// The rule that does not hold, if any, once the wait for answers is over.
fn fails_in_the_end(gate: &Gate, sorted: Sorted) -> Option<String> {
    exceeds(gate, sorted).or_else(|| has_not_succeeded(gate, sorted))
}

/// So many devices have failed that the success rule cannot hold, whatever the other devices do.
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

/// The success rule, once the wait for answers is over.
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

/// A rounded share, as text for people. Comparisons use the exact share.
fn share(part: u64, whole: u64) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    };
    format!("{:.1}%", share * 100.0)
}

/// The conditions of a gate in a few words.
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
