//! Faults of a hub during the search for devices: the plan is complete all the same.

use twincast_emulator::Summary;

use crate::harness::{Fleet, Hub, Room, assert_report_matches};

const DEVICES: u64 = 5_000;
const PAGES: u64 = DEVICES / 100;

/// Rolls out on a hub with the given faults, and asserts that every device is found.
fn finds_all_devices(faults: &str) -> Summary {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(faults);
    let room = Room::with(&hub);
    let spec = room.rollout("found", "");
    let result = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_eq!(result["devices"], DEVICES);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.distinct_devices), (DEVICES, DEVICES));
    assert_report_matches(&room.report("found"), &hub.message_log());
    seen
}

#[test]
fn empty_pages_with_a_continuation_are_not_the_end() {
    let seen = finds_all_devices(r#"{"empty_page": {"next": 3, "share": 0.3}}"#);
    assert!(seen.query_pages > PAGES + 3, "{seen:?}");
}

#[test]
fn throttled_requests_are_retried() {
    let seen = finds_all_devices(r#"{"http_429": {"next": 2, "share": 0.02}, "retry_after_s": 1}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn internal_errors_are_tried_again() {
    let seen = finds_all_devices(r#"{"http_500": {"next": 2, "share": 0.05}}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn an_unavailable_hub_is_tried_again() {
    let seen = finds_all_devices(r#"{"http_503": {"next": 2, "share": 0.05}}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn slow_pages_are_waited_for() {
    let seen = finds_all_devices(r#"{"http_delay_ms": 100}"#);
    assert_eq!(seen.query_pages, PAGES);
}

/// Returns the folder of a user with a limit of two seconds on waiting for a hub.
fn impatient(hub: &Hub) -> Room {
    let room = Room::with(hub);
    room.rollout("away", "");
    room.set("TWINCAST__RUN__GIVE_UP_AFTER", "2s")
}

#[test]
fn persistent_faults_are_reported_and_given_up_in_time() {
    for (faults, code, words) in [
        (r#"{"http_503": {"share": 1.0}}"#, 5, "503"),
        (
            r#"{"http_429": {"share": 1.0}, "retry_after_s": 3600}"#,
            6,
            "429",
        ),
        (
            r#"{"http_429": {"share": 1.0}, "retry_after_s": 20}"#,
            6,
            "waiting: hub emulator: ",
        ),
        (
            r#"{"http_delay_ms": 60000}"#,
            5,
            "no answer to a query for ",
        ),
    ] {
        let hub = Hub::unlimited(&Fleet::of(20));
        hub.faults(faults);
        let mut room = impatient(&hub);
        let ended = room.run(&["run", "away.yaml"]).expect(code);
        ended.says(&[words, "cannot find the devices of hub emulator: "]);
        // A later reader gets the reason, too.
        let status = room.run(&["--json", "status", "away"]).expect(0).json();
        assert_eq!(status["phase"], "planning");
        let waits = status["waits_for"].as_str().unwrap_or_default();
        assert!(
            waits.starts_with("its devices to be found: ") && waits.contains("; failing since "),
            "{status}"
        );

        hub.faults(r#"{"http_503": {"share": 0}, "http_429": {"share": 0}, "http_delay_ms": 0}"#);
        room.set_for_all("TWINCAST__RUN__GIVE_UP_AFTER", "15m");
        room.run(&["run", "away.yaml"]).expect(0);
        assert_eq!(hub.summary().accepted, 20);
    }
}

#[test]
fn a_hub_recovering_in_time_is_waited_for() {
    let hub = Hub::unlimited(&Fleet::of(20));
    // More failures than the client's own retries cover.
    hub.faults(r#"{"http_503": {"next": 9, "share": 0}}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("back", "");
    room.run(&["run", &spec])
        .expect(0)
        .says(&["waiting: hub emulator: ", "503"]);
    assert_eq!(hub.summary().accepted, 20);
}
