//! `twincast submit`: publishes the documented `start` message, and optionally waits for the end.

use std::time::Duration;

use tokio::time::Instant;
use twincast_orchestrator::command::{Answer, Command, Kind, RolloutState};

use crate::args::SubmitArgs;
use crate::command_sender::{self, CommandSender};
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::Output;
use crate::signal::stop_signal;
use crate::specfile;
use crate::summary;

/// The polling interval of a waiting submit.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of progress lines while the phase stays the same.
const SHOW_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) async fn submit(
    args: &SubmitArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let spec = specfile::read(&args.spec)?.self_contained()?;
    let sender = CommandSender::of_engine(settings, &args.caller).await?;
    let command = Command {
        spec: Some(spec),
        ..Command::about(Kind::Start, None)
    };
    let answer = sender.ask(command).await?;
    let state = command_sender::only_rollout(&answer)?;
    if !answer.changed {
        output.note(&format!("{} already exists with the same spec", state.name));
    }
    let text = |state: &RolloutState| match state.is_ended() {
        true => summary::headline(state, output),
        false => progress(state),
    };
    if !args.wait {
        sender.close().await;
        output.result(&answer, &text(&state));
        output.note(&format!(
            "Follow the rollout with `twincast watch {}`.",
            state.name
        ));
        return Ok(ExitCode::Success);
    }
    if !state.is_ended() {
        output.note(&progress(&state));
    }
    let ended = tokio::select! {
        ended = until_ended(&sender, state, output) => Some(ended),
        () = stop_signal() => None,
    };
    sender.close().await;
    let Some(state) = ended else {
        output.note("Stopped waiting. The rollout continues.");
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
    sender: &CommandSender,
    mut state: RolloutState,
    output: &Output,
) -> Result<RolloutState, Failure> {
    let question = Command::about(Kind::Status, Some(state.name.clone()));
    // A new phase, and a reason that appears or disappears, are shown at once; other changes at the
    // interval.
    let gist = |state: &RolloutState| (state.phase.clone(), state.reason.is_some());
    let mut shown = (gist(&state), Instant::now());
    loop {
        if state.is_ended() {
            return Ok(state);
        }
        if shown.0 != gist(&state) || shown.1.elapsed() >= SHOW_INTERVAL {
            output.note(&progress(&state));
            shown = (gist(&state), Instant::now());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        match sender.ask(question.clone()).await {
            Ok(answer) => state = command_sender::only_rollout(&answer)?,
            // Service outages are transient; refusals are permanent.
            Err(failure) if failure.is_transient() => {
                output.note(&format!("waiting: {}", failure.lines().join(": ")));
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Describes the progress of an active rollout.
fn progress(state: &RolloutState) -> String {
    let mut text = format!("{} is {}", state.name, state.phase);
    if let Some(reason) = &state.reason {
        text.push_str(&format!(" ({reason})"));
    }
    if state.by_class.total() > 0 {
        let (done, classes) = state.by_class.progress_texts();
        let classes = classes.map(|classes| format!(", {classes}"));
        text.push_str(&format!(": {done}{}", classes.unwrap_or_default()));
    }
    text
}
