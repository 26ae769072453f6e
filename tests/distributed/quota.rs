//! A hub's quota with several rollouts and a changing set of workers: never exceeded, and shared by
//! weight.

use std::time::Duration;

use serde_json::json;

use crate::engine::Engine;
use crate::harness::{Fleet, Hub};
use crate::pipeline::start_with;
use crate::services::Access;
use crate::waiting::{long_or, poll_for};

const ROLLOUTS: [(&str, u64); 3] = [("half", 5), ("third", 3), ("fifth", 2)];
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// The tolerated deviation of a share from the weight: 5 per cent in a long run, and 10 per cent in
/// a short run on a busy machine.
fn tolerance() -> f64 {
    long_or(0.05, 0.1)
}

#[test]
fn changing_workers_keep_the_quota_and_weighted_shares() {
    let units = long_or("10", "1");
    let allowed = long_or(50_000, 5_000);
    let hub = Hub::start(
        &Fleet::of(long_or(180_000, 6_000)),
        &["--tier", "S3", "--units", units],
    );
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]).with_default_workers();
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    for (name, weight) in ROLLOUTS {
        pipeline.command_ok(&start_with(name, json!({ "weight": weight })));
    }
    for (name, _) in ROLLOUTS {
        engine.until_phase(name, "running", TIME_LIMIT);
    }

    let before = sent(&engine);
    for workers in long_or(vec![1, 4, 16, 4], vec![1, 3, 2]) {
        resize(&mut engine, workers);
        poll_for(Duration::from_secs(long_or(75, 27)), || {});
    }
    let seen = engine.hubs[0].1.summary();
    println!(
        "at most {} of {allowed} in any minute, {} in any second; {} slowed, {} refused",
        seen.accepted_in_any_minute_max,
        seen.accepted_in_any_second_max,
        seen.shaped,
        seen.throttled
    );
    let shares = shares(&before, &sent(&engine));
    println!("shares of {ROLLOUTS:?}: {shares:.4?}");

    assert!(seen.uptime_ms > 60_000, "the measurement is too short");
    // After a pause of the hub, waiting messages arrive together.
    let tolerated = allowed + long_or(0, allowed / 100);
    assert!(seen.accepted_in_any_minute_max <= tolerated, "{seen:?}");
    assert_eq!((seen.throttled, seen.repeats_by_message_id), (0, 0));
    for ((name, weight), share) in ROLLOUTS.into_iter().zip(shares) {
        let due = weight as f64 / 10.0;
        assert!(
            (share / due - 1.0).abs() <= tolerance(),
            "{name} has {share}, not {due}"
        );
    }
    for name in ROLLOUTS.map(|(name, _)| name) {
        assert_eq!(
            engine.status(name)["phase"],
            "running",
            "the rollout is still running"
        );
    }
}

/// Starts workers, or stops the oldest workers.
fn resize(engine: &mut Engine, workers: usize) {
    while engine.workers.len() > workers {
        engine.workers.remove(0).stop();
    }
    engine.grow(0, workers - engine.workers.len());
}

/// Returns the number of sends of each rollout.
fn sent(engine: &Engine) -> Vec<u64> {
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    let all = all["rollouts"].as_array().expect("a list").clone();
    let of = |name: &str| all.iter().find(|rollout| rollout["name"] == name);
    let sent =
        ROLLOUTS.map(|(name, _)| of(name).and_then(|rollout| rollout["by_class"]["sent"].as_u64()));
    sent.into_iter()
        .map(|sent| sent.expect("a number"))
        .collect()
}

fn shares(before: &[u64], after: &[u64]) -> Vec<f64> {
    let sent: Vec<_> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    let all: u64 = sent.iter().sum();
    sent.into_iter()
        .map(|sent| sent as f64 / all as f64)
        .collect()
}
