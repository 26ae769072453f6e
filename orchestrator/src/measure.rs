//! Counts the devices of a stage that have applied what the rollout was to bring about.
//!
//! What is counted is what the twins say now: a device that went back is not counted any more. So
//! it is no outcome, which would only ever rise.

use twincast_core::error::in_words;
use twincast_core::gate::Measured;
use twincast_core::ids::{BatchId, DeviceId};
use twincast_core::ports::{BatchWork, Store, StoreError};
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
enum NotMeasured {
    Store(StoreError),
    Hub(PlanError),
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
        Err(NotMeasured::Hub(error)) if is_final(&error) => {
            let reason = format!("applied_when cannot be asked: {}", in_words(&error));
            let stage = rollout.stage_progress().map(|stage| stage.name.clone());
            Ok(Measuring::Undecided(match stage {
                Some(stage) => Event::GateUndecided { stage, reason },
                None => Event::NotHeard { reason },
            }))
        }
        Err(NotMeasured::Hub(error)) => Ok(Measuring::Failed(in_words(&error))),
        Err(NotMeasured::Store(error)) => Err(error),
    }
}

/// How many devices of the current stage fulfil its gate's `applied_when`, of those that have the message. Asks the hubs once
/// for every hundred devices.
async fn applied(
    rollout: &Rollout,
    store: &dyn Store,
    hubs: &Hubs,
    at: Timestamp,
) -> Result<Measured, NotMeasured> {
    let mut measured = Measured {
        applied: 0,
        failed: 0,
        at,
    };
    let gate = rollout.spec.gate_of(rollout.stage());
    let Some(condition) = gate.and_then(|gate| gate.applied_when.as_deref()) else {
        return Ok(measured);
    };
    let mut after: Option<BatchId> = None;
    loop {
        let page = store.batches(&rollout.spec.name, after, PAGE);
        let page = page.await.map_err(NotMeasured::Store)?;
        let Some(last) = page.last() else {
            return Ok(measured);
        };
        after = Some(last.header.id);
        for batch in page
            .iter()
            .filter(|batch| batch.header.stage == rollout.stage())
        {
            let work = store.load(&rollout.spec.name, batch.header.id);
            let work = work.await.map_err(NotMeasured::Store)?;
            measured.failed += work.outcomes.counts().failed();
            measured.applied += applied_in(&work, condition, hubs)
                .await
                .map_err(NotMeasured::Hub)?;
        }
    }
}

async fn applied_in(work: &BatchWork, condition: &str, hubs: &Hubs) -> Result<u64, PlanError> {
    let name = &work.header().hub;
    let hub = hubs.get(name).ok_or_else(|| unknown_hub(name, hubs))?;
    let sent = work.outcomes.iter().zip(work.batch.devices.iter());
    let ids: Vec<DeviceId> = sent
        .filter(|(outcome, _)| outcome.was_enqueued() && !outcome.is_failure())
        .map(|(_, id)| DeviceId::new(id).expect("a manifest holds ids"))
        .collect();
    let mut applied = 0;
    for ids in ids.chunks(IDS) {
        for part in queries_of(ids) {
            let wanted = query::all_of([part.as_str(), condition]);
            let counted = hub.hub.count(&wanted).await;
            applied += counted.map_err(|source| PlanError::Hub {
                hub: name.clone(),
                source,
            })?;
        }
    }
    Ok(applied)
}
