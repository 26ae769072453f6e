//! Gates with metrics: the driver on test doubles, with a scripted source of metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::hub::HubLimits;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Batches as _, Clock, Delivery, LeaseReply, MetricSource, Queue, Store, Tally,
};
use twincast_core::rollout::{Attribution, Event, Phase, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::accept::accept;
use twincast_orchestrator::changes::ChangeSource;
use twincast_orchestrator::driver::{Driver, DriverConfig, Repairs};
use twincast_orchestrator::planner::PlanProgress;
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{
    MemoryStore, MetricAnswer, RuntimeClock, ScriptedHub, ScriptedMetrics, build,
};

const GATE: &str = "bake: 1s, metrics: [{name: errors, query: 'sum(up)', success: '>= 0.99', failure: '< 0.95', count: 3}]";

struct Bench {
    store: Arc<MemoryStore>,
    queue: Arc<InProcessQueue>,
    source: ScriptedMetrics,
    clock: Arc<dyn Clock>,
    hub: ScriptedHub,
}

impl Bench {
    /// Accepts a rollout to ten devices in two stages. A worker handles all dispatches.
    async fn new(gate: &str, answers: impl IntoIterator<Item = MetricAnswer>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let bench = Self {
            store: Arc::new(MemoryStore::new(Arc::clone(&clock))),
            queue: Arc::new(InProcessQueue::new(100)),
            source: ScriptedMetrics::new(answers),
            hub: ScriptedHub::of(10),
            clock,
        };
        let spec = format!(
            "{{name: r, target: {{all: true}}, message: {{body: {{text: x}}}}, stages: [{{name: s, percent: 50%, gate: {{{gate}}}}}]}}"
        );
        let spec = RolloutSpec::read("x", &spec).unwrap();
        let now = bench.clock.now();
        accept(
            &*bench.store,
            Rollout::accepted(spec, Default::default(), now),
        )
        .await
        .unwrap();
        let (store, mut deliveries) = (
            Arc::clone(&bench.store),
            bench.queue.consume(&build::hub("a"), 10).await.unwrap(),
        );
        tokio::spawn(async move {
            while let Ok(delivery) = deliveries.next().await {
                settle(&store, delivery).await;
            }
        });
        bench
    }

    fn driver(&self) -> Driver {
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(self.hub.clone()),
            limits: HubLimits::unlimited(),
        };
        Driver {
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            hubs: Hubs::from([(build::hub("a"), handle)]),
            metric_source: Some(Arc::new(self.source.clone()) as Arc<dyn MetricSource>),
            clock: Arc::clone(&self.clock),
            config: DriverConfig::default(),
            base: ".".into(),
            planning: PlanProgress::default(),
            changes: ChangeSource::Polled,
            broker: Arc::default(),
            repairs: Repairs::default(),
            tracer: Tracer::default(),
        }
    }

    async fn drive(&self) -> Rollout {
        let (driver, stop) = (self.driver(), CancellationToken::new());
        let name = build::name("r");
        let driving = driver.drive(&name, &stop);
        let driven = timeout(Duration::from_secs(7_200), driving).await;
        driven.expect("the rollout ends").unwrap()
    }

    async fn sent(&self) -> u64 {
        let tallies = self.store.tallies(&build::name("r")).await.unwrap();
        Tally::sum(&tallies).settled()
    }
}

async fn settle(store: &MemoryStore, delivery: Delivery) {
    let (name, batch) = (build::name("r"), delivery.dispatch.batch);
    let request = build::lease_request(&name, batch.0, "worker");
    if let LeaseReply::Granted(lease) = store.lease(&request).await.unwrap() {
        let work = store.load(&name, batch).await.unwrap();
        let devices = 0..work.header().devices;
        let reports: Vec<_> = devices
            .map(|index| build::report(index, Outcome::Enqueued))
            .collect();
        store.record(&lease, &reports, build::TTL).await.unwrap();
        store.release(&lease).await.unwrap();
    }
    delivery.ticket.ack().await.unwrap();
}

fn reason(rollout: &Rollout) -> &str {
    rollout.phase.reason().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_stage_passes_after_enough_metric_successes() {
    let bench = Bench::new(GATE, [Ok(vec![1.0])]).await;
    let began = Instant::now();
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    // Once at the start of the stage, before any send, and then three times, a minute apart.
    assert_eq!(bench.source.queries(), vec!["sum(up)"; 4]);
    let took = began.elapsed().as_secs();
    assert!((180..190).contains(&took), "{took}");
    assert_eq!(rollout.stages[0].metrics[0].succeeded, 3);
    assert_eq!(bench.sent().await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_failed_metric_stops_the_rollout_before_the_next_stage() {
    let answers = [Ok(vec![1.0]), Ok(vec![0.99]), Ok(vec![0.5])];
    let bench = Bench::new(GATE, answers).await;
    let rollout = bench.drive().await;
    assert_eq!(
        reason(&rollout),
        "the gate of stage s failed: metric errors has failed once (limit 0); last result 0.5, \
         expected >= 0.99 and not < 0.95"
    );
    assert_eq!(bench.sent().await, 5);
}

#[tokio::test(start_paused = true)]
async fn an_unmeasurable_metric_pauses_and_resume_queries_again() {
    let away = || Err("connection refused".to_owned());
    let answers = [away(), away(), away(), away(), away(), Ok(vec![1.0])];
    let bench = Bench::new(GATE, answers).await;
    let rollout = bench.drive().await;
    assert_eq!(
        reason(&rollout),
        "the gate of stage s cannot be judged: metric errors could not be measured 5 times in a \
         row (limit 4); last result cannot query the script: connection refused"
    );
    assert_eq!((bench.source.queries().len(), bench.sent().await), (5, 5));
    build::apply(
        &*bench.store,
        &rollout,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    assert_eq!(bench.drive().await.phase, Phase::Succeeded);
    assert_eq!(bench.source.queries().len(), 8);
}

/// The measurements are in the record: another driver continues from there, and queries no earlier
/// than the first driver would.
#[tokio::test(start_paused = true)]
async fn measurements_survive_the_driver() {
    let bench = Bench::new(GATE, [Ok(vec![1.0])]).await;
    let driver = bench.driver();
    let stop = CancellationToken::new();
    let name = build::name("r");
    tokio::select! {
        _ = driver.drive(&name, &stop) => panic!("the rollout ended too early"),
        () = sleep(Duration::from_secs(130)) => {}
    }
    assert_eq!(bench.source.queries().len(), 3);
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    assert_eq!(bench.source.queries().len(), 4);
}

/// A slow query holds up nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_metric_source_does_not_delay_sends() {
    #[derive(Debug)]
    struct Silent;
    #[async_trait::async_trait]
    impl MetricSource for Silent {
        async fn ask(&self, _: &str) -> Result<Vec<f64>, twincast_core::ports::MetricSourceError> {
            std::future::pending().await
        }
    }
    let bench = Bench::new(GATE, []).await;
    let driver = Driver {
        metric_source: Some(Arc::new(Silent)),
        ..bench.driver()
    };
    let stop = CancellationToken::new();
    let name = build::name("r");
    tokio::select! {
        _ = driver.drive(&name, &stop) => panic!("the rollout ended without the metric"),
        () = sleep(Duration::from_secs(30)) => {}
    }
    assert_eq!(bench.sent().await, 5);
}
