//! The verdict on a stage in its current state.

use std::time::Duration;

use super::metric::{self, MetricsVerdict};
use super::shares::{
    AppliedCount, DeviceShares, early_failure, early_failure_by_answers, failure_rule_violation,
    level_name, success_out_of_reach, success_rule_violation, violated_rule,
};
use super::verdict::{Verdict, missing_evidence};
use crate::evidence::{Evidence, EvidenceClock, MARGIN};
use crate::message::TTL;
use crate::outcome::Counts;
use crate::rollout::StageProgress;
use crate::spec::{Gate, Percent, SmallSample, SuccessLevel, Unconfirmed};
use crate::time::Timestamp;
use crate::waiting::Waiting;

/// Returns how long after a send the fate of a message is certain: the time to live, plus the time
/// in which the hub reports an expired message.
#[must_use]
pub fn answered_within(ttl: Option<Duration>, batching: Duration) -> Duration {
    ttl.unwrap_or(TTL) + batching + MARGIN
}

/// Returns how long a gate waits for silent devices once all devices were sent to. `answer_time` is
/// the time given to devices to fulfil the message's request, where devices answer in their twins.
#[must_use]
pub fn deadline(
    gate: &Gate,
    ttl: Option<Duration>,
    answer_time: Duration,
    batching: Duration,
) -> Duration {
    let own = gate.deadline.map(|duration| duration.0);
    let answer_time = match gate.counts {
        SuccessLevel::Applied => answer_time,
        SuccessLevel::Enqueued | SuccessLevel::Delivered => Duration::ZERO,
    };
    own.unwrap_or_else(|| answered_within(ttl, batching) + answer_time)
}

/// The current state of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageView<'a> {
    /// The stage's gate.
    pub gate: &'a Gate,
    /// The outcomes of the stage's devices.
    pub counts: &'a Counts,
    /// Whether a send is owed to a device of this stage or, after a retry, of an earlier stage.
    pub sends_owed: bool,
    /// The progress of the stage.
    pub progress: &'a StageProgress,
    /// The newest measurement, with `counts: applied`.
    pub applied_count: Option<AppliedCount>,
    /// Whether `applied_count` counts answers of devices.
    pub by_answers: bool,
    /// The message's time to live.
    pub ttl: Option<Duration>,
    /// The time given to devices to fulfil the message's request, where devices answer in their
    /// twins.
    pub answer_time: Duration,
    /// How far the feedback about the stage's silent devices was received.
    pub evidence: &'a Evidence,
    /// The bake time so far, and how long no new evidence has arrived.
    pub clock: &'a EvidenceClock,
}

impl StageView<'_> {
    /// Returns the remaining bake time.
    fn bake_left(&self) -> Duration {
        let bake = self.gate.bake.map_or(Duration::ZERO, |bake| bake.0);
        bake.saturating_sub(self.clock.baked())
    }

    /// Returns the verdict while evidence is missing: wait for `evidence_within`, then undecided.
    fn evidence_missing(&self, devices: u64) -> Verdict {
        let obstacles = obstacles(self.clock, self.evidence);
        if self.clock.without_evidence() < self.gate.evidence_within() {
            return Verdict::Waiting(Waiting::Evidence { devices, obstacles });
        }
        let within = self.gate.evidence_within();
        Verdict::Undecided {
            reason: missing_evidence(devices, within, &obstacles),
        }
    }
}

/// Returns the wait before a failure after a resume: reports of the time before the resume may be
/// missing, and may change the verdict. Nothing is sent meanwhile.
pub(super) fn behind_resume(
    gate: &Gate,
    clock: &EvidenceClock,
    evidence: &Evidence,
    silent: u64,
) -> Option<Waiting> {
    let is_behind = clock.is_behind_resume(gate.evidence_within());
    is_behind.then(|| Waiting::Evidence {
        devices: silent,
        obstacles: obstacles(clock, evidence),
    })
}

/// Returns why evidence is missing, for people; empty if unknown.
fn obstacles(clock: &EvidenceClock, evidence: &Evidence) -> String {
    let query_failure = clock.query_failure();
    query_failure
        .unwrap_or_else(|| evidence.obstacles())
        .to_owned()
}

/// Judges a stage's gate at `now`.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// # use twincast_core::evidence::{Evidence, EvidenceClock};
/// # use twincast_core::ids::StageName;
/// # use twincast_core::rollout::StageProgress;
/// # use twincast_core::spec::{Document, Gate};
/// # use twincast_core::time::Timestamp;
/// use twincast_core::gate::{StageView, Verdict, judge};
/// use twincast_core::outcome::{Counts, Outcome};
///
/// let gate: Gate = Document::parse("gate.yaml", "failure_above: 5%")?.read()?;
/// let mut counts = Counts::pending(80);
/// (0..18).for_each(|_| counts.count(Outcome::Enqueued));
/// (0..2).for_each(|_| counts.count(Outcome::Refused));
/// let stage = StageView {
///     gate: &gate,
///     counts: &counts,
///     sends_owed: true,
/// #   progress: &StageProgress::new(StageName::new("canary")?),
/// #   applied_count: None,
/// #   by_answers: false,
/// #   ttl: None,
/// #   answer_time: Duration::ZERO,
/// #   evidence: &Evidence::complete(),
/// #   clock: &EvidenceClock::default(),
///     // ...
/// };
/// let reason = "2 of 20 measured devices failed (10.0%), more than 5%".to_owned();
/// assert_eq!(judge(stage, Timestamp(0)), Verdict::Failed { reason });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn judge(view: StageView<'_>, now: Timestamp) -> Verdict {
    let StageView { gate, counts, .. } = view;
    let shares = DeviceShares::of(gate.counts, counts, view.applied_count);
    let failed = match view.by_answers {
        true => early_failure_by_answers(gate, counts, shares),
        false => early_failure(gate, shares),
    };
    if let Some(reason) = failed.or_else(|| success_out_of_reach(gate, shares)) {
        let waits = behind_resume(gate, view.clock, view.evidence, shares.silent);
        return waits.map_or(Verdict::Failed { reason }, Verdict::Waiting);
    }
    let metrics = match metric::judge(gate, view.progress) {
        MetricsVerdict::Failed { reason } => return Verdict::Failed { reason },
        MetricsVerdict::Undecided { reason } => return Verdict::Undecided { reason },
        other => other,
    };
    if shares.unsent > 0 || view.sends_owed {
        return Verdict::Waiting(Waiting::Sends {
            left: shares.unsent,
        });
    }
    // Twins are queried after the bake: devices need time to apply the change.
    if gate.counts == SuccessLevel::Applied
        && let Some(verdict) = bake(view, shares, now)
    {
        return verdict;
    }
    let measured = match judge_shares(view, now) {
        Ok(reason) => reason,
        Err(verdict) => return verdict,
    };
    if let Some(verdict) = bake(view, shares, now) {
        return verdict;
    }
    if let MetricsVerdict::Waiting { metric, left } = metrics {
        return Verdict::Waiting(Waiting::Metric { metric, left });
    }
    approval(view, measured.as_deref(), now)
}

/// Returns the verdict of the bake; `None` after the end of the bake.
fn bake(view: StageView<'_>, shares: DeviceShares, now: Timestamp) -> Option<Verdict> {
    let left = view.bake_left();
    if left.is_zero() {
        return None;
    }
    Some(if view.evidence.is_current(now) {
        Verdict::Waiting(Waiting::Bake {
            until: now.plus(left),
        })
    } else {
        view.evidence_missing(shares.silent)
    })
}

/// Judges the shares of devices. `Ok` is the reason why the shares hold, or `None` for a gate
/// without shares. `Err` is the verdict.
fn judge_shares(view: StageView<'_>, now: Timestamp) -> Result<Option<String>, Verdict> {
    let StageView { gate, counts, .. } = view;
    if !gate.has_share_rules() {
        return Ok(None);
    }
    let applied_count = view.applied_count.map(|it| it.at_least(counts));
    let shares = DeviceShares::of(gate.counts, counts, applied_count);
    // All devices were sent to, and `sent_at` is about to be noted.
    let sent_at = view.progress.sent_at.unwrap_or(now);
    let batching = view.evidence.batching();
    let deadline = sent_at.plus(deadline(gate, view.ttl, view.answer_time, batching));
    if gate.counts == SuccessLevel::Applied {
        let is_given_up = view.clock.query_failure().is_some()
            && view.clock.without_evidence() >= gate.evidence_within();
        match freshness(view.applied_count, deadline, now) {
            Freshness::Fresh => {}
            _ if is_given_up => return Err(view.evidence_missing(shares.all())),
            Freshness::Stale => return Err(Verdict::QueryTwins),
            Freshness::Lagging { until } => {
                return Err(Verdict::Waiting(Waiting::Silent {
                    devices: shares.silent,
                    until,
                }));
            }
        }
    }
    // Silent devices without influence on the verdict are not waited for.
    let at_worst = shares.resolved(Unconfirmed::AsFailed);
    let is_settled = shares.measured() > 0 && violated_rule(gate, at_worst).is_none();
    if shares.silent > 0 && !is_settled {
        if now < deadline {
            return Err(Verdict::Waiting(Waiting::Silent {
                devices: shares.silent,
                until: deadline.max(now.plus(view.bake_left())),
            }));
        }
        if !view.evidence.covers(deadline) {
            return Err(view.evidence_missing(shares.silent));
        }
        if let Some(verdict) = bake(view, shares, now) {
            return Err(verdict);
        }
    }
    if !is_settled && let Err(verdict) = final_verdict(gate, shares) {
        let in_doubt = view.applied_count.map_or(0, |it| it.in_doubt(counts));
        return Err(match in_doubt {
            0 => verdict,
            _ => Verdict::QueryTwins,
        });
    }
    let DeviceShares {
        succeeded,
        failed,
        silent,
        ..
    } = shares;
    let (level, all) = (level_name(gate.counts), shares.all());
    Ok(Some(format!(
        "{succeeded} of {all} devices {level}, {failed} failed, {silent} silent"
    )))
}

/// Returns the final verdict on the shares: all measured devices count, and must be a large enough
/// sample.
fn final_verdict(gate: &Gate, shares: DeviceShares) -> Result<(), Verdict> {
    let resolved = shares.resolved(gate.unconfirmed);
    let (measured, all) = (resolved.measured(), shares.all());
    if let Some(reason) = failure_rule_violation(gate, resolved) {
        return Err(Verdict::Failed { reason });
    }
    let enough = u64::from(gate.min_sample).min(all);
    if gate.too_little == SmallSample::Pause && (measured < enough || all == 0) {
        let reason = if all == 0 {
            "the sample is too small: no device was left to measure".to_owned()
        } else {
            format!(
                "the sample is too small: {measured} of {all} devices measured, {} silent; \
                 {enough} are needed",
                shares.silent
            )
        };
        return Err(Verdict::Undecided { reason });
    }
    match success_rule_violation(gate, resolved) {
        Some(reason) => Err(Verdict::Failed { reason }),
        None => Ok(()),
    }
}

/// The usability of a measurement of twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// The measurement is good enough for a verdict.
    Fresh,
    /// The hub must be queried again.
    Stale,
    /// The deadline is over, but until this moment the hub's queries do not show all reports made
    /// before the deadline.
    Lagging { until: Timestamp },
}

/// Returns the usability of a measurement. A measurement is fresh for a minute. From the deadline
/// on, a measurement must show all reports made before the deadline.
fn freshness(
    applied_count: Option<AppliedCount>,
    deadline: Timestamp,
    now: Timestamp,
) -> Freshness {
    let Some(applied_count) = applied_count else {
        return Freshness::Stale;
    };
    let is_recent = now.since(applied_count.queried_at) < QUERY_INTERVAL;
    if now < deadline {
        return match is_recent {
            true => Freshness::Fresh,
            false => Freshness::Stale,
        };
    }
    let until = deadline.plus(applied_count.queried_at.since(applied_count.as_of));
    match applied_count.as_of >= deadline {
        true => Freshness::Fresh,
        false if is_recent && now < until => Freshness::Lagging { until },
        false => Freshness::Stale,
    }
}

/// How often the hub is queried for the number of devices that have applied the change.
const QUERY_INTERVAL: Duration = Duration::from_secs(60);

fn approval(view: StageView<'_>, measured: Option<&str>, now: Timestamp) -> Verdict {
    let reason = |approved: Option<String>| {
        let measured = measured.map(str::to_owned);
        let metrics = metric::describe_samples(view.gate, view.progress);
        let parts: Vec<_> = [measured, metrics, approved]
            .into_iter()
            .flatten()
            .collect();
        if parts.is_empty() {
            "the bake is over".to_owned()
        } else {
            parts.join("; ")
        }
    };
    let Some(rule) = &view.gate.approval else {
        return Verdict::Passed {
            reason: reason(None),
        };
    };
    let until = rule.within.zip(view.progress.approval_awaited_at);
    let until = until.map(|(within, since)| since.plus(within.0));
    if let Some(approval) = &view.progress.approved
        && until.is_none_or(|until| approval.at < until)
    {
        return Verdict::Passed {
            reason: reason(Some(format!("approved by {}", approval.attribution))),
        };
    }
    if view.progress.approval_awaited_at.is_none() {
        return Verdict::Waiting(Waiting::ApprovalToBeNoted);
    }
    match until {
        Some(until) if now >= until => Verdict::Failed {
            reason: format!("no approval until {until}"),
        },
        until => Verdict::Waiting(Waiting::Approval { until }),
    }
}

/// Describes the conditions of a gate.
#[must_use]
pub fn describe(gate: &Gate) -> String {
    let level = level_name(gate.counts);
    let percent =
        |text: &str, percent: Option<Percent>| percent.map(|percent| format!("{text}{percent}"));
    let parts = [
        percent(&format!("{level} >= "), gate.success_at_least),
        percent("failed <= ", gate.failure_above),
        gate.bake.map(|bake| format!("bake {bake}")),
        gate.approval.as_ref().map(|_| "approval".to_owned()),
    ];
    let metrics = gate.metrics.iter();
    let metrics = metrics.map(|metric| format!("{} {}", metric.name, metric::conditions(metric)));
    let parts = parts.into_iter().flatten().chain(metrics);
    parts.collect::<Vec<_>>().join(", ")
}
