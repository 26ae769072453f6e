//! The transitions between the phases of a rollout.

use super::event::Event;
use super::phase::Phase;
use super::refusal::IllegalTransition;
use crate::spec::OnFailure;

/// Returns the phase after `event`. `Ok` with the same phase means no change of the phase: a
/// repeated request is not an error.
///
/// # Errors
/// [`IllegalTransition`] when the event is not allowed in this phase.
// Long: the whole table, one arm per phase and event.
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
            reason: plan.empty_plan_message(),
        },
        (P::Planning, E::PlanCompleted { .. }) => P::Running,
        (P::Accepted | P::Planning, E::PlanningFailed { reason }) => P::Failed {
            reason: reason.clone(),
        },

        // The record notes the request for the time after planning.
        (P::Accepted | P::Planning, E::PauseRequested { .. } | E::ResumeRequested { .. }) => {
            phase.clone()
        }
        (P::Running, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },
        (P::Paused { .. }, E::PauseRequested { .. }) => phase.clone(),
        (P::Paused { .. } | P::Running, E::ResumeRequested { .. }) => P::Running,
        // The rollout stays paused when the halt is lifted.
        (P::Halted { .. }, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },

        (P::Running, E::HaltRequested { reason }) => P::Halted {
            reason: reason.clone(),
        },
        (P::Halted { .. }, E::HaltLifted { .. }) => P::Running,
        // Rollouts in other phases send nothing and need no halt.
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
        (P::Running, E::AnswersUnavailable { reason }) => P::Paused {
            reason: reason.clone(),
        },
        (P::Running, E::AllSent) => P::Running,
        (P::Running, E::MetricMeasured { .. } | E::ScanStarted | E::ScanCompleted { .. }) => {
            P::Running
        }
        (P::Running, E::StageSent { .. } | E::ApprovalAwaited { .. } | E::StagePassed { .. }) => {
            P::Running
        }
        (P::Running | P::Paused { .. } | P::Halted { .. }, E::Approved { .. }) => phase.clone(),
        // A promotion decides about the gate that paused the rollout, so it also resumes the
        // rollout.
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
            // Skipped devices had left the target.
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
            | E::AnswersUnavailable { .. }
            | E::RetryRequested { .. }
            | E::RetryPrepared
            | E::ScanStarted
            | E::ScanCompleted { .. },
        ) => return Err(illegal()),
    };
    Ok(next)
}
