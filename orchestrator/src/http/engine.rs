//! The state of the engine: hubs, dead letters, and the caller.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::admitted::Admitted;
use super::auth::Read;
use super::problem::{Problem, ReadErrors};
use super::shared::Context;
use crate::view::hubs::{HubList, HubView};

/// The most dead letters shown.
const MAX_DEAD_LETTERS: usize = 100;

/// The hubs, with their quotas, their limiters' current permits, and their queues.
#[utoipa::path(
    get, path = "/api/v1/hubs", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "All configured hubs", body = HubList),
        ReadErrors,
    )
)]
pub(crate) async fn hubs(
    State(shared): Context,
    _by: Admitted<Read>,
) -> Result<Json<HubList>, Problem> {
    let mut hubs = Vec::new();
    for (name, limits) in &shared.api.limits {
        let depth = match &shared.api.queue {
            Some(queue) => queue.depth(name).await.ok(),
            None => None,
        };
        let now = shared.api.executor.clock.now();
        let store = &*shared.api.store;
        hubs.push(HubView::read(store, name, *limits, depth, now).await?);
    }
    let stopped = shared.api.executor.halted().await?.map(Into::into);
    Ok(Json(HubList { hubs, stopped }))
}

/// Unusable messages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterList {
    /// The oldest hundred messages.
    #[schema(value_type = Vec<Object>)]
    dead_letters: Vec<Value>,
}

/// Unusable messages, each with the reason.
#[utoipa::path(
    get, path = "/api/v1/dead-letters", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "The oldest unusable messages", body = DeadLetterList),
        ReadErrors,
    )
)]
pub(crate) async fn dead_letters(
    State(shared): Context,
    _by: Admitted<Read>,
) -> Result<Json<DeadLetterList>, Problem> {
    let dead_letters = match &shared.api.dead_letters {
        Some(dead_letters) => dead_letters
            .list(MAX_DEAD_LETTERS)
            .await
            .map_err(Problem::busy)?,
        None => Vec::new(),
    };
    Ok(Json(DeadLetterList { dead_letters }))
}

/// The caller.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallerView {
    /// The name under which operations are recorded.
    name: String,
    /// `viewer`, `operator`, `approver` or `admin`.
    role: String,
}

/// The name and the role of the token's bearer.
#[utoipa::path(
    get, path = "/api/v1/whoami", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "The caller", body = CallerView),
        ReadErrors,
    )
)]
pub(crate) async fn whoami(by: Admitted<Read>) -> Json<CallerView> {
    Json(CallerView {
        name: by.caller.name().to_owned(),
        role: by.caller.role().as_str().to_owned(),
    })
}
