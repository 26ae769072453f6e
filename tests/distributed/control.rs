//! Pause, stop and abort take effect at once on every worker, and finished work is never repeated.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub};
use crate::pipeline::{Pipeline, about, about_all, start, start_with};
use crate::services::{OwnServices, wait};
use crate::waiting::{long_or, poll_for, poll_until};

/// The limit from a command's answer to the last message arriving at a hub.
const TAKES_HOLD_WITHIN: Duration = Duration::from_secs(1);
/// The following period without any message.
const QUIET: Duration = Duration::from_secs(3);
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn commands_apply_within_a_second_and_survive_restarts() {
    let devices = long_or(60_000, 25_000);
    let workers = long_or(16, 4);
    let services = OwnServices::start(&[]);
    let hub = || Hub::start(&Fleet::of(devices), &["--tier", "S3", "--units", "10"]);
    let hubs = vec![("north", hub()), ("south", hub())];
    let mut engine = Engine::alone(&services.access(), hubs);
    engine.grow(2, workers);
    let mut pipeline = engine.pipeline();
    pipeline.command_ok(&start("big"));
    // Wait until all workers send at full rate.
    engine.until_accepted(3_000, TIME_LIMIT);

    stops(&engine, &mut pipeline, &about("pause", "big"), "paused");
    resumes(&engine, &mut pipeline, &about("resume", "big"));

    stops(&engine, &mut pipeline, &about("pause", "big"), "paused");
    poll_until(TIME_LIMIT, "the records of all sends", || {
        let recorded = engine.status("big")["counts"]["enqueued"].as_u64();
        (recorded == Some(engine.accepted())).then_some(())
    });
    engine.kill_all();
    engine.grow(2, workers);
    assert_still(&engine, "paused");
    resumes(&engine, &mut pipeline, &about("resume", "big"));

    stops(&engine, &mut pipeline, &about_all("stop-all"), "halted");
    drop(pipeline);
    engine.stop_all();
    wait(async { tokio::join!(services.rabbitmq.restart(), services.redis.restart()) });
    engine.grow(2, workers);
    assert_still(&engine, "halted");
    let mut pipeline = engine.pipeline();
    // A rollout started now waits as well.
    let few = json!({ "target": { "devices": ["d-000001", "d-000002"] } });
    pipeline.command_ok(&start_with("small", few));
    engine.until_phase("small", "halted", TIME_LIMIT);
    resumes(&engine, &mut pipeline, &about_all("resume-all"));
    engine.until_phase("small", "succeeded", TIME_LIMIT);

    stops(&engine, &mut pipeline, &about("abort", "big"), "aborted");
    engine.room.run(&["watch", "big"]).expect(8);
    let ended = engine.status("big");
    let (sent, skipped) = (&ended["counts"]["enqueued"], &ended["counts"]["skipped"]);
    let of_small = 4;
    assert_eq!(*sent, engine.accepted() - of_small);
    assert!(skipped.as_u64() > Some(0), "nothing was left to abort");
    let transfers = engine.hubs.iter().map(|(_, hub)| hub.summary().transfers);
    assert_eq!(
        transfers.sum::<u64>(),
        engine.accepted(),
        "no message is sent twice"
    );
    engine.assert_reports_match_hubs("big");
    engine.assert_reports_match_hubs("small");
}

/// Performs a stopping command, and measures the time to the last message.
#[track_caller]
fn stops(engine: &Engine, pipeline: &mut Pipeline, command: &Value, phase: &str) {
    // Sends must be in progress, or there is nothing to stop.
    engine.until_accepted(engine.accepted() + 1, TIME_LIMIT);
    pipeline.command_ok(command);
    let answered = Instant::now();
    let mut seen = (engine.accepted(), answered);
    // On a busy machine, all processes pause now and then.
    let (mut polled, mut longest_pause) = (answered, Duration::ZERO);
    poll_for(QUIET, || {
        let accepted = engine.accepted();
        longest_pause = longest_pause.max(polled.elapsed());
        polled = Instant::now();
        if accepted != seen.0 {
            seen = (accepted, polled);
        }
    });
    let took = seen.1 - answered;
    println!("{command}: the last message came {took:?} after the answer");
    assert!(
        took < TAKES_HOLD_WITHIN + longest_pause,
        "{command} took effect after {took:?}; longest pause of the test: {longest_pause:?}"
    );
    engine.until_phase("big", phase, TIME_LIMIT);
}

#[track_caller]
fn assert_still(engine: &Engine, phase: &str) {
    let before = engine.accepted();
    poll_for(QUIET, || {
        assert_eq!(engine.accepted(), before, "no message is sent");
    });
    assert_eq!(engine.status("big")["phase"], phase);
}

/// Performs a command to continue, and waits for further sends.
#[track_caller]
fn resumes(engine: &Engine, pipeline: &mut Pipeline, command: &Value) {
    let before = engine.accepted();
    pipeline.command_ok(command);
    let answered = Instant::now();
    engine.until_accepted(before + 1, TIME_LIMIT);
    println!(
        "{command}: the first message came {:?} after the answer",
        answered.elapsed()
    );
    engine.until_accepted(before + 1_000, TIME_LIMIT);
}
