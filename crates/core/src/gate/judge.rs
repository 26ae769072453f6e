//! The verdict on a stage in its current state.

use std::time::Duration;

use super::metric;
use super::shares::{
    Measured, Sorted, cannot_succeed, exceeds, fails_in_the_end, has_failed, has_failed_by_answers,
    has_not_succeeded, word,
};
use super::verdict::{Verdict, not_measured};
use crate::evidence::{Evidence, EvidenceClock, MARGIN};
use crate::message::TTL;
use crate::outcome::Counts;
use crate::rollout::StageProgress;
use crate::spec::{Gate, Percent, Rung, TooLittle, Unconfirmed};
use crate::time::Timestamp;
use crate::waiting::Waiting;

/// How long after a send the fate of a message is certain: its time to live, and the time in which the hub reports that
/// the message has expired.
#[must_use]
pub fn answered_within(ttl: Option<Duration>, batching: Duration) -> Duration {
    ttl.unwrap_or(TTL) + batching + MARGIN
}

/// How long a gate waits for silent devices once all devices were sent to. `within`: how long a device that answers has to do
/// what the message asks for.
#[must_use]
pub fn deadline(
    gate: &Gate,
    ttl: Option<Duration>,
    within: Duration,
    batching: Duration,
) -> Duration {
    let own = gate.deadline.map(|span| span.0);
    let within = match gate.counts {
        Rung::Applied => within,
        Rung::Enqueued | Rung::Delivered => Duration::ZERO,
    };
    own.unwrap_or_else(|| answered_within(ttl, batching) + within)
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
    /// It is of the devices' answers.
    pub by_answers: bool,
    /// The message's time to live.
    pub ttl: Option<Duration>,
    /// How long a device that answers has to do what the message asks for.
    pub within: Duration,
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
            return Verdict::Waits(Waiting::Evidence {
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

/// Judges a stage's gate at `now`.
#[must_use]
pub fn judge(view: View<'_>, now: Timestamp) -> Verdict {
    let View { gate, counts, .. } = view;
    let sorted = Sorted::of(gate.counts, counts, view.measured);
    let failed = match view.by_answers {
        true => has_failed_by_answers(gate, counts, sorted),
        false => has_failed(gate, sorted),
    };
    if let Some(because) = failed.or_else(|| cannot_succeed(gate, sorted)) {
        return Verdict::Failed { because };
    }
    let metrics = match metric::judge(gate, view.progress) {
        metric::Sum::Failed { because } => return Verdict::Failed { because },
        metric::Sum::Undecided { because } => return Verdict::Undecided { because },
        other => other,
    };
    if sorted.unsent > 0 || view.left {
        return Verdict::Waits(Waiting::Sends {
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
        return Verdict::Waits(Waiting::Metric { metric, left });
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
        Verdict::Waits(Waiting::Bake {
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
    let batching = view.evidence.batching();
    let deadline = sent_at.plus(deadline(gate, view.ttl, view.within, batching));
    if gate.counts == Rung::Applied {
        let is_given_up =
            view.clock.not_asked().is_some() && view.clock.unheard() >= gate.evidence_within();
        match freshness(view.measured, deadline, now) {
            Freshness::Fresh => {}
            _ if is_given_up => return Err(view.not_measured(sorted.all())),
            Freshness::Stale => return Err(Verdict::Measure),
            Freshness::Lags { until } => {
                return Err(Verdict::Waits(Waiting::Silent {
                    devices: sorted.silent,
                    until,
                }));
            }
        }
    }
    // Silent devices that cannot change the verdict are not waited for.
    let at_worst = sorted.resolved(Unconfirmed::AsFailed);
    let is_settled = sorted.measured() > 0 && fails_in_the_end(gate, at_worst).is_none();
    if sorted.silent > 0 && !is_settled {
        if now < deadline {
            return Err(Verdict::Waits(Waiting::Silent {
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

/// What a measurement of twins is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// A verdict.
    Fresh,
    /// The hub is to be asked.
    Stale,
    /// The deadline is over, and the hub's queries do not show all that was reported by then until this moment.
    Lags { until: Timestamp },
}

/// A measurement is fresh for a minute; from the deadline on it must show what was reported by the deadline.
fn freshness(measured: Option<Measured>, deadline: Timestamp, now: Timestamp) -> Freshness {
    let Some(measured) = measured else {
        return Freshness::Stale;
    };
    let is_recent = now.since(measured.asked_at) < MEASURED_EVERY;
    if now < deadline {
        return match is_recent {
            true => Freshness::Fresh,
            false => Freshness::Stale,
        };
    }
    let until = deadline.plus(measured.asked_at.since(measured.as_of));
    match measured.as_of >= deadline {
        true => Freshness::Fresh,
        false if is_recent && now < until => Freshness::Lags { until },
        false => Freshness::Stale,
    }
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
        return Verdict::Waits(Waiting::ApprovalToBeNoted);
    }
    match until {
        Some(until) if now >= until => Verdict::Failed {
            because: format!("nobody approved until {until}"),
        },
        until => Verdict::Waits(Waiting::Approval { until }),
    }
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
