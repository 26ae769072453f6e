//! Numbers that a gate asks a Prometheus server for.
//!
//! ```text
//!  samples ──[`weigh`]──▶ result ──[`is_worth_noting`]──▶ event ──▶ tally, in the rollout's record
//!                                                                   │
//!                              failed | undecided | waits | holds ◀─┘ [`judge`]
//! ```
//!
//! A metric is asked for from the stage's start on, as the failure rule is armed from there on: what fails counts at
//! any time. What succeeds counts only when all of the stage was sent, as nothing can be said of it before.
//!
//! Tallies are kept in the record, and bounded: a measurement that changes nothing that matters is not noted. So
//! a stage writes at most as many as its limits allow, and one for each turn of the metric from one result to another.

use crate::ids::MetricName;
use crate::rollout::{MetricResult, MetricTally, StageProgress};
use crate::spec::{Gate, Metric};
use crate::time::Timestamp;

/// What a measurement came to, with what was found in a few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighed {
    /// What it came to.
    pub result: MetricResult,
    /// Samples, or why there are none.
    pub found: String,
}

/// Characters of what was found that are kept.
const FOUND: usize = 200;
/// Samples that are shown.
const SHOWN: usize = 5;

/// Weighs what a metric's query has given: its samples, or why there are none.
#[must_use]
pub fn weigh(metric: &Metric, answer: Result<&[f64], String>) -> Weighed {
    let weighed = |result, found: String| Weighed {
        result,
        found: found.chars().take(FOUND).collect(),
    };
    let samples = match answer {
        Ok([]) => return weighed(MetricResult::NotMeasured, "no sample".into()),
        Ok(samples) => samples,
        Err(why) => return weighed(MetricResult::NotMeasured, why),
    };
    let mut shown: Vec<_> = samples.iter().take(SHOWN).map(f64::to_string).collect();
    if samples.len() > SHOWN {
        shown.push(format!("and {} more", samples.len() - SHOWN));
    }
    let found = shown.join(", ");
    let is_nan = samples.iter().any(|sample| sample.is_nan());
    let has_failed = |sample: &f64| match (metric.failure, metric.success) {
        (Some(failure), _) => failure.holds(*sample),
        (None, Some(success)) => !sample.is_nan() && !success.holds(*sample),
        (None, None) => false,
    };
    let has_succeeded = |sample: &f64| metric.success.is_none_or(|success| success.holds(*sample));
    let result = if samples.iter().any(has_failed) {
        MetricResult::Failed
    } else if is_nan {
        MetricResult::NotMeasured
    } else if samples.iter().all(has_succeeded) {
        MetricResult::Succeeded
    } else {
        MetricResult::Inconclusive
    };
    weighed(result, found)
}

/// Which metric is to be asked for now: the one that was asked for least recently, of those that are due. `asked` is
/// when whoever asks has last asked for one.
#[must_use]
pub fn due<'a>(
    gate: &'a Gate,
    progress: &StageProgress,
    asked: impl Fn(&MetricName) -> Option<Timestamp>,
    now: Timestamp,
) -> Option<&'a Metric> {
    let is_over =
        progress.passed_at.is_some() || progress.promoted.is_some() || progress.ignored.is_some();
    let started_at = progress.started_at.filter(|_| !is_over)?;
    let last = |metric: &Metric| asked(&metric.name).max(noted_at(progress, metric));
    let is_due = |metric: &&Metric| match last(metric) {
        Some(at) => now >= at.plus(metric.every.0),
        None => {
            let delay = metric.initial_delay.map(|delay| delay.0);
            now >= started_at.plus(delay.unwrap_or_default())
        }
    };
    gate.metrics
        .iter()
        .filter(is_due)
        .min_by_key(|metric| last(metric))
}

fn noted_at(progress: &StageProgress, metric: &Metric) -> Option<Timestamp> {
    progress.tally(&metric.name).map(|tally| tally.at)
}

/// Whether a measurement changes something that is to be remembered.
#[must_use]
pub fn is_worth_noting(metric: &Metric, progress: &StageProgress, result: MetricResult) -> bool {
    let Some(tally) = progress.tally(&metric.name) else {
        return true;
    };
    match result {
        MetricResult::Failed | MetricResult::Inconclusive | MetricResult::NotMeasured => true,
        MetricResult::Succeeded => {
            let counts = progress.sent_at.is_some() && tally.succeeded < metric.count;
            counts || tally.result != MetricResult::Succeeded
        }
    }
}

/// What a gate's metrics come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sum {
    /// All have succeeded as often as they must.
    Holds,
    /// One has not yet, by so many measurements.
    Waits { metric: MetricName, left: u32 },
    /// One has failed too often.
    Failed { because: String },
    /// Of one it cannot be said.
    Undecided { because: String },
}

/// Judges a gate's metrics. Failure is looked at before all else.
pub(super) fn judge(gate: &Gate, progress: &StageProgress) -> Sum {
    let known = || {
        let metrics = gate.metrics.iter();
        metrics.filter_map(|metric| Some((metric, progress.tally(&metric.name)?)))
    };
    let failed = known().find(|(metric, tally)| tally.failed > metric.failure_limit);
    if let Some((metric, tally)) = failed {
        return Sum::Failed {
            because: format!(
                "metric {} {}, more than {}; the last was {}, and is to be {}",
                metric.name,
                times("has failed", tally.failed),
                metric.failure_limit,
                tally.found,
                wanted(metric)
            ),
        };
    }
    for (metric, tally) in known() {
        let name = &metric.name;
        let (what, found, limit) = if tally.inconclusive > metric.inconclusive_limit {
            let many = times("was inconclusive", tally.inconclusive);
            (many, &tally.found, metric.inconclusive_limit)
        } else if tally.not_measured > metric.error_limit {
            let many = times("could not be measured", tally.not_measured);
            let in_a_row = if tally.not_measured > 1 {
                " in a row"
            } else {
                ""
            };
            (
                format!("{many}{in_a_row}"),
                &tally.found,
                metric.error_limit,
            )
        } else {
            continue;
        };
        return Sum::Undecided {
            because: format!("metric {name} {what}, more than {limit}; the last was {found}"),
        };
    }
    for metric in &gate.metrics {
        let succeeded = progress
            .tally(&metric.name)
            .map_or(0, |tally| tally.succeeded);
        if succeeded < metric.count {
            return Sum::Waits {
                metric: metric.name.clone(),
                left: metric.count - succeeded,
            };
        }
    }
    Sum::Holds
}

fn times(what: &str, many: u32) -> String {
    match many {
        1 => format!("{what} once"),
        many => format!("{what} {many} times"),
    }
}

/// What a metric is to be, in a few words.
pub(super) fn wanted(metric: &Metric) -> String {
    match (metric.success, metric.failure) {
        (Some(success), Some(failure)) => format!("{success} and not {failure}"),
        (Some(success), None) => success.to_string(),
        (None, Some(failure)) => format!("not {failure}"),
        (None, None) => "anything".to_owned(),
    }
}

/// What was found of metrics that hold; `None` when there are none.
pub(super) fn found(gate: &Gate, progress: &StageProgress) -> Option<String> {
    let known = gate.metrics.iter().filter_map(|metric| {
        let tally = progress.tally(&metric.name)?;
        Some(format!("{} {}", metric.name, tally.found))
    });
    let known = known.collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("its metrics are as they should be: {known}"))
}

/// What was noted last of each metric, for people: `error-rate 0.001, 3 of 5`.
#[must_use]
pub fn in_words(gate: &Gate, progress: &StageProgress) -> String {
    let words = gate.metrics.iter().map(|metric| {
        let (name, count) = (&metric.name, metric.count);
        match progress.tally(name) {
            None => format!("{name} not asked for yet"),
            Some(tally) => {
                let MetricTally {
                    found,
                    at,
                    succeeded,
                    ..
                } = tally;
                let result = match tally.result {
                    MetricResult::Succeeded => "succeeded",
                    MetricResult::Failed => "failed",
                    MetricResult::Inconclusive => "inconclusive",
                    MetricResult::NotMeasured => "not measured",
                };
                let succeeded = succeeded.min(&count);
                format!("{name} {found} ({result}) since {at}, {succeeded} of {count}")
            }
        }
    });
    words.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
