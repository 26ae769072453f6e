//! Rollouts with answers in the devices' twins: the driver on test doubles, with scripted device
//! answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::answer::unanswered;
use twincast_core::hub::HubLimits;
use twincast_core::ids::DeviceId;
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    Batches as _, Clock, Delivery, LeaseReply, Queue, Rollouts as _, Store, Tally,
};
use twincast_core::rollout::{Attribution, Event, Phase, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::InProcessQueue;
use twincast_orchestrator::accept::accept;
use twincast_orchestrator::changes::ChangeSource;
use twincast_orchestrator::driver::{Driver, DriverConfig, Repairs};
use twincast_orchestrator::planner::PlanProgress;
use twincast_orchestrator::view::outcomes;
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::{MemoryStore, RuntimeClock, ScriptedHub, build};

const CANARY: &str = "stages: [{name: canary, max_devices: 5, gate: {counts: applied, failure_above: 20%, min_sample: 1}}]";
/// The answer of a device, by its position in the batch and the attempt, with the delay after the
/// message; `None` for no answer.
type Answers = Arc<dyn Fn(u32, u16) -> Option<Answer> + Send + Sync>;
type Answer = (&'static str, &'static str, Duration);

const DONE: fn(u32, u16) -> Option<Answer> = |_, _| Some(("applied", "", Duration::from_secs(30)));

struct Bench {
    store: Arc<MemoryStore>,
    queue: Arc<InProcessQueue>,
    hub: ScriptedHub,
    limits: HubLimits,
    clock: Arc<dyn Clock>,
}

impl Bench {
    /// Accepts a rollout to this many devices. A worker handles all dispatches, and the devices
    /// answer.
    async fn new(
        devices: u32,
        more: &str,
        answers: impl Fn(u32, u16) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let answers: Answers = Arc::new(answers);
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let bench = Self {
            store: Arc::new(MemoryStore::new(Arc::clone(&clock))),
            queue: Arc::new(InProcessQueue::new(1_000)),
            hub: ScriptedHub::of(devices),
            limits: HubLimits {
                sends_per_minute: Some(100.0),
                ..HubLimits::unlimited()
            },
            clock,
        };
        let text = format!(
            "{{name: r, target: {{all: true}}, message: {{body: {{text: x}}, properties: {{kind: update}}, ttl: 1m}}, {more}}}"
        );
        let spec = RolloutSpec::read("x", &text).unwrap();
        let rollout = Rollout::accepted(spec, BTreeMap::new(), bench.clock.now());
        accept(&*bench.store, rollout).await.unwrap();
        let (store, hub) = (Arc::clone(&bench.store), bench.hub.clone());
        let mut deliveries = bench.queue.consume(&build::hub("a"), 100).await.unwrap();
        tokio::spawn(async move {
            while let Ok(delivery) = deliveries.next().await {
                settle(&store, &hub, delivery, &answers).await;
            }
        });
        bench
    }

    async fn drive(&self) -> Rollout {
        let driven = self.drive_for(Duration::from_secs(50_000)).await;
        driven.expect("the rollout ends")
    }

    /// Drives for `time` at most. The driver is then dropped, as in a crash.
    async fn drive_for(&self, time: Duration) -> Option<Rollout> {
        let handle = HubHandle {
            host: build::host("a"),
            hub: Arc::new(self.hub.clone()),
            limits: self.limits,
        };
        let driver = Driver {
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            hubs: Hubs::from([(build::hub("a"), handle)]),
            metric_source: None,
            clock: Arc::clone(&self.clock),
            config: DriverConfig::default(),
            base: ".".into(),
            planning: PlanProgress::default(),
            changes: ChangeSource::Polled,
            broker: Arc::default(),
            repairs: Repairs::default(),
            tracer: Tracer::default(),
        };
        let (name, stop) = (build::name("r"), CancellationToken::new());
        let driving = driver.drive(&name, &stop);
        let driven = timeout(time, driving).await.ok()?;
        Some(driven.unwrap())
    }

    async fn rollout(&self) -> Rollout {
        let rollout = self.store.rollout(&build::name("r")).await.unwrap();
        rollout.expect("the rollout exists")
    }

    async fn counts(&self) -> Counts {
        Tally::sum(&self.store.tallies(&build::name("r")).await.unwrap())
    }

    async fn event(&self, event: Event) {
        build::apply(&*self.store, &self.rollout().await, event).await;
    }
}

/// Sends to all remaining devices of a batch. Each device answers later.
async fn settle(store: &MemoryStore, hub: &ScriptedHub, delivery: Delivery, answers: &Answers) {
    let (name, batch) = (build::name("r"), delivery.dispatch.batch);
    let request = build::lease_request(&name, batch.0, "worker");
    if let LeaseReply::Granted(lease) = store.lease(&request).await.unwrap() {
        let work = store.load(&name, batch).await.unwrap();
        let left = work.devices().filter(|it| !it.outcome.is_settled());
        let mut reports = Vec::new();
        for device in left {
            reports.push(build::report(device.index, Outcome::Enqueued));
            let id = MessageId {
                rollout: name.clone(),
                id: work.rollout,
                stage: work.header().stage,
                batch,
                index: device.index,
                attempt: work.attempt,
            };
            let (hub, to) = (hub.clone(), DeviceId::new(device.id).unwrap());
            if let Some((state, error, after)) = answers(device.index, work.attempt.0) {
                hub.report(&to, &id.to_string(), "installing", "");
                tokio::spawn(async move {
                    sleep(after).await;
                    hub.report(&to, &id.to_string(), state, error);
                });
            }
        }
        store.record(&lease, &reports, build::TTL).await.unwrap();
        store.release(&lease).await.unwrap();
    }
    delivery.ticket.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn answers_of_a_fleet_are_counted_in_a_few_queries() {
    let bench = Bench::new(1_000, "answers: true", DONE).await;
    let began = Instant::now();
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    // The rollout ends when all devices have answered, long before the last message expires.
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(bench.counts().await.get(Outcome::Applied), 1_000);
    let queries = bench.hub.answer_queries();
    assert!((3..=20).contains(&queries), "{queries}");
    let answered = rollout.notes.answers.stages().next().unwrap().1;
    assert_eq!((answered.applied, answered.installing), (1_000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_bad_build_stops_at_the_canary_with_device_errors() {
    let bench = Bench::new(1_000, CANARY, |index, _| {
        let after = Duration::from_secs(20);
        Some(match index {
            0 | 1 => (
                "rolled_back",
                "health_check: the door sensor does not answer",
                after,
            ),
            2 => ("failed", "disk_full: 3 MB are missing", after),
            _ => ("applied", "", after),
        })
    })
    .await;
    let rollout = bench.drive().await;
    let reason = rollout.phase.reason().unwrap_or_default();
    assert_eq!(rollout.phase.as_str(), "paused", "{reason}");
    for words in [
        "failed",
        "more than 20%",
        "health_check: the door sensor does not answer",
    ] {
        assert!(reason.contains(words), "{words:?} is not in {reason:?}");
    }
    let counts = bench.counts().await;
    assert_eq!(counts.get(Outcome::Failed), 3);
    assert_eq!(
        counts.get(Outcome::Pending),
        995,
        "no other device received the message"
    );
    let seen = outcomes::read(&*bench.store, &rollout).await.unwrap();
    let failures = seen
        .failures
        .iter()
        .map(|it| (it.reason.as_str(), it.devices, it.code));
    let failures: Vec<_> = failures.collect();
    assert_eq!(
        failures,
        [
            ("health_check: the door sensor does not answer", 2, None),
            ("disk_full: 3 MB are missing", 1, None),
        ]
    );
    assert_eq!(
        seen.failures[0].error.as_ref().unwrap().code,
        "health_check"
    );
}

#[tokio::test(start_paused = true)]
async fn the_rollout_waits_for_silent_devices_until_the_deadline() {
    let bench = Bench::new(250, "answers: {within: 10m}", |index, _| match index % 10 {
        0 => None,
        1 => Some(("still at it", "", Duration::from_secs(1))),
        _ => DONE(0, 1),
    })
    .await;
    let began = Instant::now();
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    // The life of the message, the margin of the hub, and the ten minutes.
    let took = began.elapsed().as_secs();
    assert!((660..=720).contains(&took), "{took}");
    let counts = bench.counts().await;
    let all = [Outcome::Applied, Outcome::Installing, Outcome::Enqueued];
    assert_eq!(all.map(|outcome| counts.get(outcome)), [200, 25, 25]);
    assert_eq!(unanswered(&counts, 200), 50);
}

#[tokio::test(start_paused = true)]
async fn a_gate_waits_for_the_lag_of_queries() {
    let gate = "stages: [{name: s, gate: {counts: applied, success_at_least: 90%, deadline: 2m}}]";
    let mut bench = Bench::new(100, gate, |index, _| {
        (index < 80).then(|| DONE(0, 1).unwrap())
    })
    .await;
    bench.limits.query_lag = Duration::from_secs(300);
    let began = Instant::now();
    let rollout = bench.drive().await;
    let reason = rollout.phase.reason().unwrap_or_default();
    assert!(reason.contains("80 of 100 devices applied"), "{reason}");
    let took = began.elapsed().as_secs();
    assert!((420..=490).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn hub_outage_does_not_count_as_device_silence() {
    let gate =
        "stages: [{name: s, gate: {counts: applied, failure_above: 5%, evidence_within: 20m}}]";
    let bench = Bench::new(100, gate, DONE).await;
    let hub = bench.hub.clone();
    let disturbing = tokio::spawn(async move {
        sleep(Duration::from_secs(5)).await;
        hub.set_down(true);
    });
    let rollout = bench.drive().await;
    disturbing.await.unwrap();
    let reason = rollout.phase.reason().unwrap_or_default();
    assert_eq!(rollout.phase.as_str(), "paused");
    assert!(
        reason.contains("not measured") && reason.contains("it is down"),
        "{reason}"
    );

    bench.hub.set_down(false);
    let attribution = Attribution::default();
    bench.event(Event::ResumeRequested { attribution }).await;
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded, "{:?}", rollout.phase);
    assert_eq!(bench.counts().await.get(Outcome::Applied), 100);
}

#[tokio::test(start_paused = true)]
async fn a_retry_counts_only_answers_to_the_new_attempt() {
    let bench = Bench::new(50, "answers: true", |index, attempt| {
        let fails = index < 7 && attempt == 1;
        Some(match fails {
            true => ("failed", "no_space: full", Duration::from_secs(10)),
            // Longer than many queries: the twin shows the answer to the first attempt meanwhile.
            false => ("applied", "", Duration::from_secs(100)),
        })
    })
    .await;
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::FinishedWithFailures);
    assert_eq!(bench.counts().await.get(Outcome::Failed), 7);
    bench
        .event(Event::RetryRequested {
            outcomes: vec![Outcome::Failed],
            stage: None,
            attribution: Attribution::default(),
        })
        .await;
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    let counts = bench.counts().await;
    assert_eq!((counts.get(Outcome::Applied), counts.failed()), (50, 0));
}

/// A device may write anything into its twin.
#[tokio::test(start_paused = true)]
async fn answers_with_unknown_message_ids_are_ignored() {
    let bench = Bench::new(20, "answers: {within: 1m}", |index, _| {
        (index > 0).then(|| DONE(0, 1).unwrap())
    })
    .await;
    let rollout = bench.rollout().await;
    let prefix = format!("r.{}.0.", rollout.id);
    for (device, id) in [
        ("x-1", format!("{prefix}zz.0.1")),
        ("x-2", format!("{prefix}0.zzz.1")),
        ("x-3", format!("{prefix}what")),
        ("x-4", "r.1.0.0.0.1".to_owned()),
    ] {
        bench
            .hub
            .report(&build::device(device), &id, "failed", "a: b");
    }
    let rollout = bench.drive().await;
    assert_eq!(rollout.phase, Phase::Succeeded);
    let counts = bench.counts().await;
    assert_eq!(counts.get(Outcome::Applied), 19);
    assert_eq!((counts.get(Outcome::Enqueued), counts.total()), (1, 20));
}

/// Derives a scenario from a number: the answers of the devices, the outages of the hub, the
/// crashes of the driver.
struct Dice(u64);

impl Dice {
    fn among(&mut self, below: u64) -> u64 {
        // Knuth's constants. The upper bits have the better randomness.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Drivers crash, hubs are away, devices answer late or never. In the end, each device has the
/// outcome of its answer.
#[tokio::test(start_paused = true)]
async fn every_answer_counts_once_despite_crashes_and_outages() {
    for seed in 0..80 {
        let mut dice = Dice(seed);
        let devices = 1 + dice.among(260);
        let truths: Vec<_> = (0..devices)
            .map(|_| {
                let after = Duration::from_millis(dice.among(240_000));
                match dice.among(20) {
                    0 => None,
                    1 => Some(("half way", "", after)),
                    2 | 3 => Some(("failed", "a: b", after)),
                    4 => Some(("rolled_back", "c: d", after)),
                    _ => Some(("applied", "", after)),
                }
            })
            .collect();
        let answers = truths.clone();
        let stages = [
            "weight: 1",
            "stages: [{name: a, max_devices: 7}, {name: b, percent: 40%}]",
        ];
        let more = format!(
            "answers: {{within: 8m}}, {}",
            stages[dice.among(2) as usize]
        );
        // The closure receives positions within a batch. The counter gives positions in the fleet,
        // in the order of batches.
        let next = std::sync::atomic::AtomicUsize::new(0);
        let bench = Bench::new(devices as u32, &more, move |_, _| {
            answers[next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)]
        })
        .await;
        let hub = bench.hub.clone();
        let outages: Vec<_> = (0..3).map(|_| (dice.among(200), dice.among(90))).collect();
        let weather = tokio::spawn(async move {
            for (calm, away) in outages {
                sleep(Duration::from_secs(calm)).await;
                hub.set_down(true);
                sleep(Duration::from_secs(away)).await;
                hub.set_down(false);
            }
        });
        let rollout = loop {
            let life = Duration::from_millis(1 + dice.among(120_000));
            if let Some(rollout) = bench.drive_for(life).await {
                break rollout;
            }
        };
        weather.abort();
        assert!(rollout.phase.is_ended(), "seed {seed}: {:?}", rollout.phase);
        let count = |states: &[&str]| {
            let of = truths
                .iter()
                .flatten()
                .filter(|(state, ..)| states.contains(state));
            of.count() as u64
        };
        let counts = bench.counts().await;
        let found = [
            Outcome::Applied,
            Outcome::Failed,
            Outcome::Installing,
            Outcome::Enqueued,
        ];
        let silent = truths.iter().filter(|truth| truth.is_none()).count() as u64;
        let expected = [
            count(&["applied"]),
            count(&["failed", "rolled_back"]),
            count(&["half way"]),
            silent,
        ];
        assert_eq!(
            found.map(|outcome| counts.get(outcome)),
            expected,
            "seed {seed}"
        );
        assert_eq!(counts.total(), devices, "seed {seed}");
    }
}
