//! Faults of a hub while devices are looked for: the plan is whole all the same.

use twincast_emulator::Summary;

use crate::harness::{Fleet, Hub, Room, agree};

const DEVICES: u64 = 5_000;
const PAGES: u64 = DEVICES / 100;

/// Rolls out on a hub with these faults: every device must be found.
fn finds_everyone(faults: &str) -> Summary {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(faults);
    let room = Room::with(&hub);
    let spec = room.rollout("found", "");
    let result = room.run(&["--json", "run", &spec]).expect(0).json();
    assert_eq!(result["devices"], DEVICES);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.distinct_devices), (DEVICES, DEVICES));
    agree(&room.report("found"), &hub.account());
    seen
}

#[test]
fn empty_pages_with_a_continuation_are_not_the_end() {
    let seen = finds_everyone(r#"{"empty_page": {"next": 3, "share": 0.3}}"#);
    assert!(seen.query_pages > PAGES + 3, "{seen:?}");
}

#[test]
fn too_many_requests_are_made_again_when_the_hub_says() {
    let seen = finds_everyone(r#"{"http_429": {"next": 2, "share": 0.02}, "retry_after_s": 1}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn internal_errors_are_tried_again() {
    let seen = finds_everyone(r#"{"http_500": {"next": 2, "share": 0.05}}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn an_unavailable_hub_is_tried_again() {
    let seen = finds_everyone(r#"{"http_503": {"next": 2, "share": 0.05}}"#);
    assert!(seen.http_requests > PAGES + 2, "{seen:?}");
}

#[test]
fn slow_pages_are_waited_for() {
    let seen = finds_everyone(r#"{"http_delay_ms": 100}"#);
    assert_eq!(seen.query_pages, PAGES);
}
