//! Looks through the target of a continuous rollout, beside all else that a driver does.
//!
//! A look reads which devices the rollout has, asks the hubs for all of the target, adds those that are new, and skips those that are
//! gone and were not sent to. It adds and skips under its number ([`LookId`]), so nothing of it is lost or done twice, wherever
//! it is given up: the next look finds what it has added.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, pending};
use tokio::sync::mpsc;
use tokio::time::Instant;
use twincast_core::batch::BatchStatus;
use twincast_core::error::in_words;
use twincast_core::ids::{BatchId, HubName, StageIndex};
use twincast_core::outcome::Outcome;
use twincast_core::plan::{Checksum, HubPlan};
use twincast_core::ports::{Clock, Disposition, Skip, Store, StoreError};
use twincast_core::rollout::{Adding, Event, Found, LookId, Rollout};
use twincast_core::spec::RolloutSpec;

use crate::Hubs;
use crate::adding::store_batches;
use crate::members::{Gathering, Members, Part};
use crate::planner::{Joiners, PlanError, PlanProgress, Planner};

/// How long after a look that failed another one begins.
pub(crate) const AGAIN: Duration = Duration::from_secs(60);
/// And after one of which the store has lost a part.
const SOON: Duration = Duration::from_secs(1);
/// The interval between two looks at the clock.
const DUE: Duration = Duration::from_secs(1);
/// Batches that are read at once.
const PAGE: usize = 256;

/// Why a look was given up.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("cannot read or add devices")]
    Store(#[from] StoreError),
    #[error("cannot ask the hubs for the target")]
    Hubs(#[source] PlanError),
}

/// What has become of a look.
#[derive(Debug)]
pub(crate) enum LookNews {
    /// This happens to the rollout.
    Happened(Event),
    /// It was given up for this reason; another one begins [`AGAIN`] later.
    Failed(String),
}

/// What a driver remembers of its look. Losing it costs a look that begins anew.
#[derive(Default)]
pub(crate) struct Looking {
    under_way: Option<(LookId, BoxFuture<'static, Result<Found, GivenUp>>)>,
    /// When another one may begin after one that failed.
    rests_until: Option<Instant>,
}

impl std::fmt::Debug for Looking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let look = self.under_way.as_ref().map(|(look, _)| look);
        f.debug_tuple("Looking").field(&look).finish()
    }
}

impl Looking {
    /// Waits until a look is to begin, or the one that was begun is over.
    ///
    /// Cancel safety: a look that is under way is gone on with by the next call.
    pub(crate) async fn happened(&mut self, rollout: &Rollout, clock: &dyn Clock) -> LookNews {
        let Some(looks) = rollout.looks else {
            return pending().await;
        };
        let ours = self.under_way.as_mut();
        if let Some((_, look)) = ours.filter(|(id, _)| {
            let is_newest = *id == looks.newest;
            is_newest && looks.under_way.is_some()
        }) {
            let ended = look.await;
            self.under_way = None;
            match ended {
                Ok(found) => return LookNews::Happened(Event::Looked { found }),
                Err(GivenUp::Store(error)) if error.disposition() == Disposition::Superseded => {
                    let (name, error) = (&rollout.spec.name, in_words(&error));
                    tracing::warn!(rollout = %name, error, "a look for devices that have joined begins anew");
                    self.rests_until = Some(Instant::now() + SOON);
                }
                Err(error) => {
                    let (name, error) = (&rollout.spec.name, in_words(&error));
                    tracing::warn!(rollout = %name, error, "a look for devices that have joined was given up");
                    self.rests_until = Some(Instant::now() + AGAIN);
                    return LookNews::Failed(error);
                }
            }
        }
        loop {
            let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
            let is_due = rollout.next_look().is_some_and(|at| clock.now() >= at);
            // One that is under way and not ours was given up by whoever began it.
            if !rests && (is_due || looks.under_way.is_some()) {
                return LookNews::Happened(Event::LookStarted);
            }
            tokio::time::sleep(DUE).await;
        }
    }

    /// Begins the look that was just noted in `rollout`'s record, by us.
    pub(crate) fn begin(
        &mut self,
        rollout: &Rollout,
        store: &Arc<dyn Store>,
        hubs: &Hubs,
        base: &Path,
    ) {
        let Some((looks, stage)) = rollout.looks.zip(rollout.spec.late_stage()) else {
            return;
        };
        let look = Look {
            id: looks.newest,
            stage,
            spec: rollout.spec.clone(),
            devices: rollout.plan.as_ref().map_or(0, |plan| plan.devices),
            store: Arc::clone(store),
            hubs: hubs.clone(),
            base: base.to_owned(),
        };
        self.rests_until = None;
        self.under_way = Some((look.id, async move { look.through().await }.boxed()));
    }
}

/// One look.
struct Look {
    id: LookId,
    /// Where those belong that have joined.
    stage: StageIndex,
    spec: RolloutSpec,
    /// As many as the rollout has, or some more.
    devices: u64,
    store: Arc<dyn Store>,
    hubs: Hubs,
    base: PathBuf,
}

/// What the rollout has.
#[derive(Default)]
struct Stock {
    hubs: BTreeMap<HubName, HubPlan>,
    /// The number after its last batch.
    next: BatchId,
    /// The batches with devices that are still to be sent to.
    waiting: Vec<BatchId>,
    checksum: Checksum,
}

impl Stock {
    fn add(&mut self, more: &HubPlan) {
        let part = self.hubs.entry(more.hub.clone());
        let part = part.or_insert_with(|| HubPlan::none(&more.hub, &more.host));
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
        // A look that was given up may have left gaps.
        self.next = BatchId(header.id.0 + 1);
        if batch.counts.get(Outcome::Pending) > 0 {
            self.waiting.push(header.id);
        }
    }
}

impl Look {
    async fn through(self) -> Result<Found, GivenUp> {
        let mut found = Found::default();
        let mut stock = Stock::default();
        for part in Part::all(self.devices) {
            // The last part's reading is the whole stock, with what was added for those before it.
            stock = Stock::default();
            let members = self.members(part, &mut stock).await?;
            self.add_joiners(&members, &mut stock, &mut found).await?;
            found.left += self.skip_left(&members, &stock.waiting).await?;
        }
        found.checksum = stock.checksum;
        found.hubs = stock.hubs.into_values().collect();
        Ok(found)
    }

    /// The known devices of a part. One that has left is unknown: should it come again, it has joined.
    async fn members(&self, part: Part, stock: &mut Stock) -> Result<Members, StoreError> {
        let name = &self.spec.name;
        let mut members = Gathering::new(self.id, part);
        let mut after = None;
        loop {
            let page = self.store.batches(name, after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(members.done());
            };
            after = Some(last.header.id);
            for batch in &page {
                stock.add_batch(batch);
                let work = self.store.load(name, batch.header.id).await?;
                stock.checksum.add(&work.batch);
                for device in work.devices().filter(|it| it.outcome != Outcome::Skipped) {
                    members.add(&batch.header.hub, device.id);
                }
            }
        }
    }

    /// Asks the hubs for the target and adds what is new.
    async fn add_joiners(
        &self,
        members: &Members,
        stock: &mut Stock,
        found: &mut Found,
    ) -> Result<(), GivenUp> {
        let planner = Planner {
            spec: &self.spec,
            hubs: &self.hubs,
            base: &self.base,
            progress: &PlanProgress::default(),
            joiners: Some(Joiners {
                members,
                stage: self.stage,
                first: stock.next,
            }),
        };
        let (sender, receiver) = mpsc::channel(4);
        let adding = store_batches(
            &*self.store,
            &self.spec.name,
            Adding::Look(self.id),
            stock.checksum,
            receiver,
        );
        let (planned, stored) = futures::join!(planner.plan(sender), adding);
        stock.checksum = stored?;
        let planned = planned.map_err(GivenUp::Hubs)?;
        for hub in &planned.hubs {
            stock.add(hub);
        }
        found.joined += planned.devices;
        found.repeated += planned.repeated;
        // The hubs are asked for all of the target for every part.
        found.not_understood = planned.not_understood;
        Ok(())
    }

    /// Skips known devices that were not seen in the target, as far as nothing was sent to them. A batch that somebody works on is
    /// passed over: it is as good as sent.
    async fn skip_left(&self, members: &Members, among: &[BatchId]) -> Result<u64, StoreError> {
        let name = &self.spec.name;
        let mut left = 0;
        for batch in among {
            let work = self.store.load(name, *batch).await?;
            let hub = &work.header().hub;
            let devices = work.devices().filter(|device| {
                device.outcome == Outcome::Pending && members.has_left(hub, device.id)
            });
            let devices: Vec<u32> = devices.map(|device| device.index).collect();
            let many = devices.len() as u64;
            if many == 0 {
                continue;
            }
            let look = self.id;
            let left_out = Skip::Left { look, devices };
            let held = self.store.skip(name, *batch, &left_out).await?;
            left += if held.is_none() { many } else { 0 };
        }
        Ok(left)
    }
}
