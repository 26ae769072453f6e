//! An interposer between callers and a store in tests: faults, delays, counts, defects.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{BatchStatus, Held};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::ids::{
    BatchId, ConcurrencyGroup, Holder, HubHost, HubName, Revision, RolloutId, RolloutName,
    StageIndex, Version,
};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::permits::{Grant, LimiterState, PermitRequest};
use twincast_core::plan::{self, Checksum};
use twincast_core::ports::{
    Batches, Change, Committed, Created, GroupQueues, Halt, Limiter, Loaded, Part, Presence,
    RegistrySnapshot, RolloutRegistry, Rollouts, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Commands, Rollout};

use crate::MemoryStore;

/// A call of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The name of the call.
    pub name: &'static str,
    /// The subject of the call: a rollout, a batch, a hub.
    pub about: String,
}

impl Call {
    fn new(name: &'static str, about: impl Display) -> Self {
        Self {
            name,
            about: about.to_string(),
        }
    }
}

/// The behaviour of an interposer. [`call`](Self::call) makes every call. All other methods are the
/// effects of calls, for defects to change.
pub trait Interposer: Clone + Send + Sync + 'static {
    /// Makes a call. Once begun, the effect continues by itself.
    fn call<T: Send + 'static>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;

    /// [`Rollouts::create`].
    fn create(
        &self,
        store: MemoryStore,
        rollout: Rollout,
    ) -> impl Future<Output = Result<Created, StoreError>> + Send {
        async move { store.create(&rollout).await }
    }

    /// [`Rollouts::rollout`].
    fn rollout(
        &self,
        store: MemoryStore,
        name: RolloutName,
    ) -> impl Future<Output = Result<Option<Rollout>, StoreError>> + Send {
        async move { store.rollout(&name).await }
    }

    /// [`Rollouts::save_with_commands`].
    fn save(
        &self,
        store: MemoryStore,
        rollout: Rollout,
        from: Revision,
        commands: Option<Commands>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        async move {
            store
                .save_with_commands(&rollout, from, commands.as_ref())
                .await
        }
    }

    /// [`Batches::add_batches`].
    fn add_batches(
        &self,
        store: MemoryStore,
        name: RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> impl Future<Output = Result<Checksum, StoreError>> + Send {
        async move { store.add_batches(&name, by, batches).await }
    }

    /// [`Batches::open_batches`].
    fn open_batches(
        &self,
        store: MemoryStore,
        name: RolloutName,
        hub: HubName,
        through: StageIndex,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<BatchStatus>, StoreError>> + Send {
        async move { store.open_batches(&name, &hub, through, limit).await }
    }

    /// [`Batches::tallies`].
    fn tallies(
        &self,
        store: MemoryStore,
        name: RolloutName,
    ) -> impl Future<Output = Result<Vec<Tally>, StoreError>> + Send {
        async move { store.tallies(&name).await }
    }

    /// [`Batches::batch`].
    fn batch(
        &self,
        store: MemoryStore,
        name: RolloutName,
        batch: BatchId,
        part: Part,
    ) -> impl Future<Output = Result<Loaded, StoreError>> + Send {
        async move { store.batch(&name, batch, part).await }
    }

    /// [`Batches::commit`].
    fn commit(
        &self,
        store: MemoryStore,
        name: RolloutName,
        from: Loaded,
        change: Change,
    ) -> impl Future<Output = Result<Committed, StoreError>> + Send {
        async move { store.commit(&name, &from, &change).await }
    }

    /// [`Limiter::take_permits`].
    fn take_permits(
        &self,
        store: MemoryStore,
        request: PermitRequest,
    ) -> impl Future<Output = Result<Grant, StoreError>> + Send {
        async move { store.take_permits(&request).await }
    }

    /// [`Presence::listeners`].
    fn listeners(
        &self,
        store: MemoryStore,
        hub: HubName,
    ) -> impl Future<Output = Result<Vec<ListenerStatus>, StoreError>> + Send {
        async move { store.listeners(&hub).await }
    }

    /// [`RolloutRegistry::set_halted`].
    fn set_halted(
        &self,
        store: MemoryStore,
        halt: Option<Halt>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        async move { store.set_halted(halt.as_ref()).await }
    }
}

/// A store and a rollout registry behind an interposer.
#[derive(Debug, Clone)]
pub struct Interposed<B> {
    store: MemoryStore,
    pub(crate) interposer: B,
}

impl<B: Interposer> Interposed<B> {
    /// Places an interposer in front of a store.
    #[must_use]
    pub fn on(store: &MemoryStore, interposer: B) -> Self {
        Self {
            store: store.clone(),
            interposer,
        }
    }

    async fn call<T: Send + 'static, F>(
        &self,
        call: Call,
        effect: impl FnOnce(MemoryStore, B) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let effect = effect(self.store.clone(), self.interposer.clone());
        self.interposer.call(call, effect).await
    }
}

#[async_trait]
impl<B: Interposer> Rollouts for Interposed<B> {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let call = Call::new("create", &rollout.spec.name);
        let rollout = rollout.clone();
        self.call(call, |store, interposer| async move {
            interposer.create(store, rollout).await
        })
        .await
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let call = Call::new("rollout", name);
        let name = name.clone();
        self.call(call, |store, interposer| async move {
            interposer.rollout(store, name).await
        })
        .await
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        let call = Call::new("revision", name);
        let name = name.clone();
        self.call(call, |store, _| async move { store.revision(&name).await })
            .await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        let call = Call::new("rollouts", "");
        self.call(call, |store, _| async move { store.rollouts().await })
            .await
    }

    async fn save_with_commands(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError> {
        let call = Call::new("save", &rollout.spec.name);
        let (rollout, commands) = (rollout.clone(), commands.cloned());
        self.call(call, |store, interposer| async move {
            interposer.save(store, rollout, from, commands).await
        })
        .await
    }

    async fn save_notes(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let call = Call::new("save_notes", &rollout.spec.name);
        let rollout = rollout.clone();
        self.call(
            call,
            |store, _| async move { store.save_notes(&rollout).await },
        )
        .await
    }

    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError> {
        let call = Call::new("commands", name);
        let name = name.clone();
        self.call(call, |store, _| async move { store.commands(&name).await })
            .await
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        let call = Call::new("remove", name);
        let name = name.clone();
        self.call(call, |store, _| async move {
            store.remove(&name, revision).await
        })
        .await
    }
}

#[async_trait]
impl<B: Interposer> Batches for Interposed<B> {
    fn durable_after(&self) -> Duration {
        self.store.durable_after()
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let call = Call::new("add_batches", name);
        let name = name.clone();
        self.call(call, |store, interposer| async move {
            interposer.add_batches(store, name, by, batches).await
        })
        .await
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let call = Call::new("batches", name);
        let name = name.clone();
        self.call(call, |store, _| async move {
            store.batches(&name, after, limit).await
        })
        .await
    }

    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let call = Call::new("open_batches", format_args!("{name} on {hub}"));
        let (name, hub) = (name.clone(), hub.clone());
        self.call(call, |store, interposer| async move {
            interposer
                .open_batches(store, name, hub, through, limit)
                .await
        })
        .await
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let call = Call::new("in_progress", name);
        let (name, groups) = (name.clone(), groups.to_vec());
        self.call(call, |store, _| async move {
            store.in_progress(&name, &groups).await
        })
        .await
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let call = Call::new("tallies", name);
        let name = name.clone();
        self.call(call, |store, interposer| async move {
            interposer.tallies(store, name).await
        })
        .await
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let call = Call::new("batch", format_args!("{name}/{batch}"));
        let name = name.clone();
        self.call(call, |store, interposer| async move {
            interposer.batch(store, name, batch, part).await
        })
        .await
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let call = Call::new(
            change.operation.verb(),
            format_args!("{name}/{}", from.batch.header.id),
        );
        let (name, from, change) = (name.clone(), from.clone(), change.clone());
        self.call(call, |store, interposer| async move {
            interposer.commit(store, name, from, change).await
        })
        .await
    }
}

#[async_trait]
impl<B: Interposer> GroupQueues for Interposed<B> {
    async fn group_queue(&self, group: &ConcurrencyGroup) -> Result<GroupQueue, StoreError> {
        let call = Call::new("group_queue", group);
        let group = group.clone();
        self.call(
            call,
            |store, _| async move { store.group_queue(&group).await },
        )
        .await
    }

    async fn save_group_queue(
        &self,
        group: &ConcurrencyGroup,
        queue: &GroupQueue,
    ) -> Result<(), StoreError> {
        let call = Call::new("save_group_queue", group);
        let (group, queue) = (group.clone(), queue.clone());
        self.call(call, |store, _| async move {
            store.save_group_queue(&group, &queue).await
        })
        .await
    }
}

#[async_trait]
impl<B: Interposer> Limiter for Interposed<B> {
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let call = Call::new(
            "take_permits",
            format_args!("{} on {}", request.rollout, request.hub),
        );
        let request = request.clone();
        self.call(call, |store, interposer| async move {
            interposer.take_permits(store, request).await
        })
        .await
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let call = Call::new("throttled", hub);
        let hub = hub.clone();
        self.call(call, |store, _| async move {
            store.throttled(&hub, retry_after).await
        })
        .await
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let call = Call::new("limiter", hub);
        let hub = hub.clone();
        self.call(call, |store, _| async move { store.limiter(&hub).await })
            .await
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let call = Call::new("open_link", hub);
        let hub = hub.clone();
        self.call(call, |store, _| async move { store.open_link(&hub).await })
            .await
    }
}

#[async_trait]
impl<B: Interposer> Presence for Interposed<B> {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let call = Call::new("bind_hub", hub);
        let (hub, host) = (hub.clone(), host.clone());
        self.call(
            call,
            |store, _| async move { store.bind_hub(&hub, &host).await },
        )
        .await
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let call = Call::new("report_listener", hub);
        let (hub, report) = (hub.clone(), report.clone());
        self.call(call, |store, _| async move {
            store.report_listener(&hub, &report).await
        })
        .await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        let call = Call::new("listeners", hub);
        let hub = hub.clone();
        self.call(call, |store, interposer| async move {
            interposer.listeners(store, hub).await
        })
        .await
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let call = Call::new("report_link", hub);
        let (hub, report) = (hub.clone(), report.clone());
        self.call(call, |store, _| async move {
            store.report_link(&hub, &report).await
        })
        .await
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        let call = Call::new("links", hub);
        let hub = hub.clone();
        self.call(call, |store, _| async move { store.links(&hub).await })
            .await
    }
}

#[async_trait]
impl<B: Interposer> RolloutRegistry for Interposed<B> {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        let call = Call::new("active", "");
        self.call(call, |store, _| async move { store.active().await })
            .await
    }

    async fn snapshot(&self) -> Result<RegistrySnapshot, StoreError> {
        let call = Call::new("snapshot", "");
        self.call(call, |store, _| async move { store.snapshot().await })
            .await
    }

    async fn deactivate(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let call = Call::new("deactivate", name);
        let name = name.clone();
        self.call(call, |store, _| async move {
            store.deactivate(&name, version).await
        })
        .await
    }

    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError> {
        let call = Call::new("claim", holder);
        let (names, holder) = (names.to_vec(), holder.clone());
        self.call(call, |store, _| async move {
            store.claim(&names, &holder, ttl).await
        })
        .await
    }

    async fn release_claim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let call = Call::new("release_claim", name);
        let (name, holder) = (name.clone(), holder.clone());
        self.call(call, |store, _| async move {
            store.release_claim(&name, &holder).await
        })
        .await
    }

    async fn published(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let call = Call::new("published", name);
        let name = name.clone();
        self.call(call, |store, _| async move { store.published(&name).await })
            .await
    }

    async fn set_published(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError> {
        let call = Call::new("set_published", name);
        let name = name.clone();
        self.call(call, |store, _| async move {
            store.set_published(&name, id, version).await
        })
        .await
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        let call = Call::new("halted", "");
        self.call(call, |store, _| async move { store.halted().await })
            .await
    }

    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError> {
        let call = Call::new("set_halted", "");
        let halt = halt.cloned();
        self.call(call, |store, interposer| async move {
            interposer.set_halted(store, halt).await
        })
        .await
    }
}
