//! The store in a single file.
//!
//! `state.redb` in the state folder is a copy-on-write B-tree (redb): a commit is whole or absent,
//! and a crash at any instant leaves the last commit. `state.lock` in the same folder is locked for
//! as long as the store is open. So at any time either a single process works on the file, or any
//! number of processes read the file (see [`overlay`]).
//!
//! Durability:
//!
//! * **On disk:** rollouts, concurrency queues, batches, manifests, outcomes, codes and tallies. A
//!   call is answered after the sync of the call's commit.
//! * **In memory:** leases and permits. The lock proves that no earlier process lives. So all
//!   earlier leases have lapsed, and no permit reserved before will be used.
//!
//! A single thread owns the file, see [`engine`]; the methods of the store send requests to the
//! thread. Costly work without a required order (compressing and unpacking manifests) runs in the
//! caller's task.

mod budgets;
mod disk;
mod engine;
mod error;
mod lease_states;
mod overlay;
mod permits;
mod read_ops;
mod tables;
mod write_ops;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use twincast_core::batch::BatchStatus;
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::evidence::{ListenerReport, ListenerStatus, Listeners};
use twincast_core::ids::{
    BatchId, ConcurrencyGroup, HubHost, HubName, Revision, RolloutName, StageIndex,
};
use twincast_core::link::{LinkReport, LinkReports, LinkStatus};
use twincast_core::permits::{Grant, LimiterState, PermitRequest};
use twincast_core::plan::{self, Checksum};
use twincast_core::ports::{
    Batches, Change, Clock, Committed, Created, GroupQueues, Limiter, Loaded, Part, Presence,
    Rollouts, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Commands, Rollout};

use disk::Disk;
use engine::{Call, Engine, MAX_WAITING, Reading, Request, Writing};
pub use error::OpenError;
use error::{Closed, Fault, InvalidData};
use permits::Permits;
use tables::{LastListener, batch_of, head};
use write_ops::PackedBatch;

/// A [`Store`](twincast_core::ports::Store) in one folder, or in memory.
///
/// Dropping the store waits for requests under way, and closes the file.
pub struct EmbeddedStore {
    clock: Arc<dyn Clock>,
    permits: Mutex<Permits>,
    listeners: Mutex<Listeners>,
    links: Mutex<LinkReports>,
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the state in the folder `dir`, or creates a new state. Blocks while reading the whole
    /// file, some 30 bytes a device.
    ///
    /// # Errors
    /// [`OpenError`], which names the remedy.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::start(Disk::folder(dir)?, clock)
    }

    /// Opens the state in the folder `dir` read-only: every call that would change the state is
    /// refused. Needs read access only, and locks out processes that would open the state for
    /// writing. Several processes may read at once.
    ///
    /// # Errors
    /// [`OpenError`], which names the remedy.
    pub fn open_read_only(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::start(Disk::read_only(dir)?, clock)
    }

    /// Returns whether there is a state in the folder `dir`.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(STATE_FILE).is_file()
    }

    /// Opens a store in memory, for trials: nothing is kept.
    ///
    /// # Errors
    /// [`OpenError::System`] when the system provides no thread.
    pub fn open_in_memory(clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::start(Disk::memory(), clock)
    }

    fn start(disk: Disk, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let dir = disk.dir().to_owned();
        let mut engine = Engine::open(disk, Arc::clone(&clock))?;
        let listeners = Mutex::new(engine.lost_listeners(clock.now()));
        let (requests, inbox) = mpsc::channel(MAX_WAITING);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || engine.run(inbox))
            .map_err(|error| OpenError::System {
                dir,
                source: Box::new(error),
            })?;
        Ok(Self {
            clock,
            permits: Mutex::default(),
            listeners,
            links: Mutex::default(),
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// Closes the file after answering all earlier requests. Later requests are refused.
    pub async fn close(&self) {
        let (closed, done) = oneshot::channel();
        // An error means that the store is closed already.
        if self.send(Request::Close(closed)).await.is_ok() {
            _ = done.await;
        }
    }

    /// Recounts a rollout's outcomes, and compares the counts with all stored sums.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with the difference.
    pub async fn verify(&self, name: &RolloutName) -> Result<(), StoreError> {
        let (doing, name) = (format!("verify rollout {name}"), name.clone());
        self.read(doing, move |on| read_ops::verify(on.tables, &name))
            .await
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, LinkReports> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write<T: Send + 'static>(
        &self,
        doing: String,
        operation: impl FnOnce(Writing<'_, '_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (call, answer) = Call::new(doing.clone(), operation);
        let sent = self.send(Request::Write(Box::new(call))).await;
        Self::wait(doing, sent, answer).await
    }

    async fn read<T: Send + 'static>(
        &self,
        doing: String,
        operation: impl FnOnce(Reading<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (call, answer) = Call::new(doing.clone(), operation);
        let sent = self.send(Request::Read(Box::new(call))).await;
        Self::wait(doing, sent, answer).await
    }

    async fn send(&self, request: Request) -> Result<(), Closed> {
        let requests = self.requests.as_ref().ok_or(Closed)?;
        requests.send(request).await.map_err(|_| Closed)
    }

    async fn wait<T>(
        doing: String,
        sent: Result<(), Closed>,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let answer = match sent {
            Ok(()) => answer.await.map_err(|_| Closed),
            Err(closed) => Err(closed),
        };
        answer.unwrap_or_else(|closed| {
            Err(StoreError::Unavailable {
                doing,
                source: Box::new(closed),
            })
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread panicked; the panic is not repeated here.
            _ = thread.join();
        }
    }
}

#[async_trait]
impl Rollouts for EmbeddedStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let rollout = rollout.clone();
        let doing = format!("create rollout {}", rollout.spec.name);
        self.write(doing, move |on| write_ops::create(on.tables, &rollout))
            .await
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let (doing, name) = (format!("read rollout {name}"), name.clone());
        self.read(doing, move |on| {
            read_ops::rollout_of(&on.tables.rollouts, &on.tables.notes, &name)
        })
        .await
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        let doing = format!("read the revision of rollout {name}");
        let name = name.clone();
        self.read(doing, move |on| {
            Ok(head(&on.tables.heads, &name)?.map(|head| head.control.revision))
        })
        .await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.read("list rollouts".into(), |on| read_ops::rollouts(on.tables))
            .await
    }

    async fn save_with_commands(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError> {
        let (rollout, commands) = (rollout.clone(), commands.cloned());
        let doing = format!("save rollout {}", rollout.spec.name);
        self.write(doing, move |on| {
            write_ops::save(on.tables, &rollout, from, commands.as_ref())
        })
        .await
    }

    async fn save_notes(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let rollout = rollout.clone();
        let doing = format!("save the notes of rollout {}", rollout.spec.name);
        self.write(doing, move |on| write_ops::save_notes(on.tables, &rollout))
            .await
    }

    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError> {
        let doing = format!("read the commands of rollout {name}");
        let name = name.clone();
        self.read(doing, move |on| read_ops::commands_of(on.tables, &name))
            .await
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        let (doing, name) = (format!("remove rollout {name}"), name.clone());
        self.write(doing, move |on| {
            write_ops::remove(on.tables, &name, revision)
        })
        .await
    }
}

#[async_trait]
impl Batches for EmbeddedStore {
    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let packed: Vec<_> = batches.into_iter().map(PackedBatch::new).collect();
        let (doing, name) = (format!("add batches to rollout {name}"), name.clone());
        self.write(doing, move |on| {
            write_ops::add_batches(on.tables, &name, by, &packed)
        })
        .await
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let (doing, name) = (format!("list the batches of rollout {name}"), name.clone());
        self.read(doing, move |on| {
            let page = read_ops::Page { after, limit };
            read_ops::batches(on.tables, on.lease_states, on.now, &name, page)
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
        let doing = format!("list the open batches of rollout {name}");
        let (name, hub) = (name.clone(), hub.clone());
        self.read(doing, move |on| {
            let filter = read_ops::Open {
                hub: &hub,
                through,
                limit,
            };
            read_ops::open_batches(on.tables, on.lease_states, on.now, &name, &filter)
        })
        .await
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let doing = format!("read the devices in progress of rollout {name}");
        let (name, groups) = (name.clone(), groups.to_vec());
        self.read(doing, move |on| {
            budgets::in_progress(on.tables, on.now, &name, &groups)
        })
        .await
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let (doing, name) = (format!("read the tallies of rollout {name}"), name.clone());
        self.read(doing, move |on| read_ops::tallies(on.tables, &name))
            .await
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let (doing, name) = (format!("load {}", batch_of(batch, name)), name.clone());
        let stored = self
            .read(doing.clone(), move |on| {
                read_ops::batch(on.tables, on.lease_states, on.now, &name, (batch, part))
            })
            .await?;
        stored.unpack().map_err(|what| StoreError::Corrupt {
            doing,
            source: Box::new(InvalidData(what)),
        })
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let batch = batch_of(from.batch.header.id, name);
        let doing = format!("{} {batch}", change.operation.verb());
        let changes_only_lease_state = write_ops::changes_only_lease_state(from, change);
        let (name, from, change) = (name.clone(), from.clone(), change.clone());
        if changes_only_lease_state {
            // Changes in memory need not wait for the disk.
            return self
                .read(doing, move |on| {
                    let made = (&from, &change);
                    write_ops::commit_lease_state(on.tables, on.lease_states, &name, made, on.now)
                })
                .await;
        }
        self.write(doing, move |on| {
            write_ops::commit(on.tables, on.lease_states, &name, (&from, &change), on.now)
        })
        .await
    }
}

#[async_trait]
impl GroupQueues for EmbeddedStore {
    async fn group_queue(&self, group: &ConcurrencyGroup) -> Result<GroupQueue, StoreError> {
        let (doing, group) = (
            format!("read the queue of concurrency group {group}"),
            group.clone(),
        );
        self.read(doing, move |on| {
            read_ops::group_queue_of(&on.tables.group_queues, &group)
        })
        .await
    }

    async fn save_group_queue(
        &self,
        group: &ConcurrencyGroup,
        queue: &GroupQueue,
    ) -> Result<(), StoreError> {
        let doing = format!("save the queue of concurrency group {group}");
        let (group, queue) = (group.clone(), queue.clone());
        self.write(doing, move |on| {
            write_ops::save_group_queue(on.tables, &group, &queue)
        })
        .await
    }
}

#[async_trait]
impl Limiter for EmbeddedStore {
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(permits.take(self.clock.now(), request))
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        permits.throttled(self.clock.now(), hub, retry_after);
        Ok(())
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(permits.state(self.clock.now(), hub))
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(permits.open_link(self.clock.now(), hub))
    }
}

#[async_trait]
impl Presence for EmbeddedStore {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let doing = format!("bind hub {hub}");
        let (hub, host) = (hub.clone(), host.clone());
        let key = hub.clone();
        let bound = self.read(doing.clone(), move |on| {
            read_ops::host_of(&on.tables.hosts, &key)
        });
        if let Some(bound) = bound.await? {
            return Ok(bound);
        }
        self.write(doing, move |on| write_ops::bind_hub(on.tables, &hub, &host))
            .await
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let is_new = self.listeners().report(hub, report, now);
        // After a crash, the existence of a listener matters; after the end of a listener, the time
        // of the end.
        let ended = (!report.state.listening).then_some(now);
        if !is_new && ended.is_none() {
            return Ok(());
        }
        let doing = format!("record a listener to hub {hub}");
        let (hub, state) = (hub.clone(), report.state.clone());
        self.write(doing, move |on| {
            write_ops::note_listener(on.tables, &hub, &LastListener { state, ended })
        })
        .await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        Ok(self.listeners().of(hub, self.clock.now()))
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.links().report(hub, report, now);
        Ok(())
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        Ok(self.links().of(hub, self.clock.now()))
    }
}

/// The name of the state file in the state folder.
const STATE_FILE: &str = "state.redb";

#[cfg(test)]
mod tests;
