//! Concurrency groups on test doubles, with several orchestrators: one rollout at a time, in any
//! order of arrival.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_core::concurrency_group::{GroupQueue, JOIN_GRACE};
use twincast_core::hub::HubLimits;
use twincast_core::ids::{ConcurrencyGroup, Version};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Batches as _, Clock, GroupQueues as _, LeaseReply, Queue, QueueError, Rollouts as _, Tally,
};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::changes::ChangeSource;
use twincast_orchestrator::command::{Answer, Cause, Refusal};
use twincast_orchestrator::command_executor::{CommandError, CommandExecutor};
use twincast_orchestrator::driver::{Driver, DriverConfig, Repairs};
use twincast_orchestrator::events::Events;
use twincast_orchestrator::groups;
use twincast_orchestrator::planner::PlanProgress;
use twincast_orchestrator::service::{Orchestrator, OrchestratorConfig, OrchestratorStatus};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{ManualClock, MemoryStore, RuntimeClock, ScriptedHub, build};

struct Silence;

#[async_trait]
impl Events for Silence {
    async fn publish(&self, _: &str, _: &Value) -> Result<(), QueueError> {
        Ok(())
    }
}

struct Bench {
    clock: Arc<dyn Clock>,
    store: MemoryStore,
    queue: Arc<InProcessQueue>,
    hub: ScriptedHub,
}

fn bench_on(clock: Arc<dyn Clock>) -> Bench {
    Bench {
        store: MemoryStore::new(Arc::clone(&clock)),
        clock,
        queue: Arc::new(InProcessQueue::new(1_000)),
        hub: ScriptedHub::of(300),
    }
}

fn bench() -> Bench {
    bench_on(Arc::new(RuntimeClock::default()))
}

fn group() -> ConcurrencyGroup {
    ConcurrencyGroup::new("g").unwrap()
}

fn start(name: &str, policy: &str) -> Value {
    let message = json!({"body": {"text": "hi"}});
    let spec = json!({"name": name, "concurrency": {"group": "g", "policy": policy}, "target": {"all": true}, "message": message});
    json!({"command": "start", "spec": spec})
}

impl Bench {
    fn hubs(&self) -> Hubs {
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(self.hub.clone()),
            limits: HubLimits {
                sends_per_minute: Some(100.0),
                ..HubLimits::unlimited()
            },
        };
        Hubs::from([(build::hub("a"), handle)])
    }

    /// Starts two orchestrators for the duration of the test.
    fn orchestrate(&self) {
        for id in ["one", "two"] {
            let orchestrator = Arc::new(Orchestrator {
                store: Arc::new(self.store.clone()),
                registry: Arc::new(self.store.clone()),
                queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
                events: Arc::new(Silence),
                hubs: self.hubs(),
                metric_source: None,
                clock: Arc::clone(&self.clock),
                config: OrchestratorConfig::default(),
                id: build::holder(id),
                status: Arc::new(OrchestratorStatus::default()),
                tracer: Tracer::default(),
            });
            tokio::spawn(orchestrator.run(CancellationToken::new()));
        }
    }

    async fn handle(&self, command: Value) -> Result<Answer, Refusal> {
        let executor = CommandExecutor {
            store: Arc::new(self.store.clone()),
            registry: Some(Arc::new(self.store.clone())),
            hubs: BTreeSet::from([build::hub("a")]),
            has_metric_source: false,
            tracer: Tracer::default(),
            clock: Arc::clone(&self.clock),
        };
        match executor.handle(command.to_string().as_bytes(), None).await {
            Ok(answer) => Ok(answer),
            Err(CommandError::Refused(refusal)) => Err(refusal),
            Err(CommandError::Store(error)) => panic!("{command}: {error:?}"),
        }
    }

    async fn rollout(&self, name: &str) -> Rollout {
        let rollout = self.store.rollout(&build::name(name)).await;
        rollout.unwrap().unwrap()
    }

    async fn until(&self, name: &str, condition: impl Fn(&Rollout) -> bool) -> Rollout {
        let waited = async {
            loop {
                let rollout = self.rollout(name).await;
                if condition(&rollout) {
                    return rollout;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(600), waited).await {
            Ok(rollout) => rollout,
            Err(_) => panic!("{:?}", self.rollout(name).await),
        }
    }

    async fn until_running(&self, name: &str) {
        self.until(name, |rollout| rollout.phase == Phase::Running)
            .await;
    }

    async fn abort(&self, name: &str) {
        let command = json!({"command": "abort", "rollout": name});
        self.handle(command).await.unwrap();
        self.until(name, |rollout| rollout.phase.is_ended()).await;
    }

    /// Completes all batches of a rollout with the outcome "not found" for every device.
    async fn fail(&self, name: &str) {
        for batch in 0..self.rollout(name).await.plan.unwrap().batches {
            self.settle(name, batch, Outcome::NotFound).await;
        }
    }

    async fn send(&self, name: &str, batch: u32) {
        self.settle(name, batch, Outcome::Enqueued).await;
    }

    /// Completes a batch.
    async fn settle(&self, name: &str, batch: u32, outcome: Outcome) {
        let request = build::lease_request(&build::name(name), batch, "worker");
        let LeaseReply::Granted(lease) = self.store.lease(&request).await.unwrap() else {
            panic!("the lease of batch {batch} is not granted");
        };
        let work = self.store.load(&lease.rollout, lease.batch).await.unwrap();
        let reports: Vec<_> = (0..work.outcomes.len() as u32)
            .map(|index| build::report(index, outcome))
            .collect();
        self.store
            .record(&lease, &reports, build::TTL)
            .await
            .unwrap();
        self.store.release(&lease).await.unwrap();
    }

    async fn group_queue(&self) -> String {
        let queue = self.store.group_queue(&group()).await.unwrap();
        let names: Vec<_> = queue.members.iter().map(|it| it.name.as_str()).collect();
        names.join(" ")
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_start_is_not_stored_and_names_the_active_rollout() {
    let bench = bench();
    bench.orchestrate();
    bench.handle(start("a", "reject")).await.unwrap();
    let refusal = bench.handle(start("b", "reject")).await.unwrap_err();
    assert_eq!(refusal.cause, Cause::Conflict);
    assert!(
        refusal.error.contains("group g has an active rollout, a"),
        "{refusal:?}"
    );
    assert_eq!(bench.store.rollout(&build::name("b")).await.unwrap(), None);
    // Starting the same rollout again changes nothing.
    assert!(!bench.handle(start("a", "reject")).await.unwrap().changed);
    bench.until_running("a").await;
    // A paused rollout is active, too.
    let pause = json!({"command": "pause", "rollout": "a"});
    bench.handle(pause).await.unwrap();
    bench.handle(start("b", "reject")).await.unwrap_err();
    bench.abort("a").await;
    bench.handle(start("b", "reject")).await.unwrap();
    bench.until_running("b").await;
    assert_eq!(bench.group_queue().await, "b");
}

#[tokio::test(start_paused = true)]
async fn queued_rollouts_run_in_order() {
    let bench = bench();
    bench.orchestrate();
    for name in ["a", "b", "c", "d"] {
        bench.handle(start(name, "queue")).await.unwrap();
    }
    bench.until_running("a").await;
    let waits = bench
        .until("c", |rollout| rollout.queued_behind.is_some())
        .await;
    assert_eq!(
        (waits.queued_behind, waits.phase),
        (Some(build::name("b")), Phase::Accepted)
    );
    let status = json!({"command": "status", "rollout": "c"});
    let status = bench.handle(status).await.unwrap();
    assert_eq!(
        status.rollouts[0].reason.as_deref(),
        Some("waits for rollout b, which is ahead of it in concurrency group g")
    );
    // An aborted member is skipped.
    bench.abort("c").await;
    let next = bench
        .until("d", |rollout| {
            rollout.queued_behind == Some(build::name("b"))
        })
        .await;
    assert_eq!(next.phase, Phase::Accepted);
    bench.abort("a").await;
    bench.until_running("b").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.rollout("d").await.phase, Phase::Accepted);
    for batch in 0..bench.rollout("b").await.plan.unwrap().batches {
        bench.send("b", batch).await;
    }
    bench.until_running("d").await;
    assert_eq!(bench.rollout("b").await.phase, Phase::Succeeded);
    assert_eq!(bench.group_queue().await, "d");
}

#[tokio::test(start_paused = true)]
async fn a_newer_rollout_supersedes_earlier_rollouts() {
    let bench = bench();
    bench.orchestrate();
    bench.handle(start("a", "reject")).await.unwrap();
    bench.until_running("a").await;
    bench.send("a", 0).await;
    bench.handle(start("b", "queue")).await.unwrap();
    bench
        .until("b", |rollout| rollout.queued_behind.is_some())
        .await;
    // While a worker holds a batch, the older rollout has not ended, and the newer rollout waits.
    let held = build::lease_request(&build::name("a"), 1, "worker");
    let LeaseReply::Granted(held) = bench.store.lease(&held).await.unwrap() else {
        panic!("the lease of batch 1 is not granted");
    };
    bench.handle(start("c", "supersede")).await.unwrap();
    let waits = bench
        .until("c", |rollout| rollout.queued_behind.is_some())
        .await;
    assert_eq!(waits.phase, Phase::Accepted);
    assert!(matches!(
        bench.rollout("a").await.phase,
        Phase::Aborting { .. }
    ));
    bench.store.release(&held).await.unwrap();
    bench.until_running("c").await;
    for name in ["a", "b"] {
        let reason = "superseded by c".to_owned();
        assert_eq!(bench.rollout(name).await.phase, Phase::Aborted { reason });
    }
    let tallies = bench.store.tallies(&build::name("a")).await.unwrap();
    let counts = Tally::sum(&tallies);
    assert_eq!(counts.unsettled(), 0);
    assert_eq!(
        counts.get(Outcome::Enqueued) + counts.get(Outcome::Skipped),
        300
    );
    assert!(counts.get(Outcome::Skipped) > 0);
}

/// An ended rollout may not send again beside a newer rollout.
#[tokio::test(start_paused = true)]
async fn retry_is_refused_while_another_rollout_is_active() {
    let bench = bench();
    bench.orchestrate();
    bench.handle(start("a", "reject")).await.unwrap();
    bench.until_running("a").await;
    bench.fail("a").await;
    bench
        .until("a", |it| it.phase == Phase::FinishedWithFailures)
        .await;
    bench.handle(start("b", "reject")).await.unwrap();
    let retry = json!({"command": "retry", "rollout": "a"});
    let refusal = bench.handle(retry.clone()).await.unwrap_err();
    assert_eq!(refusal.cause, Cause::Conflict);
    assert!(
        refusal.error.contains("an active rollout, b"),
        "{refusal:?}"
    );
    bench.abort("b").await;
    assert!(bench.handle(retry).await.unwrap().changed);
    bench.handle(start("c", "reject")).await.unwrap_err();
    bench.until_running("a").await;
}

/// Repeats the race on several threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn simultaneous_starts_admit_one_rollout() {
    for _ in 0..50 {
        let bench = Arc::new(bench_on(Arc::new(ManualClock::default())));
        let starts = (0..8).map(|number| -> JoinHandle<bool> {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let command = start(&format!("r{number}"), "reject");
                bench.handle(command).await.is_ok()
            })
        });
        let started = join_all(starts).await;
        let started = started.into_iter().filter(|it| *it.as_ref().unwrap());
        assert_eq!(started.count(), 1);
        assert_eq!(bench.store.rollouts().await.unwrap().len(), 1);
    }
}

/// The rollout joined and died before its record was stored. The other members drop the entry after
/// a while.
#[tokio::test]
async fn a_queue_entry_without_a_rollout_expires() {
    let clock = ManualClock::default();
    let bench = bench_on(Arc::new(clock.clone()));
    let (group, name) = (group(), build::name("lost"));
    let joined = groups::join(&bench.store, &group, &name, Version(1), true, clock.now());
    joined.await.unwrap().unwrap();
    let refusal = bench.handle(start("a", "reject")).await.unwrap_err();
    assert!(refusal.error.contains("lost"), "{refusal:?}");
    clock.advance(JOIN_GRACE);
    bench.handle(start("a", "reject")).await.unwrap();
    assert_eq!(bench.group_queue().await, "a");
}

/// A rollout away from the head of the queue does not send, whatever happens to the queue.
#[tokio::test(start_paused = true)]
async fn a_rollout_not_at_the_queue_head_does_not_send() {
    let bench = bench();
    let driver = Driver {
        store: Arc::new(bench.store.clone()),
        queue: Arc::clone(&bench.queue) as Arc<dyn Queue>,
        hubs: bench.hubs(),
        metric_source: None,
        clock: Arc::clone(&bench.clock),
        config: DriverConfig {
            stop_at_approval: true,
            ..DriverConfig::default()
        },
        base: ".".into(),
        planning: PlanProgress::default(),
        changes: ChangeSource::Polled,
        broker: Arc::default(),
        repairs: Repairs::default(),
        tracer: Tracer::default(),
    };
    bench.handle(start("a", "reject")).await.unwrap();
    let rollout = bench.rollout("a").await;
    let rollout = build::apply(&bench.store, &rollout, Event::PlanningStarted).await;
    build::apply(&bench.store, &rollout, build::plan_completed(5)).await;
    // The queue has lost the rollout, and another rollout has joined.
    let queue = bench.store.group_queue(&group()).await.unwrap();
    let empty = GroupQueue {
        version: Version(queue.version.0 + 1),
        members: Vec::new(),
    };
    bench
        .store
        .save_group_queue(&group(), &empty)
        .await
        .unwrap();
    bench.handle(start("b", "reject")).await.unwrap();
    let stop = CancellationToken::new();
    let left = driver.drive(&build::name("a"), &stop).await.unwrap();
    let reason = "rollout b of concurrency group g is in progress".to_owned();
    assert_eq!(left.phase, Phase::Paused { reason });

    // An unplanned rollout waits.
    bench.handle(start("c", "queue")).await.unwrap();
    let left = driver.drive(&build::name("c"), &stop).await.unwrap();
    assert_eq!(
        (left.phase, left.queued_behind),
        (Phase::Accepted, Some(build::name("a")))
    );
}
