//! Every process waits for an unavailable service, reports the wait, and loses nothing.

use std::time::Duration;

use crate::engine::{Engine, SLOTS, WINDOW, scattered};
use crate::harness::{Hub, assert_same_ids, eventually};
use crate::pipeline::start_scattered;
use crate::repeats::RepeatBudget;
use crate::services::{OwnServices, wait};
use crate::waiting::{long_or, poll_for, poll_until};

const TIME_LIMIT: Duration = Duration::from_secs(300);
/// The largest number of sends of a worker without a record: the sends in flight on two hubs.
const UNRECORDED: u64 = 2 * SLOTS * WINDOW;

#[test]
fn processes_wait_for_rabbitmq_and_redis_and_resume() {
    let away = long_or(Duration::from_secs(60), Duration::from_secs(15));
    let devices = long_or(30_000, 8_000);
    let services = OwnServices::start(&[]);
    let hub = || Hub::start(&scattered(devices), &["--tier", "S3", "--units", "2"]);
    let hubs = vec![("north", hub()), ("south", hub())];
    let mut engine = Engine::new(&services.access(), hubs);
    engine.grow(2, 2);
    engine.pipeline().command_ok(&start_scattered("patient"));
    engine.until_accepted(500, TIME_LIMIT);

    println!("RabbitMQ goes away");
    wait(services.rabbitmq.stop());
    waits_for(&mut engine, "rabbitmq", away);
    let newcomer = engine.member("worker");
    engine.workers.push(newcomer);
    waits_for(&mut engine, "rabbitmq", Duration::from_secs(1));
    wait(services.rabbitmq.start_stopped());
    recovers(&mut engine, "connection to the broker lost");
    assert_eq!(engine.repeats(), 0, "a stopped broker causes no repeats");

    println!("Redis goes away");
    wait(services.redis.stop());
    // Messages in flight arrive. Nothing more is sent, because no outcome could be recorded.
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
        "{sent} messages were sent, at most {at_most} expected"
    );
    wait(services.redis.start_stopped());
    recovers(&mut engine, "Redis does not answer");

    engine.until_phase("patient", "succeeded", 3 * TIME_LIMIT);
    assert_eq!(
        engine.assert_reports_match_hubs("patient").len() as u64,
        2 * devices
    );
    for (_, hub) in &engine.hubs {
        assert_same_ids(&hub.message_log());
    }
    // Nothing crashed. But leases lapse while Redis is down, and the first process to recover may
    // take a batch over from a worker with unrecorded sends.
    let mut budget = RepeatBudget::default();
    budget.assert_covers(&engine, "patient");
}

/// Asserts that all processes report the awaited service, and that no process ends, for the given
/// time.
#[track_caller]
fn waits_for(engine: &mut Engine, service: &str, time: Duration) {
    for member in engine.members() {
        member.until_waiting_for(service);
    }
    poll_for(time, || {
        for member in engine.members() {
            let (code, answer) = member.readiness();
            assert_eq!(code, 503, "{}: {answer}", member.name);
            assert!(answer["waiting_for"][service].is_string(), "{answer}");
        }
    });
}

/// Asserts that all processes become ready again without help, log the recovery, and send.
#[track_caller]
fn recovers(engine: &mut Engine, said: &str) {
    let before = engine.accepted();
    engine.until_ready();
    eventually(&format!("an orchestrator to say {said:?}"), || {
        engine.orchestrators[0].log().contains(said).then_some(())
    });
    poll_until(TIME_LIMIT, "sends to go on", || {
        (engine.accepted() > before).then_some(())
    });
}
