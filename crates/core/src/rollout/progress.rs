//! The progress of a stage: decisions of operators, and the results of the gate's metrics.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{MetricName, StageName};
use crate::time::Timestamp;

/// The attribution of an operation: its author and the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribution {
    /// The author, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The reason, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Attribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.by.as_deref().unwrap_or("somebody"))?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// The approval of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The attribution.
    #[serde(flatten)]
    pub attribution: Attribution,
    /// The time.
    pub at: Timestamp,
}

/// The result of one measurement of a [`Metric`](crate::spec::Metric).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricResult {
    /// The samples satisfy the metric's conditions.
    Succeeded,
    /// A sample violates the metric's conditions.
    Failed,
    /// Neither.
    Inconclusive,
    /// There is no usable sample.
    NotMeasured,
}

/// The results of a metric in a stage. The counts restart when the rollout is resumed after a pause
/// by the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricTally {
    /// The metric.
    pub name: MetricName,
    /// Successful measurements after the stage was completely sent, up to the required number.
    #[serde(default)]
    pub succeeded: u32,
    /// Failed measurements.
    #[serde(default)]
    pub failed: u32,
    /// Inconclusive measurements.
    #[serde(default)]
    pub inconclusive: u32,
    /// Consecutive measurements without a value, as far as noted.
    #[serde(default)]
    pub not_measured: u32,
    /// The noted result of the last measurement.
    pub result: MetricResult,
    /// The samples of the last measurement, or the reason for their absence.
    pub samples: String,
    /// The time of the last measurement.
    pub at: Timestamp,
}

/// The progress of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The stage.
    pub name: StageName,
    /// When the stage became the current stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the driver noted that all devices of the stage were sent to. Only for a stage with a
    /// gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// When an approval became the last missing condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_awaited_at: Option<Timestamp>,
    /// The approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
    /// The attribution of a promotion, which makes the gate count as passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Attribution>,
    /// Why the gate failed, if the rollout continues in spite of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored_failure: Option<String>,
    /// The results of the gate's metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricTally>,
    /// When the stage passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<Timestamp>,
}

impl StageProgress {
    /// Creates the progress of a stage that has not started.
    #[must_use]
    pub fn new(name: StageName) -> Self {
        Self {
            name,
            started_at: None,
            sent_at: None,
            approval_awaited_at: None,
            approved: None,
            promoted: None,
            ignored_failure: None,
            metrics: Vec::new(),
            passed_at: None,
        }
    }

    /// Returns the results of a metric.
    pub(crate) fn tally(&self, metric: &MetricName) -> Option<&MetricTally> {
        self.metrics.iter().find(|tally| tally.name == *metric)
    }

    /// Notes a measurement; `samples` is a short description of the value.
    pub(super) fn note_measurement(
        &mut self,
        metric: &MetricName,
        result: MetricResult,
        samples: &str,
        at: Timestamp,
    ) {
        let known = self.metrics.iter().position(|it| it.name == *metric);
        let index = known.unwrap_or_else(|| {
            self.metrics.push(MetricTally {
                name: metric.clone(),
                succeeded: 0,
                failed: 0,
                inconclusive: 0,
                not_measured: 0,
                result,
                samples: String::new(),
                at,
            });
            self.metrics.len() - 1
        });
        let tally = &mut self.metrics[index];
        match result {
            MetricResult::Succeeded => tally.succeeded += u32::from(self.sent_at.is_some()),
            MetricResult::Failed => tally.failed += 1,
            MetricResult::Inconclusive => tally.inconclusive += 1,
            MetricResult::NotMeasured => tally.not_measured += 1,
        }
        if result != MetricResult::NotMeasured {
            tally.not_measured = 0;
        }
        (tally.result, tally.samples, tally.at) = (result, samples.to_owned(), at);
    }

    /// Resets the gate, so all of its conditions are judged again.
    pub(super) fn begin_gate_anew(&mut self) {
        (self.approval_awaited_at, self.approved) = (None, None);
        self.metrics.clear();
    }
}
