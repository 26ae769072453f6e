//! A broker with the behaviour of RabbitMQ 4.3: consumers cancelled after `consumer_timeout`, and
//! counts of hand-outs instead of failed deliveries.

use std::collections::BTreeSet;
use std::time::Duration;

use twincast_testkit::services::{DeliveryCounts, NewerBroker, RabbitMq};

use crate::engine::{Engine, Member, scattered};
use crate::harness::{Hub, assert_same_ids};
use crate::pipeline::{Pipeline, start_scattered};
use crate::repeats::RepeatBudget;
use crate::services::{Access, wait};
use crate::waiting::long_or;

const TIME_LIMIT: Duration = Duration::from_secs(300);
const CANCELS: u64 = 6;

#[test]
fn a_rollout_survives_cancelled_consumers_and_a_killed_worker() {
    let devices = long_or(30_000, 3_000);
    let direct = Access::shared();
    let broker = wait(async {
        let broker = RabbitMq::shared().await.address();
        NewerBroker::start(broker, DeliveryCounts::Acquired { more: 0 }).await
    });
    let access = Access {
        amqp_url: broker.url(),
        ..direct.clone()
    };
    let hub = Hub::start(&scattered(devices), &["--tier", "S3", "--units", "2"]);
    let mut engine = Engine::new(&access, vec![("lab", hub)]);
    engine.grow(2, 2);
    let mut pipeline = Pipeline::connect(&direct);
    pipeline.command_ok(&start_scattered("patient"));

    let mut budget = RepeatBudget::default();
    // Workers that consume before the last cancellation.
    let mut cancelled = BTreeSet::new();
    for step in 1..=CANCELS {
        engine.until_accepted(step * devices / (2 * CANCELS), TIME_LIMIT);
        let working = |worker: &&Member| worker.log().contains("batch leased");
        let names = engine
            .workers
            .iter()
            .filter(working)
            .map(|it| it.name.clone());
        cancelled = names.collect();
        broker.cancel_consumers();
        assert!(engine.accepted() < devices, "the rollout was over");
        if step == CANCELS / 2 {
            let worker = engine.workers.remove(0);
            let log = worker.kill().stderr;
            budget.permit_losses_in(&log, "patient");
            let replacement = engine.member("worker");
            engine.workers.push(replacement);
        }
    }
    let done = engine.until_phase("patient", "succeeded", TIME_LIMIT);
    assert_eq!(done["devices"], devices, "{done}");
    assert_eq!(
        engine.assert_reports_match_hubs("patient").len() as u64,
        devices
    );
    assert_same_ids(&engine.hubs[0].1.message_log());
    budget.assert_covers(&engine, "patient");
    let is_cancelled = |worker: &&Member| cancelled.contains(&worker.name);
    for worker in engine.workers.iter().filter(is_cancelled) {
        let is_cancelled = worker.log().contains("cancelled by the broker");
        assert!(is_cancelled, "{} has kept its consumer", worker.name);
    }
    assert!(
        engine.dead_letters().is_empty(),
        "{:?}",
        engine.dead_letters()
    );
}
