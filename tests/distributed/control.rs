//! Pause, stop and abort take hold at once on every worker; nothing that was done is done again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub};
use crate::pipeline::{Pipeline, about, about_all, start, start_with};
use crate::services::{OwnServices, wait};
use crate::waiting::{long_or, throughout};

/// From a command's answer to the last message that arrives at a hub.
const TAKES_HOLD_WITHIN: Duration = Duration::from_secs(1);
/// How long nothing must happen then.
const QUIET: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_command_takes_hold_within_a_second_and_outlives_a_restart_of_everything() {
    let devices = long_or(60_000, 15_000);
    let workers = long_or(16, 4);
    let services = OwnServices::start(&[]);
    let hub = || Hub::start(&Fleet::of(devices), &["--tier", "S3", "--units", "10"]);
    let hubs = vec![("north", hub()), ("south", hub())];
    let mut engine = Engine::alone(&services.access(), hubs);
    engine.grow(2, workers);
    let mut pipeline = engine.pipeline();
    pipeline.order(&start("big"));
    // Until all workers send at full rate.
    engine.until_accepted(3_000, SOON);

    stops(&engine, &mut pipeline, &about("pause", "big"), "paused");
    goes_on(&engine, &mut pipeline, &about("resume", "big"));

    stops(&engine, &mut pipeline, &about("pause", "big"), "paused");
    engine.kill_all();
    engine.grow(2, workers);
    assert_still(&engine, "paused");
    goes_on(&engine, &mut pipeline, &about("resume", "big"));

    stops(&engine, &mut pipeline, &about_all("stop-all"), "halted");
    drop(pipeline);
    engine.stop_all();
    wait(async { tokio::join!(services.rabbitmq.restart(), services.redis.restart()) });
    engine.grow(2, workers);
    assert_still(&engine, "halted");
    let mut pipeline = engine.pipeline();
    // What is started now waits as well.
    let few = json!({ "target": { "devices": ["d-000001", "d-000002"] } });
    pipeline.order(&start_with("small", few));
    engine.until_phase("small", "halted", SOON);
    goes_on(&engine, &mut pipeline, &about_all("resume-all"));
    engine.until_phase("small", "succeeded", SOON);

    stops(&engine, &mut pipeline, &about("abort", "big"), "aborted");
    engine.room.run(&["watch", "big"]).expect(8);
    let ended = engine.status("big");
    let (sent, skipped) = (&ended["counts"]["enqueued"], &ended["counts"]["skipped"]);
    let of_small = 4;
    assert_eq!(*sent, engine.accepted() - of_small);
    assert!(skipped.as_u64() > Some(0), "nothing was left to abort");
    let transfers = engine.hubs.iter().map(|(_, hub)| hub.summary().transfers);
    assert_eq!(transfers.sum::<u64>(), engine.accepted(), "sent twice");
    engine.assert_accounts_agree("big");
    engine.assert_accounts_agree("small");
}

/// Gives a command after which nothing more may be sent, and measures.
#[track_caller]
fn stops(engine: &Engine, pipeline: &mut Pipeline, command: &Value, phase: &str) {
    // It sends at this moment, or there is nothing to stop.
    engine.until_accepted(engine.accepted() + 1, SOON);
    pipeline.order(command);
    let answered = Instant::now();
    let mut seen = (engine.accepted(), answered);
    throughout(QUIET, || {
        let accepted = engine.accepted();
        if accepted != seen.0 {
            seen = (accepted, Instant::now());
        }
    });
    let took = seen.1 - answered;
    println!("{command}: the last message came {took:?} after the answer");
    assert!(
        took < TAKES_HOLD_WITHIN,
        "{command} took hold after {took:?}"
    );
    engine.until_phase("big", phase, SOON);
}

#[track_caller]
fn assert_still(engine: &Engine, phase: &str) {
    let before = engine.accepted();
    throughout(QUIET, || assert_eq!(engine.accepted(), before, "it sends"));
    assert_eq!(engine.status("big")["phase"], phase);
}

/// Gives a command after which it is sent again, from where it stood.
#[track_caller]
fn goes_on(engine: &Engine, pipeline: &mut Pipeline, command: &Value) {
    let before = engine.accepted();
    pipeline.order(command);
    let answered = Instant::now();
    engine.until_accepted(before + 1, SOON);
    println!(
        "{command}: the first message came {:?} after the answer",
        answered.elapsed()
    );
    engine.until_accepted(before + 1_000, SOON);
}
