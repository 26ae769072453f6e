//! `kill -9` at any moment costs time, never correctness.

use crate::harness::{
    Chance, Fleet, Hub, Room, Running, assert_report_matches, assert_same_ids, eventually, repeats,
};

const DEVICES: u64 = 20_000;
/// The largest number of sends repeated by a crash: slots x window, both at the default.
const REPEATS_A_CRASH: u64 = 4 * 256;
/// The number of kills during planning, and during sending.
const WHILE_PLANNING: u64 = 4;
const WHILE_SENDING: u64 = 16;

#[test]
fn twenty_kills_lose_no_device_and_repeat_few() {
    let seed = 20_260_101;
    println!("seed {seed}");
    let mut chance = Chance::seeded(seed);
    // Pages and answers take a while, so kills hit work in progress.
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(r#"{"http_delay_ms": 20, "disposition_delay_ms": 60}"#);
    let room = Room::with(&hub);
    // The rate leaves devices to the last run, even if a busy machine kills late.
    let more = "rate: 120000/min\nstages: [{name: a, percent: 1%, gate: {failure_above: 50%}}, \
                {name: b, percent: 10%, gate: {success_at_least: 50%}}, {name: c, percent: 50%}, {name: d, percent: 90%}]";
    let spec = room.rollout("crash", more);
    let run = || room.start(&["run", &spec]);

    for _ in 0..WHILE_PLANNING {
        let until = hub.summary().query_pages + chance.within(0..100);
        killed_when(run(), || hub.summary().query_pages >= until);
        assert_eq!(
            hub.summary().accepted,
            0,
            "nothing is sent before the plan is complete"
        );
    }
    hub.faults(r#"{"http_delay_ms": 0}"#);
    for crashes in 0..WHILE_SENDING {
        let until = hub.summary().accepted + chance.within(1..800);
        killed_when(run(), || hub.summary().accepted >= until);
        // A run killed early leaves pending repeats to the next run.
        let repeated = hub.summary().repeats_by_device;
        assert!(
            repeated <= crashes * REPEATS_A_CRASH,
            "{crashes} crashes repeated {repeated} sends"
        );
    }
    let left = DEVICES - hub.summary().distinct_devices;
    let ended = run().wait().expect(0);
    assert!(ended.stderr.contains("crash: continuing, "), "{ended}");

    let message_log = hub.message_log();
    let repeated = repeats(&message_log);
    println!("{left} devices were left to the last run; {repeated} repeats");
    assert!(left > 0, "some devices are left to the last run");
    assert_eq!(
        message_log.len() as u64,
        DEVICES,
        "each device received a message"
    );
    assert_same_ids(&message_log);
    assert!(repeated <= WHILE_SENDING * REPEATS_A_CRASH);
    let rows = room.report("crash");
    assert_eq!(rows.len() as u64, DEVICES);
    assert!(rows.iter().all(|row| row.outcome == "enqueued"));
    assert_report_matches(&rows, &message_log);
}

/// Kills a run as soon as `reached` returns true; the run must not end before.
#[track_caller]
fn killed_when(mut run: Running, reached: impl Fn() -> bool) {
    eventually("the moment to kill", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        reached().then_some(())
    });
    let ended = run.kill();
    assert_eq!(ended.signal, Some(9), "{ended}");
}

#[test]
fn kills_cause_no_repeats_with_at_most_once() {
    let hub = Hub::unlimited(&Fleet::of(10_000));
    hub.faults(r#"{"disposition_delay_ms": 60}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("once", "delivery: at_most_once\nrate: 60000/min");
    let run = || room.start(&["--json", "run", &spec]);
    let mut chance = Chance::seeded(7);
    for _ in 0..5 {
        let until = hub.summary().accepted + chance.within(1..1_000);
        killed_when(run(), || hub.summary().accepted >= until);
    }
    let result = run().wait().expect(4).json();
    let seen = hub.summary();
    assert_eq!(seen.repeats_by_device, 0);
    let unknown = result["counts"]["unknown"].as_u64().expect("a number");
    let enqueued = result["counts"]["enqueued"].as_u64().expect("a number");
    println!("{unknown} of 10000 devices are unknown");
    assert_eq!(unknown + enqueued, 10_000);
    assert!(
        unknown <= 5 * REPEATS_A_CRASH,
        "{unknown} outcomes are unknown"
    );
    assert!((enqueued..=enqueued + unknown).contains(&seen.distinct_devices));
    assert_report_matches(&room.report("once"), &hub.message_log());
}
