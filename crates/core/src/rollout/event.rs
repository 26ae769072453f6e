//! The events of rollouts.

use serde::{Deserialize, Serialize};

use super::adding::ScanResult;
use super::progress::{Attribution, MetricResult};
use crate::ids::{MetricName, RolloutName, StageName};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::spec::OnFailure;

/// An event of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The rollout was accepted. Always the first event.
    Accepted {
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// The rollout waits for a rollout ahead in the queue of the concurrency group.
    Queued {
        /// The rollout directly ahead.
        behind: RolloutName,
    },
    /// Planning began, or began again.
    PlanningStarted,
    /// The store holds the complete plan.
    PlanCompleted {
        /// The summary of the plan.
        plan: PlanSummary,
    },
    /// Planning is impossible.
    PlanningFailed {
        /// The reason, human-readable.
        reason: String,
    },
    /// An operator or a rule requests a pause.
    PauseRequested {
        /// The reason, human-readable.
        reason: String,
    },
    /// An operator requests to resume the rollout.
    ResumeRequested {
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// An operator requests a halt of all rollouts.
    HaltRequested {
        /// The reason, human-readable.
        reason: String,
    },
    /// The halt is lifted: every rollout that was sending before may continue.
    HaltLifted {
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// An operator or a rule requests to abort the rollout.
    AbortRequested {
        /// The reason, human-readable.
        reason: String,
    },
    /// Every device of a stage with a gate is settled.
    StageSent {
        /// The stage.
        stage: StageName,
    },
    /// An approval is the last missing condition of a stage's gate.
    ApprovalAwaited {
        /// The stage.
        stage: StageName,
    },
    /// An operator approves a stage.
    Approved {
        /// The stage.
        stage: StageName,
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// An operator requests a stage's gate to count as passed, regardless of its verdict.
    Promoted {
        /// The stage.
        stage: StageName,
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// A stage has passed; the next stage starts.
    StagePassed {
        /// The stage.
        stage: StageName,
        /// The reason, human-readable.
        reason: String,
    },
    /// A stage's gate has failed.
    GateFailed {
        /// The stage.
        stage: StageName,
        /// The reason, human-readable.
        reason: String,
        /// The consequence.
        then: OnFailure,
    },
    /// A metric of a stage's gate was measured, with a result that must be noted.
    MetricMeasured {
        /// The stage.
        stage: StageName,
        /// The metric.
        metric: MetricName,
        /// The result.
        result: MetricResult,
        /// The samples, or the reason for their absence, human-readable.
        samples: String,
    },
    /// A stage's gate cannot be judged: an operator must look into it.
    GateUndecided {
        /// The stage.
        stage: StageName,
        /// The reason, human-readable.
        reason: String,
    },
    /// An operator requests a new attempt at some devices.
    RetryRequested {
        /// The outcomes of the devices to retry.
        outcomes: Vec<Outcome>,
        /// The stage of the devices to retry; `None` for all stages.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<StageName>,
        /// The attribution.
        #[serde(flatten)]
        attribution: Attribution,
    },
    /// All devices of the requested retry are pending again.
    RetryPrepared,
    /// A scan for joined and departed devices begins, or begins again.
    ScanStarted,
    /// The scan is complete.
    ScanCompleted {
        /// The result of the scan.
        #[serde(flatten)]
        found: ScanResult,
    },
    /// Every device was sent the message and every gate has passed; the answers of devices are
    /// awaited.
    AllSent,
    /// The answers of devices could not be received: an operator must look into it.
    AnswersUnavailable {
        /// The reason, human-readable.
        reason: String,
    },
    /// Nothing is left to do: every device is settled, and the wait for answers is over.
    AllSettled {
        /// The number of devices with each outcome.
        counts: Counts,
    },
}

impl Event {
    /// Returns whether the event is published and kept in the history. Empty scans are omitted;
    /// they would push out everything else.
    #[must_use]
    pub fn is_published(&self) -> bool {
        match self {
            Self::ScanStarted => false,
            Self::ScanCompleted { found } => !found.is_nothing(),
            _ => true,
        }
    }

    /// Returns whether the event is routine: it recurs by itself without an end, and is neither an
    /// operator's action nor a final result.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Queued { .. }
                | Self::PlanningStarted
                | Self::MetricMeasured { .. }
                | Self::ScanStarted
                | Self::ScanCompleted { .. }
        )
    }

    /// Returns the common key of repeated routine events; `None` for events that are never folded.
    #[must_use]
    pub fn fold_key(&self) -> Option<String> {
        match self {
            Self::Queued { behind } => Some(format!("queued {behind}")),
            Self::PlanningStarted => Some("planning".to_owned()),
            Self::MetricMeasured {
                stage,
                metric,
                result,
                ..
            } => Some(format!("{stage}/{metric} {result:?}")),
            _ => None,
        }
    }

    /// Returns the event's serialized name.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).ok();
        let name = value.and_then(|value| Some(value.get("event")?.as_str()?.to_owned()));
        name.unwrap_or_default()
    }
}
