//! Translates commands into events, by the state of the rollout.

use twincast_core::error::describe;
use twincast_core::ids::StageName;
use twincast_core::outcome::Outcome;
use twincast_core::ports::Tally;
use twincast_core::rollout::{Attribution, Event, IllegalTransition, Rollout};
use twincast_core::spec::{Gate, OnFailure, Stage};

use crate::command::{Cause, Refusal};
use crate::retry::{chosen, concerns};

/// Returns the event of an approval.
///
/// # Errors
/// [`Refusal`] when the gate requires no approval.
pub(crate) fn approval(
    rollout: &Rollout,
    stage: Option<&StageName>,
    attribution: Attribution,
) -> Result<Event, Refusal> {
    let stage = stage_of(rollout, stage);
    let event = Event::Approved {
        stage: stage.clone(),
        attribution,
    };
    if gate_of(rollout, &stage, &event)?.approval.is_none() {
        let found = "its gate requires no approval; to override the gate, promote the stage";
        return Err(refuse(rollout, &event, found));
    }
    Ok(event)
}

/// Returns the event of a rejection: the gate has failed. A rejection stops the rollout even if an
/// ordinary failure of the gate would not.
pub(crate) fn rejection(
    rollout: &Rollout,
    stage: Option<&StageName>,
    attribution: &Attribution,
) -> Result<Event, Refusal> {
    let stage = stage_of(rollout, stage);
    let failed = |then| Event::GateFailed {
        stage: stage.clone(),
        reason: format!("rejected by {attribution}"),
        then,
    };
    let gate = gate_of(rollout, &stage, &failed(OnFailure::Pause))?;
    Ok(failed(match gate.on_failure {
        OnFailure::Abort => OnFailure::Abort,
        OnFailure::Pause | OnFailure::Continue => OnFailure::Pause,
    }))
}

/// Returns the event of an override. Overriding a gate requires a reason.
pub(crate) fn promotion(
    rollout: &Rollout,
    stage: &StageName,
    attribution: Attribution,
) -> Result<Event, Refusal> {
    let has_reason = attribution.reason.is_some();
    let event = Event::Promoted {
        stage: stage.clone(),
        attribution,
    };
    gate_of(rollout, stage, &event)?;
    if !has_reason {
        let refusal = refuse(rollout, &event, "overriding a gate requires a reason");
        return Err(Refusal {
            cause: Cause::InvalidCommand,
            ..refusal
        });
    }
    Ok(event)
}

/// Returns the stage of a command: the named stage, else the current stage, or the first stage
/// before planning.
fn stage_of(rollout: &Rollout, named: Option<&StageName>) -> StageName {
    let current = || rollout.stage_progress().map(|stage| stage.name.clone());
    let stage = named.cloned().or_else(current);
    stage.unwrap_or_else(|| rollout.spec.all_stages().swap_remove(0).name)
}

/// Returns the gate concerned by `event`. Checks the phase first: once a rollout has ended, gates
/// do not matter.
fn gate_of(rollout: &Rollout, stage: &StageName, event: &Event) -> Result<Gate, Refusal> {
    rollout
        .phase_after(event)
        .map_err(|error| not_possible(&error))?;
    check_stage_exists(rollout, stage, event)?;
    let stages = rollout.spec.all_stages();
    let has_gate = |known: &&Stage| known.gate.is_some();
    let gated = stages.iter().filter(has_gate);
    let gated: Vec<_> = gated.map(|known| known.name.as_str()).collect();
    let found = match gated.as_slice() {
        [] => format!("stage {stage} has no gate, and no other stage has one"),
        gated => format!(
            "stage {stage} has no gate; stages with gates: {}",
            gated.join(", ")
        ),
    };
    let known = stages.into_iter().find(|known| known.name == *stage);
    let gate = known.and_then(|known| known.gate);
    gate.ok_or_else(|| refuse(rollout, event, found))
}

/// Refuses a stage unknown to the rollout.
fn check_stage_exists(rollout: &Rollout, stage: &StageName, event: &Event) -> Result<(), Refusal> {
    let stages = rollout.spec.all_stages();
    if stages.iter().any(|known| known.name == *stage) {
        return Ok(());
    }
    let known: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let found = format!(
        "the rollout has no such stage; its stages: {}",
        known.join(", ")
    );
    Err(refuse(rollout, event, found))
}

/// Builds the refusal of `event`. `found` is the reason, with a possible remedy.
pub(crate) fn refuse(rollout: &Rollout, event: &Event, found: impl Into<String>) -> Refusal {
    not_possible(&rollout.refuse(event, found))
}

pub(crate) fn not_possible(error: &IllegalTransition) -> Refusal {
    Refusal::new(Cause::NotPossible, describe(error))
}

/// Returns the event of a retry.
///
/// # Errors
/// [`Refusal`] when the command names a stage unknown to the rollout, or an outcome without retry.
pub(crate) fn retry_request(
    rollout: &Rollout,
    stage: Option<&StageName>,
    outcomes: &[Outcome],
    attribution: &Attribution,
) -> Result<Event, Refusal> {
    let event = |outcomes| Event::RetryRequested {
        outcomes,
        stage: stage.cloned(),
        attribution: attribution.clone(),
    };
    if let Some(stage) = stage {
        check_stage_exists(rollout, stage, &event(Vec::new()))?;
    }
    let can: Vec<_> = Outcome::ALL
        .into_iter()
        .filter(|outcome| outcome.can_be_retried())
        .collect();
    if let Some(outcome) = outcomes.iter().find(|it| !it.can_be_retried()) {
        let can = joined_with_or(&can);
        let found = format!(
            "devices with the outcome {outcome} cannot be retried; the allowed outcomes are {can}"
        );
        return Err(refuse(rollout, &event(Vec::new()), found));
    }
    let mut outcomes: Vec<_> = if outcomes.is_empty() {
        can.into_iter().filter(|it| it.is_failure()).collect()
    } else {
        outcomes.to_vec()
    };
    outcomes.sort_unstable();
    outcomes.dedup();
    Ok(event(outcomes))
}

/// Returns the reason why a permitted retry would change nothing, if so.
pub(crate) fn why_no_effect(event: &Event, rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
    let Event::RetryRequested {
        outcomes, stage, ..
    } = event
    else {
        return None;
    };
    let concerned = tallies
        .iter()
        .filter(|tally| concerns(stage.as_ref(), rollout, tally.stage));
    if concerned
        .map(|tally| chosen(outcomes, &tally.counts))
        .sum::<u64>()
        > 0
    {
        return None;
    }
    let of = match stage {
        Some(stage) => format!("of stage {stage} "),
        None => String::new(),
    };
    Some(format!(
        "no device {of}has the outcome {}",
        joined_with_or(outcomes)
    ))
}

fn joined_with_or(outcomes: &[Outcome]) -> String {
    let words: Vec<_> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
