//! `twincast status`: all rollouts in a table, or one in full.

use twincast_orchestrator::view::RolloutRow;

use crate::args::StatusArgs;
use crate::client::{Client, Listing};
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, table, thousands};
use crate::stages;

/// How many rollouts a list shows, unless more have not ended.
const LISTED: usize = 200;

pub(crate) async fn status(
    args: &StatusArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let client = Client::to_look(settings).await?;
    let shown = match &args.name {
        Some(name) => one(&client, name, output).await,
        None => all(&client, output).await,
    };
    client.close().await;
    shown
}

async fn one(client: &Client, name: &str, output: &Output) -> Result<ExitCode, Failure> {
    let summary = client.summary(name).await?;
    let row = &summary.rollout.row;
    let text = format!(
        "{}\n\n  accepted {}, {} since {}",
        summary.text(output, None),
        row.created_at,
        row.state.phase.replace('_', " "),
        row.changed_at
    );
    output.result(&summary, &text);
    Ok(ExitCode::Success)
}

async fn all(client: &Client, output: &Output) -> Result<ExitCode, Failure> {
    let Listing {
        rows,
        older,
        newer,
        damaged,
        stopped,
    } = client.newest(LISTED).await?;
    let mut text: String = stopped.iter().map(|it| format!("{it}\n\n")).collect();
    text += &if rows.is_empty() {
        "No rollouts.".to_owned()
    } else {
        as_table(&rows)
    };
    if older > 0 {
        text.push_str(&format!(
            "\n  and {} older that have ended",
            thousands(older as u64)
        ));
    }
    for name in &newer {
        text.push_str(&format!("\n  {name} is of a newer release"));
    }
    for name in &damaged {
        text.push_str(&format!(
            "\n  {name} cannot be shown: its record is damaged"
        ));
    }
    let mut shown = serde_json::json!({ "rollouts": rows, "older": older });
    if !newer.is_empty() {
        shown["newer"] = serde_json::json!(newer);
    }
    if !damaged.is_empty() {
        shown["damaged"] = serde_json::json!(damaged);
    }
    if let Some(stopped) = &stopped {
        shown["stopped"] = serde_json::json!(stopped);
    }
    output.result(&shown, &text);
    Ok(ExitCode::Success)
}

fn as_table(rows: &[RolloutRow]) -> String {
    let classes = stages::classes(rows.iter().map(|row| &row.state.ends));
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let state = &row.state;
            let waits = row.waits_for.as_ref();
            let waits = waits.map(|waits| format!("waits for {waits}"));
            let mut cells = vec![state.name.to_string(), state.phase.replace('_', " ")];
            cells.extend(stages::cells(&state.ends, &classes));
            cells.push(row.created_at.to_string());
            cells.push(waits.or_else(|| state.reason.clone()).unwrap_or_default());
            cells
        })
        .collect();
    let mut headings = vec!["rollout", "phase"];
    headings.extend(stages::heads(&classes));
    headings.extend(["accepted", ""]);
    table(&headings, &cells)
}
