//! `twincast watch`: a rollout's progress until it ends.

use twincast_orchestrator::view::RolloutView;

use crate::args::WatchArgs;
use crate::client::Client;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, escape_line, phase_predicate};
use crate::progress::{Progress, Snapshot};
use crate::signal::stop_signal;
use crate::stages;
use crate::summary::Summary;

pub(crate) async fn watch(
    args: &WatchArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let mut progress = Progress::new(output.clone());
    let watched = tokio::select! {
        watched = watched(args, settings, &mut progress) => Some(watched),
        () = stop_signal() => None,
    };
    progress.finish();
    let Some(watched) = watched else {
        output.note("Stopped watching. The rollout continues.");
        return Ok(ExitCode::Interrupted);
    };
    let summary = watched?;
    let text = summary.text(output, None);
    output.result(&summary, &text);
    let state = &summary.rollout.row.state;
    if state.is_ended() {
        return Ok(ExitCode::of(&state.phase));
    }
    output.note(&format!(
        "No process works on {} now. To continue, run the same `twincast run` again.",
        state.name
    ));
    Ok(ExitCode::NotRolledOut)
}

/// Watches a rollout until the rollout has ended or no process works on it; returns the final
/// summary.
async fn watched(
    args: &WatchArgs,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Summary, Failure> {
    loop {
        let client = Client::for_reading(settings).await?;
        let seen = async {
            if client.idle_folder().is_none() {
                let rollout = client.rollout(&args.name).await?;
                until_ended(&client, rollout, progress).await?;
            }
            client.summary(&args.name).await
        };
        let seen = seen.await;
        client.close().await;
        match seen {
            // The process finished working on the folder: the folder holds the result.
            Err(failure) if client.is_folder_owner() && failure.is_transient() => {}
            seen => return seen,
        }
    }
}

/// Shows progress until the rollout has ended. Waits out transient errors of a server or store.
async fn until_ended(
    client: &Client,
    mut rollout: RolloutView,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut phase = String::new();
    let mut is_away = false;
    loop {
        let state = &rollout.row.state;
        if state.is_ended() {
            return Ok(());
        }
        let obstacle = waiting_reason(&rollout);
        if phase != state.phase && obstacle.is_none() {
            progress.print(&format!("{} {}", state.name, phase_predicate(&state.phase)));
        }
        if rollout.plan.is_some() {
            progress.sending(&Snapshot {
                by_class: state.by_class,
                pace: rollout.rate_per_minute,
                obstacle,
                answers: stages::answers(&rollout.stages),
            });
        } else {
            progress.planning(rollout.devices_found.unwrap_or(0), obstacle.as_deref());
        }
        phase.clone_from(&state.phase);
        let name = state.name.clone();
        rollout = loop {
            tokio::time::sleep(client.pace()).await;
            match client.rollout(name.as_str()).await {
                Ok(rollout) => break rollout,
                Err(failure) if failure.is_transient() && !client.is_folder_owner() => {
                    if !std::mem::replace(&mut is_away, true) {
                        progress.print(&format!("waiting: {}", failure.lines().join(": ")));
                    }
                }
                Err(failure) => return Err(failure),
            }
        };
        is_away = false;
    }
}

/// Returns the reason if nothing is being sent.
fn waiting_reason(rollout: &RolloutView) -> Option<String> {
    let state = &rollout.row.state;
    let reason = escape_line(state.reason.as_deref().unwrap_or_default());
    match &*state.phase {
        "paused" => Some(format!("paused: {reason}")),
        "halted" => Some(format!("all rollouts are stopped: {reason}")),
        "aborting" => Some(format!("being aborted: {reason}")),
        _ => {
            let waits = rollout.row.waits_for.as_ref()?;
            if rollout.plan.is_none() {
                return Some(format!("the rollout waits for {waits}"));
            }
            let stage = &rollout.current_stage()?.progress.name;
            Some(stages::waiting(stage, rollout.sent_at.is_some(), waits))
        }
    }
}
