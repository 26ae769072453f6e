//! The explanation of a device's state, and a rollout's time account.

use serde_json::Value;
use twincast_emulator::{Fleet, HubConfig, RunningHub};

use crate::harness::{Room, eventually};

/// A hub with five canaries and 45 other refrigerators.
fn hub(runtime: &tokio::runtime::Runtime) -> RunningHub {
    let fleet = "{seed: 3, groups: [\
        {count: 5, id: \"canary-{index:02}\", tags: {type: fridge, ring: canary}}, \
        {count: 45, id: \"fridge-{index:02}\", tags: {type: fridge}}]}";
    let config = HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::from_yaml(fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

fn sum_of(time: &Value) -> u64 {
    let parts = time.as_object().expect("an object").iter();
    let parts = parts.filter(|(what, _)| *what != "total");
    parts
        .map(|(_, seconds)| seconds.as_u64().expect("a number"))
        .sum()
}

#[test]
fn a_device_is_explained_and_the_time_adds_up() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub(&runtime);
    let room = Room::of(&hub);
    room.write(
        "staged.yaml",
        "name: staged\ntarget:\n  tags: { type: fridge }\n  exclude: [{ devices: [fridge-07], reason: is in repair }]\n\
         message: { body: { text: fetch 1.4.2 } }\n\
         stages: [{ name: canary, tags: { ring: canary }, gate: { approval: {} } }]\n",
    );
    let unknown = room.run(&["explain", "staged", "canary-01"]).expect(7);
    assert!(
        unknown.stderr.contains("there is no state folder"),
        "{}",
        unknown.stderr
    );
    room.run(&["run", "staged.yaml"]).expect(8);

    let canary = room
        .run(&["explain", "staged", "canary-01"])
        .expect(0)
        .stdout;
    for line in [
        "canary-01 in staged, which is running\n",
        "\n  hub        emulator\n",
        "\n  stage      canary (1 of 2): it takes the devices with tags.ring = 'canary'\n",
        " of 5; all\n",
        "\n  outcome    enqueued: the hub holds the message for the device\n",
        "\n  class      sent\n",
        "\n  attempt    1, message id staged.",
        "\n  waits for  nothing\n",
        " stage canary sent\n",
    ] {
        assert!(canary.contains(line), "{line:?} is not in {canary}");
    }
    let other = ["--json", "explain", "staged", "fridge-09"];
    let other = room.run(&other).expect(0).json();
    let place = &other["places"][0];
    assert_eq!(
        (&place["outcome"], &place["stage"]["name"]),
        (&"pending".into(), &"rest".into())
    );
    assert_eq!(
        place["waits_for"],
        "the start of its stage, after stage canary, which waits for an approval"
    );
    assert_eq!(place["stage"]["passed_over"][0]["stage"], "canary");
    assert!((0.0..1.0).contains(&other["cohort"].as_f64().expect("a number")));

    let left_out = room
        .run(&["explain", "staged", "fridge-07"])
        .expect(3)
        .stderr;
    assert!(
        left_out.contains("target.exclude[0] excludes it by its id (is in repair)"),
        "{left_out}"
    );
    let absent = room.run(&["explain", "staged", "nobody"]).expect(3).stderr;
    assert!(
        absent.contains("WHERE (deviceId = 'nobody') AND "),
        "{absent}"
    );
    let no_rollout = room.run(&["explain", "other", "nobody"]).expect(3).stderr;
    assert!(
        no_rollout.contains("existing rollouts: staged"),
        "{no_rollout}"
    );

    // No process runs the rollout: the time counts as waiting for the approval.
    let waited = eventually("some waiting time", || {
        let status = room.run(&["--json", "status", "staged"]).expect(0).json();
        let time = status["time_seconds"].clone();
        (time["approval"].as_u64()? >= 2).then_some(time)
    });
    assert_eq!(waited["total"], sum_of(&waited), "{waited}");
    let table = room.run(&["status", "staged"]).expect(0).stdout;
    assert!(table.contains("\n  waiting for an approval "), "{table}");

    room.run(&["approve", "staged", "--by", "ann"]).expect(0);
    let summary = room.run(&["--json", "run", "staged.yaml"]).expect(0).json();
    let report = room.run(&["--json", "report", "staged"]).expect(0).json();
    assert_eq!(
        report["time_seconds"], summary["time_seconds"],
        "the times of an ended rollout are final"
    );
    let time = &summary["time_seconds"];
    assert_eq!(time["total"], sum_of(time), "{time}");
    assert!(
        time["approval"].as_u64() >= waited["approval"].as_u64(),
        "{time}"
    );
}
