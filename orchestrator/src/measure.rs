//! Counts the devices of a stage that have applied the rollout's change.
//!
//! The count shows the current state of the twins: a device that reverted the change no longer
//! counts. Therefore the count is not an outcome; outcomes only rise.

use std::collections::BTreeSet;

use twincast_core::error::describe;
use twincast_core::gate::AppliedCount;
use twincast_core::ids::{BatchId, DeviceId, HubName};
use twincast_core::outcome::{Outcome, Tally};
use twincast_core::ports::{BatchWork, Hub, Store, StoreError};
use twincast_core::query;
use twincast_core::rollout::{Event, Rollout};
use twincast_core::time::Timestamp;

use crate::Hubs;
use crate::planner::{PlanError, is_permanent, queries_of, unknown_hub};

/// The number of batches read per page.
const PAGE: usize = 64;
/// The number of devices per query.
const IDS_PER_QUERY: usize = 100;

/// The result of querying the hubs.
#[derive(Debug)]
pub(crate) enum MeasureResult {
    /// The hubs have answered.
    Measured(AppliedCount),
    /// The hubs cannot be queried at present, for this reason.
    Failed(String),
    /// The hubs can never be queried, and the rollout must be paused: the devices have not failed.
    Undecided(Event),
}

/// Why a count failed.
pub(crate) enum MeasureError {
    Store(StoreError),
    Hub(PlanError),
}

/// Returns the event of a rollout whose hubs do not understand the query for `what`.
pub(crate) fn undecided_event(rollout: &Rollout, what: &str, error: &PlanError) -> Event {
    let reason = format!("cannot query {what}: {}", describe(error));
    let open = rollout.stage_progress().filter(|it| it.passed_at.is_none());
    match open.map(|stage| stage.name.clone()) {
        Some(stage) => Event::GateUndecided { stage, reason },
        None => Event::AnswersUnavailable { reason },
    }
}

/// Queries the hubs for the number of devices of the current stage that fulfil the gate's
/// `applied_when`. If a hub does not understand the condition, nothing can be measured.
///
/// Cancel safety: may be dropped at any time.
pub(crate) async fn measure(
    rollout: &Rollout,
    store: &dyn Store,
    hubs: &Hubs,
    at: Timestamp,
) -> Result<MeasureResult, StoreError> {
    match count_applied(rollout, store, hubs, at).await {
        Ok(measured) => Ok(MeasureResult::Measured(measured)),
        Err(MeasureError::Hub(error)) if is_permanent(&error) => Ok(MeasureResult::Undecided(
            undecided_event(rollout, "applied_when", &error),
        )),
        Err(MeasureError::Hub(error)) => Ok(MeasureResult::Failed(describe(&error))),
        Err(MeasureError::Store(error)) => Err(error),
    }
}

/// Counts the devices of the current stage that have the message and fulfil the gate's
/// `applied_when`. Costs two queries per hub where a condition selects exactly the devices with the
/// message, else one query per hundred devices.
async fn count_applied(
    rollout: &Rollout,
    store: &dyn Store,
    hubs: &Hubs,
    at: Timestamp,
) -> Result<AppliedCount, MeasureError> {
    let lag = hubs.values().map(|hub| hub.limits.query_lag).max();
    let mut measured = AppliedCount {
        applied: 0,
        failed: 0,
        as_of: at.minus(lag.unwrap_or_default()),
        queried_at: at,
    };
    let (stage, name) = (rollout.stage(), &rollout.spec.name);
    let gate = rollout.spec.gate_of(stage);
    let Some(condition) = gate.and_then(|gate| gate.applied_when.as_deref()) else {
        return Ok(measured);
    };
    let tallies = store.tallies(name).await.map_err(MeasureError::Store)?;
    let devices = rollout.spec.condition_of(stage);
    let mut by_id = BTreeSet::new();
    for tally in tallies.iter().filter(|tally| tally.stage == stage) {
        let counted = match &devices {
            Some(devices) => count_at_once(tally, devices, condition, hubs).await,
            None => Ok(None),
        };
        match counted.map_err(MeasureError::Hub)? {
            Some(applied) => measured.applied += applied,
            None => _ = by_id.insert(&tally.hub),
        }
        measured.failed += tally.counts.failed();
    }
    let mut after: Option<BatchId> = None;
    while !by_id.is_empty() {
        let page = store.batches(name, after, PAGE);
        let page = page.await.map_err(MeasureError::Store)?;
        let Some(last) = page.last() else { break };
        after = Some(last.header.id);
        for batch in page.iter().map(|batch| &batch.header) {
            if batch.stage != stage || !by_id.contains(&batch.hub) {
                continue;
            }
            let work = store.load(name, batch.id);
            let work = work.await.map_err(MeasureError::Store)?;
            measured.applied += count_applied_in(&work, condition, hubs)
                .await
                .map_err(MeasureError::Hub)?;
        }
    }
    Ok(measured)
}

/// Counts the devices of a stage on one hub that fulfil `condition`. Returns `None` if `devices`
/// does not select exactly the devices with the message: some devices of the stage lack the
/// message, or the number of devices with these tags has changed.
async fn count_at_once(
    tally: &Tally,
    devices: &str,
    condition: &str,
    hubs: &Hubs,
) -> Result<Option<u64>, PlanError> {
    let all = tally.counts.total();
    let sent = |outcome: Outcome| outcome.was_enqueued() && !outcome.is_failure();
    if tally.counts.sum_of(sent) != all {
        return Ok(None);
    }
    let hub = hub_of(&tally.hub, hubs)?;
    if count(&tally.hub, hub, devices).await? != all {
        return Ok(None);
    }
    let condition = query::all_of([devices, condition]);
    Ok(Some(count(&tally.hub, hub, &condition).await?))
}

pub(crate) fn hub_of<'a>(name: &HubName, hubs: &'a Hubs) -> Result<&'a dyn Hub, PlanError> {
    let hub = hubs.get(name).ok_or_else(|| unknown_hub(name, hubs))?;
    Ok(&*hub.hub)
}

async fn count(name: &HubName, hub: &dyn Hub, condition: &str) -> Result<u64, PlanError> {
    let counted = hub.count(condition).await;
    counted.map_err(|source| PlanError::Hub {
        hub: name.clone(),
        source,
    })
}

async fn count_applied_in(
    work: &BatchWork,
    condition: &str,
    hubs: &Hubs,
) -> Result<u64, PlanError> {
    let name = &work.header().hub;
    let hub = hub_of(name, hubs)?;
    let sent = work.outcomes.iter().zip(work.batch.devices.iter());
    let ids: Vec<DeviceId> = sent
        .filter(|(outcome, _)| outcome.was_enqueued() && !outcome.is_failure())
        .map(|(_, id)| DeviceId::new(id).expect("a manifest holds ids"))
        .collect();
    let mut applied = 0;
    for ids in ids.chunks(IDS_PER_QUERY) {
        for part in queries_of(ids) {
            let condition = query::all_of([part.as_str(), condition]);
            applied += count(name, hub, &condition).await?;
        }
    }
    Ok(applied)
}
