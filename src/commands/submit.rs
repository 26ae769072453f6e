//! `twincast submit`: a plain publisher of the documented `start` message, which may wait.

use std::time::Duration;

use tokio::time::Instant;
use twincast_orchestrator::command::{Answer, Command, Kind, State};

use crate::args::SubmitArgs;
use crate::commander::{self, Commander};
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::signal::asked_to_stop;
use crate::specfile;
use crate::summary;

/// How often a waiting submit asks.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often progress is shown while nothing else changes.
const SHOW_EVERY: Duration = Duration::from_secs(10);

pub(crate) async fn submit(
    args: &SubmitArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let spec = specfile::read(&args.spec)?.self_contained()?;
    let commander = Commander::of_engine(settings, &args.who).await?;
    let command = Command {
        spec: Some(spec),
        ..Command::about(Kind::Start, None)
    };
    let answer = commander.ask(command).await?;
    let state = commander::one(&answer)?;
    if !answer.changed {
        output.note(&format!(
            "{} is there already, as the same rollout",
            state.name
        ));
    }
    let text = |state: &State| match state.is_ended() {
        true => summary::headline(state, output),
        false => progress(state),
    };
    if !args.wait {
        commander.close().await;
        output.result(&answer, &text(&state));
        output.note(&format!("Follow it with `twincast watch {}`.", state.name));
        return Ok(ExitCode::Success);
    }
    if !state.is_ended() {
        output.note(&progress(&state));
    }
    let ended = tokio::select! {
        ended = until_ended(&commander, state, output) => Some(ended),
        () = asked_to_stop() => None,
    };
    commander.close().await;
    let Some(state) = ended else {
        output.note("Not waited for any more. The rollout goes on.");
        return Ok(ExitCode::Interrupted);
    };
    let state = state?;
    let code = ExitCode::of(&state.phase);
    let text = text(&state);
    let answer = Answer {
        rollouts: vec![state],
        ..answer
    };
    output.result(&answer, &text);
    Ok(code)
}

async fn until_ended(
    commander: &Commander,
    mut state: State,
    output: &Output,
) -> Result<State, Failure> {
    let question = Command::about(Kind::Status, Some(state.name.clone()));
    // What it waits for is told at once, and then like all else.
    let gist = |state: &State| (state.phase.clone(), state.reason.is_some());
    let mut shown = (gist(&state), Instant::now());
    loop {
        if state.is_ended() {
            return Ok(state);
        }
        if shown.0 != gist(&state) || shown.1.elapsed() >= SHOW_EVERY {
            output.note(&progress(&state));
            shown = (gist(&state), Instant::now());
        }
        tokio::time::sleep(ASK_AGAIN).await;
        match commander.ask(question.clone()).await {
            Ok(answer) => state = commander::one(&answer)?,
            // Services come back; what was refused stays refused.
            Err(failure) if failure.may_pass() => {
                output.note(&format!("waiting: {}", failure.lines().join(": ")));
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Where a rollout is that has not ended.
fn progress(state: &State) -> String {
    let mut text = format!("{} is {}", state.name, state.phase);
    if let Some(reason) = &state.reason {
        text.push_str(&format!(" ({reason})"));
    }
    if state.ends.total() > 0 {
        let (done, classes) = state.ends.so_far();
        let classes = classes.map(|classes| format!(", {classes}"));
        text.push_str(&format!(": {done}{}", classes.unwrap_or_default()));
    }
    text
}
