//! Failures of processes, services and connections: every device gets the message, repeats are
//! accounted for, and all counts agree.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Member, SLOTS, WINDOW, scattered};
use crate::harness::{Chance, Hub, assert_same_ids};
use crate::pipeline::start_scattered;
use crate::repeats::{BatchLog, RepeatBudget};
use crate::services::{OwnServices, wait};
use crate::waiting::long_or;

const ROLLOUT: &str = "chaos";
const WORKERS: usize = 4;
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// The writes lost by Redis in a power failure with a sync to disk each second.
const MAX_LOST_WRITES: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    KillWorker,
    StopWorker,
    KillOrchestrator,
    RestartRabbitMq,
    KillRabbitMq,
    CutRabbitMq,
    PurgeDispatches,
    RestartRedis,
    KillRedis,
    /// A power failure of the machine: data not yet on disk a second ago is lost.
    PowerCutRedis,
    CutRedis,
}

use Disturbance as D;

/// A run under disturbances.
struct Chaos {
    seed: u64,
    /// Devices of each of two hubs, and the hubs' units of tier S3.
    devices: u64,
    units: u64,
    /// The interval of Redis' syncs to disk.
    fsync: &'static str,
    /// The disturbances, in an order derived from the seed.
    disturbances: Vec<Disturbance>,
}

#[test]
fn a_rollout_survives_failures_of_processes_and_services() {
    let deck = vec![
        D::KillWorker,
        D::KillOrchestrator,
        D::PowerCutRedis,
        D::CutRedis,
        D::KillWorker,
        D::PurgeDispatches,
        D::RestartRabbitMq,
        D::CutRabbitMq,
        D::StopWorker,
        D::RestartRedis,
        D::KillRabbitMq,
        D::PowerCutRedis,
        D::KillRedis,
    ];
    let chaos = Chaos {
        seed: long_or(20_261, 20_262),
        devices: long_or(100_000, 8_000),
        units: long_or(5, 2),
        fsync: "everysec",
        disturbances: deck.into_iter().cycle().take(long_or(30, 12)).collect(),
    };
    chaos.run();
}

#[test]
fn a_killed_redis_with_synced_writes_loses_no_record() {
    let deck = vec![D::KillRedis, D::KillWorker, D::KillRedis, D::CutRedis];
    let chaos = Chaos {
        seed: 7,
        devices: long_or(50_000, 4_000),
        units: long_or(5, 2),
        fsync: "always",
        disturbances: deck.into_iter().cycle().take(long_or(30, 4)).collect(),
    };
    chaos.run();
}

#[test]
fn repeated_redis_write_losses_cause_only_repeats() {
    let chaos = Chaos {
        seed: 20_263,
        devices: long_or(100_000, 4_000),
        units: long_or(5, 2),
        fsync: "everysec",
        disturbances: vec![D::PowerCutRedis; long_or(10, 2)],
    };
    chaos.run();
}

/// A run in progress.
struct Run {
    services: OwnServices,
    engine: Engine,
    chance: Chance,
    budget: RepeatBudget,
}

impl Chaos {
    fn run(mut self) {
        println!("seed {}", self.seed);
        let mut chance = Chance::seeded(self.seed);
        shuffle(&mut self.disturbances, &mut chance);
        let services = OwnServices::start(&["--appendfsync", self.fsync]);
        let hub = || {
            let units = self.units.to_string();
            let hub = Hub::start(
                &scattered(self.devices),
                &["--tier", "S3", "--units", &units],
            );
            // Answers take a while, so disturbances hit messages in flight.
            hub.faults(r#"{"disposition_delay_ms": 60}"#);
            hub
        };
        let mut engine = Engine::new(&services.access(), vec![("north", hub()), ("south", hub())]);
        engine.grow(2, WORKERS);
        engine.pipeline().command_ok(&start_scattered(ROLLOUT));

        let mut run = Run {
            services,
            engine,
            chance,
            budget: RepeatBudget::default(),
        };
        let began = Instant::now();
        let all = 2 * self.devices;
        let (first, last) = (all / 20, all * 17 / 20);
        let count = self.disturbances.len() as u64;
        for (number, disturbance) in (0..).zip(&self.disturbances) {
            let step = (last - first) / count;
            let at = first + step * number + run.chance.within(0..step);
            run.engine.until_accepted(at, TIME_LIMIT);
            println!("{:5.1?}: {disturbance:?}", began.elapsed().as_secs_f64());
            run.disturb(*disturbance);
        }
        run.check(all);
        println!("{all} devices in {:?}", began.elapsed());
    }
}

impl Run {
    fn disturb(&mut self, disturbance: Disturbance) {
        let services = &self.services;
        match disturbance {
            D::KillWorker => {
                let at = self.chance.within(0..WORKERS as u64) as usize;
                let newcomer = self.engine.member("worker");
                let killed = std::mem::replace(&mut self.engine.workers[at], newcomer);
                self.budget.permit_losses_in(&killed.kill().stderr, ROLLOUT);
            }
            D::StopWorker => {
                let at = self.chance.within(0..WORKERS as u64) as usize;
                let newcomer = self.engine.member("worker");
                let stopped = std::mem::replace(&mut self.engine.workers[at], newcomer);
                self.budget
                    .permit_losses_in(&stopped.stop().stderr, ROLLOUT);
            }
            D::KillOrchestrator => {
                let at = self.chance.within(0..2) as usize;
                let newcomer = self.engine.member("orchestrator");
                std::mem::replace(&mut self.engine.orchestrators[at], newcomer).kill();
            }
            D::RestartRabbitMq => wait(services.rabbitmq.restart()),
            D::KillRabbitMq => wait(async {
                services.rabbitmq.kill().await;
                services.rabbitmq.start_stopped().await;
            }),
            D::CutRabbitMq => services.to_rabbitmq.cut(),
            D::PurgeDispatches => wait(services.rabbitmq.purge("twincast.dispatch.north")),
            D::RestartRedis => wait(services.redis.restart()),
            D::KillRedis => wait(async {
                services.redis.kill().await;
                services.redis.start_stopped().await;
            }),
            D::PowerCutRedis => self.power_cut_redis(),
            D::CutRedis => services.to_redis.cut(),
        }
    }

    /// Kills Redis, and cuts the last second of writes from the file.
    fn power_cut_redis(&mut self) {
        let sent = self.engine.accepted();
        let bytes = self.services.power_cut(MAX_LOST_WRITES);
        let forgotten = self.engine.accepted() - sent;
        println!("Redis forgets {bytes} bytes, {forgotten} sends");
        // Sends of the time before may be recorded late.
        let in_flight = 2 * WORKERS as u64 * SLOTS * WINDOW;
        let lost = forgotten + in_flight;
        self.budget.permit_lost_records(self.in_hand(), lost);
    }

    /// Returns the batches ever leased by a running worker.
    fn in_hand(&self) -> BTreeSet<u32> {
        let logs = self.engine.workers.iter().map(Member::log);
        logs.flat_map(|log| BatchLog::of(&log, ROLLOUT).touched)
            .collect()
    }

    fn check(&mut self, devices: u64) {
        let ended = self
            .engine
            .until_phase(ROLLOUT, "succeeded", 2 * TIME_LIMIT);
        assert_eq!(ended["counts"], serde_json::json!({ "enqueued": devices }));
        let rows = self.engine.assert_reports_match_hubs(ROLLOUT);
        assert_eq!(rows.len() as u64, devices);
        for (name, hub) in &self.engine.hubs {
            assert_same_ids(&hub.message_log());
            let seen = hub.summary();
            let quota = seen.accepted_in_any_minute_max;
            println!(
                "{name}: at most {quota} in any minute, {} throttled",
                seen.throttled
            );
        }
        self.budget.assert_covers(&self.engine, ROLLOUT);
        // Surviving processes are as healthy as replacements.
        self.engine.until_ready();
    }
}

fn shuffle(disturbances: &mut [Disturbance], chance: &mut Chance) {
    for at in (1..disturbances.len()).rev() {
        disturbances.swap(at, chance.within(0..at as u64 + 1) as usize);
    }
}
