//! Human-readable refusals of events: the requested event, the phase of the rollout, the allowed
//! times, and a remedy.

use std::fmt;

use super::event::Event;
use super::phase::Phase;
use crate::ids::RolloutName;

/// An event that is not allowed in the current state of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IllegalTransition {
    action: String,
    rollout: Option<RolloutName>,
    found: String,
}

impl std::error::Error for IllegalTransition {}

impl fmt::Display for IllegalTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} ", self.action)?;
        match &self.rollout {
            Some(name) => write!(f, "rollout {name}")?,
            None => f.write_str("a rollout")?,
        }
        write!(f, ": {}", self.found)
    }
}

impl IllegalTransition {
    /// Refuses the event. `found` is the reason, with the possible remedy.
    pub(super) fn new(event: &Event, found: impl Into<String>) -> Self {
        Self {
            action: action(event),
            rollout: None,
            found: found.into(),
        }
    }

    /// Refuses the event because of the phase.
    pub(super) fn in_phase(phase: &Phase, event: &Event) -> Self {
        let place = place(phase);
        let parts = [Some(&*place), allowed(event), way_out(phase, event)];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        Self::new(event, parts.join("; "))
    }

    /// Adds the name of the rollout.
    pub(super) fn of(self, rollout: &RolloutName) -> Self {
        Self {
            rollout: Some(rollout.clone()),
            ..self
        }
    }
}

/// Describes an event, in words to precede the name of the rollout.
fn action(event: &Event) -> String {
    match event {
        Event::PauseRequested { .. } => "pause".to_owned(),
        Event::ResumeRequested { .. } => "resume".to_owned(),
        Event::AbortRequested { .. } => "abort".to_owned(),
        Event::Approved { stage, .. } => format!("approve stage {stage} of"),
        Event::GateFailed { stage, .. } => format!("reject stage {stage} of"),
        Event::Promoted { stage, .. } => format!("promote stage {stage} of"),
        Event::RetryRequested { stage, .. } => match stage {
            Some(stage) => format!("retry stage {stage} of"),
            None => "retry".to_owned(),
        },
        other => format!("note {} of", other.name().replace('_', " ")),
    }
}

/// Describes a phase.
fn place(phase: &Phase) -> String {
    match phase {
        Phase::Accepted => "it is not planned yet".to_owned(),
        Phase::Planning => "it is being planned".to_owned(),
        Phase::Running => "it is running".to_owned(),
        Phase::Paused { reason } => format!("it is paused ({reason})"),
        Phase::Halted { reason } => format!("it is stopped with all rollouts ({reason})"),
        Phase::Aborting { reason } => format!("it is being aborted ({reason})"),
        Phase::Aborted { reason } => format!("it was aborted ({reason})"),
        Phase::Succeeded => "it has succeeded".to_owned(),
        Phase::FinishedWithFailures => "it has finished, with failures".to_owned(),
        Phase::Failed { reason } => format!("it could not be planned ({reason})"),
    }
}

/// Describes when operators may request an event; `None` for events without a request.
fn allowed(event: &Event) -> Option<&'static str> {
    Some(match event {
        Event::PauseRequested { .. } => "a rollout can be paused until it ends or is aborted",
        Event::ResumeRequested { .. } => "a rollout can be resumed while it is paused",
        Event::AbortRequested { .. } => "a rollout can be aborted until it has ended",
        Event::Approved { .. } => {
            "a stage can be approved from the end of planning until its rollout ends"
        }
        Event::GateFailed { .. } => "a stage can be rejected while its rollout is running",
        Event::Promoted { .. } => {
            "a stage can be promoted from the end of planning until its rollout ends"
        }
        Event::RetryRequested { .. } => {
            "a rollout can be retried once it is planned, unless it is aborted"
        }
        _ => return None,
    })
}

/// Advises operators on an alternative, or on a first step.
fn way_out(phase: &Phase, event: &Event) -> Option<&'static str> {
    allowed(event)?;
    match (phase, event) {
        (_, Event::AbortRequested { .. }) | (Phase::Running, _) => None,
        (Phase::Accepted | Phase::Planning, _) => Some("wait for its plan, or abort it"),
        (Phase::Paused { .. }, _) => Some("resume it first, or abort it"),
        (Phase::Halted { .. }, _) => Some("resume all rollouts first, with resume-all"),
        (Phase::Aborting { .. } | Phase::Aborted { .. }, _) => {
            Some("to send again, start a rollout with another name")
        }
        (Phase::Succeeded | Phase::FinishedWithFailures, _) => {
            Some("to send to failed devices again, retry it")
        }
        (Phase::Failed { .. }, _) => Some("start it again: nothing was sent"),
    }
}
