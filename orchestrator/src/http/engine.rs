//! What the engine works with: hubs, dead letters, and who asks.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::admitted::Admitted;
use super::auth::Look;
use super::problem::{Looking, Problem};
use super::shared::Context;
use crate::view::hubs::{HubList, HubView};

/// The most dead letters that are shown.
const LETTERS: usize = 100;

/// The hubs, with their quotas, what their limiters give now, and their queues.
#[utoipa::path(
    get, path = "/api/v1/hubs", tag = "engine", security(("token" = [])),
    responses(
        (status = 200, description = "All that are configured", body = HubList),
        Looking,
    )
)]
pub(crate) async fn hubs(
    State(shared): Context,
    _by: Admitted<Look>,
) -> Result<Json<HubList>, Problem> {
    let mut hubs = Vec::new();
    for (name, limits) in &shared.api.limits {
        let depth = match &shared.api.queue {
            Some(queue) => queue.depth(name).await.ok(),
            None => None,
        };
        let now = shared.api.intake.clock.now();
        let store = &*shared.api.store;
        hubs.push(HubView::read(store, name, *limits, depth, now).await?);
    }
    let stopped = shared.api.intake.halted().await?.map(Into::into);
    Ok(Json(HubList { hubs, stopped }))
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
    _by: Admitted<Look>,
) -> Result<Json<LetterList>, Problem> {
    let dead_letters = match &shared.api.letters {
        Some(letters) => letters.list(LETTERS).await.map_err(Problem::busy)?,
        None => Vec::new(),
    };
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
pub(crate) async fn whoami(by: Admitted<Look>) -> Json<Who> {
    Json(Who {
        name: by.caller.name().to_owned(),
        role: by.caller.role().as_str().to_owned(),
    })
}
