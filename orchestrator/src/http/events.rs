//! The events of a rollout, as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::BoxError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt as _};
use tokio::time::Instant;
use twincast_core::ids::Version;
use twincast_core::ports::Store;
use twincast_core::rollout::Rollout;

use super::admitted::Admitted;
use super::auth::Read;
use super::problem::{Problem, ReadErrors, RolloutErrors};
use super::shared::Context;
use super::streams::until;
use crate::events::cloud_event;

/// The interval between two checks for new events.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The longest duration of a stream. Clients then open another stream, with the id of the last
/// event.
const MAX_STREAM_TIME: Duration = Duration::from_secs(3600);

/// The events of a rollout from the beginning, followed by new events: CloudEvents, as on the
/// exchange. The id of an event is the record's version; with `Last-Event-ID`, only later events
/// are sent.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/events", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("Last-Event-ID" = Option<String>, Header, description = "The id of the last known event")),
    responses(
        (status = 200, description = "Events, until the client disconnects, the token is no longer valid, or an hour has passed", body = String, content_type = "text/event-stream"),
        ReadErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn follow(
    State(shared): Context,
    by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, BoxError>>>, Problem> {
    let Path(name) = name?;
    let slot = shared.event_streams.take(by.caller.name())?;
    let rollout = shared.rollout(&name).await?;
    let last_sent = headers.get("last-event-id");
    let last_sent = last_sent.and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let last_sent = Version(last_sent.unwrap_or(0));
    let events = event_stream(Arc::clone(&shared.api.store), rollout, last_sent).map(Ok);
    let events = until(by.token_expired(&shared), events).map(move |event| {
        // Held until the stream ends or is dropped.
        let _ = &slot;
        event
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// Returns the events after `last_sent`.
fn event_stream(
    store: Arc<dyn Store>,
    rollout: Rollout,
    last_sent: Version,
) -> impl Stream<Item = Event> {
    let until = Instant::now() + MAX_STREAM_TIME;
    let rounds = stream::unfold((Some(rollout), last_sent), move |(known, last_sent)| {
        let store = Arc::clone(&store);
        async move {
            let rollout = known?;
            if Instant::now() >= until {
                return None;
            }
            let events: Vec<_> = new_events(&rollout, last_sent).collect();
            let last_sent = last_sent.max(rollout.version);
            let next = if events.is_empty() {
                tokio::time::sleep(CHECK_INTERVAL).await;
                newer(&*store, rollout).await
            } else {
                rollout
            };
            Some((stream::iter(events), (Some(next), last_sent)))
        }
    });
    rounds.flatten()
}

/// Returns the current record; returns `rollout` if the record has not changed or cannot be read.
async fn newer(store: &dyn Store, rollout: Rollout) -> Rollout {
    let name = &rollout.spec.name;
    match store.revision(name).await {
        Ok(Some(revision)) if revision != rollout.revision() => {}
        _ => return rollout,
    }
    match store.rollout(name).await {
        Ok(Some(newer)) => newer,
        _ => rollout,
    }
}

fn new_events(rollout: &Rollout, last_sent: Version) -> impl Iterator<Item = Event> {
    let entries = rollout
        .history
        .iter()
        .filter(move |entry| entry.version > last_sent);
    entries.map(|entry| {
        let event = cloud_event(rollout, entry);
        Event::default()
            .id(entry.version.to_string())
            .event(format!("rollout.{}", entry.phase))
            .data(event.to_string())
    })
}
