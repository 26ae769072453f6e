//! What happens to a rollout, as server-sent events.

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
use super::auth::Look;
use super::problem::{Looking, OfARollout, Problem};
use super::shared::Context;
use super::streams::until;
use crate::events::cloud_event;

/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(500);
/// A stream ends after so long; clients open another one, with the id of the last event.
const LONGEST: Duration = Duration::from_secs(3600);

/// The events of a rollout from its beginning, then as they happen: CloudEvents, as on the exchange. The id of each is
/// the record's version; with `Last-Event-ID` only later ones are told.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/events", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that is known")),
    responses(
        (status = 200, description = "Events, until the client goes or its token is good no longer, or for an hour", body = String, content_type = "text/event-stream"),
        Looking,
        OfARollout,
    )
)]
pub(crate) async fn follow(
    State(shared): Context,
    by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, BoxError>>>, Problem> {
    let Path(name) = name?;
    let place = shared.followers.take(by.caller.name())?;
    let rollout = shared.rollout(&name).await?;
    let told = headers.get("last-event-id");
    let told = told.and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let told = Version(told.unwrap_or(0));
    let events = happenings(Arc::clone(&shared.api.store), rollout, told).map(Ok);
    let events = until(by.is_over(&shared), events).map(move |event| {
        // Held until the stream is over, or nobody reads it any more.
        let _ = &place;
        event
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// The events after `told`.
fn happenings(store: Arc<dyn Store>, rollout: Rollout, told: Version) -> impl Stream<Item = Event> {
    let until = Instant::now() + LONGEST;
    let rounds = stream::unfold((Some(rollout), told), move |(known, told)| {
        let store = Arc::clone(&store);
        async move {
            let rollout = known?;
            if Instant::now() >= until {
                return None;
            }
            let events: Vec<_> = new_events(&rollout, told).collect();
            let told = told.max(rollout.version);
            let next = if events.is_empty() {
                tokio::time::sleep(LOOK).await;
                newer(&*store, rollout).await
            } else {
                rollout
            };
            Some((stream::iter(events), (Some(next), told)))
        }
    });
    rounds.flatten()
}

/// The record as it is now; as it was, when it is the same or cannot be had.
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

fn new_events(rollout: &Rollout, told: Version) -> impl Iterator<Item = Event> {
    let entries = rollout
        .history
        .iter()
        .filter(move |entry| entry.version > told);
    entries.map(|entry| {
        let event = cloud_event(rollout, entry);
        Event::default()
            .id(entry.version.to_string())
            .event(format!("rollout.{}", entry.phase))
            .data(event.to_string())
    })
}
