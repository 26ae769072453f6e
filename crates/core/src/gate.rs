//! The test at the end of a stage.
//!
//! [`judge`] looks at a stage as it is now and says whether its gate has passed, has failed, or what it
//! waits for. Failure is looked at before success, and from the first device on. A gate never passes
//! because nothing was measured, and never waits without saying for what.

pub mod metric;

use std::fmt;
use std::time::Duration;

use crate::ids::MetricName;
use crate::outcome::{Counts, Outcome};
use crate::rollout::{Event, Rollout, StageProgress};
use crate::spec::{Gate, Percent, Rung, Unconfirmed};
use crate::time::Timestamp;

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
    let above = gate.failure_above?;
    let (failed, measured) = (sorted.failed, sorted.measured());
    let enough = u64::from(gate.min_sample).min(sorted.all());
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

/// What a rollout that runs does next about its current stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send to what is left.
    Send,
    /// This has happened.
    Happened(Event),
    /// Ask the hub how many devices have applied the change.
    Measure,
    /// Wait.
    Wait(WaitsFor),
    /// Nothing: all stages are over.
    Over,
}

/// Decides what a rollout that runs does next. `counts` are the outcomes of its current stage; `left` says
/// that something is to be sent in this stage or one before it.
#[must_use]
pub fn next(
    rollout: &Rollout,
    counts: &Counts,
    left: bool,
    measured: Option<Measured>,
    now: Timestamp,
) -> Next {
    if rollout.retry.is_some() {
        // The outcomes are about to change.
        return Next::Wait(WaitsFor::Retry);
    }
    let index = rollout.stage();
    let is_last = usize::from(index.0) + 1 == rollout.stages.len();
    let progress = rollout.stage_progress();
    let Some(progress) = progress.filter(|progress| progress.passed_at.is_none()) else {
        return if left { Next::Send } else { Next::Over };
    };
    let stage = progress.name.clone();
    let passed = |reason: String| {
        let stage = stage.clone();
        if left {
            Next::Send
        } else {
            Next::Happened(Event::StagePassed { stage, reason })
        }
    };
    let Some(gate) = rollout.spec.gate_of(index) else {
        return match (left, is_last) {
            (false, true) => Next::Over,
            _ => passed("all of it was sent".into()),
        };
    };
    if let Some(word) = &progress.promoted {
        return passed(format!("promoted by {word}"));
    }
    if let Some(reason) = &progress.ignored {
        return passed(format!(
            "its gate failed, and is not to stop the rollout: {reason}"
        ));
    }
    let ttl = rollout.spec.message.ttl.map(|ttl| ttl.0);
    let view = View {
        gate,
        counts,
        progress,
        measured,
        ttl,
    };
    match judge(view, now) {
        Verdict::Failed { because } => Next::Happened(Event::GateFailed {
            stage,
            reason: because,
            then: gate.on_failure,
        }),
        Verdict::Undecided { because } => Next::Happened(Event::GateUndecided {
            stage,
            reason: because,
        }),
        _ if left => Next::Send,
        _ if progress.sent_at.is_none() => Next::Happened(Event::StageSent { stage }),
        Verdict::Passed { because } => passed(because),
        Verdict::Waits(WaitsFor::ApprovalToBeNoted) => {
            Next::Happened(Event::ApprovalAwaited { stage })
        }
        Verdict::Waits(waits) => Next::Wait(waits),
        Verdict::Measure => Next::Measure,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::StageName;
    use crate::rollout::Word;
    use crate::spec::{OnFailure, RolloutSpec};

    const START: Timestamp = Timestamp(1_000_000);

    fn minutes(n: u64) -> Timestamp {
        START.plus(Duration::from_secs(60 * n))
    }

    fn gate(text: &str) -> Gate {
        let spec = format!(
            "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full}}, \
             stages: [{{name: s, gate: {{{text}}}}}]}}"
        );
        let spec = RolloutSpec::read("x", &spec).unwrap();
        spec.stages[0].gate.clone().unwrap()
    }

    /// `"90 enqueued, 5 not_found"`; the rest of `all` is pending.
    fn counts(all: u64, text: &str) -> Counts {
        let mut counts = Counts::pending(all);
        for part in text.split(", ").filter(|part| !part.is_empty()) {
            let (number, outcome) = part.split_once(' ').unwrap();
            let outcome = Outcome::ALL
                .into_iter()
                .find(|o| o.as_str() == outcome)
                .unwrap();
            for _ in 0..number.parse::<u64>().unwrap() {
                counts.shift(Outcome::Pending, outcome);
            }
        }
        counts
    }

    fn sent(at: Timestamp) -> StageProgress {
        StageProgress {
            started_at: Some(START),
            sent_at: Some(at),
            ..StageProgress::new(StageName::new("s").unwrap())
        }
    }

    /// What a gate says to a stage of 100 devices, some minutes after it was sent.
    fn says(text: &str, outcomes: &str, after: u64) -> String {
        says_of(&gate(text), &counts(100, outcomes), None, after)
    }

    fn says_of(gate: &Gate, counts: &Counts, measured: Option<Measured>, after: u64) -> String {
        let progress = if counts.unsettled() > 0 {
            StageProgress {
                sent_at: None,
                ..sent(START)
            }
        } else {
            sent(START)
        };
        let view = View {
            gate,
            counts,
            progress: &progress,
            measured,
            ttl: None,
        };
        match judge(view, minutes(after)) {
            Verdict::Passed { because } => format!("passed: {because}"),
            Verdict::Failed { because } => format!("failed: {because}"),
            Verdict::Undecided { because } => format!("undecided: {because}"),
            Verdict::Waits(waits) => format!("waits for {waits}"),
            Verdict::Measure => "measure".to_owned(),
        }
    }

    #[test]
    fn rules_and_their_edges() {
        let table = [
            // Success: this share or more.
            (
                "success_at_least: 95%",
                "95 enqueued, 5 not_found",
                0,
                "passed: 95 of 100 devices enqueued, 5 failed, 0 silent",
            ),
            (
                "success_at_least: 95%",
                "94 enqueued, 6 not_found",
                0,
                "failed: 6 of 100 devices failed (6.0%), so that 95% cannot be enqueued any more",
            ),
            (
                "success_at_least: 95%",
                "40 enqueued, 6 not_found",
                0,
                "failed: 6 of 100 devices failed (6.0%), so that 95% cannot be enqueued any more",
            ),
            (
                "success_at_least: 95%",
                "40 enqueued, 5 not_found",
                0,
                "waits for 55 devices to be sent to",
            ),
            (
                "success_at_least: 100%",
                "100 enqueued",
                0,
                "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
            ),
            // Failure: strictly above, from the smallest sample on.
            (
                "failure_above: 5%",
                "95 enqueued, 5 refused",
                0,
                "passed: 95 of 100 devices enqueued, 5 failed, 0 silent",
            ),
            (
                "failure_above: 5%",
                "94 enqueued, 6 refused",
                0,
                "failed: 6 of 100 measured devices failed (6.0%), more than 5%",
            ),
            (
                "failure_above: 5%, min_sample: 20",
                "18 enqueued, 1 refused",
                0,
                "waits for 81 devices to be sent to",
            ),
            (
                "failure_above: 5%, min_sample: 20",
                "19 enqueued, 1 refused",
                0,
                "waits for 80 devices to be sent to",
            ),
            (
                "failure_above: 5%, min_sample: 20",
                "18 enqueued, 2 refused",
                0,
                "failed: 2 of 20 measured devices failed (10.0%), more than 5%",
            ),
            (
                "failure_above: 5%, min_sample: 1",
                "1 refused",
                0,
                "failed: 1 of 1 measured devices failed (100.0%), more than 5%",
            ),
            (
                "failure_above: 0%, min_sample: 1",
                "99 enqueued, 1 unknown",
                0,
                "failed: 1 of 100 measured devices failed (1.0%), more than 0%",
            ),
            (
                "failure_above: 100%",
                "100 not_found",
                0,
                "passed: 0 of 100 devices enqueued, 100 failed, 0 silent",
            ),
            // A sample larger than the stage is the stage.
            (
                "failure_above: 5%, min_sample: 1000",
                "90 enqueued, 10 refused",
                0,
                "failed: 10 of 100 measured devices failed (10.0%), more than 5%",
            ),
            // Everything fails at once.
            (
                "failure_above: 5%",
                "100 refused",
                0,
                "failed: 100 of 100 measured devices failed (100.0%), more than 5%",
            ),
            (
                "success_at_least: 1%",
                "100 refused",
                0,
                "failed: 100 of 100 devices failed (100.0%), so that 1% cannot be enqueued any more",
            ),
            // What the hub took counts as enqueued, whatever the device did then.
            (
                "success_at_least: 95%",
                "92 delivered, 8 rejected",
                0,
                "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
            ),
            (
                "counts: delivered, success_at_least: 95%",
                "92 delivered, 8 rejected",
                0,
                "failed: 8 of 100 devices failed (8.0%), so that 95% cannot be delivered any more",
            ),
            (
                "counts: delivered, failure_above: 5%",
                "10 delivered, 2 rejected, 88 enqueued",
                0,
                "waits for 88 silent devices to be heard of, until 1970-01-01T01:16:40Z",
            ),
            (
                "counts: delivered, failure_above: 5%",
                "18 delivered, 2 rejected, 80 enqueued",
                0,
                "failed: 2 of 20 measured devices failed (10.0%), more than 5%",
            ),
            // Silent devices: waited for until the deadline (1h, or the message's own), and not longer than they matter.
            (
                "counts: delivered, success_at_least: 90%",
                "89 delivered, 11 enqueued",
                59,
                "waits for 11 silent devices to be heard of, until 1970-01-01T01:16:40Z",
            ),
            (
                "counts: delivered, success_at_least: 90%",
                "90 delivered, 10 enqueued",
                0,
                "passed: 90 of 100 devices delivered, 0 failed, 10 silent",
            ),
            (
                "counts: delivered, success_at_least: 90%",
                "89 delivered, 11 enqueued",
                60,
                "failed: 89 of 100 devices delivered (89.0%), less than 90%",
            ),
            (
                "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
                "89 delivered, 11 enqueued",
                60,
                "passed: 89 of 100 devices delivered, 0 failed, 11 silent",
            ),
            (
                "counts: delivered, success_at_least: 90%, unconfirmed: left_out",
                "80 delivered, 9 rejected, 11 enqueued",
                60,
                "failed: 80 of 89 devices delivered (89.9%), less than 90%",
            ),
            (
                "counts: delivered, success_at_least: 90%, unconfirmed: as_failed",
                "89 delivered, 11 enqueued",
                60,
                "failed: 89 of 100 devices delivered (89.0%), less than 90%",
            ),
            (
                "counts: delivered, success_at_least: 90%, unconfirmed: as_succeeded",
                "1 delivered, 99 enqueued",
                60,
                "passed: 1 of 100 devices delivered, 0 failed, 99 silent",
            ),
            (
                "counts: delivered, failure_above: 10%, unconfirmed: as_failed",
                "89 delivered, 11 enqueued",
                60,
                "failed: 11 of 100 measured devices failed (11.0%), more than 10%",
            ),
            (
                "counts: delivered, success_at_least: 90%, deadline: 2m",
                "80 delivered, 9 rejected, 11 enqueued",
                2,
                "failed: 80 of 100 devices delivered (80.0%), less than 90%",
            ),
            // Nothing was measured: no pass.
            (
                "counts: delivered, success_at_least: 0%",
                "100 enqueued",
                0,
                "waits for 100 silent devices to be heard of, until 1970-01-01T01:16:40Z",
            ),
            (
                "counts: delivered, failure_above: 5%",
                "100 enqueued",
                60,
                "failed: nothing was measured: all 100 devices are silent",
            ),
            (
                "failure_above: 5%",
                "100 skipped",
                0,
                "failed: no device was left to measure",
            ),
            // Skipped devices do not count.
            (
                "success_at_least: 95%",
                "19 enqueued, 1 refused, 80 skipped",
                0,
                "passed: 19 of 20 devices enqueued, 1 failed, 0 silent",
            ),
            // The bake begins when all is sent; the failure rule stays armed.
            (
                "bake: 30m, failure_above: 5%",
                "100 enqueued",
                29,
                "waits for the end of its bake at 1970-01-01T00:46:40Z",
            ),
            (
                "bake: 30m, failure_above: 5%",
                "100 enqueued",
                30,
                "passed: 100 of 100 devices enqueued, 0 failed, 0 silent",
            ),
            (
                "bake: 30m, counts: delivered, failure_above: 5%",
                "94 delivered, 6 rejected",
                29,
                "failed: 6 of 100 measured devices failed (6.0%), more than 5%",
            ),
            (
                "bake: 30m",
                "100 refused",
                29,
                "waits for the end of its bake at 1970-01-01T00:46:40Z",
            ),
            ("bake: 30m", "100 refused", 30, "passed: its bake is over"),
            // Approval comes last.
            (
                "approval: {}, bake: 5m",
                "100 enqueued",
                4,
                "waits for the end of its bake at 1970-01-01T00:21:40Z",
            ),
            (
                "approval: {}, bake: 5m",
                "100 enqueued",
                5,
                "waits for an approval",
            ),
            // Applied: asked for when the bake is over.
            (
                "counts: applied, applied_when: x = 1, bake: 5m, success_at_least: 90%",
                "100 delivered",
                4,
                "waits for the end of its bake at 1970-01-01T00:21:40Z",
            ),
            (
                "counts: applied, applied_when: x = 1, bake: 5m, success_at_least: 90%",
                "100 delivered",
                5,
                "measure",
            ),
            (
                "counts: applied, applied_when: x = 1, failure_above: 5%",
                "50 enqueued, 3 refused",
                0,
                "failed: 3 of 53 measured devices failed (5.7%), more than 5%",
            ),
        ];
        for (text, outcomes, after, expected) in table {
            assert_eq!(
                says(text, outcomes, after),
                expected,
                "{text} with {outcomes} after {after}m"
            );
        }
    }

    #[test]
    fn a_stage_without_devices_does_not_pass_by_measuring_nothing() {
        for text in [
            "failure_above: 5%",
            "success_at_least: 0%",
            "counts: delivered, success_at_least: 95%",
        ] {
            let says = says_of(&gate(text), &Counts::default(), None, 0);
            assert_eq!(says, "failed: no device was left to measure", "{text}");
        }
    }

    #[test]
    fn what_is_applied_is_measured_again_until_the_deadline() {
        let gate =
            gate("counts: applied, applied_when: x = 1, success_at_least: 90%, deadline: 10m");
        let counts = counts(100, "100 delivered");
        let says = |applied, at, after| {
            let measured = Measured {
                applied,
                at: minutes(at),
            };
            says_of(&gate, &counts, Some(measured), after)
        };
        assert_eq!(
            says(90, 0, 0),
            "passed: 90 of 100 devices applied, 0 failed, 10 silent"
        );
        assert_eq!(
            says(89, 0, 0),
            "waits for 11 silent devices to be heard of, until 1970-01-01T00:26:40Z"
        );
        assert_eq!(says(89, 0, 1), "measure");
        assert_eq!(says(89, 9, 10), "measure", "once more at the deadline");
        assert_eq!(
            says(89, 10, 10),
            "failed: 89 of 100 devices applied (89.0%), less than 90%"
        );
        assert_eq!(
            says(0, 10, 10),
            "failed: nothing was measured: all 100 devices are silent"
        );
    }

    #[test]
    fn an_approval_is_waited_for_as_long_as_the_gate_says() {
        let gate = gate("approval: {within: 1h}");
        let counts = counts(1, "1 enqueued");
        let mut progress = sent(START);
        let says = |progress: &StageProgress, after| {
            let view = View {
                gate: &gate,
                counts: &counts,
                progress,
                measured: None,
                ttl: None,
            };
            judge(view, minutes(after))
        };
        assert_eq!(
            says(&progress, 0),
            Verdict::Waits(WaitsFor::ApprovalToBeNoted)
        );
        progress.ripe_at = Some(minutes(5));
        assert_eq!(
            says(&progress, 64),
            Verdict::Waits(WaitsFor::Approval {
                until: Some(minutes(65))
            })
        );
        assert!(
            matches!(says(&progress, 65), Verdict::Failed { because } if because.starts_with("nobody approved until"))
        );
        progress.approved = Some(Word {
            by: Some("ann".into()),
            reason: Some("looks well".into()),
        });
        assert_eq!(
            says(&progress, 99),
            Verdict::Passed {
                because: "approved by ann (looks well)".into()
            }
        );
    }

    /// A rollout of two stages that runs, and what its stages' events are.
    fn staged(gate: &str) -> Rollout {
        let spec = format!(
            "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full}}, \
             stages: [{{name: canary, percent: 10, gate: {{{gate}}}}}]}}"
        );
        let spec = RolloutSpec::read("x", &spec).unwrap();
        let mut rollout = Rollout::accepted(spec, Default::default(), START);
        let plan = serde_json::from_value(serde_json::json!({
            "devices": 100, "batches": 2, "digest": "", "hubs": [], "excluded": [], "repeated": 0, "stages": []
        }));
        for event in [
            Event::PlanningStarted,
            Event::PlanCompleted {
                plan: plan.unwrap(),
            },
        ] {
            rollout = rollout.after(event, START).unwrap().unwrap();
        }
        rollout
    }

    fn happened(rollout: &Rollout, counts: &Counts, at: Timestamp) -> Rollout {
        match next(rollout, counts, counts.unsettled() > 0, None, at) {
            Next::Happened(event) => rollout.after(event, at).unwrap().unwrap(),
            other => panic!("nothing happened: {other:?}"),
        }
    }

    #[test]
    fn a_stage_goes_through_its_gate_to_the_next() {
        let rollout = staged("failure_above: 5%, approval: {}");
        let all = counts(10, "10 enqueued");
        assert_eq!(
            next(&rollout, &counts(10, ""), true, None, START),
            Next::Send
        );
        let rollout = happened(&rollout, &all, minutes(1));
        assert_eq!(rollout.stages[0].sent_at, Some(minutes(1)));
        let rollout = happened(&rollout, &all, minutes(2));
        assert_eq!(rollout.stages[0].ripe_at, Some(minutes(2)));
        let waits = next(&rollout, &all, false, None, minutes(3));
        assert_eq!(waits, Next::Wait(WaitsFor::Approval { until: None }));
        let word = Word {
            by: Some("ann".into()),
            reason: None,
        };
        let stage = StageName::new("canary").unwrap();
        let approved = Event::Approved {
            stage: stage.clone(),
            word: word.clone(),
        };
        let rollout = rollout
            .after(approved.clone(), minutes(4))
            .unwrap()
            .unwrap();
        assert_eq!(
            rollout.after(approved.clone(), minutes(4)),
            Ok(None),
            "said twice"
        );
        let rollout = happened(&rollout, &all, minutes(5));
        assert_eq!(
            (rollout.stage().0, rollout.stages[0].passed_at),
            (1, Some(minutes(5)))
        );
        assert_eq!(rollout.stages[1].started_at, Some(minutes(5)));
        assert_eq!(
            rollout.after(approved, minutes(6)),
            Ok(None),
            "it has passed"
        );
        // The last stage has no gate.
        assert_eq!(
            next(&rollout, &counts(90, ""), true, None, minutes(6)),
            Next::Send
        );
        assert_eq!(
            next(
                &rollout,
                &counts(90, "90 enqueued"),
                false,
                None,
                minutes(6)
            ),
            Next::Over
        );
        let other = Event::Approved {
            stage: StageName::new("rest").unwrap(),
            word,
        };
        assert!(
            staged("bake: 1h").after(other, START).is_err(),
            "its time has not come"
        );
    }

    #[test]
    fn a_gate_that_failed_stops_and_is_asked_again() {
        let rollout = staged("failure_above: 5%, approval: {}");
        let bad = counts(10, "8 enqueued, 2 refused");
        let mut rollout = happened(&rollout, &bad, minutes(1));
        let reason = rollout.phase.reason().unwrap().to_owned();
        assert_eq!(
            reason,
            "the gate of stage canary failed: 2 of 10 measured devices failed (20.0%), more than 5%"
        );
        rollout = rollout
            .after(
                Event::ResumeRequested {
                    word: Word::default(),
                },
                minutes(2),
            )
            .unwrap()
            .unwrap();
        rollout = happened(&rollout, &bad, minutes(3));
        assert_eq!(rollout.phase.as_str(), "paused");
        let word = Word {
            by: Some("ann".into()),
            reason: Some("known, harmless".into()),
        };
        let stage = StageName::new("canary").unwrap();
        rollout = rollout
            .after(Event::Promoted { stage, word }, minutes(4))
            .unwrap()
            .unwrap();
        assert_eq!(rollout.phase.as_str(), "running");
        rollout = happened(&rollout, &bad, minutes(5));
        assert_eq!(rollout.stage().0, 1);
    }

    #[test]
    fn a_gate_may_abort_or_be_only_a_warning() {
        let bad = counts(10, "8 enqueued, 2 refused");
        let rollout = happened(
            &staged("failure_above: 5%, on_failure: abort"),
            &bad,
            minutes(1),
        );
        assert_eq!(rollout.phase.as_str(), "aborting");
        let some = counts(10, "8 refused");
        let rollout = staged("failure_above: 5%, min_sample: 5, on_failure: continue");
        let rollout = happened(&rollout, &some, minutes(1));
        assert_eq!(rollout.phase.as_str(), "running");
        assert!(matches!(
            &rollout.history.last().unwrap().event,
            Event::GateFailed {
                then: OnFailure::Continue,
                ..
            }
        ));
        assert_eq!(
            next(&rollout, &some, true, None, minutes(2)),
            Next::Send,
            "told once"
        );
        let rollout = happened(&rollout, &bad, minutes(3));
        assert_eq!(rollout.stage().0, 1);
    }

    proptest! {
        /// A gate that measures never passes when too many failed, nor while something is to be sent, nor before
        /// its bake is over; and it always says something by its deadline.
        #[test]
        fn promises(
            numbers in prop::collection::vec(0u64..30, 6), above in 0u32..100, least in 0u32..100,
            delivered in any::<bool>(), unconfirmed in 0usize..4, after in 0u64..200,
        ) {
            let unconfirmed = ["neither", "left_out", "as_failed", "as_succeeded"][unconfirmed];
            let rung = if delivered { "delivered" } else { "enqueued" };
            let gate = gate(&format!("counts: {rung}, failure_above: {above}%, success_at_least: {least}%, \
                min_sample: 1, bake: 30m, deadline: 90m, unconfirmed: {unconfirmed}"));
            let names = ["pending", "not_found", "enqueued", "rejected", "delivered", "skipped"];
            let text: Vec<_> = names.iter().zip(&numbers).map(|(name, n)| format!("{n} {name}")).collect();
            let counts = counts(numbers.iter().sum(), &text.join(", "));
            let progress = sent(START);
            let view = View { gate: &gate, counts: &counts, progress: &progress, measured: None, ttl: None };
            let failed = numbers[1] + if delivered { numbers[3] } else { 0 };
            let succeeded = numbers[4] + if delivered { 0 } else { numbers[2] + numbers[3] };
            match judge(view, minutes(after)) {
                Verdict::Passed { .. } => {
                    prop_assert!(numbers[0] == 0 && after >= 30);
                    prop_assert!(failed * 100 <= u64::from(above) * (failed + succeeded));
                    prop_assert!(unconfirmed == "as_succeeded" || failed + succeeded > 0 || unconfirmed == "as_failed");
                }
                Verdict::Waits(WaitsFor::Sends { left }) => prop_assert_eq!(left, numbers[0]),
                Verdict::Waits(WaitsFor::Silent { devices, .. }) => {
                    prop_assert!(delivered && after < 90 && devices == numbers[2]);
                }
                Verdict::Waits(WaitsFor::Bake { .. }) => prop_assert!(after < 30),
                Verdict::Failed { .. } => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
