//! Prepares new attempts for devices without the message.
//!
//! A request for a retry is a single change of the rollout's record. The driver then prepares the
//! retry batch by batch: the chosen devices become pending again. Nothing is sent and no gate is
//! judged until all chosen devices are pending.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::batch::Reopened;
use twincast_core::ids::{BatchId, StageIndex, StageName};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::{Retry, Rollout};

use crate::{Hubs, answers};

/// The number of batches read per page.
const PAGE: usize = 256;

/// Makes the chosen devices of a retry pending again. Batches held by workers are tried again after
/// `pause`. May be repeated at any point: prepared devices stay as they are. Returns `false` after
/// `stop`.
pub(crate) async fn prepare(
    (store, hubs): (&Arc<dyn Store>, &Hubs),
    rollout: &Rollout,
    pause: Duration,
    stop: &CancellationToken,
) -> Result<bool, StoreError> {
    let Some(retry) = &rollout.retry else {
        return Ok(false);
    };
    let mut devices = 0;
    let durable_after = store.durable_after();
    // The time since which no batch has needed reopening, provided that the store has lost no
    // write.
    let mut clean_since: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let Some(pass) = reopen_all((store, hubs), rollout, retry, stop).await? else {
            return Ok(false);
        };
        devices += pass.devices;
        let is_clean = !pass.held && (pass.devices == 0 || durable_after.is_zero());
        let clean_for = clean_since.map(|since| began.saturating_duration_since(since));
        if is_clean && (durable_after.is_zero() || clean_for >= Some(durable_after)) {
            break;
        }
        let wait = if is_clean { durable_after } else { pause };
        clean_since = is_clean.then(|| clean_since.unwrap_or_else(Instant::now));
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(wait) => {}
        }
    }
    let (name, attempt) = (&rollout.spec.name, retry.attempt);
    tracing::info!(rollout = %name, %attempt, devices, "devices reopened for a retry");
    Ok(true)
}

/// Reopens the chosen devices in all batches. Returns `None` after `stop`.
async fn reopen_all(
    (store, hubs): (&Arc<dyn Store>, &Hubs),
    rollout: &Rollout,
    retry: &Retry,
    stop: &CancellationToken,
) -> Result<Option<Page>, StoreError> {
    let mut all = Page::default();
    loop {
        let page = reopen_page((store, hubs), rollout, retry, all.last).await?;
        all.devices += page.devices;
        all.held |= page.held;
        all.last = page.last;
        if all.last.is_none() {
            return Ok(Some(all));
        }
        if stop.is_cancelled() {
            return Ok(None);
        }
    }
}

async fn reopen_page(
    (store, hubs): (&Arc<dyn Store>, &Hubs),
    rollout: &Rollout,
    retry: &Retry,
    after: Option<BatchId>,
) -> Result<Page, StoreError> {
    let name = &rollout.spec.name;
    let batches = store.batches(name, after, PAGE).await?;
    let mut page = Page {
        last: batches.last().map(|batch| batch.header.id),
        devices: 0,
        held: false,
    };
    for batch in &batches {
        if !concerns(retry.stage.as_ref(), rollout, batch.header.stage) {
            continue;
        }
        if batch.held.is_some() {
            // The holder's sends in flight may still fail.
            page.held = true;
        } else if chosen(&retry.outcomes, &batch.counts) > 0 {
            let of = (store, hubs);
            if !answers::record_before_retry(rollout, of, batch, &retry.outcomes).await? {
                page.held = true;
                continue;
            }
            let (id, attempt) = (batch.header.id, retry.attempt);
            let reopened = store.reopen(name, id, attempt, &retry.outcomes).await?;
            match reopened {
                Reopened::Devices(devices) => page.devices += u64::from(devices),
                Reopened::Held(_) => page.held = true,
            }
        }
    }
    Ok(page)
}

/// The result of reopening a page of batches.
#[derive(Default)]
struct Page {
    /// The last batch of the page; `None` after the last page.
    last: Option<BatchId>,
    devices: u64,
    held: bool,
}

/// Returns the number of counted devices with one of `outcomes`.
pub(crate) fn chosen(outcomes: &[Outcome], counts: &Counts) -> u64 {
    counts.sum_of(|outcome| outcomes.contains(&outcome))
}

/// Returns whether a retry of `stage`, or of all stages, covers the stage at `index`.
pub(crate) fn concerns(stage: Option<&StageName>, rollout: &Rollout, index: StageIndex) -> bool {
    let at = rollout.stages.get(usize::from(index.0));
    stage.is_none_or(|stage| at.is_some_and(|at| at.name == *stage))
}
