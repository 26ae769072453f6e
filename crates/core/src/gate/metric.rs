//! Numbers that a gate asks a Prometheus server for.
//!
//! ```text
//!  samples ──[`weigh`]──▶ result ──[`is_worth_noting`]──▶ event ──[`note`]──▶ tally, in the rollout's record
//!                                                                             │
//!                                        failed | undecided | waits | holds ◀─┘ [`judge`]
//! ```
//!
//! A metric is asked for from the stage's start on, as the failure rule is armed from there on: what fails counts at
//! any time. What succeeds counts only when all of the stage was sent, as nothing can be said of it before.
//!
//! Tallies are kept in the record, and bounded: a measurement that changes nothing that matters is not noted. So
//! a stage writes at most as many as its limits allow, and one for each turn of the metric from one result to another.

use serde::{Deserialize, Serialize};

use crate::ids::MetricName;
use crate::rollout::StageProgress;
use crate::spec::{Gate, Metric};
use crate::time::Timestamp;

/// What one measurement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricResult {
    /// It is as it should be.
    Succeeded,
    /// It is as it should not be.
    Failed,
    /// Neither.
    Inconclusive,
    /// Nobody knows what it is.
    NotMeasured,
}

/// What is known of a metric in a stage. The counts begin anew when the rollout is resumed after its gate has
/// paused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricTally {
    /// The metric.
    pub name: MetricName,
    /// Measurements that succeeded after all of the stage was sent, up to as many as are needed.
    #[serde(default)]
    pub succeeded: u32,
    /// Those that failed.
    #[serde(default)]
    pub failed: u32,
    /// Those that were inconclusive.
    #[serde(default)]
    pub inconclusive: u32,
    /// How often in a row it could not be measured, as far as that was noted.
    #[serde(default)]
    pub not_measured: u32,
    /// What the last one came to that was noted.
    pub result: MetricResult,
    /// What was found then: samples, or why there are none.
    pub found: String,
    /// When that was.
    pub at: Timestamp,
}

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
    tally(progress, &metric.name).map(|tally| tally.at)
}

fn tally<'a>(progress: &'a StageProgress, name: &MetricName) -> Option<&'a MetricTally> {
    progress.metrics.iter().find(|tally| tally.name == *name)
}

/// Whether a measurement changes something that is to be remembered.
#[must_use]
pub fn is_worth_noting(metric: &Metric, progress: &StageProgress, result: MetricResult) -> bool {
    let Some(tally) = tally(progress, &metric.name) else {
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

/// Notes a measurement in a stage's progress.
pub(crate) fn note(
    progress: &mut StageProgress,
    name: &MetricName,
    weighed: Weighed,
    at: Timestamp,
) {
    let is_sent = progress.sent_at.is_some();
    let known = progress
        .metrics
        .iter()
        .position(|tally| tally.name == *name);
    let index = known.unwrap_or_else(|| {
        progress.metrics.push(MetricTally {
            name: name.clone(),
            succeeded: 0,
            failed: 0,
            inconclusive: 0,
            not_measured: 0,
            result: weighed.result,
            found: String::new(),
            at,
        });
        progress.metrics.len() - 1
    });
    let tally = &mut progress.metrics[index];
    match weighed.result {
        MetricResult::Succeeded => tally.succeeded += u32::from(is_sent),
        MetricResult::Failed => tally.failed += 1,
        MetricResult::Inconclusive => tally.inconclusive += 1,
        MetricResult::NotMeasured => tally.not_measured += 1,
    }
    if weighed.result != MetricResult::NotMeasured {
        tally.not_measured = 0;
    }
    (tally.result, tally.found, tally.at) = (weighed.result, weighed.found, at);
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
        metrics.filter_map(|metric| Some((metric, tally(progress, &metric.name)?)))
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
        let succeeded = tally(progress, &metric.name).map_or(0, |tally| tally.succeeded);
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
        let tally = tally(progress, &metric.name)?;
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
        match tally(progress, name) {
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
