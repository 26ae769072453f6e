//! `twincast dead-letters`: messages that could not be used, with the reason of each.

use serde_json::{Value, json};
use twincast_amqp::{Amqp, DeadLetter};
use twincast_core::error::in_words;
use twincast_core::time::Timestamp;
use twincast_orchestrator::http::DeadLetters;

use crate::args::{DeadLettersAction, DeadLettersArgs};
use crate::client::Client;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, one_line, set_in, table};
use crate::services::{self, broker_failure};

/// Letters that are looked at.
const LISTED: usize = 1_000;
/// How much of a letter's detail a list shows.
const DETAIL: usize = 100;

pub(crate) async fn dead_letters(
    args: &DeadLettersArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    if let Some(server) = Client::of_server(settings)? {
        return over(&server, args.action.as_ref(), output).await;
    }
    let amqp = services::broker(settings, "cli").await?;
    let done = act(&amqp, args.action.as_ref(), output).await;
    amqp.close().await;
    done
}

/// The dead letters of a broker, for the HTTP API.
pub(crate) struct BrokerLetters(pub(crate) Amqp);

#[async_trait::async_trait]
impl DeadLetters for BrokerLetters {
    async fn list(&self, most: usize) -> Result<Vec<Value>, String> {
        let letters = self.0.dead_letters(most).await;
        let letters = letters.map_err(|error| in_words(&error))?;
        Ok(letters.iter().map(value).collect())
    }
}

/// What a server's API has of it: looking.
async fn over(
    server: &Client,
    action: Option<&DeadLettersAction>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let only_here = |what: &str| {
        let message = format!("dead-letters {what} does not work over a server");
        let failure = Failure::message(ExitCode::Refused, message);
        Err(failure.hint("give the broker as amqp.url, and no --server"))
    };
    match action {
        None | Some(DeadLettersAction::List) => list(&server.dead_letters().await?, output),
        Some(DeadLettersAction::Show { id }) => {
            let letters = server.dead_letters().await?;
            let letter = letters.iter().find(|letter| letter["id"] == **id);
            let letter = letter.ok_or_else(|| {
                let message = format!("no dead letter {id} is among the oldest hundred");
                Failure::message(ExitCode::Refused, message)
            })?;
            output.result(letter, &whole(letter));
        }
        Some(DeadLettersAction::Replay { .. }) => return only_here("replay"),
        Some(DeadLettersAction::Discard { .. }) => return only_here("discard"),
    }
    Ok(ExitCode::Success)
}

async fn act(
    amqp: &Amqp,
    action: Option<&DeadLettersAction>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    match action {
        None | Some(DeadLettersAction::List) => {
            let letters = amqp.dead_letters(LISTED).await.map_err(broker_failure)?;
            list(&letters.iter().map(value).collect::<Vec<_>>(), output);
            Ok(ExitCode::Success)
        }
        Some(DeadLettersAction::Show { id }) => {
            let letter = value(&amqp.dead_letter(id).await.map_err(broker_failure)?);
            output.result(&letter, &whole(&letter));
            Ok(ExitCode::Success)
        }
        Some(DeadLettersAction::Replay { id, .. }) => {
            let mut done = Vec::new();
            for id in chosen(amqp, id.as_ref()).await? {
                let letter = amqp.replay_dead_letter(&id).await;
                done.push(value(&letter.map_err(broker_failure)?));
            }
            report("replayed", &done, output)
        }
        Some(DeadLettersAction::Discard { id, .. }) => {
            let mut done = Vec::new();
            for id in chosen(amqp, id.as_ref()).await? {
                let letter = amqp.discard_dead_letter(&id).await;
                done.push(value(&letter.map_err(broker_failure)?));
            }
            report("discarded", &done, output)
        }
    }
}

/// The one that is named, or all that are there.
async fn chosen(amqp: &Amqp, id: Option<&String>) -> Result<Vec<String>, Failure> {
    if let Some(id) = id {
        return Ok(vec![id.clone()]);
    }
    let letters = amqp.dead_letters(LISTED).await.map_err(broker_failure)?;
    Ok(letters.into_iter().map(|letter| letter.id).collect())
}

fn report(what: &str, letters: &[Value], output: &Output) -> Result<ExitCode, Failure> {
    let text = format!("{} {what}", letters.len());
    output.result(&json!({ what: letters }), &text);
    Ok(ExitCode::Success)
}

fn list(letters: &[Value], output: &Output) {
    let text = if letters.is_empty() {
        "No dead letters.".to_owned()
    } else {
        let rows: Vec<_> = letters.iter().map(row).collect();
        table(&["id", "when", "from", "cause", "detail"], &rows)
    };
    output.result(&json!({ "dead_letters": letters }), &text);
}

fn row(letter: &Value) -> Vec<String> {
    let text = |field: &str| letter[field].as_str().unwrap_or_default();
    let detail = text("detail");
    let short: String = detail.chars().take(DETAIL).collect();
    let more = if short.len() < detail.len() {
        "..."
    } else {
        ""
    };
    let detail = format!("{short}{more}");
    let fields = ["id", "at", "queue", "cause"].map(|field| text(field).to_owned());
    [&fields[..], &[detail]].concat()
}

fn whole(letter: &Value) -> String {
    let fields = [
        ("id", "id"),
        ("when", "at"),
        ("from", "queue"),
        ("cause", "cause"),
        ("detail", "detail"),
        ("message id", "message_id"),
        ("content type", "content_type"),
    ];
    let fields = fields.map(|(name, field)| (name, letter[field].as_str().map(str::to_owned)));
    let cut = letter["truncated_from"].as_u64();
    let cut = ("cut, of", cut.map(|size| format!("{size} bytes")));
    let lines = fields.into_iter().chain([cut]);
    let mut lines: Vec<_> = lines
        .filter_map(|(name, value)| Some(format!("{name:>12}: {}", one_line(&value?))))
        .collect();
    lines.push(String::new());
    lines.push(set_in(letter["body"].as_str().unwrap_or_default()));
    lines.join("\n")
}

fn value(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "at": letter.at.map(Timestamp),
        "queue": letter.queue,
        "cause": letter.cause,
        "detail": letter.detail,
        "message_id": letter.message_id,
        "content_type": letter.content_type,
        "truncated_from": letter.truncated_from,
        "body": String::from_utf8_lossy(&letter.body),
    })
}
