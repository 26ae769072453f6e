//! Scans the target of a continuous rollout for late joiners, concurrently with the driver's other
//! work.
//!
//! A scan reads the devices of the rollout, queries the hubs for the whole target, adds new
//! devices, and skips devices that have left before their message. All additions and skips carry
//! the number of the scan ([`ScanId`]), so a scan abandoned at any point loses nothing and repeats
//! nothing: the next scan finds the devices added so far.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, pending};
use tokio::sync::mpsc;
use tokio::time::Instant;
use twincast_core::batch::BatchStatus;
use twincast_core::error::describe;
use twincast_core::ids::{BatchId, HubName, StageIndex};
use twincast_core::outcome::Outcome;
use twincast_core::plan::{Checksum, HubPlan};
use twincast_core::ports::{Clock, Disposition, Skip, Store, StoreError};
use twincast_core::rollout::{Adding, Event, Rollout, ScanId, ScanResult};
use twincast_core::spec::RolloutSpec;

use crate::Hubs;
use crate::adding::store_batches;
use crate::members::{Members, MembersBuilder, Part};
use crate::planner::{LateJoiners, PlanError, PlanProgress, Planner};

/// The delay before the next scan after a failed scan.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(60);
/// The delay before the next scan after a scan partly lost by the store.
const LOST_SCAN_DELAY: Duration = Duration::from_secs(1);
/// The interval between two checks of the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// The number of batches read per page.
const PAGE: usize = 256;

/// Why a scan was abandoned.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("cannot read or add devices")]
    Store(#[from] StoreError),
    #[error("cannot query the hubs for the target")]
    Hubs(#[source] PlanError),
}

/// The result of waiting for a scan.
#[derive(Debug)]
pub(crate) enum ScanUpdate {
    /// This event is to be applied to the rollout.
    Apply(Event),
    /// The scan was abandoned for this reason; the next scan begins after [`RETRY_DELAY`].
    Failed(String),
}

/// A driver's memory of its scan. Losing the memory restarts the scan.
#[derive(Default)]
pub(crate) struct ScanMemory {
    under_way: Option<(ScanId, BoxFuture<'static, Result<ScanResult, ScanError>>)>,
    /// The earliest start of the next scan after a failed scan.
    paused_until: Option<Instant>,
}

impl std::fmt::Debug for ScanMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scan = self.under_way.as_ref().map(|(scan, _)| scan);
        f.debug_tuple("ScanMemory").field(&scan).finish()
    }
}

impl ScanMemory {
    /// Waits until a scan is due, or until the running scan ends.
    ///
    /// Cancel safety: the next call continues a running scan.
    pub(crate) async fn next_update(&mut self, rollout: &Rollout, clock: &dyn Clock) -> ScanUpdate {
        let Some(scans) = rollout.scans else {
            return pending().await;
        };
        let own_scan = self.under_way.as_mut();
        if let Some((_, scan)) = own_scan.filter(|(id, _)| {
            let is_newest = *id == scans.newest;
            is_newest && scans.under_way.is_some()
        }) {
            let ended = scan.await;
            self.under_way = None;
            match ended {
                Ok(found) => return ScanUpdate::Apply(Event::ScanCompleted { found }),
                Err(ScanError::Store(error)) if error.disposition() == Disposition::Superseded => {
                    let (name, error) = (&rollout.spec.name, describe(&error));
                    tracing::warn!(rollout = %name, error, "scan for late joiners restarts");
                    self.paused_until = Some(Instant::now() + LOST_SCAN_DELAY);
                }
                Err(error) => {
                    let (name, error) = (&rollout.spec.name, describe(&error));
                    tracing::warn!(rollout = %name, error, "scan for late joiners failed");
                    self.paused_until = Some(Instant::now() + RETRY_DELAY);
                    return ScanUpdate::Failed(error);
                }
            }
        }
        loop {
            let is_paused = self
                .paused_until
                .is_some_and(|until| Instant::now() < until);
            let is_due = rollout.next_scan().is_some_and(|at| clock.now() >= at);
            // A running scan of another driver counts as abandoned.
            if !is_paused && (is_due || scans.under_way.is_some()) {
                return ScanUpdate::Apply(Event::ScanStarted);
            }
            tokio::time::sleep(CLOCK_INTERVAL).await;
        }
    }

    /// Starts the scan that this driver has just noted in `rollout`'s record.
    pub(crate) fn begin(
        &mut self,
        rollout: &Rollout,
        store: &Arc<dyn Store>,
        hubs: &Hubs,
        base: &Path,
    ) {
        let Some((scans, stage)) = rollout.scans.zip(rollout.spec.late_stage()) else {
            return;
        };
        let scan = Scan {
            id: scans.newest,
            stage,
            spec: rollout.spec.clone(),
            devices: rollout.plan.as_ref().map_or(0, |plan| plan.devices),
            store: Arc::clone(store),
            hubs: hubs.clone(),
            base: base.to_owned(),
        };
        self.paused_until = None;
        self.under_way = Some((scan.id, async move { scan.run().await }.boxed()));
    }
}

/// A scan of the target.
struct Scan {
    id: ScanId,
    /// The stage for late joiners.
    stage: StageIndex,
    spec: RolloutSpec,
    /// The number of the rollout's devices, or slightly more.
    devices: u64,
    store: Arc<dyn Store>,
    hubs: Hubs,
    base: PathBuf,
}

/// The devices and batches of a rollout.
#[derive(Default)]
struct KnownBatches {
    hubs: BTreeMap<HubName, HubPlan>,
    /// The number after the last batch.
    next: BatchId,
    /// The batches with pending devices.
    waiting: Vec<BatchId>,
    checksum: Checksum,
}

impl KnownBatches {
    fn add(&mut self, more: &HubPlan) {
        let part = self.hubs.entry(more.hub.clone());
        let part = part.or_insert_with(|| HubPlan::empty(&more.hub, &more.host));
        part.devices += more.devices;
        part.batches += more.batches;
    }

    fn add_batch(&mut self, batch: &BatchStatus) {
        let header = &batch.header;
        self.add(&HubPlan {
            hub: header.hub.clone(),
            host: header.host.clone(),
            devices: header.devices.into(),
            batches: 1,
        });
        // An abandoned scan may have left gaps.
        self.next = BatchId(header.id.0 + 1);
        if batch.counts.get(Outcome::Pending) > 0 {
            self.waiting.push(header.id);
        }
    }
}

impl Scan {
    async fn run(self) -> Result<ScanResult, ScanError> {
        let mut found = ScanResult::default();
        let mut known = KnownBatches::default();
        for part in Part::all(self.devices) {
            // The last part reads all batches, including the additions of the earlier parts.
            known = KnownBatches::default();
            let members = self.members(part, &mut known).await?;
            self.add_joiners(&members, &mut known, &mut found).await?;
            found.departed += self.skip_departed(&members, &known.waiting).await?;
        }
        found.checksum = known.checksum;
        found.hubs = known.hubs.into_values().collect();
        Ok(found)
    }

    /// Reads the known devices of a part. A device that has left counts as unknown; if found again,
    /// the device joins anew.
    async fn members(&self, part: Part, known: &mut KnownBatches) -> Result<Members, StoreError> {
        let name = &self.spec.name;
        let mut members = MembersBuilder::new(self.id, part);
        let mut after = None;
        loop {
            let page = self.store.batches(name, after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(members.build());
            };
            after = Some(last.header.id);
            for batch in &page {
                known.add_batch(batch);
                let work = self.store.load(name, batch.header.id).await?;
                known.checksum.add(&work.batch);
                for device in work.devices().filter(|it| it.outcome != Outcome::Skipped) {
                    members.add(&batch.header.hub, device.id);
                }
            }
        }
    }

    /// Queries the hubs for the target and adds new devices.
    async fn add_joiners(
        &self,
        members: &Members,
        known: &mut KnownBatches,
        found: &mut ScanResult,
    ) -> Result<(), ScanError> {
        let planner = Planner {
            spec: &self.spec,
            hubs: &self.hubs,
            base: &self.base,
            progress: &PlanProgress::default(),
            joiners: Some(LateJoiners {
                members,
                stage: self.stage,
                first: known.next,
            }),
        };
        let (sender, receiver) = mpsc::channel(4);
        let adding = store_batches(
            &*self.store,
            &self.spec.name,
            Adding::Scan(self.id),
            known.checksum,
            receiver,
        );
        let (planned, stored) = futures::join!(planner.plan(sender), adding);
        known.checksum = stored?;
        let planned = planned.map_err(ScanError::Hubs)?;
        for hub in &planned.hubs {
            known.add(hub);
        }
        found.joined += planned.devices;
        found.repeated += planned.repeated;
        // Every part queries the whole target.
        found.malformed_rows = planned.malformed_rows;
        Ok(())
    }

    /// Skips pending devices that were not seen in the target. Leaves out batches held by a worker:
    /// their devices count as sent.
    async fn skip_departed(&self, members: &Members, among: &[BatchId]) -> Result<u64, StoreError> {
        let name = &self.spec.name;
        let mut departed = 0;
        for batch in among {
            let work = self.store.load(name, *batch).await?;
            let hub = &work.header().hub;
            let devices = work.devices().filter(|device| {
                device.outcome == Outcome::Pending && members.has_departed(hub, device.id)
            });
            let devices: Vec<u32> = devices.map(|device| device.index).collect();
            let count = devices.len() as u64;
            if count == 0 {
                continue;
            }
            let scan = self.id;
            let skip = Skip::Departed { scan, devices };
            let held = self.store.skip(name, *batch, &skip).await?;
            departed += if held.is_none() { count } else { 0 };
        }
        Ok(departed)
    }
}
