//! Faults of a hub during sending: no device is missed, a send is repeated only when the result
//! cannot be known, and the program's counts equal the hub's.

use serde_json::{Value, json};
use twincast_emulator::Summary;

use crate::harness::{
    Fleet, Hub, MessageLog, Room, Signal, assert_report_matches, assert_same_ids, eventually,
    repeats,
};

/// Several times the largest session window known to be granted by a hub.
const MANY: u64 = 15_000;
const SOME: u64 = 4_000;
/// The largest number of sends in flight when a connection is cut: slots x window.
const UNDER_WAY: u64 = 4 * 256;

/// Rolls out on a hub with the given faults, and asserts that every device is reached.
fn survives(devices: u64, faults: &str) -> Summary {
    survives_with_timeout("2m", devices, faults)
}

/// Like [`survives`], with a time limit of sends. On a busy machine, answers are late, and a send
/// past half of the limit may be repeated.
fn survives_with_timeout(send_timeout: &str, devices: u64, faults: &str) -> Summary {
    let hub = Hub::unlimited(&Fleet::of(devices));
    hub.faults(faults);
    let room = Room::with(&hub).set("TWINCAST__HUBS__EMULATOR__SEND_TIMEOUT", send_timeout);
    let spec = room.rollout("faulty", "");
    let result = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_reached(&hub, &room, &result, devices);
    hub.summary()
}

/// Asserts that every device is reached, and that program, report and hub agree.
#[track_caller]
fn assert_reached(hub: &Hub, room: &Room, result: &Value, devices: u64) {
    assert_eq!(result["phase"], "succeeded");
    assert_eq!(result["counts"], json!({ "enqueued": devices }));
    let message_log: MessageLog = hub.message_log();
    assert_eq!(
        message_log.len() as u64,
        devices,
        "each device received a message"
    );
    assert_same_ids(&message_log);
    let seen = hub.summary();
    assert_eq!(seen.distinct_devices, devices);
    assert_eq!(seen.repeats_by_device, repeats(&message_log));
    assert_eq!(seen.repeats_by_message_id, seen.repeats_by_device);
    let rows = room.report("faulty");
    assert!(rows.iter().all(|row| row.outcome == "enqueued"));
    assert_report_matches(&rows, &message_log);
}

#[test]
fn flows_without_next_incoming_id() {
    let seen = survives(MANY, r#"{"flow_without_next_incoming_id": true}"#);
    assert_eq!((seen.transfers, seen.repeats_by_device), (MANY, 0));
}

#[test]
fn detached_links() {
    let seen = survives(MANY, r#"{"detach_after_transfers": 4000}"#);
    assert!(seen.cut_links >= 3, "{seen:?}");
    assert!(
        seen.repeats_by_device <= seen.cut_links * UNDER_WAY,
        "{seen:?}"
    );
}

#[test]
fn closed_connections() {
    let seen = survives(MANY, r#"{"close_after_transfers": 4000}"#);
    assert!(seen.cut_connections >= 3, "{seen:?}");
    assert!(
        seen.repeats_by_device <= seen.cut_connections * UNDER_WAY,
        "{seen:?}"
    );
}

#[test]
fn dropped_connections() {
    // The delay makes the drop hit sends that were enqueued and not answered.
    let faults = r#"{"drop_after_transfers": 4000, "disposition_delay_ms": 30}"#;
    let seen = survives(MANY, faults);
    assert!(seen.cut_connections >= 3, "{seen:?}");
    assert!(
        seen.repeats_by_device > 0,
        "some sends are repeated: {seen:?}"
    );
    assert!(
        seen.repeats_by_device <= seen.cut_connections * UNDER_WAY,
        "{seen:?}"
    );
}

#[test]
fn connections_closed_for_inactivity() {
    let faults = r#"{"idle_close_ms": 2000, "disposition_delay_ms": 400}"#;
    let seen = survives(MANY, faults);
    assert!(seen.connections >= 3, "{seen:?}");
    assert!(
        seen.repeats_by_device <= (seen.connections - 1) * UNDER_WAY,
        "{seen:?}"
    );
}

#[test]
fn released_sends_are_retried() {
    let seen = survives(SOME, r#"{"released": {"share": 0.1}}"#);
    assert!(seen.released > 200, "{seen:?}");
    assert_eq!(
        seen.repeats_by_device, 0,
        "a known outcome causes no repeat"
    );
    assert_eq!(seen.transfers, SOME + seen.released);
}

#[test]
fn modified_sends_are_retried() {
    let seen = survives(SOME, r#"{"modified": {"share": 0.1}}"#);
    assert!(seen.modified > 200, "{seen:?}");
    assert_eq!(
        seen.repeats_by_device, 0,
        "a known outcome causes no repeat"
    );
    assert_eq!(seen.transfers, SOME + seen.modified);
}

#[test]
fn transiently_refused_sends_are_retried() {
    let faults = r#"{"internal_error": {"next": 300}, "throttled": {"next": 5}}"#;
    let seen = survives(SOME, faults);
    assert_eq!(
        seen.repeats_by_device, 0,
        "a known outcome causes no repeat"
    );
    assert_eq!(seen.transfers, SOME + 305);
}

#[test]
fn sends_timed_out_and_enqueued_are_repeated() {
    let seen = survives(SOME, r#"{"timeout": {"next": 200}}"#);
    assert_eq!(
        seen.repeats_by_device, 200,
        "one repeat for each unknown outcome"
    );
    assert_eq!(seen.transfers, SOME + 200);
}

#[test]
fn unanswered_sends_are_repeated() {
    let seen = survives_with_timeout("20s", SOME, r#"{"lost_disposition": {"next": 150}}"#);
    assert_eq!(seen.lost_dispositions, 150);
    assert_eq!(
        seen.repeats_by_device, 150,
        "one repeat for each unknown outcome"
    );
}

#[test]
fn slow_answers() {
    let seen = survives(SOME, r#"{"disposition_delay_ms": 1000}"#);
    assert_eq!((seen.transfers, seen.repeats_by_device), (SOME, 0));
}

#[test]
fn a_rollout_survives_combined_faults() {
    let seen = survives_with_timeout(
        "20s",
        MANY,
        r#"{"seed": 3, "flow_without_next_incoming_id": true, "drop_after_transfers": 5000,
            "released": {"share": 0.02}, "modified": {"share": 0.02},
            "internal_error": {"share": 0.02}, "timeout": {"share": 0.01},
            "lost_disposition": {"next": 40}, "disposition_delay_ms": 10}"#,
    );
    assert!(seen.released > 0 && seen.modified > 0, "{seen:?}");
    assert!(
        seen.cut_connections > 0 && seen.lost_dispositions > 0,
        "{seen:?}"
    );
}

#[test]
fn a_rollout_survives_refused_connections() {
    let hub = Hub::unlimited(&Fleet::of(MANY));
    // Without answers, the run cannot end before the connections are refused.
    hub.faults(r#"{"disposition_delay_ms": 600000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("faulty", "");
    let mut run = room.start(&["--json", "run", &spec]);
    eventually("sends", || (hub.summary().accepted > 500).then_some(()));
    hub.faults(r#"{"refuse_connections": true}"#);
    hub.drop_connections();
    eventually("a message about the obstacle", || {
        assert!(!run.is_over(), "the run gave up: {}", run.stderr());
        run.stderr()
            .contains("waiting: hub emulator: ")
            .then_some(())
    });
    assert!(
        hub.summary().distinct_devices < MANY,
        "the run is not complete"
    );
    hub.faults(r#"{"refuse_connections": false, "disposition_delay_ms": 0}"#);
    let ended = run.wait().expect(0);
    assert_reached(&hub, &room, &ended.json(), MANY);
    assert!(hub.summary().repeats_by_device <= UNDER_WAY);
}

#[test]
fn an_exhausted_daily_quota_is_waited_for() {
    let hub = Hub::unlimited(&Fleet::of(SOME));
    // Slow answers: the run takes several windows, about 14 s.
    hub.faults(r#"{"disposition_delay_ms": 2000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("faulty", "");
    let mut run = room.start(&["--json", "run", &spec]);
    eventually("sends", || (hub.summary().accepted > 500).then_some(()));
    hub.faults(r#"{"quota_exhausted": true, "disposition_delay_ms": 0}"#);
    eventually("a message about the obstacle", || {
        assert!(!run.is_over(), "the run gave up: {}", run.stderr());
        run.stderr()
            .contains("waiting: hub emulator: ")
            .then_some(())
    });
    run.signal(Signal::Interrupt);
    run.wait().expect(130);
    let before = hub.summary();
    assert!(
        before.accepted < SOME && before.quota_exceeded > 0,
        "{before:?}"
    );
    hub.faults(r#"{"quota_exhausted": false}"#);
    let result = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_reached(&hub, &room, &result, SOME);
    assert_eq!(
        hub.summary().repeats_by_device,
        0,
        "a known outcome causes no repeat"
    );
}

#[test]
fn at_most_once_never_repeats_when_connections_drop() {
    let hub = Hub::unlimited(&Fleet::of(MANY));
    hub.faults(r#"{"drop_after_transfers": 4000, "disposition_delay_ms": 30}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("faulty", "delivery: at_most_once");
    let result = room.run(&["--json", "run", &spec]).expect(4).json();
    let seen = hub.summary();
    assert!(seen.cut_connections >= 3, "{seen:?}");
    assert_eq!(seen.repeats_by_device, 0);
    let count = |outcome: &str| result["counts"][outcome].as_u64().unwrap_or(0);
    assert_eq!(count("enqueued") + count("unknown"), MANY);
    assert!(count("unknown") > 0, "some outcomes are unknown");
    assert!(count("unknown") <= seen.cut_connections * UNDER_WAY);
    let rows = room.report("faulty");
    assert_report_matches(&rows, &hub.message_log());
    let unknown = rows.iter().filter(|row| row.outcome == "unknown").count();
    assert_eq!(unknown as u64, count("unknown"));
}
