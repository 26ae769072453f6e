//! `twincast status`: all rollouts in a table, or one in full.

use serde::Serialize;
use twincast_core::ports::Tally;
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use twincast_orchestrator::command::State;

use crate::args::StatusArgs;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, table, thousands};
use crate::stores::{self, AnyStore};
use crate::summary;

/// The newest rollouts that a list shows.
const LISTED: usize = 200;

#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    state: State,
    created_at: Timestamp,
    changed_at: Timestamp,
}

pub(crate) async fn status(
    args: &StatusArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let store = stores::open(settings).await?;
    let shown = match &args.name {
        Some(name) => one(&store, name, output).await,
        None => all(&store, output).await,
    };
    store.close().await;
    shown
}

async fn one(store: &AnyStore, name: &str, output: &Output) -> Result<ExitCode, Failure> {
    let rollout = stores::rollout(store, name).await?;
    let summary = summary::read(&**store, &rollout)
        .await
        .map_err(engine::store_failure)?;
    let mut text = summary.text(output, None);
    text.push_str(&format!(
        "\n\n  accepted {}, {} since {}",
        rollout.created_at,
        rollout.phase.as_str().replace('_', " "),
        rollout.changed_at
    ));
    let shown = summary.dated(&rollout);
    output.result(&shown, &text);
    Ok(ExitCode::Success)
}

async fn all(store: &AnyStore, output: &Output) -> Result<ExitCode, Failure> {
    let mut listed = Vec::new();
    for name in store.rollouts().await.map_err(engine::store_failure)? {
        let rollout = store.rollout(&name).await.map_err(engine::store_failure)?;
        if let Some(rollout) = rollout {
            listed.push(rollout);
        }
    }
    listed.sort_by_key(|rollout| std::cmp::Reverse(rollout.created_at));
    let left_out = listed.len().saturating_sub(LISTED);
    listed.truncate(LISTED);
    let mut rows = Vec::new();
    for rollout in &listed {
        rows.push(row(store, rollout).await?);
    }
    let text = if rows.is_empty() {
        "No rollouts.".to_owned()
    } else {
        let mut text = as_table(&rows);
        if left_out > 0 {
            text.push_str(&format!(
                "\n  and {} older ones",
                thousands(left_out as u64)
            ));
        }
        text
    };
    output.result(&serde_json::json!({ "rollouts": rows }), &text);
    Ok(ExitCode::Success)
}

async fn row(store: &AnyStore, rollout: &Rollout) -> Result<Listed, Failure> {
    let tallies = store.tallies(&rollout.spec.name).await;
    let counts = Tally::sum(&tallies.map_err(engine::store_failure)?);
    Ok(Listed {
        state: State::of(rollout, &counts),
        created_at: rollout.created_at,
        changed_at: rollout.changed_at,
    })
}

fn as_table(rows: &[Listed]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let state = &row.state;
            vec![
                state.name.to_string(),
                state.phase.replace('_', " "),
                thousands(state.devices),
                thousands(state.sent),
                thousands(state.failed),
                row.created_at.to_string(),
                state.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let headings = [
        "rollout", "phase", "devices", "sent", "failed", "accepted", "",
    ];
    table(&headings, &cells)
}
