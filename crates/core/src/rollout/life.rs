//! The phases of a rollout, and what leads from one to another.

use serde::{Deserialize, Serialize};

use super::{Found, IllegalTransition, Word};
use crate::gate::metric::MetricResult;
use crate::ids::{MetricName, RolloutName, StageName};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::spec::OnFailure;

/// Where a rollout is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Accepted, nothing done yet.
    Accepted,
    /// Its devices are being found.
    Planning,
    /// Its batches are being worked on.
    Running,
    /// Nothing is sent until it is resumed.
    Paused {
        /// Why, for people.
        reason: String,
    },
    /// Nothing is sent by any rollout until all may go on.
    Halted {
        /// Why, for people.
        reason: String,
    },
    /// What is in flight is recorded, the rest will be skipped.
    Aborting {
        /// Why, for people.
        reason: String,
    },
    /// Ended by abort.
    Aborted {
        /// Why, for people.
        reason: String,
    },
    /// Every device was sent the message, but those that had left the target.
    Succeeded,
    /// Nothing more to do, but not every device was sent the message.
    FinishedWithFailures,
    /// It could not be planned.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What a phase owes the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Find the devices and store the batches.
    Plan,
    /// Make the devices pending that are to be sent to again.
    PrepareRetry,
    /// Keep batches on the queue until every device is settled.
    ReleaseBatches,
    /// Mark every device that was not sent anything as skipped.
    SkipRemaining,
    /// Nothing, until something happens.
    Nothing,
}

impl Phase {
    /// What this phase owes the world; see [`Rollout::owed`](super::Rollout::owed), too.
    #[must_use]
    pub fn owed(&self) -> Owed {
        match self {
            Self::Accepted | Self::Planning => Owed::Plan,
            Self::Running => Owed::ReleaseBatches,
            Self::Aborting { .. } => Owed::SkipRemaining,
            Self::Paused { .. }
            | Self::Halted { .. }
            | Self::Aborted { .. }
            | Self::Succeeded
            | Self::FinishedWithFailures
            | Self::Failed { .. } => Owed::Nothing,
        }
    }

    /// Nothing will happen to the rollout again, unless somebody wants a retry.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            self,
            Self::Aborted { .. }
                | Self::Succeeded
                | Self::FinishedWithFailures
                | Self::Failed { .. }
        )
    }

    /// What a worker that holds a batch is to do; see [`Rollout::wanted`](super::Rollout::wanted), too.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match self {
            Self::Running => Wanted::GoOn,
            _ => Wanted::Stop,
        }
    }

    /// Why it is in this phase, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Paused { reason }
            | Self::Halted { reason }
            | Self::Aborting { reason }
            | Self::Aborted { reason }
            | Self::Failed { reason } => Some(reason),
            Self::Accepted
            | Self::Planning
            | Self::Running
            | Self::Succeeded
            | Self::FinishedWithFailures => None,
        }
    }

    /// Why it is aborted, if it is.
    #[must_use]
    pub fn aborted(&self) -> Option<&str> {
        match self {
            Self::Aborting { reason } | Self::Aborted { reason } => Some(reason),
            _ => None,
        }
    }

    /// The phase's name as it is written in files and labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Paused { .. } => "paused",
            Self::Halted { .. } => "halted",
            Self::Aborting { .. } => "aborting",
            Self::Aborted { .. } => "aborted",
            Self::Succeeded => "succeeded",
            Self::FinishedWithFailures => "finished_with_failures",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What the rollout wants of a worker; every record of a window is answered with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Send on.
    GoOn,
    /// Record what is in flight, send nothing more, let go of the batch.
    Stop,
}

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

/// The phase that `event` leads to. `Ok` with the same phase means that it changed nothing:
/// asking twice is not an error.
///
/// # Errors
/// [`IllegalTransition`] when the event cannot happen in this phase.
pub fn transition(phase: &Phase, event: &Event) -> Result<Phase, IllegalTransition> {
    use Event as E;
    use Phase as P;
    let illegal = || IllegalTransition::in_phase(phase, event);
    let next = match (phase, event) {
        (_, E::AllSettled { counts }) if counts.unsettled() > 0 => return Err(illegal()),
        (_, E::Accepted { .. }) => return Err(illegal()),
        (P::Accepted | P::Planning, E::Queued { .. }) => phase.clone(),
        (P::Accepted | P::Planning, E::PlanningStarted) => P::Planning,
        (P::Planning, E::PlanCompleted { plan }) if plan.devices == 0 => P::Failed {
            reason: plan.empty(),
        },
        (P::Planning, E::PlanCompleted { .. }) => P::Running,
        (P::Accepted | P::Planning, E::PlanningFailed { reason }) => P::Failed {
            reason: reason.clone(),
        },

        // What is to be done once its plan is whole is noted in the record.
        (P::Accepted | P::Planning, E::PauseRequested { .. } | E::ResumeRequested { .. }) => {
            phase.clone()
        }
        (P::Running, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },
        (P::Paused { .. }, E::PauseRequested { .. }) => phase.clone(),
        (P::Paused { .. } | P::Running, E::ResumeRequested { .. }) => P::Running,
        // It stays paused when all the others may go on.
        (P::Halted { .. }, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },

        (P::Running, E::HaltRequested { reason }) => P::Halted {
            reason: reason.clone(),
        },
        (P::Halted { .. }, E::HaltLifted { .. }) => P::Running,
        // Those that send nothing need no halting.
        (_, E::HaltRequested { .. } | E::HaltLifted { .. }) => phase.clone(),

        (
            P::Running,
            E::GateFailed {
                stage,
                reason,
                then,
            },
        ) => match then {
            OnFailure::Pause => P::Paused {
                reason: format!("the gate of stage {stage} failed: {reason}"),
            },
            OnFailure::Abort => P::Aborting {
                reason: format!("the gate of stage {stage} failed: {reason}"),
            },
            OnFailure::Continue => P::Running,
        },
        (P::Running, E::GateUndecided { stage, reason }) => P::Paused {
            reason: format!("the gate of stage {stage} cannot be judged: {reason}"),
        },
        (P::Running, E::NotHeard { reason }) => P::Paused {
            reason: reason.clone(),
        },
        (P::Running, E::AllSent) => P::Running,
        (P::Running, E::MetricMeasured { .. } | E::LookStarted | E::Looked { .. }) => P::Running,
        (P::Running, E::StageSent { .. } | E::ApprovalAwaited { .. } | E::StagePassed { .. }) => {
            P::Running
        }
        (P::Running | P::Paused { .. } | P::Halted { .. }, E::Approved { .. }) => phase.clone(),
        // A word on the gate that it was paused by, and so one to go on.
        (P::Running | P::Paused { .. }, E::Promoted { .. }) => P::Running,
        (P::Halted { .. }, E::Promoted { .. }) => phase.clone(),

        (P::Running | P::Succeeded | P::FinishedWithFailures, E::RetryRequested { .. }) => {
            P::Running
        }
        (P::Paused { .. } | P::Halted { .. }, E::RetryRequested { .. })
        | (P::Running | P::Paused { .. } | P::Halted { .. }, E::RetryPrepared) => phase.clone(),

        (
            P::Accepted | P::Planning | P::Running | P::Paused { .. } | P::Halted { .. },
            E::AbortRequested { reason },
        ) => P::Aborting {
            reason: reason.clone(),
        },
        (P::Aborting { .. } | P::Aborted { .. }, E::AbortRequested { .. }) => phase.clone(),

        (P::Running | P::Paused { .. } | P::Halted { .. }, E::AllSettled { counts }) => {
            // Those that were skipped had left the target.
            if counts.failed() == 0 {
                P::Succeeded
            } else {
                P::FinishedWithFailures
            }
        }
        (P::Aborting { reason }, E::AllSettled { .. }) => P::Aborted {
            reason: reason.clone(),
        },
        (P::Aborted { .. } | P::Succeeded | P::FinishedWithFailures, E::AllSettled { .. }) => {
            phase.clone()
        }

        (
            P::Running
            | P::Paused { .. }
            | P::Halted { .. }
            | P::Aborting { .. }
            | P::Aborted { .. }
            | P::Succeeded
            | P::FinishedWithFailures
            | P::Failed { .. },
            E::PlanningStarted | E::PlanCompleted { .. } | E::PlanningFailed { .. },
        )
        | (P::Accepted, E::PlanCompleted { .. } | E::AllSettled { .. })
        | (P::Planning, E::AllSettled { .. })
        | (P::Halted { .. }, E::ResumeRequested { .. })
        | (
            P::Aborting { .. }
            | P::Aborted { .. }
            | P::Succeeded
            | P::FinishedWithFailures
            | P::Failed { .. },
            E::PauseRequested { .. } | E::ResumeRequested { .. },
        )
        | (P::Succeeded | P::FinishedWithFailures | P::Failed { .. }, E::AbortRequested { .. })
        | (P::Failed { .. }, E::AllSettled { .. })
        | (
            _,
            E::Queued { .. }
            | E::StageSent { .. }
            | E::ApprovalAwaited { .. }
            | E::Approved { .. }
            | E::Promoted { .. }
            | E::StagePassed { .. }
            | E::MetricMeasured { .. }
            | E::GateUndecided { .. }
            | E::GateFailed { .. }
            | E::AllSent
            | E::NotHeard { .. }
            | E::RetryRequested { .. }
            | E::RetryPrepared
            | E::LookStarted
            | E::Looked { .. },
        ) => return Err(illegal()),
    };
    Ok(next)
}
