//! A retry on test doubles: the effect on ended and on waiting rollouts, and refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{Attempt, BatchId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    Batches as _, Clock, Halt, LeaseReply, Queue, QueueError, RolloutRegistry, Rollouts as _, Tally,
};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::command::{Answer, Cause, Refusal};
use twincast_orchestrator::command_executor::{CommandError, CommandExecutor};
use twincast_orchestrator::events::Events;
use twincast_orchestrator::service::{Orchestrator, OrchestratorConfig, OrchestratorStatus};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{MemoryStore, RuntimeClock, ScriptedHub, build};

/// The number of messages per device and attempt.
type Sent = Arc<Mutex<BTreeMap<(BatchId, u32, Attempt), u32>>>;

/// Collects the phases of published events.
#[derive(Debug, Clone, Default)]
struct EventLog(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Events for EventLog {
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError> {
        let happened = event["data"]["transition"]["event"].as_str().unwrap();
        self.0.lock().unwrap().push(format!("{topic} {happened}"));
        Ok(())
    }
}

/// An engine with devices of which two in three fail at the first attempt, and none at later
/// attempts.
struct Bench {
    store: MemoryStore,
    executor: CommandExecutor,
    events: EventLog,
    sent: Sent,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Returns the outcome of a message.
fn end_of(index: u32, attempt: Attempt) -> Outcome {
    match (index % 3, attempt) {
        (0, Attempt::FIRST) => Outcome::Rejected,
        (1, Attempt::FIRST) => Outcome::NotFound,
        _ => Outcome::Delivered,
    }
}

async fn work(store: MemoryStore, queue: Arc<InProcessQueue>, sent: Sent) {
    let mut deliveries = queue.consume(&build::hub("a"), 10).await.unwrap();
    loop {
        let delivery = deliveries.next().await.unwrap();
        let (name, batch) = (&delivery.dispatch.rollout, delivery.dispatch.batch);
        let request = build::lease_request(name, batch.0, "worker");
        if let LeaseReply::Granted(lease) = store.lease(&request).await.unwrap() {
            let work = store.load(name, batch).await.unwrap();
            let pending = (0..).zip(work.outcomes.iter());
            let pending = pending.filter(|(_, outcome)| *outcome == Outcome::Pending);
            let reports: Vec<_> = pending
                .map(|(index, _)| build::report(index, end_of(index, work.attempt)))
                .collect();
            for report in &reports {
                let key = (batch, report.index, work.attempt);
                *sent.lock().unwrap().entry(key).or_default() += 1;
            }
            // A worker that has lost the batch records nothing.
            _ = store.record(&lease, &reports, build::TTL).await;
            store.release(&lease).await.unwrap();
        }
        delivery.ticket.ack().await.unwrap();
    }
}

impl Bench {
    /// Starts an engine with 250 devices in three batches.
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let store = MemoryStore::new(Arc::clone(&clock));
        let queue = Arc::new(InProcessQueue::new(1_000));
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(ScriptedHub::of(250)),
            limits: HubLimits {
                sends_per_minute: Some(100.0),
                ..HubLimits::unlimited()
            },
        };
        let (events, sent, stop) = (
            EventLog::default(),
            Sent::default(),
            CancellationToken::new(),
        );
        let orchestrator = Arc::new(Orchestrator {
            store: Arc::new(store.clone()),
            registry: Arc::new(store.clone()),
            queue: Arc::clone(&queue) as Arc<dyn Queue>,
            events: Arc::new(events.clone()),
            hubs: Hubs::from([(build::hub("a"), handle)]),
            metric_source: None,
            clock: Arc::clone(&clock),
            config: OrchestratorConfig::default(),
            id: build::holder("o"),
            status: Arc::new(OrchestratorStatus::default()),
            tracer: Tracer::default(),
        });
        let executor = CommandExecutor {
            store: Arc::new(store.clone()),
            registry: Some(Arc::new(store.clone())),
            hubs: BTreeSet::from([build::hub("a")]),
            has_metric_source: false,
            tracer: Tracer::default(),
            clock,
        };
        let tasks = vec![
            tokio::spawn(work(store.clone(), queue, Arc::clone(&sent))),
            tokio::spawn(orchestrator.run(stop.clone())),
        ];
        Self {
            store,
            executor,
            events,
            sent,
            stop,
            tasks,
        }
    }

    async fn rollout(&self) -> Rollout {
        let rollout = self.store.rollout(&build::name("r")).await;
        rollout.unwrap().unwrap()
    }

    async fn counts(&self) -> Counts {
        Tally::sum(&self.store.tallies(&build::name("r")).await.unwrap())
    }

    /// Waits until the rollout fulfils a condition.
    async fn until(&self, condition: impl Fn(&Rollout) -> bool) -> Rollout {
        let waited = async {
            loop {
                let rollout = self.rollout().await;
                if condition(&rollout) {
                    return rollout;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(600), waited).await {
            Ok(rollout) => rollout,
            Err(_) => panic!("the rollout is {:?}", self.rollout().await.phase),
        }
    }

    async fn until_deactivated(&self) {
        while !self.store.active().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns a bench with an ended rollout: 85 devices have rejected the message, and 83 do not
    /// exist.
    async fn with_failures() -> Self {
        let bench = Self::new();
        bench.store.create(&build::accepted("r")).await.unwrap();
        bench
            .until(|it| it.phase == Phase::FinishedWithFailures)
            .await;
        bench.until_deactivated().await;
        bench
    }

    async fn done(&self, command: Value) -> Answer {
        match self
            .executor
            .handle(command.to_string().as_bytes(), None)
            .await
        {
            Ok(answer) => answer,
            Err(error) => panic!("{command}: {error:?}"),
        }
    }

    async fn refused(&self, command: Value) -> Refusal {
        match self
            .executor
            .handle(command.to_string().as_bytes(), None)
            .await
        {
            Err(CommandError::Refused(refusal)) => refusal,
            other => panic!("{command}: {other:?}"),
        }
    }
}

fn retry(outcomes: &[&str]) -> Value {
    json!({"command": "retry", "rollout": "r", "outcomes": outcomes, "reason": "repaired", "by": "ann"})
}

#[tokio::test(start_paused = true)]
async fn an_ended_rollout_is_driven_and_published_again() {
    let bench = Bench::with_failures().await;
    assert_eq!(bench.counts().await.get(Outcome::Rejected), 85);
    let answer = bench.done(retry(&[])).await;
    assert!(answer.changed);
    assert_eq!(answer.rollouts[0].phase, "running");
    assert_eq!(bench.store.active().await.unwrap(), [build::name("r")]);
    let ended = bench.until(|it| it.phase == Phase::Succeeded).await;
    assert_eq!((ended.attempt, ended.retry), (Attempt(2), None));
    bench.until_deactivated().await;
    assert_eq!(bench.counts().await.get(Outcome::Delivered), 250);

    let sent = bench.sent.lock().unwrap().clone();
    assert!(sent.values().all(|times| *times == 1), "{sent:?}");
    let second = sent.keys().filter(|(_, _, attempt)| *attempt == Attempt(2));
    assert_eq!(second.count(), 85 + 83);
    let events = bench.events.0.lock().unwrap().clone();
    assert_eq!(
        events[3..],
        [
            "rollout.finished_with_failures all_settled",
            "rollout.running retry_requested",
            "rollout.running retry_prepared",
            "rollout.succeeded all_settled",
        ]
    );
    let words = ended.history.iter().find_map(|entry| match &entry.event {
        Event::RetryRequested { attribution, .. } => Some(attribution.to_string()),
        _ => None,
    });
    assert_eq!(words.as_deref(), Some("ann (repaired)"));
}

#[tokio::test(start_paused = true)]
async fn only_the_chosen_outcomes_are_sent_to_again() {
    let bench = Bench::with_failures().await;
    bench.done(retry(&["rejected"])).await;
    bench
        .until(|it| it.attempt == Attempt(2) && it.phase == Phase::FinishedWithFailures)
        .await;
    let counts = bench.counts().await;
    assert_eq!(counts.get(Outcome::Delivered), 82 + 85);
    assert_eq!(counts.get(Outcome::NotFound), 83);

    // A repeated request finds no device and changes nothing.
    let before = bench.rollout().await;
    let again = bench.done(retry(&["rejected", "expired"])).await;
    assert!(!again.changed);
    assert_eq!(
        again.note.as_deref(),
        Some("no device has the outcome expired or rejected")
    );
    assert_eq!(bench.rollout().await, before);
}

/// The devices have failed again when the command arrives for the second time.
#[tokio::test(start_paused = true)]
async fn a_late_repeat_of_a_keyed_retry_adds_no_attempt() {
    let bench = Bench::with_failures().await;
    let mut command = retry(&["rejected"]);
    command["key"] = json!("k");
    bench.done(command.clone()).await;
    let ended = |it: &Rollout| it.attempt == Attempt(2) && it.phase == Phase::FinishedWithFailures;
    bench.until(ended).await;
    let before = bench.rollout().await;
    assert!(
        bench.done(command.clone()).await.changed,
        "the first answer is repeated"
    );
    assert_eq!(bench.rollout().await, before);
    command["outcomes"] = json!(["not_found"]);
    assert_eq!(bench.refused(command).await.cause, Cause::InvalidCommand);
}

/// The state left by a driver that died after the first of three batches.
#[tokio::test(start_paused = true)]
async fn retry_preparation_continues_after_a_driver_crash() {
    let bench = Bench::with_failures().await;
    let (store, name) = (&bench.store, build::name("r"));
    bench.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.done(retry(&[])).await;
    let outcomes = bench.rollout().await.retry.unwrap().outcomes;
    let first = store.reopen(&name, BatchId(0), Attempt(2), &outcomes).await;
    assert!(first.is_ok(), "{first:?}");
    let twice = bench.done(retry(&[])).await;
    assert!(!twice.changed, "the retry is under way");
    let other = bench.refused(retry(&["enqueued"])).await;
    assert_eq!(other.cause, Cause::NotPossible);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let lease = store.lease(&build::lease_request(&name, 0, "w")).await;
    assert_eq!(lease.unwrap(), LeaseReply::NotWanted);

    // Another process on the same store.
    let orchestrator = Arc::new(Orchestrator {
        store: Arc::new(store.clone()),
        registry: Arc::new(store.clone()),
        queue: Arc::new(InProcessQueue::new(10)),
        events: Arc::new(bench.events.clone()),
        hubs: Hubs::new(),
        metric_source: None,
        clock: Arc::new(RuntimeClock::default()),
        config: OrchestratorConfig::default(),
        id: build::holder("p"),
        status: Arc::new(OrchestratorStatus::default()),
        tracer: Tracer::default(),
    });
    let driving = tokio::spawn(orchestrator.run(CancellationToken::new()));
    bench.until(|it| it.retry.is_none()).await;
    driving.abort();
    let counts = bench.counts().await;
    assert_eq!((counts.get(Outcome::Pending), counts.failed()), (168, 0));
    for batch in store.batches(&name, None, 9).await.unwrap() {
        let work = store.load(&name, batch.header.id).await.unwrap();
        assert_eq!(work.attempt, Attempt(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_retry_is_prepared_after_resume() {
    let bench = Bench::with_failures().await;
    bench.done(retry(&["not_found"])).await;
    bench
        .done(json!({"command": "pause", "rollout": "r"}))
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let paused = bench.rollout().await;
    assert!(matches!(paused.phase, Phase::Paused { .. }), "{paused:?}");
    assert!(paused.retry.is_some());
    bench
        .done(json!({"command": "resume", "rollout": "r"}))
        .await;
    bench
        .until(|it| it.retry.is_none() && it.phase == Phase::FinishedWithFailures)
        .await;
    assert_eq!(bench.counts().await.failed(), 85);
}

#[tokio::test(start_paused = true)]
async fn invalid_retries_are_refused_with_valid_alternatives() {
    let bench = Bench::with_failures().await;
    let delivered = bench.refused(retry(&["delivered"])).await;
    assert!(
        delivered
            .error
            .contains("devices with the outcome delivered cannot be retried")
            && delivered.error.ends_with("undeliverable, purged or failed"),
        "{delivered:?}"
    );
    let mut elsewhere = retry(&[]);
    elsewhere["stage"] = "moon".into();
    let elsewhere = bench.refused(elsewhere).await;
    assert_eq!(
        elsewhere.error,
        "cannot retry stage moon of rollout r: the rollout has no such stage; its stages: all"
    );
    let strange = bench.refused(retry(&["lost"])).await;
    assert_eq!(strange.cause, Cause::InvalidCommand);

    let halt = Halt {
        reason: "wrong build".into(),
        by: Some("ann".to_owned()),
        since: bench.executor.clock.now(),
    };
    bench.store.set_halted(Some(&halt)).await.unwrap();
    let stopped = bench.refused(retry(&[])).await;
    assert!(stopped.error.contains("wrong build"), "{stopped:?}");
    bench.store.set_halted(None).await.unwrap();

    bench.store.create(&build::accepted("s")).await.unwrap();
    let early = bench
        .refused(json!({"command": "retry", "rollout": "s"}))
        .await;
    assert_eq!(early.cause, Cause::NotPossible);
}
