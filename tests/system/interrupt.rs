//! Requests to stop: a first signal, and a second signal.

use crate::harness::{
    Ended, Fleet, Hub, Room, Running, Signal, assert_report_matches, assert_same_ids, eventually,
};

const DEVICES: u64 = 10_000;

/// Starts a hub with answers slow enough that signals hit sends in flight, even on a busy machine.
fn slow_hub() -> Hub {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(r#"{"disposition_delay_ms": 1000}"#);
    hub
}

fn until_sending(hub: &Hub, run: &mut Running, messages: u64) {
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted >= messages).then_some(())
    });
}

/// Returns the arguments of the printed command for continuing.
#[track_caller]
fn continue_arguments(ended: &Ended) -> Vec<String> {
    let marker = "To continue: twincast ";
    let line = ended
        .stderr
        .lines()
        .find_map(|line| Some(line.split_once(marker)?.1));
    let line = line.unwrap_or_else(|| panic!("the output has no command to continue: {ended}"));
    line.split(' ').map(str::to_owned).collect()
}

fn assert_stop_without_repeats(signal: Signal) {
    let hub = slow_hub();
    let room = Room::bare();
    let spec = room.rollout("stop", "");
    let config = hub.config();
    let config = config.to_str().expect("a plain path");
    let mut run = room.start(&[
        "--config", config, "--state", "kept", "--json", "run", &spec,
    ]);
    until_sending(&hub, &mut run, 3_000);
    run.signal(signal);
    let ended = run.wait().expect(130);
    let counts = &ended.json()["counts"];
    let accepted = hub.summary().accepted;
    assert!(accepted < DEVICES, "some devices are left");
    assert_eq!(counts["enqueued"], accepted, "each send is recorded");
    assert_eq!(counts["pending"], DEVICES - accepted);

    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    // The printed command works verbatim.
    let again = continue_arguments(&ended);
    let again: Vec<_> = again.iter().map(String::as_str).collect();
    let ended = room.run(&again).expect(0);
    assert!(ended.stderr.contains("stop: continuing, "), "{ended}");
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.repeats_by_device), (DEVICES, 0));
    let rows = room.run(&["--state", "kept", "report", "stop", "--format", "jsonl"]);
    let rows: Vec<_> = rows
        .expect(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    assert_report_matches(&rows, &hub.message_log());
}

#[test]
fn ctrl_c_records_sends_in_flight() {
    assert_stop_without_repeats(Signal::Interrupt);
}

#[test]
fn sigterm_stops_a_run_like_ctrl_c() {
    assert_stop_without_repeats(Signal::Terminate);
}

#[test]
fn ctrl_c_while_planning_sends_no_message_and_is_resumable() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(r#"{"http_delay_ms": 200}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("stop", "");
    let mut run = room.start(&["run", &spec]);
    eventually("pages of the query", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().query_pages >= 10).then_some(())
    });
    run.signal(Signal::Interrupt);
    let ended = run.wait().expect(130);
    assert_eq!(continue_arguments(&ended), ["run", &spec]);
    let seen = hub.summary();
    assert_eq!(seen.transfers, 0, "nothing was sent");
    assert!(
        seen.query_pages < DEVICES / 100,
        "the planning stopped early"
    );

    hub.faults(r#"{"http_delay_ms": 0}"#);
    room.run(&["run", &spec]).expect(0);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.repeats_by_device), (DEVICES, 0));
    assert_report_matches(&room.report("stop"), &hub.message_log());
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    // No answer arrives within any drain.
    hub.faults(r#"{"disposition_delay_ms": 600000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("stop", "");
    let mut run = room.start(&["run", &spec]);
    until_sending(&hub, &mut run, 500);
    run.signal(Signal::Interrupt);
    eventually("the answer to the first Ctrl-C", || {
        assert!(
            !run.is_over(),
            "the run ended at the first signal: {}",
            run.stderr()
        );
        run.stderr()
            .contains("Interrupt again to stop at once")
            .then_some(())
    });
    run.signal(Signal::Interrupt);
    let ended = run.wait().expect(130);
    let ended = ended.says(&[
        "stopped before all sends in flight were recorded",
        "run the same command again",
    ]);
    assert!(!ended.stderr.contains("panicked"), "{ended}");

    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    room.run(&["run", &spec]).expect(0);
    let message_log = hub.message_log();
    assert_eq!(message_log.len() as u64, DEVICES);
    assert_same_ids(&message_log);
    assert!(hub.summary().repeats_by_device <= 4 * 256);
    assert_report_matches(&room.report("stop"), &message_log);
}
