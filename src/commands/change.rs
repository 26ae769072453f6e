//! `twincast pause`, `resume`, `abort`, `approve`, `reject`, `promote`, `retry`, `stop-all`, `resume-all`.

use twincast_core::ids::{CommandKey, InvalidName, RolloutName, StageName};
use twincast_orchestrator::command::{Command, Kind};

use crate::args::{AllArgs, ApproveArgs, ChangeArgs, PromoteArgs, RetryArgs, Who};
use crate::commander::{self, Commander};
use crate::commands::report::named;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, does, one_line};

/// Changes one rollout.
pub(crate) async fn one(
    kind: Kind,
    args: &ChangeArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let command = Command {
        reason: args.reason.clone(),
        ..about(kind, &args.name)?
    };
    change(command, &args.who, settings, output).await
}

/// Says yes or no to a stage.
pub(crate) async fn judge(
    kind: Kind,
    args: &ApproveArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let stage = args.stage.as_ref().map(StageName::new).transpose();
    let command = Command {
        reason: args.change.reason.clone(),
        stage: stage.map_err(refused)?,
        ..about(kind, &args.change.name)?
    };
    change(command, &args.change.who, settings, output).await
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
        ..about(Kind::Promote, &args.name)?
    };
    change(command, &args.who, settings, output).await
}

/// Sends to devices again.
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
        ..about(Kind::Retry, &args.change.name)?
    };
    change(command, &args.change.who, settings, output).await
}

pub(super) fn about(kind: Kind, name: &str) -> Result<Command, Failure> {
    let name = RolloutName::new(name).map_err(refused)?;
    // It may be made again when its answer is lost, and come again from the broker.
    let key = CommandKey::new(uuid::Uuid::new_v4().to_string()).expect("digits and hyphens");
    Ok(Command {
        key: Some(key),
        ..Command::about(kind, Some(name))
    })
}

fn refused(error: InvalidName) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

async fn change(
    command: Command,
    who: &Who,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let kind = command.command;
    let commander = Commander::connect(settings, who).await?;
    let answer = commander.ask(command).await;
    commander.close().await;
    let answer = answer?;
    let state = commander::one(&answer)?;
    let already = if answer.changed { "" } else { " already" };
    let stage = state
        .stage
        .map(|stage| stage.to_string())
        .unwrap_or_default();
    let does = does(&state.phase);
    let text = match (kind, answer.changed) {
        (Kind::Approve, true) => {
            format!("{} is approved, and {does}, at stage {stage}", state.name)
        }
        (Kind::Promote, true) => {
            format!("{} is promoted, and {does}, at stage {stage}", state.name)
        }
        (Kind::Retry, true) => format!("{} is to be retried, and {does}", state.name),
        (Kind::Retry, false) => match &answer.note {
            Some(note) => format!(
                "nothing to retry: {}; {} {does}",
                one_line(note),
                state.name
            ),
            None => format!("{} {does}, and its retry is under way already", state.name),
        },
        _ => format!("{} {does}{already}", state.name),
    };
    output.result(&answer, &text);
    if commander.still().is_some() && state.phase == "running" {
        output.note("The `twincast run` that began it goes on with it.");
    }
    Ok(ExitCode::Success)
}

/// Changes all rollouts.
pub(crate) async fn all(
    kind: Kind,
    args: &AllArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let commander = Commander::of_engine(settings, &args.who).await?;
    let answer = commander
        .ask(Command {
            reason: args.reason.clone(),
            ..Command::about(kind, None)
        })
        .await?;
    commander.close().await;
    let headline = match (kind, answer.changed) {
        (Kind::StopAll, _) => "Nothing is sent by any rollout until `twincast resume-all`.",
        (_, true) => "Rollouts that were stopped go on.",
        (_, false) => "Nothing was stopped.",
    };
    let mut lines = vec![headline.to_owned()];
    let states = answer.rollouts.iter();
    lines
        .extend(states.map(|state| format!("  {}: {}", state.name, state.phase.replace('_', " "))));
    output.result(&answer, &lines.join("\n"));
    Ok(ExitCode::Success)
}
