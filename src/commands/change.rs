//! `twincast pause`, `resume`, `abort`, `stop-all`, `resume-all`.

use twincast_core::ids::RolloutName;
use twincast_orchestrator::command::{Command, Kind};

use crate::args::{AllArgs, ChangeArgs};
use crate::commander::Commander;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;

/// Changes one rollout.
pub(crate) async fn one(
    kind: Kind,
    args: &ChangeArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let name =
        RolloutName::new(&args.name).map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let commander = Commander::connect(settings, &args.who).await?;
    let answer = commander
        .ask(Command {
            reason: args.reason.clone(),
            ..Command::about(kind, Some(name))
        })
        .await?;
    let state = commander.one(&answer)?;
    commander.close().await;
    let already = if answer.changed { "" } else { " already" };
    let text = format!(
        "{} is {}{already}",
        state.name,
        state.phase.replace('_', " ")
    );
    output.result(&answer, &text);
    Ok(ExitCode::Success)
}

/// Changes all rollouts.
pub(crate) async fn all(
    kind: Kind,
    args: &AllArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let commander = Commander::connect(settings, &args.who).await?;
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
