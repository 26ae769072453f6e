//! A store that can be away, full or slow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use twincast_core::batch::BatchStatus;
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::group::Line;
use twincast_core::ids::{BatchId, GroupName, HubHost, HubName, Revision, RolloutName, StageIndex};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::permits::{Grant, LimiterState, PermitRequest};
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{
    Batches, Change, Committed, Created, Limiter, Lines, Loaded, Part, Presence, Rollouts, Store,
    StoreError, Tally,
};
use twincast_core::rollout::{Adding, Rollout};

/// How the way to a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Calls get through.
    Open,
    /// Calls fail at once with [`StoreError::Unavailable`], and take no effect.
    Broken,
    /// Calls wait until the way is another one.
    Silent,
    /// Calls fail at once with [`StoreError::NotWritable`], and take no effect.
    Full,
    /// Calls take so much longer.
    Slow(Duration),
}

/// The ways of calls.
#[derive(Debug)]
struct Ways {
    /// Of some calls, by name.
    of: BTreeMap<String, Way>,
    /// Of all others.
    others: Way,
}

impl Ways {
    fn of(&self, call: &str) -> Way {
        self.of.get(call).copied().unwrap_or(self.others)
    }
}

/// A store that is reached over a [`Way`]; it begins open. Clones are the same store.
#[derive(Clone)]
pub struct AwayStore {
    store: Arc<dyn Store>,
    ways: Arc<watch::Sender<Ways>>,
    calls: Arc<AtomicU64>,
}

impl std::fmt::Debug for AwayStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AwayStore")
            .field(&*self.ways.borrow())
            .finish()
    }
}

impl AwayStore {
    /// The way to `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            ways: Arc::new(watch::Sender::new(Ways {
                of: BTreeMap::new(),
                others: Way::Open,
            })),
            calls: Arc::default(),
        }
    }

    /// Changes the way of all calls that have none of their own, for those that wait too.
    pub fn set(&self, way: Way) {
        self.ways.send_modify(|ways| ways.others = way);
    }

    /// Changes the way of one call: `throttled`, `take_permits`, or `rollout NAME`.
    pub fn set_of(&self, call: &str, way: Way) {
        self.ways
            .send_modify(|ways| _ = ways.of.insert(call.to_owned(), way));
    }

    /// How many calls were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn store(&self) -> Result<&dyn Store, StoreError> {
        self.store_for("").await
    }

    async fn store_for(&self, call: &str) -> Result<&dyn Store, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut ways = self.ways.subscribe();
        let found = ways.wait_for(|ways| ways.of(call) != Way::Silent).await;
        let way = found.expect("this store keeps the sender").of(call);
        let doing = || "reach the store".to_owned();
        match way {
            Way::Broken => Err(StoreError::Unavailable {
                doing: doing(),
                source: "the way to it is broken".into(),
            }),
            Way::Full => Err(StoreError::NotWritable {
                doing: doing(),
                source: "it is full".into(),
            }),
            Way::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(&*self.store)
            }
            Way::Open | Way::Silent => Ok(&*self.store),
        }
    }
}

#[async_trait]
impl Rollouts for AwayStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        self.store().await?.create(rollout).await
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let store = self.store_for(&format!("rollout {name}")).await?;
        store.rollout(name).await
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        self.store().await?.revision(name).await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.store().await?.rollouts().await
    }

    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        self.store().await?.save(rollout, from).await
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        self.store().await?.remove(name, revision).await
    }
}

#[async_trait]
impl Batches for AwayStore {
    fn durable_after(&self) -> Duration {
        self.store.durable_after()
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<Batch>,
    ) -> Result<Checksum, StoreError> {
        self.store().await?.add_batches(name, by, batches).await
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        self.store().await?.batches(name, after, limit).await
    }

    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let store = self.store().await?;
        store.open_batches(name, hub, through, limit).await
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        self.store().await?.in_progress(name, groups).await
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        self.store().await?.tallies(name).await
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        self.store().await?.batch(name, batch, part).await
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        self.store().await?.commit(name, from, change).await
    }
}

#[async_trait]
impl Lines for AwayStore {
    async fn line(&self, group: &GroupName) -> Result<Line, StoreError> {
        self.store().await?.line(group).await
    }

    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError> {
        self.store().await?.save_line(group, line).await
    }
}

#[async_trait]
impl Limiter for AwayStore {
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let store = self.store_for("take_permits").await?;
        store.take_permits(request).await
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let store = self.store_for("throttled").await?;
        store.throttled(hub, retry_after).await
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        self.store().await?.limiter(hub).await
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        self.store().await?.open_link(hub).await
    }
}

#[async_trait]
impl Presence for AwayStore {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        self.store().await?.bind_hub(hub, host).await
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        self.store().await?.report_listener(hub, report).await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        self.store().await?.listeners(hub).await
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        self.store().await?.report_link(hub, report).await
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        self.store().await?.links(hub).await
    }
}
