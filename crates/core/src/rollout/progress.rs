//! How far a stage is: what people said of it, and what its gate's metrics came to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{MetricName, StageName};
use crate::time::Timestamp;

/// Who said something, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.by.as_deref().unwrap_or("somebody"))?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// Somebody's yes to a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who, and why.
    #[serde(flatten)]
    pub word: Word,
    /// When.
    pub at: Timestamp,
}

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

/// How far a stage is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The stage.
    pub name: StageName,
    /// Since when its devices are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it was noted that all of them were sent to. Only of a stage with a gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// Since when an approval is all that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ripe_at: Option<Timestamp>,
    /// Who approved, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
    /// Who wants its gate to count as passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Word>,
    /// Why its gate failed, when the rollout is to go on all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
    /// What is known of its gate's metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricTally>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<Timestamp>,
}

impl StageProgress {
    /// A stage that has not started.
    #[must_use]
    pub fn new(name: StageName) -> Self {
        Self {
            name,
            started_at: None,
            sent_at: None,
            ripe_at: None,
            approved: None,
            promoted: None,
            ignored: None,
            metrics: Vec::new(),
            passed_at: None,
        }
    }

    /// What is known of a metric.
    pub(crate) fn tally(&self, metric: &MetricName) -> Option<&MetricTally> {
        self.metrics.iter().find(|tally| tally.name == *metric)
    }

    /// Notes a measurement, with what was found in a few words.
    pub(super) fn note_measurement(
        &mut self,
        metric: &MetricName,
        result: MetricResult,
        found: &str,
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
                found: String::new(),
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
        (tally.result, tally.found, tally.at) = (result, found.to_owned(), at);
    }

    /// The gate is asked again, all of it.
    pub(super) fn begin_gate_anew(&mut self) {
        (self.ripe_at, self.approved) = (None, None);
        self.metrics.clear();
    }
}
