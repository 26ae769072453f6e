//! The driver on test doubles: pending work, lost dispatches, and the end of a rollout.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::account::Activity;
use twincast_core::error::describe;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{Attempt, BatchId, DeviceId, Holder, HubName};
use twincast_core::link::{LinkReport, LinkState};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::BatchHeader;
use twincast_core::ports::{
    Batches as _, Clock, Deliveries, Depth, DevicePage, DeviceRow, Dispatch, HubTrouble,
    LeaseReply, Limiter as _, MalformedRow, Presence as _, Queue, QueueError, Rollouts as _, Store,
};
use twincast_core::rollout::{Adding, Attribution, Event, Phase, PlanId, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::Timestamp;
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::accept::{SubmitResult, accept};
use twincast_orchestrator::changes::ChangeSource;
use twincast_orchestrator::command::RolloutState;
use twincast_orchestrator::driver::{Driver, DriverConfig, Repairs};
use twincast_orchestrator::planner::PlanProgress;
use twincast_orchestrator::view::hubs::HubView;
use twincast_orchestrator::view::{RolloutRow, RolloutView, explain};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{Condition, FaultyStore, MemoryStore, RuntimeClock, ScriptedHub, build};

use crate::listening::{listen, next_batch};

struct Bench {
    store: Arc<MemoryStore>,
    queue: Arc<InProcessQueue>,
    hub: ScriptedHub,
    driver: Arc<Driver>,
    stop: CancellationToken,
}

fn bench(devices: u32, config: DriverConfig) -> Bench {
    bench_on(ScriptedHub::of(devices), config)
}

fn bench_on(hub: ScriptedHub, config: DriverConfig) -> Bench {
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
    let store = Arc::new(MemoryStore::new(Arc::clone(&clock)));
    let queue = Arc::new(InProcessQueue::new(1_000));
    // A hundred devices per batch.
    let limits = HubLimits {
        sends_per_minute: Some(100.0),
        ..HubLimits::unlimited()
    };
    let hubs = Hubs::from([(
        build::hub("a"),
        HubHandle {
            host: build::host("a"),
            hub: Arc::new(hub.clone()),
            limits,
        },
    )]);
    let driver = Driver {
        store: Arc::clone(&store) as Arc<dyn Store>,
        queue: Arc::clone(&queue) as Arc<dyn Queue>,
        hubs,
        metric_source: None,
        clock,
        config,
        base: ".".into(),
        planning: PlanProgress::default(),
        changes: ChangeSource::Polled,
        broker: Arc::default(),
        repairs: Repairs::default(),
        tracer: Tracer::default(),
    };
    Bench {
        store,
        queue,
        hub,
        driver: Arc::new(driver),
        stop: CancellationToken::new(),
    }
}

/// The same rollout, submitted again.
fn handed_in(rollout: Rollout, at: u64) -> Rollout {
    Rollout::accepted(rollout.spec, rollout.files, Timestamp(at))
}

impl Bench {
    async fn accepted(&self) -> Rollout {
        self.accepts(build::accepted("r")).await
    }

    async fn accepts(&self, rollout: Rollout) -> Rollout {
        match accept(&*self.store, handed_in(rollout, 1)).await.unwrap() {
            SubmitResult::New(rollout) => *rollout,
            other => panic!("{other:?}"),
        }
    }

    fn drive(&self) -> tokio::task::JoinHandle<Rollout> {
        let (driver, stop) = (Arc::clone(&self.driver), self.stop.clone());
        tokio::spawn(async move { driver.drive(&build::name("r"), &stop).await.unwrap() })
    }

    /// Handles a dispatch: every remaining device of the batch gets `outcome`.
    async fn settle(&self, batch: BatchId, outcome: Outcome) {
        let name = build::name("r");
        let request = build::lease_request(&name, batch.0, "worker");
        let LeaseReply::Granted(lease) = self.store.lease(&request).await.unwrap() else {
            return;
        };
        let work = self.store.load(&name, batch).await.unwrap();
        let left = work.devices().filter(|it| !it.outcome.is_settled());
        let reports: Vec<_> = left.map(|it| build::report(it.index, outcome)).collect();
        self.store
            .record(&lease, &reports, build::TTL)
            .await
            .unwrap();
        self.store.release(&lease).await.unwrap();
    }

    /// Reports that all devices have taken their first message.
    async fn deliver_all(&self) {
        let name = build::name("r");
        for batch in self.store.batches(&name, None, 100).await.unwrap() {
            let reports = 0..batch.header.devices;
            let reports: Vec<_> = reports
                .map(|index| build::report(index, Outcome::Delivered))
                .collect();
            let rollout = self.store.rollout(&name).await.unwrap().unwrap();
            let merged =
                self.store
                    .merge(&name, rollout.id, batch.header.id, Attempt::FIRST, &reports);
            merged.await.unwrap();
        }
    }

    async fn event(&self, event: Event) {
        let rollout = self
            .store
            .rollout(&build::name("r"))
            .await
            .unwrap()
            .unwrap();
        build::apply(&*self.store, &rollout, event).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_is_planned_released_and_ended() {
    let bench = bench(
        1_000,
        DriverConfig {
            per_consumer: 0,
            ahead: 3,
            ..DriverConfig::default()
        },
    );
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    for _ in 0..10 {
        let delivery = deliveries.next().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            bench.queue.depth(&build::hub("a")).await.unwrap().waiting <= 2,
            "at most three batches are released"
        );
        bench
            .settle(delivery.dispatch.batch, Outcome::Enqueued)
            .await;
        delivery.ticket.ack().await.unwrap();
    }
    let rollout = driving.await.unwrap();
    assert_eq!(rollout.phase, Phase::Succeeded);
    assert_eq!(rollout.plan.unwrap().devices, 1_000);
}

#[tokio::test(start_paused = true)]
async fn batches_are_never_released_for_another_hub_host() {
    let bench = bench(20, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    bench
        .queue
        .consume(&build::hub("a"), 1)
        .await
        .unwrap()
        .next()
        .await
        .unwrap();
    bench.stop.cancel();
    driving.await.unwrap();

    let mut moved = Bench {
        stop: CancellationToken::new(),
        ..bench
    };
    let driver = Arc::get_mut(&mut moved.driver).expect("the driver is not shared");
    driver.hubs.get_mut(&build::hub("a")).unwrap().host = build::host("production");
    let refused = moved.driver.drive(&build::name("r"), &moved.stop).await;
    let refused = describe(&refused.expect_err("the host of the hub has changed"));
    for words in ["a.azure-devices.net", "production.azure-devices.net"] {
        assert!(refused.contains(words), "{refused}");
    }
    let waits = moved.waits_for().await.unwrap_or_default();
    assert!(waits.starts_with("hub a at a.azure-devices.net"), "{waits}");
    // An abort needs no hub.
    moved
        .event(Event::AbortRequested { reason: "x".into() })
        .await;
    let aborted = moved.driver.drive(&build::name("r"), &moved.stop).await;
    assert_eq!(aborted.unwrap().phase.as_str(), "aborted");
    assert_eq!(moved.hub.sends(), 0);
}

/// A hub's refusal shows in the rollout's time account until the pace is restored, and the account
/// adds up.
#[tokio::test(start_paused = true)]
async fn throttled_time_is_accounted_as_throttled() {
    let bench = bench(100, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    bench.store.throttled(&build::hub("a"), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench
        .settle(delivery.dispatch.batch, Outcome::Enqueued)
        .await;
    delivery.ticket.ack().await.unwrap();
    let rollout = driving.await.unwrap();
    let end = rollout.changed_at;
    let spent = rollout.time_spent(end.plus(Duration::from_secs(99)));
    assert_eq!(spent.total(), end.since(rollout.created_at));
    // The pace is cut by 30 % and regains one per second.
    let throttled = spent.on(Activity::Throttled).as_secs();
    assert!((29..=33).contains(&throttled), "{throttled}");
    let sending = spent.on(Activity::Sending).as_secs();
    assert!((47..=53).contains(&sending), "{sending}");
    assert_eq!(rollout.version.0, 4, "notes are not versioned");
}

#[tokio::test(start_paused = true)]
async fn a_lost_dispatch_is_published_again() {
    let bench = bench(150, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    for _ in 0..2 {
        // Acknowledged without any work: the same as lost.
        deliveries.next().await.unwrap().ticket.ack().await.unwrap();
    }
    let lost_at = Instant::now();
    for outcome in [Outcome::Enqueued, Outcome::NotFound] {
        let delivery = deliveries.next().await.unwrap();
        bench.settle(delivery.dispatch.batch, outcome).await;
        delivery.ticket.ack().await.unwrap();
    }
    let waited = lost_at.elapsed();
    assert!((2..4).contains(&waited.as_secs()), "{waited:?}");
    assert!(bench.driver.repairs.count() >= 2);
    assert_eq!(driving.await.unwrap().phase, Phase::FinishedWithFailures);
}

/// The message is unconfirmed or unanswered for all devices. No running worker knows the rollout.
#[tokio::test(start_paused = true)]
async fn hubs_with_unanswered_devices_get_a_listening_worker() {
    for outcome in [Outcome::Enqueued, Outcome::Unknown] {
        let bench = bench(1, DriverConfig::default());
        bench.accepts(with("full", "order: shuffled")).await;
        let driving = bench.drive();
        let hub = build::hub("a");
        let mut deliveries = bench.queue.consume(&hub, 100).await.unwrap();
        let mut next = async |within| next_batch(&mut *deliveries, within).await;
        let batch = next(10).await.expect("the batch is dispatched");
        bench.settle(batch, outcome).await;
        assert_eq!(next(10).await, Some(batch), "{outcome}: no listener");
        listen(&*bench.store, &hub, 600).await;
        assert_eq!(next(1).await, None, "{outcome}: a worker listens");
        // The last listening worker is gone.
        assert_eq!(next(30).await, Some(batch), "{outcome}: listener lost");
        bench.stop.cancel();
        driving.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_crashed_plan_is_replaced_without_leftovers() {
    let bench = bench(250, DriverConfig::default());
    let rollout = bench.accepted().await;
    // The first try got as far as two batches, including a device that has left since.
    let rollout = build::apply(&*bench.store, &rollout, Event::PlanningStarted).await;
    bench
        .store
        .add_batches(
            &build::name("r"),
            Adding::Plan(rollout.plan_id),
            vec![build::batch(0, 7), build::batch(9, 1)],
        )
        .await
        .unwrap();
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    deliveries.next().await.unwrap();
    let planned = bench
        .store
        .rollout(&build::name("r"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            planned.plan_id,
            planned.plan.map(|plan| (plan.devices, plan.batches))
        ),
        (PlanId(2), Some((250, 3)))
    );
    let batches = bench
        .store
        .batches(&build::name("r"), None, 10)
        .await
        .unwrap();
    let devices: Vec<_> = batches.iter().map(|batch| batch.header.devices).collect();
    assert_eq!(devices, [100, 100, 50]);
    driving.abort();
}

#[tokio::test(start_paused = true)]
async fn an_abort_skips_remaining_devices_once_leases_are_released() {
    let bench = bench(300, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    let first = deliveries.next().await.unwrap();
    bench.settle(first.dispatch.batch, Outcome::Enqueued).await;
    let second = deliveries.next().await.unwrap().dispatch.batch;
    let lease = build::leased(&*bench.store, &build::name("r"), second.0, "slow").await;
    bench.event(build::abort_requested()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!driving.is_finished(), "a worker still holds a batch");
    bench
        .store
        .record(&lease, &[build::report(0, Outcome::Enqueued)], build::TTL)
        .await
        .unwrap();
    bench.store.release(&lease).await.unwrap();
    let rollout = driving.await.unwrap();
    assert!(matches!(rollout.phase, Phase::Aborted { .. }));
    let tallies = bench.store.tallies(&build::name("r")).await.unwrap();
    let counts = tallies[0].counts;
    assert_eq!(
        (counts.get(Outcome::Enqueued), counts.get(Outcome::Skipped)),
        (101, 199)
    );
}

/// Batches of a planning try belong to no plan.
#[tokio::test(start_paused = true)]
async fn an_abort_before_the_plan_is_whole_counts_no_devices() {
    let bench = bench(0, DriverConfig::default());
    let planning = build::planning(&*bench.store, "r").await;
    let by = Adding::Plan(planning.plan_id);
    let added = bench
        .store
        .add_batches(&planning.spec.name, by, vec![build::batch(0, 8)]);
    added.await.unwrap();
    bench.event(build::abort_requested()).await;
    let ended = bench.drive().await.unwrap();
    let counts = Counts::default();
    assert_eq!(
        ended.change_entry().unwrap().event,
        Event::AllSettled { counts }
    );
}

#[tokio::test(start_paused = true)]
async fn driver_returns_at_a_pause_and_stop_keeps_the_phase() {
    let bench = bench(300, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    deliveries.next().await.unwrap();
    bench.event(build::pause_requested()).await;
    assert!(matches!(driving.await.unwrap().phase, Phase::Paused { .. }));
    bench
        .event(Event::ResumeRequested {
            attribution: Attribution::default(),
        })
        .await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.stop.cancel();
    assert_eq!(driving.await.unwrap().phase, Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn an_empty_target_fails_and_frees_the_name() {
    let bench = bench(0, DriverConfig::default());
    let rollout = bench.accepted().await;
    let ended = bench.drive().await.unwrap();
    assert_eq!(
        ended.phase,
        Phase::Failed {
            reason: "the target matches no device".into()
        }
    );
    let again = accept(&*bench.store, handed_in(rollout.clone(), 2))
        .await
        .unwrap();
    let SubmitResult::New(again) = again else {
        panic!("{again:?}");
    };
    // The earlier events are still to be published.
    let versions: Vec<_> = again.history.iter().map(|entry| entry.version.0).collect();
    assert_eq!(versions, [1, 2, 3, 4]);
    // A running rollout keeps its name: a repetition is accepted, another spec is not.
    let same = accept(&*bench.store, handed_in(rollout.clone(), 3))
        .await
        .unwrap();
    assert!(matches!(same, SubmitResult::Same(_)), "{same:?}");
    let mut other = rollout;
    other.spec.description = Some("something else".into());
    match accept(&*bench.store, handed_in(other, 4)).await.unwrap() {
        SubmitResult::Conflict { difference, .. } => {
            assert_eq!(difference, ["description: \"something else\" was added"]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn planning_is_retried_after_a_hub_outage() {
    let bench = bench(50, DriverConfig::default());
    bench.accepted().await;
    bench.hub.set_down(true);
    let error = bench
        .driver
        .drive(&build::name("r"), &bench.stop)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot query the hubs for rollout r");
    bench.hub.set_down(false);
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    bench
        .settle(delivery.dispatch.batch, Outcome::Enqueued)
        .await;
    assert_eq!(driving.await.unwrap().phase, Phase::Succeeded);
    let headers: Vec<BatchHeader> = bench
        .store
        .batches(&build::name("r"), None, 9)
        .await
        .unwrap()
        .into_iter()
        .map(|b| b.header)
        .collect();
    assert_eq!(headers.len(), 1);
}

/// The devices `from` to `to` of the scripted hub.
fn devices(from: u32, to: u32) -> impl Iterator<Item = DeviceId> {
    (from..to).map(|n| build::device(&format!("device-{n:06}")))
}

impl Bench {
    /// Handles every dispatch, forever.
    fn settles_all(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let bench = Arc::clone(self);
        tokio::spawn(async move {
            let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
            while let Ok(delivery) = deliveries.next().await {
                let batch = delivery.dispatch.batch;
                bench.settle(batch, Outcome::Enqueued).await;
                delivery.ticket.ack().await.unwrap();
            }
        })
    }

    async fn rollout(&self) -> Rollout {
        let rollout = self.store.rollout(&build::name("r")).await;
        rollout.unwrap().unwrap()
    }

    /// Returns the displayed reason for the rollout's wait.
    async fn waits_for(&self) -> Option<String> {
        let tallies = self.store.tallies(&build::name("r")).await.unwrap();
        let now = self.driver.clock.now();
        RolloutRow::of(&self.rollout().await, &tallies, now).waits_for
    }

    async fn outcomes(&self) -> Vec<(u64, u64)> {
        let tallies = self.store.tallies(&build::name("r")).await.unwrap();
        let stages = tallies.iter().map(|tally| {
            let counts = &tally.counts;
            (counts.get(Outcome::Enqueued), counts.get(Outcome::Skipped))
        });
        stages.collect()
    }
}

fn continuous(seconds: u64) -> Rollout {
    let mut rollout = build::continuous("r");
    if let Some(continuous) = &mut rollout.spec.continuous {
        let end = RuntimeClock::start().plus(Duration::from_secs(seconds));
        continuous.until = Some(end);
    }
    rollout
}

#[tokio::test(start_paused = true)]
async fn late_joiners_are_sent_to_until_the_end() {
    let bench = Arc::new(bench(150, DriverConfig::default()));
    let settling = bench.settles_all();
    bench.accepts(continuous(3 * 3600)).await;
    let driving = bench.drive();
    let hours = |hours: u64| tokio::time::sleep(Duration::from_secs(3600 * hours));
    let minute = Duration::from_secs(60);

    // A scan without results leaves no trace except its number.
    hours(1).await;
    tokio::time::sleep(minute).await;
    let first = bench.rollout().await;
    assert_eq!(first.scans.map(|scans| scans.newest.0), Some(1));
    assert_eq!(first.notes.account.doing(), Activity::LateJoiners);
    assert_eq!(first.history.len(), 4);

    bench.hub.set_devices(devices(0, 190));
    hours(1).await;
    let second = bench.rollout().await;
    assert_eq!(second.plan.as_ref().map(|plan| plan.devices), Some(190));
    assert_eq!(bench.outcomes().await, [(150, 0), (40, 0)]);

    // A failed scan is started again, and sends continue.
    bench.hub.set_down(true);
    bench.hub.set_devices(devices(0, 191));
    hours(1).await;
    tokio::time::sleep(10 * minute).await;
    let third = bench.rollout().await;
    assert!(third.scans.unwrap().newest.0 > 3, "{:?}", third.scans);
    assert_eq!(third.phase, Phase::Running);
    assert!(!driving.is_finished());
    let waits = bench.waits_for().await.unwrap();
    assert!(
        waits.starts_with("devices to join the target; a scan is under way; scans fail: ")
            && waits.contains("it is down; failing since ")
            && waits.contains(", next try at "),
        "{waits}"
    );
    bench.hub.set_down(false);
    let rollout = driving.await.unwrap();
    assert_eq!(rollout.phase, Phase::Succeeded);
    assert_eq!(rollout.notes.search, None);
    assert_eq!(bench.outcomes().await, [(150, 0), (41, 0)]);
    let spent = rollout.time_spent(rollout.changed_at);
    assert!(spent.on(Activity::LateJoiners) > 3 * 3600 * Duration::from_secs(1));
    settling.abort();
}

#[tokio::test(start_paused = true)]
async fn departed_devices_are_skipped_and_may_rejoin() {
    let bench = Arc::new(bench(150, DriverConfig::default()));
    bench.accepts(continuous(2 * 3600)).await;
    let driving = bench.drive();
    // Without a worker, no device is sent to.
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.hub.set_devices(devices(0, 90));
    tokio::time::sleep(Duration::from_secs(3700)).await;
    assert_eq!(bench.outcomes().await, [(0, 60)]);
    let rollout = bench.rollout().await;
    let newest = rollout.history.last().unwrap();
    let Event::ScanCompleted { found } = &newest.event else {
        panic!("{newest:?}");
    };
    assert_eq!((found.joined, found.departed), (0, 60));

    let settling = bench.settles_all();
    bench.hub.set_devices(devices(0, 100));
    let rollout = driving.await.unwrap();
    assert_eq!(bench.outcomes().await, [(90, 60), (10, 0)]);
    assert_eq!(rollout.phase, Phase::Succeeded);
    settling.abort();
}

/// A rollout with these fields besides name, target and body.
fn with(ack: &str, more: &str) -> Rollout {
    let text = format!(
        "{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}, ack: {ack}}}, {more}}}"
    );
    let spec = RolloutSpec::read("test", &text).unwrap();
    Rollout::accepted(spec, Default::default(), Timestamp(1))
}

/// A hub with two devices for each value of a tag.
fn two_of_each(tag: &str, values: &[&str]) -> ScriptedHub {
    let devices = values.iter().flat_map(|value| [(value, 1), (value, 2)]);
    let devices = devices.map(|(value, n)| {
        let id = format!("{}-{n}", value.replace('/', "-"));
        let tags = [(tag.to_owned(), (*value).to_owned())];
        (build::device(&id), tags.into())
    });
    ScriptedHub::with_tags(devices)
}

#[tokio::test(start_paused = true)]
async fn a_rollout_waits_for_the_first_zone_to_open() {
    let hub = two_of_each("zone", &["Europe/Oslo", "Asia/Tokyo"]);
    let bench = Arc::new(bench_on(hub, DriverConfig::default()));
    let settling = bench.settles_all();
    let schedule = "schedule: {windows: [{from: '00:00', for: 1h}], zone_tag: zone}";
    bench
        .accepts(with("none", &format!("batch_by: [zone], {schedule}")))
        .await;
    let driving = bench.drive();
    let waits = |until: &str| {
        let at = format!("2026-09-21T{until}:00Z");
        Some(format!(
            "the schedule to open at {at} (outside its windows)"
        ))
    };
    // The time is 14:13 UTC.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.waits_for().await, waits("15:00"));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(bench.outcomes().await, [(2, 0)], "devices in Tokyo");
    assert_eq!(bench.waits_for().await, waits("22:00"));
    let rollout = driving.await.unwrap();
    assert_eq!(rollout.phase, Phase::Succeeded);
    assert_eq!(bench.waits_for().await, None);
    settling.abort();
}

#[tokio::test(start_paused = true)]
async fn a_full_budget_is_shown_for_rollout_and_devices() {
    let hub = two_of_each("site", &["oslo", "rome"]);
    let bench = Arc::new(bench_on(hub, DriverConfig::default()));
    let settling = bench.settles_all();
    let budget = "budgets: [{tag: site, at_most: 1, deadline: 1h}]";
    bench
        .accepts(with("full", &format!("batch_by: [site], {budget}")))
        .await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.outcomes().await, [(2, 0)]);
    let full = |site: &str| format!("site={site} (1 of 1 devices in progress)");
    let both = format!("room in the budget of {}, {}", full("oslo"), full("rome"));
    assert_eq!(bench.waits_for().await, Some(both));

    let rollout = bench.rollout().await;
    let mut waits = Vec::new();
    for n in [1, 2] {
        let device = build::device(&format!("rome-{n}"));
        let now = bench.driver.clock.now();
        let explained = explain::read(&*bench.store, &rollout, &device, now).await;
        let place = explained.unwrap().places.swap_remove(0);
        waits.push((place.outcome, place.waits_for.unwrap()));
    }
    waits.sort();
    assert_eq!(
        waits,
        [
            (
                Outcome::Pending,
                format!("room in the budget of {}", full("rome"))
            ),
            (
                Outcome::Enqueued,
                "the device to accept the message, and the hub to report this".to_owned()
            ),
        ]
    );
    // Expired devices make room in the budget, and in the end all devices confirm.
    tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
    assert_eq!(bench.outcomes().await, [(4, 0)]);
    bench.deliver_all().await;
    assert_eq!(driving.await.unwrap().phase, Phase::Succeeded);
    settling.abort();
}

impl Bench {
    async fn reports(&self, worker: &str, lasting: u64, state: LinkState) {
        let report = LinkReport {
            worker: Holder::new(worker).unwrap(),
            lasting: Duration::from_secs(lasting),
            state,
        };
        let hub = build::hub("a");
        self.store.report_link(&hub, &report).await.unwrap();
    }

    /// Returns the displayed reason for the device's wait.
    async fn device_waits_for(&self, device: &str) -> Option<String> {
        let (rollout, now) = (self.rollout().await, self.driver.clock.now());
        let explained = explain::read(&*self.store, &rollout, &build::device(device), now).await;
        explained.unwrap().places.swap_remove(0).waits_for
    }
}

/// A worker holds the only batch but cannot reach the hub: the queue is empty, and nothing is sent.
#[tokio::test(start_paused = true)]
async fn an_unreachable_hub_is_shown_for_rollout_and_devices() {
    let bench = bench(100, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    let request = build::lease_request(&build::name("r"), delivery.dispatch.batch.0, "worker");
    let LeaseReply::Granted(lease) = bench.store.lease(&request).await.unwrap() else {
        panic!("the lease is not granted");
    };
    let seconds = async |n: u64, state: &LinkState| {
        for second in 0..n {
            bench.reports("w", second, state.clone()).await;
            bench.store.record(&lease, &[], build::TTL).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    seconds(4, &LinkState::Open).await;
    assert_eq!(bench.waits_for().await, None);
    let away = LinkState::hindered(HubTrouble::Unreachable, "connection refused");
    seconds(20, &away).await;
    let words = "hub a, which cannot be reached: connection refused";
    assert_eq!(bench.waits_for().await.as_deref(), Some(words));
    let rollout = bench.rollout().await;
    assert_eq!(rollout.notes.account.doing(), Activity::Blocked);
    let device = bench.device_waits_for("device-000007").await.unwrap();
    assert!(
        device.starts_with(&format!("{words}; then worker worker,")),
        "{device}"
    );
    let now = bench.driver.clock.now();
    let (name, limits) = (build::hub("a"), HubLimits::unlimited());
    let hub = HubView::read(&*bench.store, &name, limits, None, now).await;
    let links = hub.unwrap().links;
    assert_eq!((links.open, links.hindered), (0, 1));
    assert_eq!(
        links.trouble.as_deref(),
        Some("cannot be reached: connection refused")
    );
    assert_eq!(links.since, Some(now.minus(Duration::from_secs(20))));
    // The hub is back.
    seconds(10, &LinkState::Open).await;
    assert_eq!(bench.waits_for().await, None);
    bench.store.release(&lease).await.unwrap();
    bench
        .settle(delivery.dispatch.batch, Outcome::Enqueued)
        .await;
    delivery.ticket.ack().await.unwrap();
    let rollout = driving.await.unwrap();
    let spent = rollout.time_spent(rollout.changed_at);
    let blocked = spent.on(Activity::Blocked).as_secs();
    assert!((14..=24).contains(&blocked), "{blocked}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_worker_is_shown_for_rollout_and_devices() {
    let bench = bench(100, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(bench.waits_for().await, None, "a worker may still start");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let words = "a worker: no worker takes the batches of hub a";
    assert_eq!(bench.waits_for().await.as_deref(), Some(words));
    let device = bench.device_waits_for("device-000007").await.unwrap();
    assert_eq!(device, format!("{words}; then a worker to take its batch"));
    let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.waits_for().await, None);
    bench
        .settle(delivery.dispatch.batch, Outcome::Enqueued)
        .await;
    delivery.ticket.ack().await.unwrap();
    assert_eq!(driving.await.unwrap().phase, Phase::Succeeded);
}

/// The broker is away before a worker has received any dispatch.
#[tokio::test(start_paused = true)]
async fn an_unreachable_queue_is_shown_for_the_rollout() {
    let mut bench = bench(100, DriverConfig::default());
    let queue = Arc::new(NoQueue);
    Arc::get_mut(&mut bench.driver).unwrap().queue = queue;
    bench.accepted().await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let words = "the queue to accept dispatches: cannot publish: no broker";
    assert_eq!(bench.waits_for().await.as_deref(), Some(words));
    bench.stop.cancel();
    driving.await.unwrap();
}

/// Throttling by the hub is shown.
#[tokio::test(start_paused = true)]
async fn throttling_is_shown_for_the_rollout() {
    let bench = bench(100, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    let deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.store.throttled(&build::hub("a"), None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let words = "the quota of hub a: it has refused recent sends, so sends are slower";
    assert_eq!(bench.waits_for().await.as_deref(), Some(words));
    bench.stop.cancel();
    driving.await.unwrap();
    drop(deliveries);
}

/// A queue without a broker.
struct NoQueue;

#[async_trait::async_trait]
impl Queue for NoQueue {
    async fn publish(&self, _: &Dispatch) -> Result<(), QueueError> {
        Err(away("publish"))
    }
    async fn consume(&self, _: &HubName, _: usize) -> Result<Box<dyn Deliveries>, QueueError> {
        Err(away("consume"))
    }
    async fn depth(&self, _: &HubName) -> Result<Depth, QueueError> {
        Err(away("look"))
    }
}

fn away(doing: &'static str) -> QueueError {
    QueueError::Unavailable {
        doing,
        source: "no broker".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn joiners_are_sent_to_once_and_malformed_rows_are_counted() {
    let bench = Arc::new(bench(0, DriverConfig::default()));
    let page = |ids: std::ops::Range<u32>| DevicePage {
        rows: devices(ids.start, ids.end)
            .map(|device| DeviceRow {
                device,
                tags: vec![],
            })
            .collect(),
        malformed_rows: vec![MalformedRow::new("x y", "its id is no good")],
    };
    bench.hub.set_pages([page(0..20)]);
    let settling = bench.settles_all();
    bench.accepts(continuous(4 * 3600)).await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench
        .hub
        .set_pages([page(0..30), page(25..40), page(10..12)]);
    let rollout = driving.await.unwrap();
    assert_eq!(rollout.phase, Phase::Succeeded);
    assert_eq!(bench.outcomes().await, [(20, 0), (20, 0)]);
    let plan = rollout.plan.unwrap();
    // Known devices listed again are ignored. The rows are those of a single scan, although several
    // scans have run.
    assert_eq!(
        (plan.devices, plan.repeated, plan.malformed_rows.rows),
        (40, 5, 3)
    );
    settling.abort();
}

#[tokio::test(start_paused = true)]
async fn blocked_planning_shows_reason_and_progress() {
    let bench = bench(1_000, DriverConfig::default());
    bench.accepted().await;
    bench.hub.set_silent_after_first_page(true);
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let rollout = bench.rollout().await;
    assert_eq!(rollout.phase, Phase::Planning);
    let waits = bench.waits_for().await.unwrap();
    assert!(
        waits.starts_with("its devices to be found: hub a: it is silent; failing since "),
        "{waits}"
    );
    let state = RolloutState::of(&rollout, &[]);
    assert_eq!(
        state.reason.as_deref(),
        Some(&*format!("waits for {waits}"))
    );
    let view = RolloutView::of(&rollout, &[], bench.driver.clock.now());
    assert_eq!(view.devices_found, Some(100));
    let device = build::device("device-000001");
    let explained = explain::read(&*bench.store, &rollout, &device, Timestamp(1)).await;
    let absent = explained.unwrap_err().to_string();
    assert!(
        absent.ends_with(&format!("; it waits for {waits}")),
        "{absent}"
    );
    // A known trouble is not written repeatedly, and is no event.
    assert_eq!(rollout.history.len(), 2);

    bench.hub.set_silent_after_first_page(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let rollout = bench.rollout().await;
    assert_eq!(
        (rollout.phase, rollout.notes.search),
        (Phase::Running, None)
    );
    bench.stop.cancel();
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hub_without_configuration_is_reported() {
    let bench = bench(150, DriverConfig::default());
    bench.accepted().await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.stop.cancel();
    driving.await.unwrap();
    let depth = bench.queue.depth(&build::hub("a")).await.unwrap();

    let mut other = bench_on(ScriptedHub::of(1), DriverConfig::default());
    let driver = Arc::get_mut(&mut other.driver).unwrap();
    let hub = driver.hubs.remove(&build::hub("a")).unwrap();
    driver.hubs.insert(build::hub("b"), hub);
    (driver.store, driver.queue) = (bench.store.clone(), bench.queue.clone());
    let driving = other.drive();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(
        bench.waits_for().await.as_deref(),
        Some("hub a, which is missing in the orchestrator's configuration; configured hubs: b")
    );
    let spent = bench.rollout().await.time_spent(bench.driver.clock.now());
    let blocked = spent.seconds().into_iter();
    let blocked = blocked.filter(|(activity, _)| *activity == Activity::Blocked);
    assert!(blocked.map(|(_, seconds)| seconds).sum::<u64>() > 60);
    // No further dispatch is published.
    assert_eq!(bench.queue.depth(&build::hub("a")).await.unwrap(), depth);
    other.stop.cancel();
    driving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pause_during_planning_holds_before_the_first_send() {
    let bench = bench(150, DriverConfig::default());
    bench.hub.set_silent_after_first_page(true);
    bench.accepted().await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let planning = bench.rollout().await;
    build::apply(&*bench.store, &planning, build::pause_requested()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.hub.set_silent_after_first_page(false);
    let paused = driving.await.unwrap();
    assert!(
        matches!(paused.phase, Phase::Paused { .. }),
        "{:?}",
        paused.phase
    );
    // The rollout keeps the plan in progress at the pause.
    assert_eq!(
        (paused.plan_id, paused.plan.as_ref().unwrap().devices),
        (PlanId(1), 150)
    );
    assert_eq!(
        bench.queue.depth(&build::hub("a")).await.unwrap().waiting,
        0
    );
    let attribution = Attribution::default();
    build::apply(
        &*bench.store,
        &paused,
        Event::ResumeRequested { attribution },
    )
    .await;
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.rollout().await.phase, Phase::Running);
    assert_eq!(
        bench.queue.depth(&build::hub("a")).await.unwrap().waiting,
        2
    );
    bench.stop.cancel();
    driving.await.unwrap();
}

/// Ten million devices are tens of thousands of batches.
#[tokio::test(start_paused = true)]
async fn an_abort_skips_many_batches_at_once_and_may_be_stopped() {
    const CALL: Duration = Duration::from_millis(5);
    let mut bench = bench(0, DriverConfig::default());
    let faulty_store = FaultyStore::new(&bench.store);
    Arc::get_mut(&mut bench.driver).unwrap().store = Arc::new(faulty_store.clone());
    let batches = (0..2_000).map(|id| build::batch(id, 1)).collect();
    let running = build::running(&*bench.store, "r", batches).await;
    let reason = "wrong build".to_owned();
    build::apply(&*bench.store, &running, Event::AbortRequested { reason }).await;

    faulty_store.set(Condition::Slow(CALL));
    let driving = bench.drive();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    bench.stop.cancel();
    let stopped = driving.await.unwrap();
    assert!(matches!(stopped.phase, Phase::Aborting { .. }));
    assert!(start.elapsed() <= 2 * CALL, "{:?}", start.elapsed());

    bench.stop = CancellationToken::new();
    let aborted = bench.drive().await.unwrap();
    assert!(matches!(aborted.phase, Phase::Aborted { .. }));
    assert_eq!(bench.outcomes().await, [(0, 2_000)]);
    assert!(start.elapsed() < 500 * CALL, "{:?}", start.elapsed());
}
