//! Rollouts, as they are now.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::outcome::{Counts, Ends};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use utoipa::{IntoParams, ToSchema};

use super::admitted::Admitted;
use super::auth::Look;
use super::operations::rollout;
use super::parameters::Parameters;
use super::problem::{Looking, OfAPart, OfARollout, Problem};
use super::shared::{Context, Shared};
use crate::view;
use crate::view::outcomes::{self, Outcomes};
use crate::view::{RolloutRow, RolloutView, Stopped, no_such_rollout};

/// The most that a page holds.
const PAGE: usize = 200;

/// A page of rollouts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutPage {
    /// By name.
    rollouts: Vec<RolloutRow>,
    /// Ask for what comes `after` this, if there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Names of this part of the list whose rollouts are of a newer release: ask an orchestrator of that release.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    newer: Vec<String>,
    /// Names of this part of the list whose records are damaged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<String>,
    /// That all rollouts are stopped, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<Stopped>,
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// What comes after this.
    after: Option<String>,
    /// So many at the most, 1 to 200. Default: 100.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Only rollouts in this phase.
    phase: Option<String>,
    /// Only rollouts that have ended, or only those that have not.
    ended: Option<bool>,
}

impl Part {
    fn has(&self, rollout: &Rollout) -> bool {
        let (phase, ended) = (rollout.phase.as_str(), rollout.phase.is_ended());
        self.phase.as_deref().is_none_or(|wanted| wanted == phase)
            && self.ended.is_none_or(|wanted| wanted == ended)
    }
}

/// The rollouts, by name.
#[utoipa::path(
    get, path = "/api/v1/rollouts", tag = "rollouts", security(("token" = [])), params(Part),
    responses(
        (status = 200, description = "A page of them", body = RolloutPage),
        Looking,
        OfAPart,
    )
)]
pub(crate) async fn list(
    State(shared): Context,
    _by: Admitted<Look>,
    part: Result<Parameters<Part>, Problem>,
) -> Result<Json<RolloutPage>, Problem> {
    let Parameters(part) = part?;
    let limit = limit(part.limit)?;
    let store = &shared.api.store;
    let names = match &shared.api.intake.roster {
        // Few, however many have ended.
        Some(roster) if part.ended == Some(false) => roster.active().await?,
        _ => store.rollouts().await?,
    };
    let after = part.after.as_deref().unwrap_or_default();
    let names = names.into_iter().filter(|name| name.as_str() > after);
    let now = shared.api.intake.clock.now();
    let mut rollouts = Vec::new();
    let (mut newer, mut damaged) = (Vec::new(), Vec::new());
    let mut next = None;
    for name in names {
        if rollouts.len() == limit {
            next = rollouts
                .last()
                .map(|row: &RolloutRow| row.state.name.to_string());
            break;
        }
        match row(&**store, &name, &part, now).await {
            Ok(row) => rollouts.extend(row),
            Err(StoreError::Newer { .. }) => newer.push(name.to_string()),
            // It must not keep the others from being seen.
            Err(StoreError::Corrupt { .. }) => damaged.push(name.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(RolloutPage {
        rollouts,
        next,
        newer,
        damaged,
        stopped: shared.api.intake.halted().await?.map(Into::into),
    }))
}

/// A rollout's row, if it is there and in the part that is wanted.
async fn row(
    store: &dyn Store,
    name: &RolloutName,
    part: &Part,
    now: Timestamp,
) -> Result<Option<RolloutRow>, StoreError> {
    let rollout = store.rollout(name).await?;
    let Some(rollout) = rollout.filter(|it| part.has(it)) else {
        return Ok(None);
    };
    let tallies = store.tallies(name).await?;
    Ok(Some(RolloutRow::of(&rollout, &tallies, now)))
}

/// One rollout: its spec, plan, stages, outcomes, what it waits for, and its history.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name")),
    responses(
        (status = 200, description = "It", body = RolloutView),
        Looking,
        OfARollout,
    )
)]
pub(crate) async fn one(
    State(shared): Context,
    _by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<RolloutView>, Problem> {
    let Path(name) = name?;
    let rollout = shared.rollout(&name).await?;
    let tallies = shared.api.store.tallies(&rollout.spec.name).await?;
    let now = shared.api.intake.clock.now();
    Ok(Json(RolloutView::of(&rollout, &tallies, now)))
}

/// What became of its devices: by tag group, why some failed, and what budgets hold back. It looks through all batches.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/outcomes", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name")),
    responses(
        (status = 200, description = "That", body = Outcomes),
        Looking,
        OfARollout,
    )
)]
pub(crate) async fn outcomes(
    State(shared): Context,
    by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Outcomes>, Problem> {
    let Path(name) = name?;
    let rollout = shared.rollout(&name).await?;
    let _place = shared.searches.take(by.caller.name())?;
    Ok(Json(outcomes::read(&*shared.api.store, &rollout).await?))
}

impl Shared {
    /// A rollout by the name that somebody gave.
    pub(super) async fn rollout(&self, name: &str) -> Result<Rollout, Problem> {
        let name = rollout(name)?;
        match self.api.store.rollout(&name).await? {
            Some(rollout) => Ok(rollout),
            None => {
                let detail = no_such_rollout(&*self.api.store, &name).await?;
                Err(Problem::new(axum::http::StatusCode::NOT_FOUND, detail))
            }
        }
    }
}

pub(super) fn limit(wanted: Option<u32>) -> Result<usize, Problem> {
    let wanted = wanted.map_or(100, |wanted| wanted as usize);
    if (1..=PAGE).contains(&wanted) {
        return Ok(wanted);
    }
    let detail = format!("limit must be from 1 to {PAGE}, and is {wanted}");
    Err(Problem::new(axum::http::StatusCode::BAD_REQUEST, detail))
}

/// A page of batches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchPage {
    batches: Vec<BatchRow>,
    /// Ask for what comes `after` this, if there may be more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchRow {
    batch: u32,
    /// Its stage's name.
    stage: String,
    hub: String,
    /// The tags that its devices share, in words; of a batch that small groups share, the first group and how many more.
    group: String,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    ends: Ends,
    /// Until when a worker holds it, unless that is renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<String>,
    /// It has brought down its workers, and is left alone.
    quarantined: bool,
}

/// A rollout's batches, by number.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/batches", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("after" = Option<u32>, Query, description = "What comes after this batch"), ("limit" = Option<u32>, Query, description = "So many at the most, 1 to 200. Default: 100", minimum = 1, maximum = 200)),
    responses(
        (status = 200, description = "A page of them", body = BatchPage),
        Looking,
        OfAPart,
        OfARollout,
    )
)]
pub(crate) async fn batches(
    State(shared): Context,
    _by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
    part: Result<Parameters<BatchPart>, Problem>,
) -> Result<Json<BatchPage>, Problem> {
    let Path(name) = name?;
    let Parameters(part) = part?;
    let limit = limit(part.limit)?;
    let rollout = shared.rollout(&name).await?;
    let after = part.after.map(BatchId);
    let page = view::batches(&*shared.api.store, &rollout, after, limit).await?;
    let next = page.last().filter(|_| page.len() == limit);
    let next = next.map(|batch| batch.header.id.0.to_string());
    let batches = page.into_iter().map(|batch| BatchRow {
        batch: batch.header.id.0,
        stage: view::stage_name(&rollout, batch.header.stage),
        hub: batch.header.hub.to_string(),
        group: batch.header.groups_in_words(),
        counts: batch.counts,
        ends: Ends::of(&batch.counts, rollout.spec.message.answers()),
        held_until: batch.held.map(|held| held.until.to_string()),
        quarantined: batch.quarantined,
    });
    let batches = batches.collect();
    Ok(Json(BatchPage { batches, next }))
}

/// Which part of the batches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchPart {
    after: Option<u32>,
    limit: Option<u32>,
}
