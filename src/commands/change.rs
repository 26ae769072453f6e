//! `twincast pause`, `resume`, `abort`, `approve`, `reject`, `promote`, `retry`, `stop-all`,
//! `resume-all`.

use twincast_core::ids::{CommandKey, InvalidName, RolloutName, StageName};
use twincast_orchestrator::command::{Command, Kind};

use crate::args::{AllArgs, ApproveArgs, CallerArgs, ChangeArgs, PromoteArgs, RetryArgs};
use crate::command_sender::{self, CommandSender};
use crate::commands::report::named;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, escape_line, phase_predicate};

/// Changes a single rollout.
pub(crate) async fn change_rollout(
    kind: Kind,
    args: &ChangeArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let command = Command {
        reason: args.reason.clone(),
        ..command_about(kind, &args.name)?
    };
    send_change(command, &args.caller, settings, output).await
}

/// Approves or rejects a stage.
pub(crate) async fn decide_gate(
    kind: Kind,
    args: &ApproveArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let stage = args.stage.as_ref().map(StageName::new).transpose();
    let command = Command {
        reason: args.change.reason.clone(),
        stage: stage.map_err(refused)?,
        ..command_about(kind, &args.change.name)?
    };
    send_change(command, &args.change.caller, settings, output).await
}

/// Overrides a stage's gate.
pub(crate) async fn promote(
    args: &PromoteArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let command = Command {
        reason: Some(args.reason.clone()),
        stage: Some(StageName::new(&args.stage).map_err(refused)?),
        ..command_about(Kind::Promote, &args.name)?
    };
    send_change(command, &args.caller, settings, output).await
}

/// Retries failed devices.
pub(crate) async fn retry(
    args: &RetryArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let stage = args.stage.as_ref().map(StageName::new).transpose();
    let command = Command {
        reason: args.change.reason.clone(),
        stage: stage.map_err(refused)?,
        outcomes: named(&args.outcome)?,
        ..command_about(Kind::Retry, &args.change.name)?
    };
    send_change(command, &args.change.caller, settings, output).await
}

pub(super) fn command_about(kind: Kind, name: &str) -> Result<Command, Failure> {
    let name = RolloutName::new(name).map_err(refused)?;
    // A command is repeated after a lost answer, and may be redelivered by the broker.
    let key = CommandKey::new(uuid::Uuid::new_v4().to_string()).expect("digits and hyphens");
    Ok(Command {
        key: Some(key),
        ..Command::about(kind, Some(name))
    })
}

fn refused(error: InvalidName) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

async fn send_change(
    command: Command,
    caller: &CallerArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let kind = command.command;
    let sender = CommandSender::connect(settings, caller).await?;
    let answer = sender.ask(command).await;
    sender.close().await;
    let answer = answer?;
    let state = command_sender::only_rollout(&answer)?;
    let already = if answer.changed { "" } else { " already" };
    let stage = state
        .stage
        .map(|stage| stage.to_string())
        .unwrap_or_default();
    let predicate = phase_predicate(&state.phase);
    let text = match (kind, answer.changed) {
        (Kind::Approve, true) => {
            format!(
                "{} is approved, and {predicate}, at stage {stage}",
                state.name
            )
        }
        (Kind::Promote, true) => {
            format!(
                "{} is promoted, and {predicate}, at stage {stage}",
                state.name
            )
        }
        (Kind::Retry, true) => format!("{} will be retried, and {predicate}", state.name),
        (Kind::Retry, false) => match &answer.note {
            Some(note) => format!(
                "nothing to retry: {}; {} {predicate}",
                escape_line(note),
                state.name
            ),
            None => format!(
                "{} {predicate}, and its retry is already under way",
                state.name
            ),
        },
        _ => format!("{} {predicate}{already}", state.name),
    };
    output.result(&answer, &text);
    if sender.idle_folder().is_some() && state.phase == "running" {
        output.note("To continue, run the same `twincast run` again.");
    }
    Ok(ExitCode::Success)
}

/// Changes all rollouts.
pub(crate) async fn change_all(
    kind: Kind,
    args: &AllArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let sender = CommandSender::of_engine(settings, &args.caller).await?;
    let answer = sender
        .ask(Command {
            reason: args.reason.clone(),
            ..Command::about(kind, None)
        })
        .await?;
    sender.close().await;
    let headline = match (kind, answer.changed) {
        (Kind::StopAll, _) => "All rollouts are stopped until `twincast resume-all`.",
        (_, true) => "The stopped rollouts continue.",
        (_, false) => "No rollouts were stopped.",
    };
    let mut lines = vec![headline.to_owned()];
    let states = answer.rollouts.iter();
    lines
        .extend(states.map(|state| format!("  {}: {}", state.name, state.phase.replace('_', " "))));
    output.result(&answer, &lines.join("\n"));
    Ok(ExitCode::Success)
}
