//! `twincast dead-letters`: messages that could not be used, with reasons.

use serde_json::{Value, json};
use twincast_amqp::{Amqp, DeadLetter};
use twincast_core::error::describe;
use twincast_core::time::Timestamp;
use twincast_orchestrator::http::DeadLetters;

use crate::args::{DeadLettersAction, DeadLettersArgs};
use crate::client::Client;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, escape_line, indent_and_escape, table};
use crate::services::{self, broker_failure};

/// The largest number of dead letters read.
const MAX_LISTED: usize = 1_000;
/// The largest length of a detail in the list, in characters.
const MAX_DETAIL_CHARS: usize = 100;

pub(crate) async fn dead_letters(
    args: &DeadLettersArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    if let Some(server) = Client::of_server(settings)? {
        return act_on_server(&server, args.action.as_ref(), output).await;
    }
    let amqp = services::broker(settings, "cli").await?;
    let done = act_on_broker(&amqp, args.action.as_ref(), output).await;
    amqp.close().await;
    done
}

/// The dead letters of a broker, for the HTTP API.
pub(crate) struct BrokerDeadLetters(pub(crate) Amqp);

#[async_trait::async_trait]
impl DeadLetters for BrokerDeadLetters {
    async fn list(&self, most: usize) -> Result<Vec<Value>, String> {
        let dead_letters = self.0.dead_letters(most).await;
        let dead_letters = dead_letters.map_err(|error| describe(&error))?;
        Ok(dead_letters.iter().map(value).collect())
    }
}

/// Performs the actions supported by a server's API: reading only.
async fn act_on_server(
    server: &Client,
    action: Option<&DeadLettersAction>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let refuse_over_server = |what: &str| {
        let message = format!("dead-letters {what} is not available over the HTTP API");
        let failure = Failure::message(ExitCode::Refused, message);
        Err(failure.hint("set amqp.url, and no --server"))
    };
    match action {
        None | Some(DeadLettersAction::List) => list(&server.dead_letters().await?, output),
        Some(DeadLettersAction::Show { id }) => {
            let dead_letters = server.dead_letters().await?;
            let dead_letter = dead_letters
                .iter()
                .find(|dead_letter| dead_letter["id"] == **id);
            let dead_letter = dead_letter.ok_or_else(|| {
                let message = format!("dead letter {id} is not among the oldest 100");
                Failure::message(ExitCode::Refused, message)
            })?;
            output.result(dead_letter, &details(dead_letter));
        }
        Some(DeadLettersAction::Replay { .. }) => return refuse_over_server("replay"),
        Some(DeadLettersAction::Discard { .. }) => return refuse_over_server("discard"),
    }
    Ok(ExitCode::Success)
}

async fn act_on_broker(
    amqp: &Amqp,
    action: Option<&DeadLettersAction>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    match action {
        None | Some(DeadLettersAction::List) => {
            let dead_letters = amqp
                .dead_letters(MAX_LISTED)
                .await
                .map_err(broker_failure)?;
            list(&dead_letters.iter().map(value).collect::<Vec<_>>(), output);
            Ok(ExitCode::Success)
        }
        Some(DeadLettersAction::Show { id }) => {
            let dead_letter = value(&amqp.dead_letter(id).await.map_err(broker_failure)?);
            output.result(&dead_letter, &details(&dead_letter));
            Ok(ExitCode::Success)
        }
        Some(DeadLettersAction::Replay { id, .. }) => {
            let mut done = Vec::new();
            for id in chosen(amqp, id.as_ref()).await? {
                let dead_letter = amqp.replay_dead_letter(&id).await;
                done.push(value(&dead_letter.map_err(broker_failure)?));
            }
            report("replayed", &done, output)
        }
        Some(DeadLettersAction::Discard { id, .. }) => {
            let mut done = Vec::new();
            for id in chosen(amqp, id.as_ref()).await? {
                let dead_letter = amqp.discard_dead_letter(&id).await;
                done.push(value(&dead_letter.map_err(broker_failure)?));
            }
            report("discarded", &done, output)
        }
    }
}

/// Returns the given id, or the ids of all dead letters.
async fn chosen(amqp: &Amqp, id: Option<&String>) -> Result<Vec<String>, Failure> {
    if let Some(id) = id {
        return Ok(vec![id.clone()]);
    }
    let dead_letters = amqp
        .dead_letters(MAX_LISTED)
        .await
        .map_err(broker_failure)?;
    Ok(dead_letters
        .into_iter()
        .map(|dead_letter| dead_letter.id)
        .collect())
}

fn report(what: &str, dead_letters: &[Value], output: &Output) -> Result<ExitCode, Failure> {
    let text = format!("{} {what}", dead_letters.len());
    output.result(&json!({ what: dead_letters }), &text);
    Ok(ExitCode::Success)
}

fn list(dead_letters: &[Value], output: &Output) {
    let text = if dead_letters.is_empty() {
        "No dead letters.".to_owned()
    } else {
        let rows: Vec<_> = dead_letters.iter().map(row).collect();
        table(&["id", "when", "from", "cause", "detail"], &rows)
    };
    output.result(&json!({ "dead_letters": dead_letters }), &text);
}

fn row(dead_letter: &Value) -> Vec<String> {
    let text = |field: &str| dead_letter[field].as_str().unwrap_or_default();
    let detail = text("detail");
    let short: String = detail.chars().take(MAX_DETAIL_CHARS).collect();
    let more = if short.len() < detail.len() {
        "..."
    } else {
        ""
    };
    let detail = format!("{short}{more}");
    let fields = ["id", "at", "queue", "cause"].map(|field| text(field).to_owned());
    [&fields[..], &[detail]].concat()
}

fn details(dead_letter: &Value) -> String {
    let fields = [
        ("id", "id"),
        ("when", "at"),
        ("from", "queue"),
        ("cause", "cause"),
        ("detail", "detail"),
        ("message id", "message_id"),
        ("content type", "content_type"),
    ];
    let fields = fields.map(|(name, field)| (name, dead_letter[field].as_str().map(str::to_owned)));
    let cut = dead_letter["truncated_from"].as_u64();
    let cut = ("full size", cut.map(|size| format!("{size} bytes")));
    let lines = fields.into_iter().chain([cut]);
    let mut lines: Vec<_> = lines
        .filter_map(|(name, value)| Some(format!("{name:>12}: {}", escape_line(&value?))))
        .collect();
    lines.push(String::new());
    lines.push(indent_and_escape(
        dead_letter["body"].as_str().unwrap_or_default(),
    ));
    lines.join("\n")
}

fn value(dead_letter: &DeadLetter) -> Value {
    json!({
        "id": dead_letter.id,
        "at": dead_letter.at.map(Timestamp),
        "queue": dead_letter.queue,
        "cause": dead_letter.cause,
        "detail": dead_letter.detail,
        "message_id": dead_letter.message_id,
        "content_type": dead_letter.content_type,
        "truncated_from": dead_letter.truncated_from,
        "body": String::from_utf8_lossy(&dead_letter.body),
    })
}
