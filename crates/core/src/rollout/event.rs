//! What happens to rollouts.

use serde::{Deserialize, Serialize};

use super::adding::Found;
use super::progress::{MetricResult, Word};
use crate::ids::{MetricName, RolloutName, StageName};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::spec::OnFailure;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// It was accepted. Always the first.
    Accepted {
        /// Who wanted it, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// It waits for a rollout of its group that came before it.
    Queued {
        /// That one.
        behind: RolloutName,
    },
    /// Planning began, or began anew.
    PlanningStarted,
    /// The plan is whole in the store.
    PlanCompleted {
        /// What it came to.
        plan: PlanSummary,
    },
    /// The plan cannot be made.
    PlanningFailed {
        /// Why, for people.
        reason: String,
    },
    /// An operator, or a rule, wants nothing more to be sent for now.
    PauseRequested {
        /// Why, for people.
        reason: String,
    },
    /// An operator wants it to go on.
    ResumeRequested {
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// An operator wants nothing to be sent by any rollout.
    HaltRequested {
        /// Why, for people.
        reason: String,
    },
    /// All rollouts may go on that were sending before.
    HaltLifted {
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// An operator, or a rule, wants it ended.
    AbortRequested {
        /// Why, for people.
        reason: String,
    },
    /// Every device of a stage that has a gate is settled.
    StageSent {
        /// The stage.
        stage: StageName,
    },
    /// A stage's gate holds but for an approval.
    ApprovalAwaited {
        /// The stage.
        stage: StageName,
    },
    /// Somebody approves of a stage.
    Approved {
        /// The stage.
        stage: StageName,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// Somebody wants a stage's gate to count as passed, whatever it says.
    Promoted {
        /// The stage.
        stage: StageName,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// A stage is over; the next one starts.
    StagePassed {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
    },
    /// A stage's gate does not hold.
    GateFailed {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
        /// What is to be done about it.
        then: OnFailure,
    },
    /// A metric of a stage's gate was measured, and that is worth remembering.
    MetricMeasured {
        /// The stage.
        stage: StageName,
        /// The metric.
        metric: MetricName,
        /// What it came to.
        result: MetricResult,
        /// What was found, for people.
        found: String,
    },
    /// Of a stage's gate it cannot be said whether it holds: people must look.
    GateUndecided {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
    },
    /// Somebody wants a new attempt at some devices.
    RetryRequested {
        /// Those that have one of these outcomes ...
        outcomes: Vec<Outcome>,
        /// ... and are of this stage, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<StageName>,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// All of these devices are pending again.
    RetryPrepared,
    /// A look for devices that have joined or left begins, or begins anew.
    LookStarted,
    /// It was gone through with.
    Looked {
        /// What it has found.
        #[serde(flatten)]
        found: Found,
    },
    /// Every device was sent the message and every gate has passed; devices that are to answer are waited for.
    AllSent,
    /// Devices that were to answer could not be heard: people must look.
    NotHeard {
        /// Why, for people.
        reason: String,
    },
    /// Nothing is left to do: every device is settled, and those that were to answer have been waited for.
    AllSettled {
        /// The outcomes.
        counts: Counts,
    },
}

impl Event {
    /// It is told to the world and kept in the history. Looks that find nothing are not: they would be all that is left there.
    #[must_use]
    pub fn is_told(&self) -> bool {
        match self {
            Self::LookStarted => false,
            Self::Looked { found } => !found.is_nothing(),
            _ => true,
        }
    }

    /// It comes again by itself, without an end: not what somebody did, nor how something ended.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Queued { .. }
                | Self::PlanningStarted
                | Self::MetricMeasured { .. }
                | Self::LookStarted
                | Self::Looked { .. }
        )
    }

    /// What a routine event has in common with those that it repeats; `None` for events that are always told apart.
    #[must_use]
    pub fn repeats(&self) -> Option<String> {
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

    /// The event's name as it is written.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).ok();
        let name = value.and_then(|value| Some(value.get("event")?.as_str()?.to_owned()));
        name.unwrap_or_default()
    }
}
