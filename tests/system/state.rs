//! State folders in use, wrong, damaged or full.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{
    Ended, Fleet, Hub, Room, Running, Signal, assert_refused, assert_report_matches, assert_tidy,
    eventually,
};

const DEVICES: u64 = 20_000;

#[test]
fn a_folder_in_use_is_reported() {
    let hub = Hub::unlimited(&Fleet::of(2_000));
    hub.faults(r#"{"disposition_delay_ms": 600000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("first", "");
    room.rollout("second", "");
    let mut run = room.start(&["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted > 0).then_some(())
    });
    let words = [
        "twincast-state is in use",
        "wait for the other twincast",
        "--state",
    ];
    assert_refused(&room, &["run", "second.yaml"], 7, &words);
    // Another folder is free.
    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    room.run(&["--state", "other", "run", "second.yaml"])
        .expect(0);
    run.signal(Signal::Interrupt);
}

/// The archive contains the whole rollout; the next rollout of the same name is a new rollout with
/// new message ids.
#[test]
fn an_ended_rollout_is_deleted() {
    let hub = Hub::unlimited(&Fleet::of(300));
    let room = Room::with(&hub);
    let spec = room.rollout("first", "");
    let ids = || {
        let report = room.run(&["report", "first", "--format", "csv"]).expect(0);
        let rows = report.stdout.lines().skip(1).map(|row| {
            let id = row.rsplit(',').next().expect("a message id");
            id.to_owned()
        });
        rows.collect::<BTreeSet<_>>()
    };
    room.run(&["run", &spec]).expect(0);
    let before = ids();
    assert_eq!(before.len(), 300);
    let archive = ["delete", "first", "--archive", "first.jsonl"];
    let deleted = room.run(&archive).expect(0);
    assert_eq!(deleted.stdout, "first is deleted\n");
    let archived = fs::read_to_string(room.path().join("first.jsonl")).expect("an archive");
    let mut lines = archived.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line
    });
    let rollout = lines.next().expect("a rollout");
    assert_eq!(rollout["rollout"]["phase"], "succeeded");
    let archived = lines.map(|device| {
        assert_eq!(device["outcome"], "enqueued");
        device["message_id"].as_str().expect("an id").to_owned()
    });
    assert_eq!(archived.collect::<BTreeSet<_>>(), before);

    // No archive is overwritten, and no archive remains for a missing rollout.
    let words = ["there is no rollout first"];
    assert_refused(
        &room,
        &["delete", "first", "--archive", "b.jsonl"],
        3,
        &words,
    );
    assert!(!room.path().join("b.jsonl").exists());
    let again = room.run(&["delete", "first"]).expect(0);
    assert_eq!(
        again.stdout,
        "nothing to delete: there is no rollout first\n"
    );
    room.run(&["run", &spec]).expect(0);
    assert!(ids().is_disjoint(&before));
    assert_eq!(hub.summary().repeats_by_message_id, 0);
    let words = ["cannot write the archive first.jsonl"];
    assert_refused(&room, &archive, 1, &words);
}

#[test]
fn a_running_rollout_is_inspected_and_changed() {
    let hub = Hub::unlimited(&Fleet::of(2_000));
    hub.faults(r#"{"disposition_delay_ms": 600000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("first", "");
    let mut run = room.start(&["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted > 0).then_some(())
    });
    let status = room.run(&["--json", "status", "first"]).expect(0).json();
    assert_eq!(status["phase"], "running");
    let list = room.run(&["--json", "status"]).expect(0).json();
    assert_eq!(list["rollouts"][0]["name"], "first");
    let report = room.run(&["report", "first", "--format", "csv"]).expect(0);
    assert_eq!(report.stdout.lines().count(), 2_001);
    let device = report
        .stdout
        .lines()
        .nth(1)
        .and_then(|row| row.split(',').next());
    let explained = room.run(&["explain", "first", device.expect("a device")]);
    let explained = explained.expect(0).stdout;
    assert!(
        explained.contains("in first, which is running"),
        "{explained}"
    );
    room.run(&["hubs"]).expect(0);
    let paused = room.run(&[
        "--json", "pause", "first", "--reason", "smoke", "--by", "Åse",
    ]);
    let paused = paused.expect(0).json();
    assert_eq!(
        (&paused["changed"], &paused["rollouts"][0]["phase"]),
        (&true.into(), &"paused".into())
    );
    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    hub.drop_connections();
    let ended = run.wait().expect(8);
    assert!(ended.stderr.contains("smoke"), "{}", ended.stderr);
    // No process works on the folder now: commands read and change the folder directly.
    let status = room.run(&["--json", "status", "first"]).expect(0).json();
    assert_eq!(status["phase"], "paused");
    assert!(
        status["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("Åse"),
        "{status}"
    );
    room.run(&["watch", "first"])
        .expect(8)
        .says(&["No process works on first"]);
    let aborted = room.run(&["--json", "abort", "first"]).expect(0).json();
    assert_eq!(aborted["rollouts"][0]["phase"], "aborted");
    assert!(!room.path().join("twincast-state/state.sock").exists());
}

#[test]
fn state_left_by_a_kill_is_read_without_writes() {
    let hub = Hub::unlimited(&Fleet::of(2_000));
    hub.faults(r#"{"disposition_delay_ms": 600000}"#);
    // A path too long for the name of a socket.
    let folder = "deep/".repeat(30) + "state";
    let room = Room::with(&hub).set("TWINCAST__STATE", &folder);
    let spec = room.rollout("first", "");
    let mut run = room.start(&["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted > 0).then_some(())
    });
    let status = room.run(&["status", "first"]).expect(0).stdout;
    assert!(status.starts_with("first running"), "{status}");
    run.kill();
    let state = room.path().join(&folder).join("state.redb");
    let before = fs::read(&state).expect("the state");
    for arguments in [&["status"][..], &["report", "first"], &["watch", "first"]] {
        let ended = room.run(arguments);
        assert!(matches!(ended.code, Some(0 | 8)), "{}", ended.stderr);
    }
    assert!(
        fs::read(&state).expect("the state") == before,
        "the file is unchanged"
    );
}

#[test]
fn a_state_path_other_than_a_folder_is_reported() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    let spec = room.rollout("a", "");
    let words = ["a.yaml is not a folder", "--state"];
    assert_refused(&room, &["--state", "a.yaml", "run", &spec], 7, &words);
    let below = ["a.yaml/below", "--state"];
    assert_refused(&room, &["--state", "a.yaml/below", "run", &spec], 7, &below);
    assert_eq!(hub.summary().transfers, 0);
}

#[test]
fn a_damaged_state_is_reported_and_left_unchanged() {
    let hub = Hub::unlimited(&Fleet::of(5_000));
    let room = Room::with(&hub);
    let spec = room.rollout("whole", "");
    room.run(&["run", &spec]).expect(0);
    let whole = fs::read(room.path().join("twincast-state/state.redb")).expect("the state");
    let sent = hub.summary().transfers;

    let mut overwritten = whole.clone();
    overwritten[..16].copy_from_slice(b"something else!!");
    let truncated = whole[..whole.len() / 3].to_vec();
    let mut rotten = whole.clone();
    for byte in rotten.iter_mut().skip(4_096).step_by(37) {
        *byte ^= 0xa5;
    }
    for (name, bytes) in [
        ("overwritten", overwritten),
        ("truncated", truncated),
        ("rotten", rotten),
    ] {
        let folder = room.path().join(name);
        fs::create_dir(&folder).expect("the folder is writable");
        fs::write(folder.join("state.redb"), &bytes).expect("the folder is writable");
        let place = format!("the state in {name}");
        let words = [
            &*place,
            "damaged",
            "restore the folder from a backup",
            "--state",
        ];
        assert_refused(&room, &["--state", name, "run", &spec], 7, &words);
        assert_refused(&room, &["--state", name, "report", "whole"], 7, &words);
        let after = fs::read(folder.join("state.redb")).expect("the state");
        assert!(
            after.len() == bytes.len(),
            "{name}: the file keeps the size"
        );
    }
    assert_eq!(hub.summary().transfers, sent, "no message is sent again");
}

/// Starts the program with a limit on file sizes (`limit`, in the shell's blocks): writes fail as
/// on a full disk, and the accompanying signal is ignored.
fn with_file_limit(limit: &str, room: &Room, arguments: &[&str]) -> Running {
    let mut command = Command::new("sh");
    room.prepare(&mut command);
    command
        .args(["-c", "ulimit -f \"$0\"; trap '' XFSZ; exec \"$@\"", limit])
        .arg(env!("CARGO_BIN_EXE_twincast"))
        .args(arguments);
    Running::start(&mut command)
}

/// Asserts that the run ended for lack of space, and continues once there is space.
fn assert_reported_and_resumable(ended: Ended, room: &Room, hub: &Hub, spec: &str) {
    let ended = ended.expect(7);
    let ended = ended.says(&[
        "error: ",
        "the store is not writable",
        "What to do: ",
        "free disk space",
        "run the same command again",
    ]);
    assert_tidy(&ended);
    room.run(&["run", spec]).expect(0);
    let seen = hub.summary();
    assert_eq!(seen.distinct_devices, DEVICES);
    assert!(seen.repeats_by_device <= 4 * 256, "{seen:?}");
    assert_report_matches(&room.report("full"), &hub.message_log());
}

#[test]
fn a_full_disk_while_planning_is_reported_and_resumable() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let room = Room::with(&hub);
    let spec = room.rollout("full", "");
    // Enough space to begin, too little for the plan.
    let ended = with_file_limit("200", &room, &["run", &spec]).wait();
    assert_eq!(
        hub.summary().transfers,
        0,
        "nothing is sent before the plan is stored"
    );
    assert_reported_and_resumable(ended, &room, &hub, &spec);
    assert_eq!(hub.summary().repeats_by_device, 0);
}

#[test]
fn a_full_disk_while_sending_is_reported_and_resumable() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    // Slow answers: on a busy machine, too, the limit applies before the end of the run.
    hub.faults(r#"{"disposition_delay_ms": 1000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("full", "");
    let mut run = with_file_limit("unlimited", &room, &["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted > 3_000).then_some(())
    });
    run.limit_file_size(4_096);
    let ended = run.wait();
    assert!(
        hub.summary().distinct_devices < DEVICES,
        "the run is not complete"
    );
    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    assert_reported_and_resumable(ended, &room, &hub, &spec);
}
