//! Rollouts, as they are now.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::outcome::Counts;
use twincast_core::ports::Tally;
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Right};
use super::operations::rollout;
use super::problem::{Looking, OfAPart, OfARollout, Problem};
use super::{Context, Shared};
use crate::command::State as Standing;

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
}

/// A rollout in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutRow {
    #[serde(flatten)]
    state: Standing,
    /// When it was accepted, RFC 3339.
    created_at: String,
    /// When its phase last changed.
    changed_at: String,
    /// What it waits for, if that is not that devices be sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
}

/// A rollout in full.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutDetail {
    #[serde(flatten)]
    row: RolloutRow,
    /// What was asked for.
    spec: Value,
    /// What the plan came to, once it is whole.
    plan: Option<Value>,
    /// Devices by outcome.
    counts: BTreeMap<String, u64>,
    /// Devices by hub and outcome.
    hubs: BTreeMap<String, BTreeMap<String, u64>>,
    /// Its stages in order, once the plan is whole.
    stages: Vec<StageDetail>,
    /// What it has spent its time on, in seconds; they add up to its whole time.
    time: BTreeMap<String, u64>,
    /// What happened to it, and who wanted it, oldest first; the newest 200.
    history: Vec<Value>,
}

/// A stage.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StageDetail {
    /// How far it is: `name`, `started_at`, `sent_at`, `ripe_at`, `approved`, `promoted`, `ignored`, `passed_at`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    progress: Value,
    /// What its gate asks, in a few words.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<String>,
    /// Where it stands, in words: over, under way, to come, or what it waits for.
    state: String,
    /// It is the one whose devices are sent to.
    current: bool,
    /// Devices by outcome.
    counts: BTreeMap<String, u64>,
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
    caller: Caller,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Json<RolloutPage>, Problem> {
    caller.may(Right::Look)?;
    let Query(part) = part?;
    let limit = limit(part.limit)?;
    let store = &shared.api.store;
    let mut names = store.rollouts().await?.into_iter();
    let after = part.after.unwrap_or_default();
    let names = names.by_ref().filter(|name| name.as_str() > after.as_str());
    let now = shared.api.intake.clock.now();
    let mut rollouts = Vec::new();
    let mut next = None;
    for name in names {
        if rollouts.len() == limit {
            next = rollouts
                .last()
                .map(|row: &RolloutRow| row.state.name.to_string());
            break;
        }
        let Some(rollout) = store.rollout(&name).await? else {
            continue;
        };
        let wanted = part.phase.as_deref();
        if wanted.is_none_or(|phase| phase == rollout.phase.as_str()) {
            let tallies = store.tallies(&name).await?;
            rollouts.push(RolloutRow::of(&rollout, &tallies, now));
        }
    }
    Ok(Json(RolloutPage { rollouts, next }))
}

/// One rollout: its spec, plan, stages, outcomes, what it waits for, and its history.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}", tag = "rollouts", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name")),
    responses(
        (status = 200, description = "It", body = RolloutDetail),
        Looking,
        OfARollout,
    )
)]
pub(crate) async fn one(
    State(shared): Context,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<RolloutDetail>, Problem> {
    caller.may(Right::Look)?;
    let Path(name) = name?;
    let rollout = shared.rollout(&name).await?;
    let tallies = shared.api.store.tallies(&rollout.spec.name).await?;
    let now = shared.api.intake.clock.now();
    Ok(Json(RolloutDetail::of(&rollout, &tallies, now)))
}

impl Shared {
    /// A rollout by the name that somebody gave.
    pub(super) async fn rollout(&self, name: &str) -> Result<Rollout, Problem> {
        let found = self.api.store.rollout(&rollout(name)?).await?;
        found.ok_or_else(|| Problem::not_found(&format!("rollout {name}")))
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

impl RolloutRow {
    fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        Self {
            state: Standing::of(rollout, &Tally::sum(tallies)),
            created_at: rollout.created_at.to_string(),
            changed_at: rollout.changed_at.to_string(),
            waits_for: crate::standing::waits_for(rollout, tallies, now),
        }
    }
}

impl RolloutDetail {
    fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        let counts = Tally::sum(tallies);
        let time = rollout.time_spent(now).seconds();
        let mut hubs: BTreeMap<String, Counts> = BTreeMap::new();
        for tally in tallies {
            hubs.entry(tally.hub.to_string())
                .or_default()
                .add(&tally.counts);
        }
        let stages = (0u16..).zip(&rollout.stages);
        let stages = stages.map(|(index, progress)| {
            let of_stage = tallies.iter().filter(|tally| tally.stage.0 == index);
            let gate = rollout.spec.gate_of(twincast_core::ids::StageIndex(index));
            StageDetail {
                progress: plain(progress),
                gate: gate.map(twincast_core::gate::in_words),
                state: crate::standing::of_stage(rollout, index, progress, tallies, now),
                current: rollout.stage().0 == index && !rollout.phase.is_ended(),
                counts: by_outcome(&Tally::sum(of_stage)),
            }
        });
        Self {
            row: RolloutRow::of(rollout, tallies, now),
            spec: plain(&rollout.spec),
            plan: rollout.plan.as_ref().map(plain),
            counts: by_outcome(&counts),
            hubs: hubs
                .iter()
                .map(|(hub, counts)| (hub.clone(), by_outcome(counts)))
                .collect(),
            stages: stages.collect(),
            time: time
                .map(|(on, seconds)| (on.as_str().to_owned(), seconds))
                .into(),
            history: rollout.history.iter().map(plain).collect(),
        }
    }
}

pub(super) fn by_outcome(counts: &Counts) -> BTreeMap<String, u64> {
    counts
        .iter()
        .map(|(outcome, n)| (outcome.as_str().to_owned(), n))
        .collect()
}

pub(super) fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("records are plain data")
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
    /// From 0.
    stage: u16,
    hub: String,
    /// The tags that all its devices share, in words.
    group: String,
    /// Devices by outcome.
    counts: BTreeMap<String, u64>,
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
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    part: Result<Query<BatchPart>, QueryRejection>,
) -> Result<Json<BatchPage>, Problem> {
    caller.may(Right::Look)?;
    let Path(name) = name?;
    let Query(part) = part?;
    let limit = limit(part.limit)?;
    let name: RolloutName = shared.rollout(&name).await?.spec.name;
    let page = shared
        .api
        .store
        .batches(&name, part.after.map(BatchId), limit)
        .await?;
    let next = page.last().filter(|_| page.len() == limit);
    let next = next.map(|batch| batch.header.id.0.to_string());
    let batches = page.into_iter().map(|batch| BatchRow {
        batch: batch.header.id.0,
        stage: batch.header.stage.0,
        hub: batch.header.hub.to_string(),
        group: batch.header.group.to_string(),
        counts: by_outcome(&batch.counts),
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
