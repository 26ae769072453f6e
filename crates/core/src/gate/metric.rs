//! The metrics of a gate: numbers queried from a Prometheus server.
//!
//! ```text
//!  samples ──[`evaluate`]──▶ result ──[`must_be_noted`]──▶ event ──▶ tally, in the rollout's record
//!                                                                   │
//!                              failed | undecided | waits | holds ◀─┘ [`judge`]
//! ```
//!
//! A gate queries metrics from the start of the stage on, because the failure rule is armed from
//! then on: a failed measurement counts at any time. A successful measurement counts only after the
//! last send of the stage, because earlier success says nothing about the whole stage.
//!
//! Tallies are kept in the record, and are bounded: a measurement without a relevant change is not
//! noted. A stage therefore writes at most as many measurements as the limits allow, and another
//! for each change of a metric from one result to another.

use crate::ids::MetricName;
use crate::rollout::{MetricResult, MetricTally, StageProgress};
use crate::spec::{Gate, Metric};
use crate::time::Timestamp;

/// The result of a measurement, with a short description of the samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// The result.
    pub result: MetricResult,
    /// The samples, or the reason why there are none.
    pub samples: String,
}

/// The maximum number of characters kept of a description.
const MAX_TEXT_CHARS: usize = 200;
/// The maximum number of samples in a description.
const MAX_SHOWN_SAMPLES: usize = 5;

/// Evaluates the answer to a metric's query: samples, or the reason why there are none.
#[must_use]
pub fn evaluate(metric: &Metric, answer: Result<&[f64], String>) -> Measurement {
    let measurement = |result, samples: String| Measurement {
        result,
        samples: samples.chars().take(MAX_TEXT_CHARS).collect(),
    };
    let samples = match answer {
        Ok([]) => return measurement(MetricResult::NotMeasured, "no sample".into()),
        Ok(samples) => samples,
        Err(why) => return measurement(MetricResult::NotMeasured, why),
    };
    let mut shown: Vec<_> = samples
        .iter()
        .take(MAX_SHOWN_SAMPLES)
        .map(f64::to_string)
        .collect();
    if samples.len() > MAX_SHOWN_SAMPLES {
        shown.push(format!("and {} more", samples.len() - MAX_SHOWN_SAMPLES));
    }
    let text = shown.join(", ");
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
    measurement(result, text)
}

/// Returns the metric to query now: of the due metrics, the metric queried least recently.
/// `queried_at` returns the time of the caller's last query of a metric.
#[must_use]
pub fn due<'a>(
    gate: &'a Gate,
    progress: &StageProgress,
    queried_at: impl Fn(&MetricName) -> Option<Timestamp>,
    now: Timestamp,
) -> Option<&'a Metric> {
    let is_over = progress.passed_at.is_some()
        || progress.promoted.is_some()
        || progress.ignored_failure.is_some();
    let started_at = progress.started_at.filter(|_| !is_over)?;
    let last = |metric: &Metric| queried_at(&metric.name).max(noted_at(progress, metric));
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

/// Returns whether a measurement must be noted, because the tally changes in a relevant way.
#[must_use]
pub fn must_be_noted(metric: &Metric, progress: &StageProgress, result: MetricResult) -> bool {
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

/// The verdict on a gate's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MetricsVerdict {
    /// Every metric has succeeded as often as required.
    Holds,
    /// A metric needs more successful measurements, `left` in number.
    Waiting { metric: MetricName, left: u32 },
    /// A metric has failed too often.
    Failed { reason: String },
    /// A metric cannot be judged.
    Undecided { reason: String },
}

/// Judges a gate's metrics. Failure is checked before all else.
pub(super) fn judge(gate: &Gate, progress: &StageProgress) -> MetricsVerdict {
    let known = || {
        let metrics = gate.metrics.iter();
        metrics.filter_map(|metric| Some((metric, progress.tally(&metric.name)?)))
    };
    let failed = known().find(|(metric, tally)| tally.failed > metric.failure_limit);
    if let Some((metric, tally)) = failed {
        return MetricsVerdict::Failed {
            reason: format!(
                "metric {} {} (limit {}); last result {}, expected {}",
                metric.name,
                times("has failed", tally.failed),
                metric.failure_limit,
                tally.samples,
                conditions(metric)
            ),
        };
    }
    for (metric, tally) in known() {
        let name = &metric.name;
        let (what, samples, limit) = if tally.inconclusive > metric.inconclusive_limit {
            let many = times("was inconclusive", tally.inconclusive);
            (many, &tally.samples, metric.inconclusive_limit)
        } else if tally.not_measured > metric.error_limit {
            let many = times("could not be measured", tally.not_measured);
            let in_a_row = if tally.not_measured > 1 {
                " in a row"
            } else {
                ""
            };
            (
                format!("{many}{in_a_row}"),
                &tally.samples,
                metric.error_limit,
            )
        } else {
            continue;
        };
        return MetricsVerdict::Undecided {
            reason: format!("metric {name} {what} (limit {limit}); last result {samples}"),
        };
    }
    for metric in &gate.metrics {
        let succeeded = progress
            .tally(&metric.name)
            .map_or(0, |tally| tally.succeeded);
        if succeeded < metric.count {
            return MetricsVerdict::Waiting {
                metric: metric.name.clone(),
                left: metric.count - succeeded,
            };
        }
    }
    MetricsVerdict::Holds
}

fn times(what: &str, many: u32) -> String {
    match many {
        1 => format!("{what} once"),
        many => format!("{what} {many} times"),
    }
}

/// Describes the conditions of a metric.
pub(super) fn conditions(metric: &Metric) -> String {
    match (metric.success, metric.failure) {
        (Some(success), Some(failure)) => format!("{success} and not {failure}"),
        (Some(success), None) => success.to_string(),
        (None, Some(failure)) => format!("not {failure}"),
        (None, None) => "anything".to_owned(),
    }
}

/// Describes the last noted samples of metrics that hold; `None` without metrics.
pub(super) fn describe_samples(gate: &Gate, progress: &StageProgress) -> Option<String> {
    let known = gate.metrics.iter().filter_map(|metric| {
        let tally = progress.tally(&metric.name)?;
        Some(format!("{} {}", metric.name, tally.samples))
    });
    let known = known.collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("all metrics have succeeded: {known}"))
}

/// Describes the last noted measurement of each metric, for people, such as
/// `errors 0.001 (succeeded) since 2026-01-05T12:00:00Z, 3 of 5`.
#[must_use]
pub fn describe(gate: &Gate, progress: &StageProgress) -> String {
    let words = gate.metrics.iter().map(|metric| {
        let (name, count) = (&metric.name, metric.count);
        match progress.tally(name) {
            None => format!("{name} not queried yet"),
            Some(tally) => {
                let MetricTally {
                    samples,
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
                format!("{name} {samples} ({result}) since {at}, {succeeded} of {count}")
            }
        }
    });
    words.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
