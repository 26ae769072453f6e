//! `twincast watch`: a rollout's progress until it ends.

use std::time::Duration;

use twincast_core::ids::RolloutName;
use twincast_core::ports::{StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::spec::Rate;

use crate::args::WatchArgs;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::progress::{Progress, Snapshot};
use crate::signal::asked_to_stop;
use crate::stages;
use crate::stores::{self, AnyStore};
use crate::summary;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn watch(
    args: &WatchArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let store = stores::open(settings).await?;
    let rollout = stores::rollout(&store, &args.name).await?;
    let mut progress = Progress::new(*output);
    let ended = tokio::select! {
        ended = until_ended(&store, &rollout.spec.name, &mut progress) => Some(ended),
        () = asked_to_stop() => None,
    };
    progress.finish();
    let Some(rollout) = ended else {
        output.note("Not watched any more. The rollout goes on.");
        return Ok(ExitCode::Interrupted);
    };
    let rollout = rollout?;
    let summary = summary::read(&*store, &rollout)
        .await
        .map_err(engine::store_failure)?;
    store.close().await;
    let text = summary.text(output, None);
    output.result(&summary.dated(&rollout), &text);
    Ok(ExitCode::of(rollout.phase.as_str()))
}

/// Shows what happens until the rollout has ended. A store that does not answer is waited for.
async fn until_ended(
    store: &AnyStore,
    name: &RolloutName,
    progress: &mut Progress,
) -> Result<Rollout, Failure> {
    let mut phase = None;
    let mut is_away = false;
    loop {
        match look(store, name).await {
            Ok((rollout, tallies)) => {
                is_away = false;
                if rollout.phase.is_ended() {
                    return Ok(rollout);
                }
                let pace = rollout.rate_now(&tallies).map(Rate::as_per_minute);
                let trouble =
                    standstill(&rollout.phase).or_else(|| stages::standstill(&rollout, &tallies));
                if phase.as_ref() != Some(&rollout.phase) && trouble.is_none() {
                    progress.print(&format!("{name} is {}", rollout.phase.as_str()));
                }
                let counts = Tally::sum(&tallies);
                if rollout.plan.is_some() {
                    progress.sending(&Snapshot {
                        counts,
                        pace,
                        trouble,
                    });
                } else {
                    progress.planning(counts.total());
                }
                phase = Some(rollout.phase);
            }
            Err(StoreError::Unavailable { .. }) => {
                if !is_away {
                    progress.print("waiting: the store does not answer");
                }
                is_away = true;
            }
            Err(error) => return Err(engine::store_failure(error)),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(store: &AnyStore, name: &RolloutName) -> Result<(Rollout, Vec<Tally>), StoreError> {
    let rollout = store.rollout(name).await?;
    let rollout = rollout.ok_or_else(|| StoreError::NotFound {
        what: format!("rollout {name}"),
    })?;
    let tallies = store.tallies(name).await?;
    Ok((rollout, tallies))
}

/// Why nothing is being sent, if that is so.
fn standstill(phase: &Phase) -> Option<String> {
    match phase {
        Phase::Paused { reason } => Some(format!("paused: {reason}")),
        Phase::Halted { reason } => Some(format!("all rollouts are stopped: {reason}")),
        Phase::Aborting { reason } => Some(format!("being aborted: {reason}")),
        _ => None,
    }
}
