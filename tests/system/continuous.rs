//! Continuous rollouts: devices join and leave the target during the rollout.
//!
//! Another rollout moves the devices: a device reports the new firmware after the update.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use twincast_emulator::{Fleet, HubConfig, RunningHub};

use crate::harness::{Room, eventually, from_now};

const OLD: usize = 40;
const NEW: usize = 10;
/// The time until the last scan. The update must reach all devices before.
const LAST_SCAN: Duration = Duration::from_secs(40);

fn hub(runtime: &tokio::runtime::Runtime) -> RunningHub {
    let fleet = format!(
        "{{seed: 3, groups: [\
         {{count: {OLD}, id: \"old-{{index:02}}\", reported: {{firmware: \"1\"}}, reported_after_delivery: {{firmware: \"2\"}}}}, \
         {{count: {NEW}, id: \"new-{{index:02}}\", reported: {{firmware: \"2\"}}}}]}}"
    );
    let config = HubConfig {
        unlimited: true,
        feedback_interval: Duration::from_millis(100),
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

/// Writes a continuous rollout to devices of a firmware.
fn write(room: &Room, firmware: u32, more: &str) {
    let until = from_now(LAST_SCAN);
    let text = format!(
        "name: moving\ntarget: {{ where: \"properties.reported.firmware = '{firmware}'\" }}\n\
         message: {{ body: {{ text: hello }} }}\ncontinuous: {{ every: 1m, until: {until} }}\n{more}\n"
    );
    room.write("moving.yaml", &text);
}

/// Sends the update to every device of the old firmware, from another folder.
fn update(hub: &RunningHub) {
    let elsewhere = Room::of(hub);
    elsewhere.write(
        "update.yaml",
        "name: update\ntarget: { where: \"properties.reported.firmware = '1'\" }\n\
         message: { body: { text: fetch 2 }, ack: full }\nstages: [{ name: all, gate: { counts: delivered, success_at_least: 100% } }]\n",
    );
    elsewhere.run(&["run", "update.yaml"]).expect(0);
}

/// Counts the messages of the continuous rollout to a device.
fn messages(hub: &RunningHub, device: &str) -> usize {
    let all = hub.hub().messages(device).unwrap_or_default();
    let ids = all.iter().map(|message| &message.message_id);
    ids.filter(|id| id.starts_with("moving.")).count()
}

/// Counts the devices of a stage by outcome.
fn counts(status: &Value, stage: &str) -> BTreeMap<String, u64> {
    let stages = status["stages"].as_array().expect("stages");
    let found = stages.iter().find(|it| it["name"] == stage);
    let counts = found.expect("a stage of that name")["counts"].clone();
    let counts: BTreeMap<String, u64> = serde_json::from_value(counts).expect("counts");
    counts.into_iter().filter(|(_, many)| *many > 0).collect()
}

#[test]
fn joining_devices_are_sent_the_message() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub(&runtime);
    let room = Room::of(&hub);
    write(&room, 2, "");
    let plan = room.run(&["plan", "moving.yaml"]).expect(0).stdout;
    assert!(plan.contains("late"), "{plan}");
    let running = room.start(&["run", "moving.yaml"]);
    let first = |n: usize| messages(&hub, &format!("new-{n:02}")) == 1;
    eventually("messages to the first devices", || {
        (0..NEW).all(first).then_some(())
    });
    update(&hub);
    let ended = running.wait().expect(0);
    assert!(ended.stdout.contains("50"), "{}", ended.stdout);
    for n in 0..OLD {
        assert_eq!(messages(&hub, &format!("old-{n:02}")), 1, "device {n}");
    }
    assert!((0..NEW).all(first), "no device received the message twice");
    let status = room.run(&["--json", "status", "moving"]).expect(0).json();
    let enqueued = |many| BTreeMap::from([("enqueued".to_owned(), many)]);
    assert_eq!(counts(&status, "all"), enqueued(NEW as u64));
    assert_eq!(counts(&status, "late"), enqueued(OLD as u64));
    let why = room.run(&["explain", "moving", "old-07"]).expect(0).stdout;
    assert!(why.contains("have joined the target"), "{why}");
    assert_eq!(room.report("moving").len(), OLD + NEW);
}

#[test]
fn devices_leaving_before_their_stage_are_skipped() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub(&runtime);
    let room = Room::of(&hub);
    // All devices but the first wait for the bake, and the bake ends after the last scan.
    let stages = "stages: [{ name: first, max_devices: 5, gate: { bake: 60s } }]";
    write(&room, 1, stages);
    let running = room.start(&["run", "moving.yaml"]);
    let sent = || (0..OLD).filter(|n| messages(&hub, &format!("old-{n:02}")) > 0);
    eventually("messages to the first devices", || {
        (sent().count() == 5).then_some(())
    });
    let first: Vec<_> = sent().collect();
    update(&hub);
    running.wait().expect(0);
    for n in 0..OLD {
        let expected = usize::from(first.contains(&n));
        assert_eq!(
            messages(&hub, &format!("old-{n:02}")),
            expected,
            "device {n}"
        );
    }
    let status = room.run(&["--json", "status", "moving"]).expect(0).json();
    let skipped = BTreeMap::from([("skipped".to_owned(), OLD as u64 - 5)]);
    assert_eq!(counts(&status, "rest"), skipped);
    assert_eq!(status["phase"], "succeeded", "{status}");
    let report = room.run(&["report", "moving"]).expect(0).stdout;
    assert!(report.contains("has left the target"), "{report}");
}
