//! `twincast dead-letters`: messages that could not be used, with the reason of each.

use serde_json::{Value, json};
use twincast_amqp::{Amqp, DeadLetter};
use twincast_core::error::in_words;
use twincast_core::time::Timestamp;
use twincast_orchestrator::http::DeadLetters;

use crate::args::{DeadLettersAction, DeadLettersArgs};
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, table};
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

async fn act(
    amqp: &Amqp,
    action: Option<&DeadLettersAction>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    match action {
        None | Some(DeadLettersAction::List) => list(amqp, output).await,
        Some(DeadLettersAction::Show { id }) => {
            let letter = amqp.dead_letter(id).await.map_err(broker_failure)?;
            output.result(&value(&letter), &whole(&letter));
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

async fn list(amqp: &Amqp, output: &Output) -> Result<ExitCode, Failure> {
    let letters = amqp.dead_letters(LISTED).await.map_err(broker_failure)?;
    let text = if letters.is_empty() {
        "No dead letters.".to_owned()
    } else {
        let rows: Vec<_> = letters.iter().map(row).collect();
        table(&["id", "when", "from", "cause", "detail"], &rows)
    };
    let values: Vec<_> = letters.iter().map(value).collect();
    output.result(&json!({ "dead_letters": values }), &text);
    Ok(ExitCode::Success)
}

fn row(letter: &DeadLetter) -> Vec<String> {
    let detail = letter.detail.as_deref().unwrap_or_default();
    let short: String = detail.chars().take(DETAIL).collect();
    let more = if short.len() < detail.len() {
        "..."
    } else {
        ""
    };
    vec![
        letter.id.clone(),
        when(letter),
        letter.queue.clone().unwrap_or_default(),
        letter.cause.clone().unwrap_or_default(),
        format!("{short}{more}").replace('\n', " "),
    ]
}

fn when(letter: &DeadLetter) -> String {
    let at = letter.at.map(|at| Timestamp(at).to_string());
    at.unwrap_or_default()
}

fn whole(letter: &DeadLetter) -> String {
    let fields = [
        ("id", Some(letter.id.clone())),
        ("when", Some(when(letter))),
        ("from", letter.queue.clone()),
        ("cause", letter.cause.clone()),
        ("detail", letter.detail.clone()),
        ("message id", letter.message_id.clone()),
        ("content type", letter.content_type.clone()),
        (
            "cut, of",
            letter.truncated_from.map(|size| format!("{size} bytes")),
        ),
    ];
    let mut lines: Vec<_> = fields
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name:>12}: {}", value?)))
        .collect();
    lines.push(String::new());
    lines.push(String::from_utf8_lossy(&letter.body).into_owned());
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
