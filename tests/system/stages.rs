//! Staged rollouts: the devices of each stage, the verdicts of gates, and the decisions of people.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use twincast_emulator::{Fleet, HubConfig, RunningHub};

use crate::harness::{Room, Signal, eventually, from_now};

const CANARIES: usize = 50;
const OTHERS: usize = 250;

/// Starts a hub in this process with immediate feedback. `canaries` is the behaviour of the
/// canaries.
fn hub_with(runtime: &tokio::runtime::Runtime, canaries: &str) -> RunningHub {
    hub_with_feedback_interval(runtime, canaries, Duration::from_millis(100))
}

/// Starts a hub with feedback batched for this interval.
fn hub_with_feedback_interval(
    runtime: &tokio::runtime::Runtime,
    canaries: &str,
    feedback_interval: Duration,
) -> RunningHub {
    let fleet = format!(
        "{{seed: 11, groups: [\
         {{count: {CANARIES}, id: \"canary-{{index:02}}\", tags: {{type: fridge, ring: canary}}, \
         reported: {{firmware: \"1.4.1\"}}, reported_after_delivery: {{firmware: \"1.4.2\"}}, behaviour: {{{canaries}}}}}, \
         {{count: {OTHERS}, id: \"fridge-{{index:03}}\", tags: {{type: fridge}}}}]}}"
    );
    let config = HubConfig {
        unlimited: true,
        feedback_interval,
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet).expect("a fleet"))
    };
    let started = runtime.block_on(twincast_emulator::start(config));
    started.expect("a hub on free ports")
}

/// Writes a rollout with a canary stage, a stage of 20 per cent, and the rest.
fn write(room: &Room, gate: &str) {
    room.write(
        "staged.yaml",
        &format!(
            "name: staged\ntarget: {{ tags: {{ type: fridge }} }}\n\
             message: {{ body: {{ text: fetch 1.4.2 }}, ack: full }}\n\
             stages:\n  - name: canary\n    tags: {{ ring: canary }}\n    gate: {{ {gate} }}\n  - {{ name: fifth, percent: 20% }}\n"
        ),
    );
}

fn sent_to(hub: &RunningHub) -> BTreeSet<String> {
    let all = (0..CANARIES).map(|n| format!("canary-{n:02}"));
    let all = all.chain((0..OTHERS).map(|n| format!("fridge-{n:03}")));
    let has_any = |id: &String| hub.hub().messages(id).is_some_and(|all| !all.is_empty());
    all.filter(has_any).collect()
}

fn canaries_only(hub: &RunningHub) -> bool {
    let sent = sent_to(hub);
    sent.len() == CANARIES && sent.iter().all(|id| id.starts_with("canary-"))
}

fn stage<'a>(status: &'a Value, name: &str) -> &'a Value {
    let stages = status["stages"].as_array().expect("stages");
    let found = stages.iter().find(|stage| stage["name"] == name);
    found.expect("a stage of that name")
}

#[test]
fn stages_are_exact_and_follow_each_other() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_with(&runtime, "");
    let room = Room::of(&hub);
    write(&room, "success_at_least: 100%");
    let plan = room
        .run(&["--json", "plan", "staged.yaml"])
        .expect(0)
        .json();
    let stages = plan["plan"]["stages"].as_array().expect("stages").clone();
    let devices: Vec<_> = stages
        .iter()
        .map(|stage| stage["devices"].as_u64())
        .collect();
    assert_eq!(devices.len(), 3, "{plan}");
    assert_eq!(devices[0], Some(CANARIES as u64));
    assert_eq!(
        devices.iter().flatten().sum::<u64>(),
        (CANARIES + OTHERS) as u64
    );
    // A fifth of all devices, less the canaries in the fifth.
    assert!((30..=60).contains(&devices[1].expect("a number")), "{plan}");

    room.run(&["run", "staged.yaml"]).expect(0);
    let status = room.run(&["--json", "status", "staged"]).expect(0).json();
    let passed = |name: &str, field: &str| stage(&status, name)[field].as_str().map(str::to_owned);
    assert!(
        passed("canary", "passed_at") <= passed("fifth", "started_at"),
        "{status}"
    );
    assert!(
        passed("fifth", "passed_at") <= passed("rest", "started_at"),
        "{status}"
    );
    assert_eq!(sent_to(&hub).len(), CANARIES + OTHERS);
    assert_eq!(hub.hub().summary().repeats_by_device, 0);
}

#[test]
fn rejecting_canaries_stop_the_rollout_before_the_next_stage() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_with(&runtime, "rejects: 8%");
    let room = Room::of(&hub);
    write(&room, "counts: delivered, failure_above: 5%");
    let stopped = room.run(&["run", "staged.yaml"]).expect(8);
    let reason = "the gate of stage canary failed: ";
    assert!(stopped.stdout.contains(reason), "{}", stopped.stdout);
    assert!(
        stopped.stdout.contains("measured devices failed"),
        "{}",
        stopped.stdout
    );
    assert!(canaries_only(&hub), "{:?}", sent_to(&hub));

    // On the next run the gate is judged again, with the same verdict.
    let again = room.run(&["run", "staged.yaml"]).expect(8);
    assert!(again.stdout.contains(reason), "{}", again.stdout);
    assert!(canaries_only(&hub));

    let wrong = ["promote", "staged", "--stage", "nope", "--reason", "x"];
    let wrong = room.run(&wrong).expect(3).stderr;
    assert!(wrong.contains("its stages: canary, fifth, rest"), "{wrong}");
    let word = [
        "promote", "staged", "--stage", "canary", "--reason", "known", "--by", "ann",
    ];
    let said = room.run(&word).expect(0).stdout;
    assert!(
        said.contains("staged is promoted, and is running, at stage canary"),
        "{said}"
    );
    room.run(&["run", "staged.yaml"]).expect(4);
    assert_eq!(sent_to(&hub).len(), CANARIES + OTHERS);
    let status = room.run(&["--json", "status", "staged"]).expect(0).json();
    let state = stage(&status, "canary")["state"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(state.ends_with("promoted by ann (known)"), "{state}");
}

/// Rejecting devices are retried: at first without success, then after a repair.
#[test]
fn failed_canaries_are_retried_before_the_next_verdict() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // The gate fails before all devices have answered. Feedback not yet sent by this hub is lost
    // with the hub later.
    let hub = hub_with_feedback_interval(&runtime, "rejects: 8%", Duration::from_secs(1));
    let room = Room::of(&hub);
    write(
        &room,
        "counts: delivered, failure_above: 5%, deadline: 4s, approval: {}",
    );
    let retry_rejected = [
        "retry",
        "staged",
        "--outcome",
        "rejected",
        "--stage",
        "canary",
        "--by",
        "ann",
        "--reason",
        "restarted",
    ];
    let failed = "the gate of stage canary failed: ";
    let stopped = room.run(&["run", "staged.yaml"]).expect(8).stdout;
    assert!(stopped.contains(failed), "{stopped}");
    let first = rejected(&room);
    assert!(first.len() >= 2, "{first:?}");
    let said = room.run(&retry_rejected).expect(0).stdout;
    assert!(
        said.contains("staged will be retried, and is paused"),
        "{said}"
    );
    let twice = [&["--json"], &retry_rejected[..]].concat();
    let twice = room.run(&twice).expect(0).json();
    assert_eq!(twice["changed"], false, "{twice}");
    let status = room.run(&["status", "staged"]).expect(0).stdout;
    assert!(
        status.contains(
            "To be retried when the rollout continues: devices of stage canary that are rejected"
        ),
        "{status}"
    );

    room.run(&["resume", "staged"]).expect(0);
    let again = room.run(&["run", "staged.yaml"]).expect(8).stdout;
    assert!(again.contains(failed), "{again}");
    assert!(canaries_only(&hub), "{:?}", sent_to(&hub));
    for n in 0..CANARIES {
        let id = format!("canary-{n:02}");
        let ids = message_ids(&hub, &id);
        let attempts: BTreeSet<_> = ids.iter().filter_map(|id| id.rsplit('.').next()).collect();
        let expected = if first.contains(&id) {
            BTreeSet::from(["1", "2"])
        } else {
            BTreeSet::from(["1"])
        };
        assert_eq!(
            (attempts, ids.len()),
            (expected.clone(), expected.len()),
            "{id}"
        );
    }

    let repaired = hub_with(&runtime, "");
    room.goes_to(&repaired);
    let second = rejected(&room);
    room.run(&retry_rejected).expect(0);
    room.run(&["resume", "staged"]).expect(0);
    let waits = room.run(&["run", "staged.yaml"]).expect(8);
    assert!(
        waits.stderr.contains("Stage canary waits for an approval"),
        "{}",
        waits.stderr
    );
    assert_eq!(
        sent_to(&repaired),
        second,
        "only the rejected devices are retried"
    );
    assert_eq!(rejected(&room).len(), 0);
    let device = first.intersection(&second).next();
    let device = device.expect("a device rejected twice");
    let explained = room.run(&["explain", "staged", device]).expect(0).stdout;
    let attempts = explained.matches("  attempt    ").count();
    assert!(
        attempts == 3 && explained.contains("; requested by ann (restarted)\n"),
        "{explained}"
    );
    let none = room.run(&retry_rejected).expect(0).stdout;
    assert!(
        none.contains("nothing to retry: no device of stage canary has the outcome rejected"),
        "{none}"
    );

    room.run(&["approve", "staged", "--by", "ann"]).expect(0);
    room.run(&["run", "staged.yaml"]).expect(0);
    assert_eq!(sent_to(&repaired).len(), second.len() + OTHERS);
    assert_eq!(repaired.hub().summary().repeats_by_device, 0);
    let late = room
        .run(&["retry", "staged", "--outcome", "delivered"])
        .expect(3);
    assert!(
        late.stderr
            .contains("devices with the outcome delivered cannot be retried"),
        "{}",
        late.stderr
    );
}

fn rejected(room: &Room) -> BTreeSet<String> {
    let report = [
        "report",
        "staged",
        "--outcome",
        "rejected",
        "--format",
        "jsonl",
    ];
    let report = room.run(&report).expect(0).stdout;
    let rows = report.lines().map(|line| {
        let row: Value = serde_json::from_str(line).expect("a JSON object a line");
        row["device"].as_str().expect("a device").to_owned()
    });
    rows.collect()
}

fn message_ids(hub: &RunningHub, device: &str) -> Vec<String> {
    let messages = hub.hub().messages(device).expect("a device of the fleet");
    let ids = messages.into_iter().map(|message| message.message_id);
    ids.collect()
}

#[test]
fn an_approval_is_waited_for_and_may_be_refused() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_with(&runtime, "");
    let room = Room::of(&hub);
    write(&room, "approval: {}");
    let waits = room.run(&["run", "staged.yaml"]).expect(8);
    assert!(
        waits.stderr.contains("Stage canary waits for an approval"),
        "{}",
        waits.stderr
    );
    assert!(
        waits.stdout.contains("waits for an approval"),
        "{}",
        waits.stdout
    );
    assert!(canaries_only(&hub));
    room.run(&["run", "staged.yaml"]).expect(8);

    // A plan for another rollout to the same devices mentions the overlap.
    let text = std::fs::read_to_string(room.path().join("staged.yaml"));
    let text = text.expect("the file was written");
    room.write("other.yaml", &text.replace("name: staged", "name: other"));
    let plan = room.run(&["plan", "other.yaml"]).expect(0).stdout;
    for part in [
        "Rollout staged is running on",
        "has the same target.",
        "plus the time for approvals",
    ] {
        assert!(plan.contains(part), "{part:?} is not in {plan}");
    }

    let no = room
        .run(&["reject", "staged", "--reason", "noisy", "--by", "bob"])
        .expect(0)
        .stdout;
    assert!(no.contains("staged is paused"), "{no}");
    let status = room.run(&["status", "staged"]).expect(0).stdout;
    assert!(status.contains("rejected by bob (noisy)"), "{status}");
    room.run(&["run", "staged.yaml"]).expect(8);
    assert!(canaries_only(&hub));

    let other = ["approve", "staged", "--stage", "fifth"];
    let other = room.run(&other).expect(3).stderr;
    assert!(other.contains("stage fifth has no gate"), "{other}");
    room.run(&["approve", "staged", "--by", "ann"]).expect(0);
    let twice = room
        .run(&["--json", "approve", "staged", "--by", "ann"])
        .expect(0)
        .json();
    assert_eq!(twice["changed"], false, "{twice}");
    // Only an explicit `--resume` ends a pause by a person.
    let paused = room.run(&["run", "staged.yaml"]).expect(8).stderr;
    assert!(
        paused.contains("staged is paused: ") && paused.contains("run staged.yaml --resume"),
        "{paused}"
    );
    assert!(canaries_only(&hub));
    room.run(&["run", "staged.yaml", "--resume"]).expect(0);
    assert_eq!(sent_to(&hub).len(), CANARIES + OTHERS);
}

/// Nothing is sent before the start, and the wait is shown with the time; then the rollout
/// continues by itself.
#[test]
fn a_rollout_may_start_later_and_rest_on_some_days() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_with(&runtime, "");
    let room = Room::of(&hub);
    let spec = |name: &str, schedule: &str| {
        room.write(
            &format!("{name}.yaml"),
            &format!(
                "name: {name}\ntarget: {{ tags: {{ type: fridge }} }}\nmessage: {{ body: {{ text: hi }} }}\n\
                 batch_by: [zone]\nschedule: {{ {schedule} }}\n"
            ),
        );
    };
    spec(
        "resting",
        "freeze: [{from: 2020-01-01, to: 2099-12-31, reason: a long winter}]",
    );
    let never = room.run(&["plan", "resting.yaml"]).expect(3).stderr;
    assert!(
        never.contains("within 400 days: shorten its freezes"),
        "{never}"
    );
    let run = room.start(&["run", "resting.yaml"]);
    eventually("the message about the schedule", || {
        run.stderr()
            .contains("the schedule to open at an unknown time (frozen: a long winter)")
            .then_some(())
    });
    run.signal(Signal::Interrupt);
    run.wait().expect(130);
    assert_eq!(sent_to(&hub).len(), 0);

    let start = from_now(Duration::from_secs(3600));
    spec("zoned", &format!("start_at: {start}, zone_tag: zone"));
    let waits = format!("the schedule to open at {start} (before its start)");
    let run = room.start(&["run", "zoned.yaml"]);
    eventually("the message about the start", || {
        let said = format!("waiting: stage all waits for {waits}");
        run.stderr().contains(&said).then_some(())
    });
    run.signal(Signal::Interrupt);
    let ended = run.wait().expect(130);
    let one = room.run(&["status", "zoned"]).expect(0);
    for text in [ended.stdout, one.stdout] {
        assert!(text.contains(&format!("\n  Waits for {waits}\n")), "{text}");
    }
    let all = room.run(&["status"]).expect(0).stdout;
    assert!(all.contains(&format!("waits for {waits}")), "{all}");
    let one = room.run(&["--json", "status", "zoned"]).expect(0).json();
    assert_eq!(one["waits_for"], *waits);
    let device = ["explain", "zoned", "fridge-001"];
    let device = room.run(&device).expect(0).stdout;
    assert!(
        device.contains(&format!("  waits for  {waits}\n")),
        "{device}"
    );

    let soon = from_now(Duration::from_secs(12));
    spec("later", &format!("start_at: {soon}"));
    let mut run = room.start(&["run", "later.yaml"]);
    eventually("the run to end", || {
        // The clock is read last: a busy machine may stall in between.
        let is_unsent = sent_to(&hub).is_empty();
        assert!(
            is_unsent || from_now(Duration::ZERO) >= soon,
            "nothing is sent before the start"
        );
        run.is_over().then_some(())
    });
    run.wait().expect(0);
    assert_eq!(sent_to(&hub).len(), CANARIES + OTHERS);
    let status = room.run(&["--json", "status", "later"]).expect(0).json();
    let waited = status["time_seconds"]["outside_window"].as_u64();
    assert!((1..=60).contains(&waited.expect("seconds")), "{status}");
}

/// Devices complete the message and report the change, and revert seconds later.
#[test]
fn reverts_pass_a_delivered_gate_and_fail_an_applied_gate() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let hub = hub_with(&runtime, "reverts: {share: 30%, after: 500ms}");
    let room = Room::of(&hub);
    write(&room, "counts: delivered, success_at_least: 100%");
    room.run(&["run", "staged.yaml"]).expect(0);

    let hub = hub_with(&runtime, "reverts: {share: 30%, after: 500ms}");
    let room = Room::of(&hub);
    write(
        &room,
        "counts: applied, applied_when: \"properties.reported.firmware = '1.4.2'\", success_at_least: 95%, bake: 8s, deadline: 8s",
    );
    let stopped = room.run(&["run", "staged.yaml"]).expect(8).stdout;
    assert!(
        stopped.contains("35 of 50 devices applied (70.0%), less than 95%"),
        "{stopped}"
    );
    assert!(canaries_only(&hub));
}
