//! What the engine works with: hubs, dead letters, and who asks.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Context;
use super::auth::{Caller, Right};
use super::problem::{Looking, Problem};

/// The most dead letters that are shown.
const LETTERS: usize = 100;

/// The configured hubs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HubList {
    hubs: Vec<HubRow>,
}

/// A hub.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HubRow {
    name: String,
    /// What may be sent through it in a minute; null for a hub without limits.
    messages_per_minute: Option<f64>,
    /// What may be sent through it in a day; null for a hub without limits.
    messages_per_day: Option<u64>,
    /// Batches on its dispatch queue that no worker has taken; null when the broker does not say.
    dispatches_waiting: Option<u64>,
    /// Workers that take its batches; null when the broker does not say.
    workers: Option<u64>,
}

/// The hubs, with their quotas and queues.
#[utoipa::path(
    get, path = "/api/v1/hubs", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "All that are configured", body = HubList),
        Looking,
    )
)]
pub(crate) async fn hubs(State(shared): Context, caller: Caller) -> Result<Json<HubList>, Problem> {
    caller.may(Right::Look)?;
    let mut hubs = Vec::new();
    for (name, handle) in &shared.api.hubs {
        let depth = shared.api.queue.depth(name).await.ok();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        hubs.push(HubRow {
            name: name.to_string(),
            messages_per_minute: handle.limits.sends_per_minute,
            messages_per_day: handle.limits.messages_per_day,
            dispatches_waiting: depth.map(|depth| count(depth.waiting)),
            workers: depth.map(|depth| count(depth.consumers)),
        });
    }
    Ok(Json(HubList { hubs }))
}

/// Messages that could not be used.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LetterList {
    /// The oldest hundred.
    #[schema(value_type = Vec<Object>)]
    dead_letters: Vec<Value>,
}

/// Messages that could not be used, each with its reason.
#[utoipa::path(
    get, path = "/api/v1/dead-letters", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "The oldest of them", body = LetterList),
        Looking,
    )
)]
pub(crate) async fn dead_letters(
    State(shared): Context,
    caller: Caller,
) -> Result<Json<LetterList>, Problem> {
    caller.may(Right::Look)?;
    let dead_letters = shared.api.letters.list(LETTERS).await;
    let dead_letters = dead_letters.map_err(Problem::busy)?;
    Ok(Json(LetterList { dead_letters }))
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Who {
    /// The name that operations are recorded under.
    name: String,
    /// `viewer`, `operator`, `approver` or `admin`.
    role: String,
}

/// Whose token this is, and what it stands for.
#[utoipa::path(
    get, path = "/api/v1/whoami", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "You", body = Who),
        Looking,
    )
)]
pub(crate) async fn whoami(caller: Caller) -> Json<Who> {
    Json(Who {
        name: caller.name().to_owned(),
        role: caller.role().as_str().to_owned(),
    })
}
