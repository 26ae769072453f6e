//! Rollouts of a concurrency group in a state folder: refused, waiting, superseding.

use crate::harness::{Fleet, Hub, Room};

fn write(room: &Room, name: &str, policy: &str, more: &str) {
    room.write(
        &format!("{name}.yaml"),
        &format!(
            "name: {name}\nconcurrency: {{ group: firmware{policy} }}\ntarget: {{ all: true }}\nmessage: {{ body: {{ text: {name} }} }}\n{more}"
        ),
    );
}

#[test]
fn a_group_runs_one_rollout_at_a_time() {
    let hub = Hub::unlimited(&Fleet::of(200));
    let room = Room::with(&hub);
    // The rollout sends to ten devices, then waits for an approval.
    write(
        &room,
        "old",
        "",
        "stages: [{name: canary, max_devices: 10, gate: {approval: {}}}]\n",
    );
    room.run(&["run", "old.yaml"]).expect(8);
    assert_eq!(hub.summary().transfers, 10);

    write(&room, "refused", "", "");
    let refused = room.run(&["run", "refused.yaml"]).expect(3).stderr;
    assert!(
        refused.contains("group firmware has an active rollout, old"),
        "{refused}"
    );
    let unknown = room.run(&["status", "refused"]).expect(3).stderr;
    assert!(unknown.contains("there is no rollout refused"), "{unknown}");
    let plan = room.run(&["plan", "refused.yaml"]).expect(0).stdout;
    assert!(
        plan.contains("Both rollouts are in concurrency group firmware."),
        "{plan}"
    );

    write(&room, "waiting", ", policy: queue", "");
    let waits = "waits for rollout old, which is ahead of it in concurrency group firmware";
    let waiting = room.run(&["run", "waiting.yaml"]).expect(8);
    assert!(waiting.stderr.contains(waits), "{}", waiting.stderr);
    let status = room.run(&["status", "waiting"]).expect(0).stdout;
    assert!(status.contains(waits), "{status}");

    write(&room, "new", ", policy: supersede", "");
    room.run(&["run", "new.yaml"]).expect(0);
    assert_eq!(hub.summary().transfers, 210);
    for (name, skipped) in [("old", 190), ("waiting", 0)] {
        let status = room.run(&["--json", "status", name]).expect(0).json();
        assert_eq!(status["phase"], "aborted", "{status}");
        assert_eq!(status["reason"], "superseded by new", "{status}");
        assert_eq!(
            status["counts"]["skipped"].as_u64().unwrap_or(0),
            skipped,
            "{status}"
        );
    }
    let old = room.run(&["status", "old"]).expect(0).stdout;
    let headline = "aborted: superseded by new: 200 devices: 10 sent, 190 skipped\n";
    assert!(old.contains(headline), "{old}");
    let why = "  Skipped:\n        190  the rollout was aborted: superseded by new\n";
    assert!(old.contains(why), "{old}");
    let report = room
        .run(&["report", "old", "--outcome", "skipped"])
        .expect(0)
        .stdout;
    let line = report.lines().nth(1).unwrap_or_default();
    assert!(line.contains("superseded by new"), "{report}");
}
