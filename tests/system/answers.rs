//! Answers of devices in their twins: applied updates, and failures with reasons.

use std::collections::BTreeMap;

use serde_json::Value;
use twincast_emulator::{Fleet, HubConfig, RunningHub};

use crate::harness::{Chance, Room, eventually};

const CANARIES: usize = 20;
const OTHERS: usize = 480;
const GATE: &str = "counts: applied, failure_above: 10%, min_sample: 5";

/// Starts a hub in this process with answering devices. `fails` is the share of failing canaries.
fn hub(runtime: &tokio::runtime::Runtime, fails: &str) -> RunningHub {
    let answers = |fails: &str| {
        format!(
            "{{latency: 5ms..50ms, answers: {{after: 100ms..900ms, fails: {fails}, error: 'health_check: the door sensor does not answer'}}}}"
        )
    };
    let (canaries, others) = (answers(fails), answers("0%"));
    let fleet = format!(
        "{{seed: 5, groups: [\
         {{count: {CANARIES}, id: 'canary-{{index:02}}', tags: {{type: fridge, ring: canary}}, behaviour: {canaries}}}, \
         {{count: {OTHERS}, id: 'fridge-{{index:03}}', tags: {{type: fridge, ring: main}}, behaviour: {others}}}]}}"
    );
    let config = HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

fn write(room: &Room) {
    room.write(
        "update.yaml",
        &format!(
            "name: update\ntarget: {{ tags: {{ type: fridge }} }}\n\
             message: {{ body: {{ json: {{ version: 1.4.2 }} }}, properties: {{ kind: update }} }}\n\
             stages:\n  - name: canary\n    tags: {{ ring: canary }}\n    gate: {{ {GATE} }}\n"
        ),
    );
}

fn outcomes(room: &Room) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for row in room.report("update") {
        *outcomes.entry(row.outcome).or_default() += 1;
    }
    outcomes
}

#[test]
fn a_bad_build_stops_at_the_canary_with_reported_errors() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub(&runtime, "20%");
    let room = Room::of(&hub);
    write(&room);
    let stopped = room.run(&["run", "update.yaml"]).expect(8);
    let words = "health_check: the door sensor does not answer";
    for says in ["the gate of stage canary failed", words, "Not applied:"] {
        assert!(stopped.stdout.contains(says), "{says}: {stopped}");
    }
    assert_eq!(hub.hub().summary().accepted, CANARIES as u64);
    let status = room.run(&["--json", "status", "update"]).expect(0).json();
    // The gate fails after three of four failures, and the hub may be queried in between.
    let not_applied = status["by_class"]["not_applied"].as_u64();
    let not_applied = not_applied.expect("a number");
    assert!((3..=4).contains(&not_applied), "{status}");
    assert_eq!(
        status["failures"][0]["error"]["code"], "health_check",
        "{status}"
    );
    let failed = &status["stages"][0]["answers"]["failed"];
    assert_eq!(*failed, not_applied, "{status}");
    let failed = room
        .run(&["report", "update", "--failed", "--format", "csv"])
        .expect(0);
    let lines = failed.stdout.lines().count() as u64;
    assert_eq!(lines, 1 + not_applied, "{failed}");
    assert!(failed.stdout.contains(words), "{failed}");
    let device = failed
        .stdout
        .lines()
        .nth(1)
        .and_then(|line| line.split(',').next());
    let device = device.expect("a row");
    let explained = room.run(&["explain", "update", device]).expect(0);
    assert!(explained.stdout.contains(words), "{explained}");
}

#[test]
fn a_killed_run_loses_no_answer() {
    let seed = 20_261_130;
    println!("seed {seed}");
    let mut chance = Chance::seeded(seed);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub(&runtime, "5%");
    let room = Room::of(&hub);
    write(&room);
    for _ in 0..6 {
        let mut run = room.start(&["run", "update.yaml"]);
        let until = hub.hub().summary().query_pages + chance.within(1..5);
        eventually("some pages of queries", || {
            (run.is_over() || hub.hub().summary().query_pages >= until).then_some(())
        });
        run.kill();
    }
    let ended = room.run(&["--json", "run", "update.yaml"]).expect(4).json();
    let by_class: &Value = &ended["by_class"];
    assert_eq!(
        (&by_class["applied"], &by_class["not_applied"]),
        (&499.into(), &1.into()),
        "{ended}"
    );
    let expected = [("applied".to_owned(), 499), ("failed".to_owned(), 1)];
    assert_eq!(outcomes(&room), BTreeMap::from(expected));
}
