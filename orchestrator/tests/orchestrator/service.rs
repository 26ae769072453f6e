//! Several orchestrators on test doubles, with paused time: the drivers of rollouts, and the
//! published events.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{Attempt, BatchId, StageIndex};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    Batches as _, Clock, Halt, LeaseReply, Queue, QueueError, RolloutRegistry, Rollouts as _, Tally,
};
use twincast_core::rollout::{Attribution, Event, Phase, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::events::Events;
use twincast_orchestrator::service::{Orchestrator, OrchestratorConfig, OrchestratorStatus};
use twincast_orchestrator::view::RolloutRow;
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{Condition, FaultyStore, MemoryStore, RuntimeClock, ScriptedHub, build};

use crate::listening::{listen, next_batch};

/// Collects the ids of published events. The first few publications fail.
#[derive(Debug, Clone, Default)]
struct EventLog {
    ids: Arc<Mutex<Vec<String>>>,
    failures: Arc<Mutex<u32>>,
}

#[async_trait]
impl Events for EventLog {
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(QueueError::Unavailable {
                doing: "publish an event",
                source: "scripted".into(),
            });
        }
        let id = event["id"].as_str().unwrap();
        self.ids.lock().unwrap().push(format!("{id} {topic}"));
        Ok(())
    }
}

struct Bench {
    clock: Arc<dyn Clock>,
    store: MemoryStore,
    /// The orchestrators' access to the store.
    faulty_store: FaultyStore,
    queue: Arc<InProcessQueue>,
    hub: ScriptedHub,
    events: EventLog,
}

/// A running orchestrator. Dropping the value is a crash.
struct Working {
    stop: CancellationToken,
    task: JoinHandle<()>,
    status: Arc<OrchestratorStatus>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    fn new(devices: u32) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let store = MemoryStore::new(Arc::clone(&clock));
        Self {
            faulty_store: FaultyStore::new(&store),
            store,
            clock,
            queue: Arc::new(InProcessQueue::new(1_000)),
            hub: ScriptedHub::of(devices),
            events: EventLog::default(),
        }
    }

    fn start(&self, id: &str) -> Working {
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(self.hub.clone()),
            limits: HubLimits {
                sends_per_minute: Some(100.0),
                ..HubLimits::unlimited()
            },
        };
        let status = Arc::new(OrchestratorStatus::default());
        let orchestrator = Arc::new(Orchestrator {
            store: Arc::new(self.faulty_store.clone()),
            registry: Arc::new(self.store.clone()),
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            events: Arc::new(self.events.clone()),
            hubs: Hubs::from([(build::hub("a"), handle)]),
            metric_source: None,
            clock: Arc::clone(&self.clock),
            config: OrchestratorConfig::default(),
            id: build::holder(id),
            status: Arc::clone(&status),
            tracer: Tracer::default(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(orchestrator.run(stop.clone()));
        Working { stop, task, status }
    }

    async fn accept(&self, name: &str) {
        self.store.create(&build::accepted(name)).await.unwrap();
    }

    async fn rollout(&self, name: &str) -> Rollout {
        let rollout = self.store.rollout(&build::name(name)).await;
        rollout.unwrap().unwrap()
    }

    async fn until(&self, name: &str, condition: impl Fn(&Phase) -> bool) -> Rollout {
        let waited = async {
            loop {
                let rollout = self.rollout(name).await;
                if condition(&rollout.phase) {
                    return rollout;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(600), waited).await {
            Ok(rollout) => rollout,
            Err(_) => panic!("{name} is {:?}", self.rollout(name).await.phase),
        }
    }

    /// Handles all dispatches, forever.
    fn work(&self) -> JoinHandle<()> {
        let (store, queue) = (self.store.clone(), Arc::clone(&self.queue));
        tokio::spawn(async move {
            let mut deliveries = queue.consume(&build::hub("a"), 10).await.unwrap();
            loop {
                let delivery = deliveries.next().await.unwrap();
                let (name, batch) = (&delivery.dispatch.rollout, delivery.dispatch.batch);
                let request = build::lease_request(name, batch.0, "worker");
                if let LeaseReply::Granted(lease) = store.lease(&request).await.unwrap() {
                    let devices = store.load(name, batch).await.unwrap().outcomes.len();
                    let reports: Vec<_> = (0..devices as u32)
                        .map(|index| build::report(index, Outcome::Enqueued))
                        .collect();
                    store.record(&lease, &reports, build::TTL).await.unwrap();
                    store.release(&lease).await.unwrap();
                }
                delivery.ticket.ack().await.unwrap();
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn rollouts_are_shared_and_every_event_is_published_once() {
    let bench = Bench::new(300);
    *bench.events.failures.lock().unwrap() = 3;
    let names: Vec<_> = (0..12).map(|n| format!("r{n:02}")).collect();
    for name in &names {
        bench.accept(name).await;
    }
    let (one, two) = (bench.start("one"), bench.start("two"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let driving = [&one, &two].map(|working| working.status.metrics.driven.get());
    assert_eq!(driving.iter().sum::<i64>(), 12, "{driving:?}");
    assert!(driving.iter().all(|n| *n >= 4), "{driving:?}");
    let worker = bench.work();
    for name in &names {
        bench.until(name, |phase| *phase == Phase::Succeeded).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(bench.store.active().await.unwrap().is_empty());
    worker.abort();
    let ids = bench.events.ids.lock().unwrap().clone();
    let of_one: Vec<_> = ids.iter().filter(|id| id.starts_with("r07/")).collect();
    assert_eq!(
        of_one,
        [
            "r07/1 rollout.accepted",
            "r07/2 rollout.planning",
            "r07/3 rollout.running",
            "r07/4 rollout.succeeded"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_rollout_is_taken_over_within_fifteen_seconds() {
    let bench = Bench::new(300);
    bench.accept("r").await;
    let first = bench.start("first");
    bench.until("r", |phase| *phase == Phase::Running).await;
    drop(first);
    let died = Instant::now();
    let _second = bench.start("second");
    let worker = bench.work();
    bench.until("r", |phase| *phase == Phase::Succeeded).await;
    assert!(
        died.elapsed() < Duration::from_secs(15),
        "{:?}",
        died.elapsed()
    );
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stopping_orchestrator_releases_claims_at_once() {
    let bench = Bench::new(300);
    bench.accept("r").await;
    let mut first = bench.start("first");
    bench.until("r", |phase| *phase == Phase::Running).await;
    first.stop.cancel();
    (&mut first.task).await.unwrap();
    let (name, other) = (build::name("r"), build::holder("x"));
    let held = bench.store.claim(&[name], &other, build::TTL).await;
    assert!(held.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_paused_rollout_stays_driven_and_continues_on_resume() {
    let bench = Bench::new(300);
    bench.accept("r").await;
    let _one = bench.start("one");
    let running = bench.until("r", |phase| *phase == Phase::Running).await;
    let paused = build::apply(&bench.store, &running, build::pause_requested()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let worker = bench.work();
    build::apply(
        &bench.store,
        &paused,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    bench.until("r", |phase| *phase == Phase::Succeeded).await;
    worker.abort();
}

async fn counts(bench: &Bench) -> Counts {
    Tally::sum(&bench.store.tallies(&build::name("r")).await.unwrap())
}

/// Starts a rollout, and pauses the rollout once all devices have the message.
async fn sent_and_paused(bench: &Bench, message: &str) -> Rollout {
    let spec =
        format!("{{name: r, target: {{all: true}}, message: {{body: {{text: x}}, {message}}}}}");
    let spec = RolloutSpec::read("x", &spec).unwrap();
    let rollout = Rollout::accepted(spec, Default::default(), bench.clock.now());
    bench.store.create(&rollout).await.unwrap();
    let worker = bench.work();
    let sent = async {
        while counts(bench).await.get(Outcome::Enqueued) < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let sent = tokio::time::timeout(Duration::from_secs(600), sent).await;
    sent.expect("all devices are sent to");
    worker.abort();
    let running = bench.rollout("r").await;
    build::apply(&bench.store, &running, build::pause_requested()).await
}

#[tokio::test(start_paused = true)]
async fn answers_are_counted_while_a_rollout_is_paused() {
    let bench = Bench::new(3);
    let _one = bench.start("one");
    let paused = sent_and_paused(&bench, "properties: {kind: update}").await;
    let answers = [
        ("applied", ""),
        ("failed", "disk_full: 3 MB are missing"),
        ("installing", ""),
    ];
    for ((state, error), index) in answers.into_iter().zip(0..) {
        let id = MessageId {
            rollout: build::name("r"),
            id: paused.id,
            stage: StageIndex(0),
            batch: BatchId(0),
            index,
            attempt: Attempt(1),
        };
        let device = build::device(&format!("device-{index:06}"));
        bench.hub.report(&device, &id.to_string(), state, error);
    }
    // A failed save is repeated.
    let store = &bench.faulty_store;
    store.set_of("save_notes", Condition::Broken);
    tokio::time::sleep(Duration::from_secs(70)).await;
    let unsaved = bench.rollout("r").await.notes.answers;
    assert!(unsaved.stages().all(|(_, it)| it.applied == 0));
    store.set_of("save_notes", Condition::Open);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let paused = bench.rollout("r").await;
    assert!(
        matches!(paused.phase, Phase::Paused { .. }),
        "{:?}",
        paused.phase
    );
    let counted = paused.notes.answers.stages().next().map(|(_, it)| *it);
    let counted = counted.map(|it| (it.applied, it.failed, it.installing));
    assert_eq!(counted, Some((1, 1, 1)));
    assert_eq!(counts(&bench).await.get(Outcome::Failed), 1);
}

/// Workers started during the pause would not listen otherwise, and the hub discards feedback after
/// an hour.
#[tokio::test(start_paused = true)]
async fn a_worker_listens_to_feedback_while_a_rollout_is_paused() {
    let bench = Bench::new(3);
    let _one = bench.start("one");
    sent_and_paused(&bench, "ack: full").await;
    let hub = build::hub("a");
    let mut deliveries = bench.queue.consume(&hub, 10).await.unwrap();
    let mut next = async |within| next_batch(&mut *deliveries, within).await;
    assert_eq!(next(10).await, Some(BatchId(0)), "no worker listens");
    listen(&bench.store, &hub, 10).await;
    // Dispatches of before the first report.
    while next(1).await.is_some() {}
    listen(&bench.store, &hub, 60).await;
    assert_eq!(next(1).await, None, "a worker listens");
    assert_eq!(next(30).await, Some(BatchId(0)), "the worker has ended");
}

#[tokio::test(start_paused = true)]
async fn new_rollouts_are_halted_during_stop_all() {
    let bench = Bench::new(300);
    let halt = Halt {
        reason: "wrong build".into(),
        by: Some("ann".to_owned()),
        since: bench.clock.now(),
    };
    bench.store.set_halted(Some(&halt)).await.unwrap();
    bench.accept("r").await;
    let _one = bench.start("one");
    let rollout = bench
        .until("r", |phase| matches!(phase, Phase::Halted { .. }))
        .await;
    assert_eq!(rollout.phase.reason(), Some("wrong build"));
    let depth = bench.queue.depth(&build::hub("a")).await.unwrap();
    assert_eq!(depth.waiting, 0, "nothing was released");
}

#[tokio::test(start_paused = true)]
async fn a_late_halt_is_lifted_automatically() {
    let bench = Bench::new(300);
    bench.accept("r").await;
    let _one = bench.start("one");
    let running = bench.until("r", |phase| *phase == Phase::Running).await;
    // A driver has halted the rollout by a switch read just before the reset.
    let halt = Event::HaltRequested {
        reason: "wrong build".into(),
    };
    build::apply(&bench.store, &running, halt).await;
    bench.until("r", |phase| *phase == Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn hub_outage_during_planning_is_reported_with_next_try() {
    let bench = Bench::new(150);
    bench.hub.set_down(true);
    bench.accept("r").await;
    let _working = bench.start("one");
    tokio::time::sleep(Duration::from_secs(300)).await;
    let rollout = bench.rollout("r").await;
    assert_eq!(rollout.phase, Phase::Planning);
    let row = RolloutRow::of(&rollout, &[], bench.clock.now());
    let waits = row.waits_for.unwrap();
    let start = "its devices to be found: cannot find the devices of hub a: cannot list devices on \
         the scripted hub: it is down; failing since ";
    assert!(waits.starts_with(start), "{waits}");
    assert_eq!(
        row.state.reason.as_deref(),
        Some(&*format!("waits for {waits}"))
    );
    let trouble = rollout.search_trouble().unwrap();
    assert!(
        trouble.since < RuntimeClock::start().plus(Duration::from_secs(5)),
        "{trouble}"
    );
    assert!(trouble.next_try > Some(bench.clock.now()), "{trouble}");
    // Each try costs one write.
    assert!(rollout.plan_id.0 < 40, "{:?}", rollout.plan_id);

    // Another orchestrator shows the trouble, too, and continues.
    bench.hub.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let rollout = bench.rollout("r").await;
    assert_eq!(
        (rollout.phase, rollout.notes.search),
        (Phase::Running, None)
    );
}

/// A claim holds for 10 s, and up to half a second passes until the next poll.
#[tokio::test(start_paused = true)]
async fn many_rollouts_are_taken_over_within_twelve_seconds() {
    const MANY: i64 = 150;
    let bench = Bench::new(10);
    for n in 0..MANY {
        bench.accept(&format!("r{n:03}")).await;
    }
    let driven = |working: &Working| working.status.metrics.driven.get();
    let until_all = async |working: &Working| {
        while driven(working) < MANY {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let first = bench.start("first");
    until_all(&first).await;
    let second = bench.start("second");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(driven(&second), 0);
    drop(first);
    let died = Instant::now();
    until_all(&second).await;
    let took = died.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

/// A paused rollout, a rollout outside its window, and a rollout with a missing approval.
#[tokio::test(start_paused = true)]
async fn idle_rollouts_cause_few_store_calls() {
    let bench = Bench::new(10);
    let closed = "schedule: {windows: [{days: [sun], from: '00:00', for: 1h}]}";
    let gated = "stages: [{name: first, percent: 50%, gate: {approval: {}}}]";
    for (name, more) in [("paused", ""), ("closed", closed), ("gated", gated)] {
        let target = "target: {all: true}, message: {body: {text: hi}}";
        let spec = RolloutSpec::read("test", &format!("{{name: {name}, {target}, {more}}}"));
        let mut rollout = Rollout::accepted(spec.unwrap(), Default::default(), bench.clock.now());
        if name == "paused" {
            rollout = build::after(&rollout, build::pause_requested());
        }
        bench.store.create(&rollout).await.unwrap();
    }
    let _one = bench.start("one");
    let worker = bench.work();
    let running = |phase: &Phase| *phase == Phase::Running;
    bench.until("closed", running).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    worker.abort();
    let gated = bench.until("gated", running).await;
    assert!(gated.stages[0].approval_awaited_at.is_some());
    let is_paused = |phase: &Phase| matches!(phase, Phase::Paused { .. });
    bench.until("paused", is_paused).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = bench.faulty_store.calls();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let calls = bench.faulty_store.calls() - before;
    assert!(calls < 3 * 300 / 2, "{calls} calls in 300 s");

    // Changes are noticed at once nevertheless.
    let attribution = Attribution::default();
    let stage = gated.stages[0].name.clone();
    let approved = Event::Approved { stage, attribution };
    let _approved = build::apply(&bench.store, &gated, approved).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(bench.rollout("gated").await.stages[0].passed_at.is_some());
}
