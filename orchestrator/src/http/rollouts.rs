//! The current state of rollouts.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::outcome::{ClassCounts, Counts};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use utoipa::{IntoParams, ToSchema};

use super::admitted::Admitted;
use super::auth::Read;
use super::operations::rollout;
use super::parameters::Parameters;
use super::problem::{ListErrors, Problem, ReadErrors, RolloutErrors};
use super::shared::{Context, Shared};
use crate::view;
use crate::view::outcomes::{self, Outcomes};
use crate::view::{RolloutRow, RolloutView, Stopped, no_such_rollout};

/// The most items on a page.
const PAGE: usize = 200;

/// A page of rollouts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutPage {
    /// The rollouts, by name.
    rollouts: Vec<RolloutRow>,
    /// The value of `after` for the next page, if there are more rollouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Names in this part of the list with rollouts of a newer release. Ask an orchestrator of that
    /// release about these rollouts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    of_newer_release: Vec<String>,
    /// Names in this part of the list with damaged records.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<String>,
    /// The stop of all rollouts, if in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<Stopped>,
}

/// The selection of a part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutListParams {
    /// Only rollouts after this name.
    after: Option<String>,
    /// The most rollouts on the page, 1 to 200. Default: 100.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Only rollouts in this phase.
    phase: Option<String>,
    /// Only ended rollouts, or only other rollouts.
    ended: Option<bool>,
}

impl RolloutListParams {
    fn has(&self, rollout: &Rollout) -> bool {
        let (phase, ended) = (rollout.phase.as_str(), rollout.phase.is_ended());
        self.phase.as_deref().is_none_or(|filter| filter == phase)
            && self.ended.is_none_or(|filter| filter == ended)
    }
}

/// The rollouts, by name.
#[utoipa::path(
    get, path = "/api/v1/rollouts", tag = "rollouts", security(("token" = [])), params(RolloutListParams),
    responses(
        (status = 200, description = "A page of rollouts", body = RolloutPage),
        ReadErrors,
        ListErrors,
    )
)]
pub(crate) async fn list(
    State(shared): Context,
    _by: Admitted<Read>,
    part: Result<Parameters<RolloutListParams>, Problem>,
) -> Result<Json<RolloutPage>, Problem> {
    let Parameters(part) = part?;
    let limit = limit(part.limit)?;
    let store = &shared.api.store;
    let names = match &shared.api.executor.registry {
        // The registry lists few rollouts, however many have ended.
        Some(registry) if part.ended == Some(false) => registry.active().await?,
        _ => store.rollouts().await?,
    };
    let after = part.after.as_deref().unwrap_or_default();
    let names = names.into_iter().filter(|name| name.as_str() > after);
    let now = shared.api.executor.clock.now();
    let mut rollouts = Vec::new();
    let (mut of_newer_release, mut damaged) = (Vec::new(), Vec::new());
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
            Err(StoreError::Newer { .. }) => of_newer_release.push(name.to_string()),
            // A damaged record must not hide the other rollouts.
            Err(StoreError::Corrupt { .. }) => damaged.push(name.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(RolloutPage {
        rollouts,
        next,
        of_newer_release,
        damaged,
        stopped: shared.api.executor.halted().await?.map(Into::into),
    }))
}

/// Returns the row of a rollout, if the rollout exists and belongs to the part.
async fn row(
    store: &dyn Store,
    name: &RolloutName,
    part: &RolloutListParams,
    now: Timestamp,
) -> Result<Option<RolloutRow>, StoreError> {
    let rollout = store.rollout(name).await?;
    let Some(rollout) = rollout.filter(|it| part.has(it)) else {
        return Ok(None);
    };
    let tallies = store.tallies(name).await?;
    Ok(Some(RolloutRow::of(&rollout, &tallies, now)))
}

/// One rollout: spec, plan, stages, outcomes, current wait, and history.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name")),
    responses(
        (status = 200, description = "The rollout", body = RolloutView),
        ReadErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn one(
    State(shared): Context,
    _by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<RolloutView>, Problem> {
    let Path(name) = name?;
    let rollout = shared.rollout(&name).await?;
    let tallies = shared.api.store.tallies(&rollout.spec.name).await?;
    let now = shared.api.executor.clock.now();
    Ok(Json(RolloutView::of(&rollout, &tallies, now)))
}

/// The outcomes of the rollout's devices: by tag group, failures with reasons, and batches held
/// back by budgets. Reads all batches.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/outcomes", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name")),
    responses(
        (status = 200, description = "The outcomes", body = Outcomes),
        ReadErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn outcomes(
    State(shared): Context,
    by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Outcomes>, Problem> {
    let Path(name) = name?;
    let rollout = shared.rollout(&name).await?;
    let _slot = shared.batch_searches.take(by.caller.name())?;
    Ok(Json(outcomes::read(&*shared.api.store, &rollout).await?))
}

impl Shared {
    /// Returns the rollout of a given name.
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

pub(super) fn limit(requested: Option<u32>) -> Result<usize, Problem> {
    let limit = requested.map_or(100, |limit| limit as usize);
    if (1..=PAGE).contains(&limit) {
        return Ok(limit);
    }
    let detail = format!("limit must be 1 to {PAGE}; found {limit}");
    Err(Problem::new(axum::http::StatusCode::BAD_REQUEST, detail))
}

/// A page of batches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchPage {
    batches: Vec<BatchRow>,
    /// The value of `after` for the next page, if there may be more batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchRow {
    batch: u32,
    /// The name of the batch's stage.
    stage: String,
    hub: String,
    /// The tags shared by the batch's devices, as text. For a batch shared by small groups: the
    /// first group, and the number of further groups.
    group: String,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    by_class: ClassCounts,
    /// The end of the lease held by a worker, unless renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<String>,
    /// Whether the batch is left alone after too many failed leases.
    quarantined: bool,
}

/// A rollout's batches, by number.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/batches", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("after" = Option<u32>, Query, description = "Only batches after this batch"), ("limit" = Option<u32>, Query, description = "The most batches on the page, 1 to 200. Default: 100", minimum = 1, maximum = 200)),
    responses(
        (status = 200, description = "A page of batches", body = BatchPage),
        ReadErrors,
        ListErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn batches(
    State(shared): Context,
    _by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
    part: Result<Parameters<BatchListParams>, Problem>,
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
        group: batch.header.describe_groups(),
        counts: batch.counts,
        by_class: ClassCounts::of(&batch.counts, rollout.spec.message.wants_feedback()),
        held_until: batch.held.map(|held| held.until.to_string()),
        quarantined: batch.quarantined,
    });
    let batches = batches.collect();
    Ok(Json(BatchPage { batches, next }))
}

/// The selection of a part of the batches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchListParams {
    after: Option<u32>,
    limit: Option<u32>,
}
