//! `twincast watch`: a rollout's progress until it ends.

use twincast_orchestrator::view::RolloutView;

use crate::args::WatchArgs;
use crate::client::Client;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, does, one_line};
use crate::progress::{Progress, Snapshot};
use crate::signal::asked_to_stop;
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
        () = asked_to_stop() => None,
    };
    progress.finish();
    let Some(watched) = watched else {
        output.note("Not watched any more. The rollout goes on.");
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
        "Nobody works on {} now. The `twincast run` that began it goes on with it.",
        state.name
    ));
    Ok(ExitCode::NotRolledOut)
}

/// Watches a rollout until it has ended, or nobody works on it any more; gives how it is then.
async fn watched(
    args: &WatchArgs,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Summary, Failure> {
    loop {
        let client = Client::to_look(settings).await?;
        let seen = async {
            if client.still().is_none() {
                let rollout = client.rollout(&args.name).await?;
                until_ended(&client, rollout, progress).await?;
            }
            client.summary(&args.name).await
        };
        let seen = seen.await;
        client.close().await;
        match seen {
            // It has ended its work: the folder says how it left it.
            Err(failure) if client.is_at_work() && failure.may_pass() => {}
            seen => return seen,
        }
    }
}

/// Shows what happens until the rollout has ended. A place that does not answer is waited for.
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
        let trouble = standstill(&rollout);
        if phase != state.phase && trouble.is_none() {
            progress.print(&format!("{} {}", state.name, does(&state.phase)));
        }
        if rollout.plan.is_some() {
            progress.sending(&Snapshot {
                ends: state.ends,
                pace: rollout.rate_per_minute,
                trouble,
                answers: stages::answers(&rollout.stages),
            });
        } else {
            progress.planning(rollout.devices_found.unwrap_or(0), trouble.as_deref());
        }
        phase.clone_from(&state.phase);
        let name = state.name.clone();
        rollout = loop {
            tokio::time::sleep(client.pace()).await;
            match client.rollout(name.as_str()).await {
                Ok(rollout) => break rollout,
                Err(failure) if failure.may_pass() && !client.is_at_work() => {
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

/// Why nothing is being sent, if that is so.
fn standstill(rollout: &RolloutView) -> Option<String> {
    let state = &rollout.row.state;
    let reason = one_line(state.reason.as_deref().unwrap_or_default());
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
