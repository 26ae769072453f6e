//! What a command means for a rollout as it is.

use twincast_core::error::in_words;
use twincast_core::ids::StageName;
use twincast_core::outcome::Outcome;
use twincast_core::ports::Tally;
use twincast_core::rollout::{Event, IllegalTransition, Rollout, Word};
use twincast_core::spec::{Gate, OnFailure, Stage};

use crate::command::{Cause, Refusal};
use crate::retry::{chosen, concerns};

/// What an approval means.
///
/// # Errors
/// [`Refusal`] when the gate asks for none.
pub(crate) fn approved(
    rollout: &Rollout,
    stage: Option<&StageName>,
    word: Word,
) -> Result<Event, Refusal> {
    let stage = stage_of(rollout, stage);
    let event = Event::Approved {
        stage: stage.clone(),
        word,
    };
    if gate_of(rollout, &stage, &event)?.approval.is_none() {
        let found = "its gate asks for no approval; to take it for passed, promote it";
        return Err(cannot(rollout, &event, found));
    }
    Ok(event)
}

/// A rejected gate has failed. It stops the rollout also where a gate that fails by itself would not.
pub(crate) fn rejected(
    rollout: &Rollout,
    stage: Option<&StageName>,
    word: &Word,
) -> Result<Event, Refusal> {
    let stage = stage_of(rollout, stage);
    let failed = |then| Event::GateFailed {
        stage: stage.clone(),
        reason: format!("rejected by {word}"),
        then,
    };
    let gate = gate_of(rollout, &stage, &failed(OnFailure::Pause))?;
    Ok(failed(match gate.on_failure {
        OnFailure::Abort => OnFailure::Abort,
        OnFailure::Pause | OnFailure::Continue => OnFailure::Pause,
    }))
}

/// A gate is overridden for a reason.
pub(crate) fn promoted(rollout: &Rollout, stage: &StageName, word: Word) -> Result<Event, Refusal> {
    let has_reason = word.reason.is_some();
    let event = Event::Promoted {
        stage: stage.clone(),
        word,
    };
    gate_of(rollout, stage, &event)?;
    if !has_reason {
        let refusal = cannot(
            rollout,
            &event,
            "a gate is overridden for a reason; give one",
        );
        return Err(Refusal {
            cause: Cause::InvalidCommand,
            ..refusal
        });
    }
    Ok(event)
}

/// The stage that a command is about: the one that it names, else the current one, or the first before there is a plan.
fn stage_of(rollout: &Rollout, named: Option<&StageName>) -> StageName {
    let current = || rollout.stage_progress().map(|stage| stage.name.clone());
    let stage = named.cloned().or_else(current);
    stage.unwrap_or_else(|| rollout.spec.all_stages().swap_remove(0).name)
}

/// The gate that `event` is about. The phase is looked at first: once a rollout has ended, gates do not matter.
fn gate_of(rollout: &Rollout, stage: &StageName, event: &Event) -> Result<Gate, Refusal> {
    rollout
        .phase_after(event)
        .map_err(|error| not_possible(&error))?;
    must_have(rollout, stage, event)?;
    let stages = rollout.spec.all_stages();
    let has_gate = |known: &&Stage| known.gate.is_some();
    let gated = stages.iter().filter(has_gate);
    let gated: Vec<_> = gated.map(|known| known.name.as_str()).collect();
    let found = match gated.as_slice() {
        [] => format!("stage {stage} has no gate, and no other stage has one"),
        gated => format!(
            "stage {stage} has no gate; gates have: {}",
            gated.join(", ")
        ),
    };
    let known = stages.into_iter().find(|known| known.name == *stage);
    let gate = known.and_then(|known| known.gate);
    gate.ok_or_else(|| cannot(rollout, event, found))
}

/// Refuses a stage that the rollout does not have.
fn must_have(rollout: &Rollout, stage: &StageName, event: &Event) -> Result<(), Refusal> {
    let stages = rollout.spec.all_stages();
    if stages.iter().any(|known| known.name == *stage) {
        return Ok(());
    }
    let known: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let found = format!("it has no such stage; its stages are: {}", known.join(", "));
    Err(cannot(rollout, event, found))
}

/// A refusal of `event`: `found` is the reason, with what can be done.
pub(crate) fn cannot(rollout: &Rollout, event: &Event, found: impl Into<String>) -> Refusal {
    not_possible(&rollout.cannot(event, found))
}

pub(crate) fn not_possible(error: &IllegalTransition) -> Refusal {
    Refusal::new(Cause::NotPossible, in_words(error))
}

/// What a command to retry means for a rollout as it is.
///
/// # Errors
/// [`Refusal`] when it names a stage that the rollout does not have, or an outcome at which there is no
/// new attempt.
pub(crate) fn retried(
    rollout: &Rollout,
    stage: Option<&StageName>,
    outcomes: &[Outcome],
    word: &Word,
) -> Result<Event, Refusal> {
    let event = |outcomes| Event::RetryRequested {
        outcomes,
        stage: stage.cloned(),
        word: word.clone(),
    };
    if let Some(stage) = stage {
        must_have(rollout, stage, &event(Vec::new()))?;
    }
    let can: Vec<_> = Outcome::ALL
        .into_iter()
        .filter(|outcome| outcome.can_be_retried())
        .collect();
    if let Some(outcome) = outcomes.iter().find(|it| !it.can_be_retried()) {
        let can = in_a_row(&can);
        let found = format!(
            "devices that are {outcome} are not sent to again; those may be that are {can}"
        );
        return Err(cannot(rollout, &event(Vec::new()), found));
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

/// Why a retry that may be made would change nothing, if it would not.
pub(crate) fn pointless(event: &Event, rollout: &Rollout, tallies: &[Tally]) -> Option<String> {
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
    Some(format!("no device {of}is {}", in_a_row(outcomes)))
}

fn in_a_row(outcomes: &[Outcome]) -> String {
    let words: Vec<_> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
