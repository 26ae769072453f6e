//! A worker on test doubles: a store in memory, a queue in the process, a scripted hub.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{BatchId, HubHost, RolloutName};
use twincast_core::outcome::Counts;
use twincast_core::ports::{Batches as _, Dispatch, Queue, Rollouts as _};
use twincast_core::rollout::{Adding, Event, Rollout};
use twincast_embedded::InProcessQueue;
use twincast_testkit::{FaultyStore, MemoryStore, RuntimeClock, ScriptedHub, build};
use twincast_worker::{HubStatus, Worker, WorkerConfig, WorkerError, WorkerHub, WorkerStatus};

pub(crate) struct Bench {
    pub(crate) store: Arc<MemoryStore>,
    /// The worker's access to the store.
    pub(crate) faulty_store: FaultyStore,
    pub(crate) queue: Arc<InProcessQueue>,
    pub(crate) hub: ScriptedHub,
    /// The host name configured for hub `a` in the worker.
    pub(crate) host: HubHost,
    pub(crate) limits: HubLimits,
    pub(crate) config: WorkerConfig,
    pub(crate) rollout: RolloutName,
}

/// A running worker. Dropping the value is a crash.
pub(crate) struct Working {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), WorkerError>>,
    pub(crate) status: Arc<WorkerStatus>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Working {
    pub(crate) async fn stopped(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// Returns the status of the only hub.
    pub(crate) fn hub(&self) -> &HubStatus {
        self.status.hubs().next().expect("the worker has one hub").1
    }
}

impl Bench {
    /// Creates a running rollout with batches of these sizes on hub `a`, all dispatched.
    pub(crate) async fn new(batches: &[u32]) -> Self {
        Self::with(batches, |_| {}).await
    }

    pub(crate) async fn with(batches: &[u32], change: impl FnOnce(&mut Rollout)) -> Self {
        let clock = Arc::new(RuntimeClock::default());
        let store = Arc::new(MemoryStore::new(clock));
        let mut rollout = build::accepted("r");
        change(&mut rollout);
        store.create(&rollout).await.unwrap();
        let rollout = build::apply(&*store, &rollout, Event::PlanningStarted).await;
        let name = rollout.spec.name.clone();
        let made: Vec<_> = (0u32..)
            .zip(batches)
            .map(|(id, devices)| build::batch(id, *devices))
            .collect();
        store
            .add_batches(&name, Adding::Plan(rollout.plan_id), made)
            .await
            .unwrap();
        let devices = batches.iter().map(|n| u64::from(*n)).sum();
        build::apply(&*store, &rollout, build::plan_completed(devices)).await;
        let bench = Self {
            faulty_store: FaultyStore::new(&store),
            store,
            queue: Arc::new(InProcessQueue::new(1_000)),
            hub: ScriptedHub::of(0),
            host: build::host("a"),
            limits: HubLimits::unlimited(),
            config: WorkerConfig::default(),
            rollout: name,
        };
        bench.dispatch_all(batches.len()).await;
        bench
    }

    pub(crate) async fn dispatch_all(&self, batches: usize) {
        for id in 0..batches {
            self.dispatch(id as u32).await;
        }
    }

    pub(crate) async fn dispatch(&self, batch: u32) {
        let dispatch = Dispatch {
            rollout: self.rollout.clone(),
            batch: BatchId(batch),
            hub: build::hub("a"),
        };
        self.queue.publish(&dispatch).await.unwrap();
    }

    pub(crate) fn start(&self) -> Working {
        let hub = WorkerHub {
            name: build::hub("a"),
            host: self.host.clone(),
            hub: Arc::new(self.hub.clone()),
            limits: self.limits,
        };
        let worker = Worker::new(
            self.config,
            Arc::new(self.faulty_store.clone()),
            Arc::clone(&self.queue) as _,
            vec![hub],
            Arc::new(RuntimeClock::default()),
        );
        let stop = CancellationToken::new();
        let status = worker.status();
        let task = tokio::spawn(worker.run(stop.clone()));
        Working { stop, task, status }
    }

    /// Crashes the worker, waits until the leases lapse, and redispatches the batches.
    pub(crate) async fn crash(&self, worker: Working, batches: usize) {
        drop(worker);
        tokio::time::sleep(self.config.lease).await;
        self.dispatch_all(batches).await;
    }

    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for tally in self.store.tallies(&self.rollout).await.unwrap() {
            counts.add(&tally.counts);
        }
        counts
    }

    /// Waits (on paused time) until the counts satisfy `condition`.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Counts) -> bool) -> Counts {
        let waited = tokio::time::timeout(Duration::from_secs(3_600), async {
            loop {
                let counts = self.counts().await;
                if condition(&counts) {
                    return counts;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        match waited.await {
            Ok(counts) => counts,
            Err(_) => panic!("not {what} within an hour: {:?}", self.counts().await),
        }
    }

    pub(crate) async fn until_settled(&self) -> Counts {
        self.until("settled", |counts| counts.unsettled() == 0)
            .await
    }

    pub(crate) async fn event(&self, event: Event) {
        let rollout = self.store.rollout(&self.rollout).await.unwrap().unwrap();
        build::apply(&*self.store, &rollout, event).await;
    }
}

pub(crate) fn map(counts: &Counts) -> BTreeMap<&'static str, u64> {
    counts
        .iter()
        .map(|(outcome, n)| (outcome.as_str(), n))
        .collect()
}
