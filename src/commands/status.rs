//! `twincast status`: all rollouts in a table, or a single rollout in full.

use twincast_orchestrator::view::RolloutRow;

use crate::args::StatusArgs;
use crate::client::{Client, Listing};
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, table, thousands};
use crate::stages;

/// The largest number of rollouts in a list, unless more are active.
const MAX_LISTED: usize = 200;

pub(crate) async fn status(
    args: &StatusArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let client = Client::for_reading(settings).await?;
    let shown = match &args.name {
        Some(name) => show_rollout(&client, name, output).await,
        None => show_all(&client, output).await,
    };
    client.close().await;
    shown
}

async fn show_rollout(client: &Client, name: &str, output: &Output) -> Result<ExitCode, Failure> {
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

async fn show_all(client: &Client, output: &Output) -> Result<ExitCode, Failure> {
    let Listing {
        rows,
        omitted,
        of_newer_release,
        damaged,
        stopped,
    } = client.newest(MAX_LISTED).await?;
    let mut text: String = stopped.iter().map(|it| format!("{it}\n\n")).collect();
    text += &if rows.is_empty() {
        "No rollouts.".to_owned()
    } else {
        as_table(&rows)
    };
    if omitted > 0 {
        text.push_str(&format!(
            "\n  and {} older ended rollouts",
            thousands(omitted as u64)
        ));
    }
    for name in &of_newer_release {
        text.push_str(&format!(
            "\n  {name} cannot be shown: it was written by a newer release"
        ));
    }
    for name in &damaged {
        text.push_str(&format!(
            "\n  {name} cannot be shown: its record is damaged"
        ));
    }
    let mut shown = serde_json::json!({ "rollouts": rows, "omitted": omitted });
    if !of_newer_release.is_empty() {
        shown["of_newer_release"] = serde_json::json!(of_newer_release);
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
    let classes = stages::classes(rows.iter().map(|row| &row.state.by_class));
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let state = &row.state;
            let waits = row.waits_for.as_ref();
            let waits = waits.map(|waits| format!("waits for {waits}"));
            let mut cells = vec![state.name.to_string(), state.phase.replace('_', " ")];
            cells.extend(stages::cells(&state.by_class, &classes));
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
