//! Counts the devices of a stage that have applied what the rollout was to bring about.
//!
//! What is counted is what the twins say now: a device that went back is not counted any more. So
//! it is no outcome, which would only ever rise.

use std::collections::BTreeSet;

use twincast_core::error::in_words;
use twincast_core::gate::Measured;
use twincast_core::ids::{BatchId, DeviceId, HubName};
use twincast_core::outcome::{Outcome, Tally};
use twincast_core::ports::{BatchWork, Hub, Store, StoreError};
use twincast_core::query;
use twincast_core::rollout::{Event, Rollout};
use twincast_core::time::Timestamp;

use crate::Hubs;
use crate::planner::{PlanError, is_final, queries_of, unknown_hub};

/// Batches that are read at a time.
const PAGE: usize = 64;
/// Devices that one query asks for.
const IDS: usize = 100;

/// The result of asking the hubs.
#[derive(Debug)]
pub(crate) enum Measuring {
    /// The hubs have answered.
    Measured(Measured),
    /// The hubs cannot be asked at present, for this reason.
    Failed(String),
    /// The hubs can never be asked, and the rollout is to be paused: the devices have not failed.
    Undecided(Event),
}

/// Why it is not known.
pub(crate) enum NotMeasured {
    Store(StoreError),
    Hub(PlanError),
}

/// What happens to a rollout whose hubs do not understand the question for `what`.
pub(crate) fn undecided(rollout: &Rollout, what: &str, error: &PlanError) -> Event {
    let reason = format!("{what} cannot be asked for: {}", in_words(error));
    let open = rollout.stage_progress().filter(|it| it.passed_at.is_none());
    match open.map(|stage| stage.name.clone()) {
        Some(stage) => Event::GateUndecided { stage, reason },
        None => Event::NotHeard { reason },
    }
}

/// Asks the hubs how many devices of the current stage fulfil the gate's `applied_when`. If a hub does not understand the
/// condition, nothing can be measured.
///
/// Cancel safety: may be dropped at any time.
pub(crate) async fn measure(
    rollout: &Rollout,
    store: &dyn Store,
    hubs: &Hubs,
    at: Timestamp,
) -> Result<Measuring, StoreError> {
    match applied(rollout, store, hubs, at).await {
        Ok(measured) => Ok(Measuring::Measured(measured)),
        Err(NotMeasured::Hub(error)) if is_final(&error) => Ok(Measuring::Undecided(undecided(
            rollout,
            "applied_when",
            &error,
        ))),
        Err(NotMeasured::Hub(error)) => Ok(Measuring::Failed(in_words(&error))),
        Err(NotMeasured::Store(error)) => Err(error),
    }
}

/// How many devices of the current stage fulfil its gate's `applied_when`, of those that have the message: two queries a hub
/// where a condition says exactly which devices these are, else one for every hundred devices.
async fn applied(
    rollout: &Rollout,
    store: &dyn Store,
    hubs: &Hubs,
    at: Timestamp,
) -> Result<Measured, NotMeasured> {
    let lag = hubs.values().map(|hub| hub.limits.query_lag).max();
    let mut measured = Measured {
        applied: 0,
        failed: 0,
        as_of: at.minus(lag.unwrap_or_default()),
        asked_at: at,
    };
    let (stage, name) = (rollout.stage(), &rollout.spec.name);
    let gate = rollout.spec.gate_of(stage);
    let Some(condition) = gate.and_then(|gate| gate.applied_when.as_deref()) else {
        return Ok(measured);
    };
    let tallies = store.tallies(name).await.map_err(NotMeasured::Store)?;
    let devices = rollout.spec.condition_of(stage);
    let mut by_id = BTreeSet::new();
    for tally in tallies.iter().filter(|tally| tally.stage == stage) {
        let counted = match &devices {
            Some(devices) => at_once(tally, devices, condition, hubs).await,
            None => Ok(None),
        };
        match counted.map_err(NotMeasured::Hub)? {
            Some(applied) => measured.applied += applied,
            None => _ = by_id.insert(&tally.hub),
        }
        measured.failed += tally.counts.failed();
    }
    let mut after: Option<BatchId> = None;
    while !by_id.is_empty() {
        let page = store.batches(name, after, PAGE);
        let page = page.await.map_err(NotMeasured::Store)?;
        let Some(last) = page.last() else { break };
        after = Some(last.header.id);
        for batch in page.iter().map(|batch| &batch.header) {
            if batch.stage != stage || !by_id.contains(&batch.hub) {
                continue;
            }
            let work = store.load(name, batch.id);
            let work = work.await.map_err(NotMeasured::Store)?;
            measured.applied += applied_in(&work, condition, hubs)
                .await
                .map_err(NotMeasured::Hub)?;
        }
    }
    Ok(measured)
}

/// How many devices of a stage on one hub fulfil `condition`. `None`: `devices` does not say exactly which devices have the message, for
/// some of the stage do not, or another number of devices has these tags by now.
async fn at_once(
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
    let wanted = query::all_of([devices, condition]);
    Ok(Some(count(&tally.hub, hub, &wanted).await?))
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

async fn applied_in(work: &BatchWork, condition: &str, hubs: &Hubs) -> Result<u64, PlanError> {
    let name = &work.header().hub;
    let hub = hub_of(name, hubs)?;
    let sent = work.outcomes.iter().zip(work.batch.devices.iter());
    let ids: Vec<DeviceId> = sent
        .filter(|(outcome, _)| outcome.was_enqueued() && !outcome.is_failure())
        .map(|(_, id)| DeviceId::new(id).expect("a manifest holds ids"))
        .collect();
    let mut applied = 0;
    for ids in ids.chunks(IDS) {
        for part in queries_of(ids) {
            let wanted = query::all_of([part.as_str(), condition]);
            applied += count(name, hub, &wanted).await?;
        }
    }
    Ok(applied)
}
