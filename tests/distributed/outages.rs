//! A service that is away is waited for: by everyone, in so many words, and without a loss.

use std::time::Duration;

use crate::engine::{Engine, SLOTS, WINDOW, scattered};
use crate::harness::{Hub, assert_same_ids, eventually};
use crate::pipeline::start_scattered;
use crate::repeats::{self, Budget};
use crate::services::{OwnServices, wait};
use crate::waiting::{long_or, throughout, within};

const SOON: Duration = Duration::from_secs(90);
/// Sends that a worker may make without a record: what it has in flight on two hubs.
const UNRECORDED: u64 = 2 * SLOTS * WINDOW;

#[test]
fn without_rabbitmq_and_then_without_redis_everything_waits_and_goes_on() {
    let away = long_or(Duration::from_secs(60), Duration::from_secs(15));
    let devices = long_or(30_000, 8_000);
    let services = OwnServices::start(&[]);
    let hub = || Hub::start(&scattered(devices), &["--tier", "S3", "--units", "2"]);
    let hubs = vec![("north", hub()), ("south", hub())];
    let mut engine = Engine::new(&services.access(), hubs);
    engine.grow(2, 2);
    engine.pipeline().order(&start_scattered("patient"));
    engine.until_accepted(500, SOON);

    println!("RabbitMQ goes away");
    wait(services.rabbitmq.stop());
    waits_for(&mut engine, "rabbitmq", away);
    let newcomer = engine.member("worker");
    engine.workers.push(newcomer);
    waits_for(&mut engine, "rabbitmq", Duration::from_secs(1));
    wait(services.rabbitmq.start_again());
    goes_on(&mut engine, "connection to the broker lost");
    assert_eq!(
        engine.repeats(),
        0,
        "a broker that goes away repeats nothing"
    );

    println!("Redis goes away");
    wait(services.redis.stop());
    // What is in flight arrives; more is not sent, since it could not be recorded.
    let at_most = engine.accepted() + engine.workers.len() as u64 * UNRECORDED;
    waits_for(&mut engine, "redis", away);
    let newcomer = engine.member("worker");
    engine.workers.push(newcomer);
    let newcomer = engine.member("orchestrator");
    engine.orchestrators.push(newcomer);
    waits_for(&mut engine, "redis", Duration::from_secs(1));
    let sent = engine.accepted();
    assert!(
        sent <= at_most,
        "{sent} were sent, {at_most} at most expected"
    );
    wait(services.redis.start_again());
    goes_on(&mut engine, "Redis does not answer");

    engine.until_phase("patient", "succeeded", 3 * SOON);
    assert_eq!(
        engine.assert_accounts_agree("patient").len() as u64,
        2 * devices
    );
    for (_, hub) in &engine.hubs {
        assert_same_ids(&hub.account());
    }
    // Nothing crashed. But a lease lapses while Redis is away, and who is first to come back may
    // take a batch over from a worker that could not record its last sends.
    let mut budget = Budget::default();
    for worker in &engine.workers {
        budget.allow(&worker.log(), "patient");
    }
    let repeats = repeats::by_batch(&engine, "patient");
    println!("{} repeats: {repeats:?}; {budget:?}", engine.repeats());
    budget.covers(&repeats);
}

/// All processes must say what they wait for, and none may end, for so long.
#[track_caller]
fn waits_for(engine: &mut Engine, service: &str, time: Duration) {
    for member in engine.members() {
        member.until_waiting_for(service);
    }
    throughout(time, || {
        for member in engine.members() {
            let (code, answer) = member.readiness();
            assert_eq!(code, 503, "{}: {answer}", member.name);
            assert!(answer["waiting_for"][service].is_string(), "{answer}");
        }
    });
}

/// All processes must be ready again by themselves, have said so, and send.
#[track_caller]
fn goes_on(engine: &mut Engine, said: &str) {
    let before = engine.accepted();
    engine.until_ready();
    eventually(&format!("an orchestrator to say {said:?}"), || {
        engine.orchestrators[0].log().contains(said).then_some(())
    });
    within(SOON, "sends to go on", || {
        (engine.accepted() > before).then_some(())
    });
}
