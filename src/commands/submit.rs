//! `twincast submit`: a plain publisher of the documented `start` message, which may wait.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ids::DeviceId;
use twincast_core::spec::MAX_DEVICES_INLINE;
use twincast_orchestrator::command::{Answer, Command, Kind, State};
use twincast_orchestrator::lists;

use crate::args::SubmitArgs;
use crate::commander::{self, Commander};
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, thousands};
use crate::signal::asked_to_stop;
use crate::specfile::{self, SpecFile};

/// How often a waiting submit asks.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often progress is shown while nothing else changes.
const SHOW_EVERY: Duration = Duration::from_secs(10);

pub(crate) async fn submit(
    args: &SubmitArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let spec = self_contained(specfile::read(&args.spec)?)?;
    let commander = Commander::connect(settings, &args.who).await?;
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
    if !args.wait {
        commander.close().await;
        output.result(&answer, &describe(&state));
        output.note(&format!("Follow it with `twincast watch {}`.", state.name));
        return Ok(ExitCode::Success);
    }
    if !is_ended(&state.phase) {
        output.note(&describe(&state));
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
    let text = describe(&state);
    let answer = Answer {
        rollouts: vec![state],
        ..answer
    };
    output.result(&answer, &text);
    Ok(code)
}

/// The spec with everything in it that it names: whoever gets it cannot read our files.
fn self_contained(file: SpecFile) -> Result<serde_json::Value, Failure> {
    let SpecFile { mut spec, base, .. } = file;
    if let Some(path) = spec.target.devices_file.take() {
        spec.target.devices = devices_of(&base.join(path))?;
    }
    for rule in &mut spec.target.exclude {
        if let Some(path) = rule.devices_file.take() {
            rule.devices = devices_of(&base.join(path))?;
        }
    }
    serde_json::to_value(spec).map_err(|error| Failure::new(ExitCode::Unexpected, error))
}

fn devices_of(path: &Path) -> Result<Vec<DeviceId>, Failure> {
    let mut devices = Vec::new();
    let take = |device| {
        devices.push(device);
        devices.len() <= MAX_DEVICES_INLINE
    };
    lists::for_each_unique(path, take).map_err(|error| Failure::new(ExitCode::Refused, error))?;
    if devices.len() > MAX_DEVICES_INLINE {
        let message = format!(
            "{} lists more than {} devices, too many for a queue message",
            path.display(),
            thousands(MAX_DEVICES_INLINE as u64)
        );
        return Err(Failure::message(ExitCode::Refused, message)
            .hint("choose the devices by their tags, or roll out from here with `twincast run`"));
    }
    Ok(devices)
}

async fn until_ended(
    commander: &Commander,
    mut state: State,
    output: &Output,
) -> Result<State, Failure> {
    let question = Command::about(Kind::Status, Some(state.name.clone()));
    let mut shown = (state.phase.clone(), Instant::now());
    loop {
        if is_ended(&state.phase) {
            return Ok(state);
        }
        if shown.0 != state.phase || shown.1.elapsed() >= SHOW_EVERY {
            output.note(&describe(&state));
            shown = (state.phase.clone(), Instant::now());
        }
        tokio::time::sleep(ASK_AGAIN).await;
        match commander.ask(question.clone()).await {
            Ok(answer) => state = commander::one(&answer)?,
            // Services come back; what was refused stays refused.
            Err(failure) if failure.code == ExitCode::Services => {
                output.note(&format!("waiting: {}", failure.lines().join(": ")));
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn is_ended(phase: &str) -> bool {
    matches!(
        phase,
        "succeeded" | "finished_with_failures" | "failed" | "aborted"
    )
}

fn describe(state: &State) -> String {
    let mut text = format!("{}: {}", state.name, state.phase.replace('_', " "));
    if state.devices > 0 {
        text.push_str(&format!(
            ", {} of {} devices sent",
            thousands(state.sent),
            thousands(state.devices)
        ));
    }
    if state.failed > 0 {
        text.push_str(&format!(", {} failed", thousands(state.failed)));
    }
    if let Some(reason) = &state.reason {
        text.push_str(&format!(" ({reason})"));
    }
    text
}
