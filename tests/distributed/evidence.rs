//! Gates on evidence, with processes that come and go: a verdict depends on the answers of devices,
//! and not on the processes that listened.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Chance, Fleet, Hub};
use crate::pipeline::{about, start_with};
use crate::services::Access;
use crate::waiting::{poll_for, poll_until};

const TIME_LIMIT: Duration = Duration::from_secs(300);
/// Devices behind the canaries of each rollout.
const OTHERS: u64 = 20;

/// The canaries of a rollout: devices that reject, are offline or take their messages.
#[derive(Clone, Copy)]
struct Canaries {
    reject: u64,
    away: u64,
    take: u64,
}

impl Canaries {
    fn all(self) -> u64 {
        self.reject + self.away + self.take
    }
}

/// A fleet for several rollouts: canaries, and devices behind the canaries.
fn fleet(rollouts: &[Canaries]) -> Fleet {
    let mut groups = String::new();
    for (n, canaries) in rollouts.iter().enumerate() {
        let parts = [
            ("reject", canaries.reject, "canary", "rejects: 100%"),
            ("away", canaries.away, "canary", "offline: 100%"),
            ("take", canaries.take, "canary", ""),
            ("other", OTHERS, "main", ""),
        ];
        for (id, many, ring, behaviour) in parts.into_iter().filter(|(_, many, ..)| *many > 0) {
            groups.push_str(&format!(
                "  - {{count: {many}, id: \"{id}-{n}-{{index:03}}\", tags: {{set: s{n}, ring: {ring}}}, \
                 behaviour: {{{behaviour}}}}}\n"
            ));
        }
    }
    Fleet::written(&format!("seed: 3\ngroups:\n{groups}"))
}

/// A hub that sends feedback every second, and locks delivered feedback for two seconds.
fn hub(fleet: &Fleet) -> Hub {
    let flags = "--unlimited --feedback-batching 1s --feedback-lock 2s";
    let flags: Vec<_> = flags.split(' ').collect();
    Hub::start(fleet, &flags)
}

/// A rollout to a set of devices, with a gate behind its canaries.
fn start_command(set: usize, gate: &Value) -> Value {
    let mut gate = gate.clone();
    gate["counts"] = json!("delivered");
    let spec = json!({
        "target": { "tags": { "set": format!("s{set}") } },
        "message": { "body": { "text": "hi" }, "ack": "full" },
        "stages": [{ "name": "canary", "tags": { "ring": "canary" }, "gate": gate }],
    });
    start_with(&format!("r{set}"), spec)
}

/// Devices sent to. Kills may repeat messages.
fn distinct(engine: &Engine) -> u64 {
    engine.hubs[0].1.summary().distinct_devices
}

/// Waits for the gate's verdict: `passed` or the rollout's phase, with the status.
fn verdict(engine: &Engine, set: usize) -> (String, Value) {
    let name = format!("r{set}");
    poll_until(TIME_LIMIT, &format!("the verdict on {name}"), || {
        let output = engine.room.run(&["--json", "status", &name]);
        let status: Value = serde_json::from_str(&output.stdout).ok()?;
        let canary = &status["stages"][0];
        let phase = status["phase"].as_str()?.to_owned();
        let is_stopped = matches!(&*phase, "paused" | "aborted");
        if canary["passed_at"].is_string() {
            Some(("passed".to_owned(), status))
        } else {
            is_stopped.then_some((phase, status))
        }
    })
}

#[test]
fn answers_queued_at_the_hub_during_downtime_count() {
    let canaries = [
        // Nine devices reject, and a tenth is offline.
        Canaries {
            reject: 9,
            away: 1,
            take: 0,
        },
        // All devices take the message: no reason to abort.
        Canaries {
            reject: 0,
            away: 0,
            take: 20,
        },
    ];
    let hub = hub(&fleet(&canaries));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    pipeline.command_ok(&start_command(
        0,
        &json!({"failure_above": "5%", "deadline": "8s"}),
    ));
    let gate = json!({
        "failure_above": "5%", "success_at_least": "90%", "deadline": "8s", "on_failure": "abort",
    });
    pipeline.command_ok(&start_command(1, &gate));
    engine.until_accepted(30, TIME_LIMIT);
    // Outcomes are recorded every 50 ms, and the hub sends feedback after a second.
    poll_for(Duration::from_millis(300), || ());
    engine.kill_all();
    let (_, hub) = &engine.hubs[0];
    poll_until(TIME_LIMIT, "the answers at the hub", || {
        let seen = hub.summary();
        (seen.feedback_made >= 29).then_some(())
    });
    // The deadline is long over when processes start again.
    let until = Instant::now() + Duration::from_secs(9);
    poll_until(TIME_LIMIT, "time to pass", || {
        (Instant::now() >= until).then_some(())
    });
    engine.grow(1, 1);
    let (failed, status) = verdict(&engine, 0);
    assert_eq!(failed, "paused", "{status}");
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("devices failed") || reason.contains("of 9 measured"),
        "{reason}"
    );
    assert_eq!(verdict(&engine, 1).0, "passed");
    engine.until_accepted(30 + OTHERS, TIME_LIMIT);
    engine.until_phase("r1", "succeeded", TIME_LIMIT);
    assert_eq!(
        distinct(&engine),
        30 + OTHERS,
        "no device behind the bad canaries"
    );
}

/// Kills around the deadlines do not change the verdicts that follow from the answers.
#[test]
fn kills_around_twenty_deadlines_change_no_verdict() {
    const ROLLOUTS: usize = 20;
    // The gate fails for even rollouts, and holds for odd rollouts.
    let bad = Canaries {
        reject: 3,
        away: 7,
        take: 10,
    };
    let good = Canaries {
        reject: 0,
        away: 3,
        take: 17,
    };
    let canaries: Vec<_> = (0..ROLLOUTS)
        .map(|n| if n % 2 == 0 { bad } else { good })
        .collect();
    let hub = hub(&fleet(&canaries));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 2);
    let mut pipeline = engine.pipeline();
    let gate = json!({
        "failure_above": "20%", "success_at_least": "85%", "deadline": "8s", "min_sample": 12,
    });
    for set in 0..ROLLOUTS {
        pipeline.command_ok(&start_command(set, &gate));
    }
    let all: u64 = canaries.iter().map(|canaries| canaries.all()).sum();
    engine.until_accepted(all, TIME_LIMIT);
    let mut chance = Chance::seeded(7);
    for round in 0..6 {
        let wait = Duration::from_millis(chance.within(0..1_500));
        poll_for(wait, || ());
        let worker = engine.workers.swap_remove(round % 2);
        worker.kill();
        if round % 3 == 2 {
            engine.orchestrators.remove(0).kill();
            engine.grow(1, 0);
        }
        engine.grow(0, 1);
    }
    for set in 0..ROLLOUTS {
        let (found, status) = verdict(&engine, set);
        let expected = if set % 2 == 0 { "paused" } else { "passed" };
        assert_eq!(found, expected, "r{set}: {status}");
    }
    let passed = OTHERS * ROLLOUTS as u64 / 2;
    poll_until(TIME_LIMIT, "the messages of all passed rollouts", || {
        (distinct(&engine) >= all + passed).then_some(())
    });
    assert_eq!(
        distinct(&engine),
        all + passed,
        "no device behind the bad canaries"
    );
}

#[test]
fn verdicts_wait_for_the_hub_and_small_samples_pause() {
    let canaries = [
        // All devices reject.
        Canaries {
            reject: 10,
            away: 0,
            take: 0,
        },
        // Fewer failures than `min_sample`, and more silent devices than answers.
        Canaries {
            reject: 19,
            away: 30,
            take: 0,
        },
        // No failure, and fewer answers than devices.
        Canaries {
            reject: 0,
            away: 2,
            take: 8,
        },
        // The same with `too_little: pass`.
        Canaries {
            reject: 0,
            away: 2,
            take: 8,
        },
    ];
    let flags = "--unlimited --feedback-batching 20s --feedback-lock 2s";
    let flags: Vec<_> = flags.split(' ').collect();
    let hub = Hub::start(&fleet(&canaries), &flags);
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 1);
    let gate = json!({"failure_above": "5%", "deadline": "8s", "on_failure": "abort"});
    let mut pipeline = engine.pipeline();
    for set in 0..3 {
        pipeline.command_ok(&start_command(set, &gate));
    }
    let gate = json!({"failure_above": "5%", "deadline": "8s", "too_little": "pass"});
    pipeline.command_ok(&start_command(3, &gate));
    let sent = canaries.iter().map(|canaries| canaries.all()).sum();
    engine.until_accepted(sent, TIME_LIMIT);
    // Outcomes are recorded every 50 ms, and the hub sends feedback after twenty seconds.
    poll_for(Duration::from_millis(300), || ());
    engine.kill_all();
    engine.hubs[0].1.faults(r#"{"refuse_connections": true}"#);
    engine.grow(1, 1);
    poll_until(TIME_LIMIT, "a message about the obstacle", || {
        let said = engine.room.run(&["status", "r0"]).stdout;
        said.contains(
            "waits for evidence of 10 silent devices: hub north: its feedback is not received: ",
        )
        .then_some(())
    });
    engine.hubs[0].1.faults(r#"{"refuse_connections": false}"#);

    let expected = [
        ("aborted", "gate of stage canary failed: "),
        ("aborted", "gate of stage canary failed: "),
        (
            "paused",
            "the sample is too small: 8 of 10 devices measured, 2 silent; 10 are needed",
        ),
        ("passed", ""),
    ];
    for (set, (phase, reason)) in expected.into_iter().enumerate() {
        let (found, status) = verdict(&engine, set);
        assert_eq!(found, phase, "{set}: {status}");
        let said = status["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{set}: {said}");
    }
    poll_until(TIME_LIMIT, "the messages of the passed rollout", || {
        (distinct(&engine) >= sent + OTHERS).then_some(())
    });
    assert_eq!(distinct(&engine), sent + OTHERS);
}

/// Workers started during a pause get no batch of the paused rollout. The devices take their
/// messages long after the end of the first worker.
#[test]
fn a_worker_started_during_a_pause_receives_feedback() {
    let fleet = Fleet::written(
        "groups:\n  - {count: 10, id: \"d-{index}\", tags: {set: s0, ring: canary}, \
         behaviour: {latency: 45s..46s}}\n",
    );
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub(&fleet))]);
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    pipeline.command_ok(&start_command(0, &json!({"success_at_least": "90%"})));
    engine.until_accepted(10, TIME_LIMIT);
    poll_until(TIME_LIMIT, "a listening worker", || {
        let hubs = engine.room.run(&["--json", "hubs"]).expect(0).json();
        hubs["hubs"][0]["feedback"]["heard_until"]
            .is_string()
            .then_some(())
    });
    pipeline.command_ok(&about("pause", "r0"));
    engine.workers.remove(0).stop();
    let before = engine.status("r0")["counts"].take();
    assert_eq!(
        before,
        json!({ "enqueued": 10 }),
        "feedback before the restart"
    );
    engine.grow(0, 1);
    poll_until(TIME_LIMIT, "the feedback of all canaries", || {
        let counts = engine.status("r0")["counts"].take();
        (counts["delivered"] == 10).then_some(())
    });
    assert_eq!(engine.status("r0")["phase"], "paused");
}

#[test]
fn a_bake_pauses_during_stop_all() {
    let canaries = Canaries {
        reject: 0,
        away: 0,
        take: 10,
    };
    let hub = hub(&fleet(&[canaries]));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    let gate = json!({"success_at_least": "90%", "bake": "12s"});
    pipeline.command_ok(&start_command(0, &gate));
    let sent_at = |engine: &Engine| engine.status("r0")["stages"][0]["sent_at"].is_string();
    poll_until(TIME_LIMIT, "the messages to all canaries", || {
        sent_at(&engine).then_some(())
    });
    engine
        .room
        .run(&["stop-all", "--reason", "a storm"])
        .expect(0);
    // Longer than the rest of the bake.
    let stopped = Instant::now();
    poll_for(Duration::from_secs(14), || ());
    assert_eq!(engine.status("r0")["phase"], "halted");
    engine.room.run(&["resume-all"]).expect(0);
    let resumed = Instant::now();
    let _ = verdict(&engine, 0);
    let (slept, baked) = (resumed - stopped, resumed.elapsed());
    assert!(
        baked >= Duration::from_secs(3),
        "the stage baked for {baked:?} after {slept:?}"
    );
}

#[test]
fn foreign_feedback_is_skipped_or_removed_if_exclusive() {
    let canaries = [
        Canaries {
            reject: 0,
            away: 0,
            take: 70,
        },
        Canaries {
            reject: 10,
            away: 0,
            take: 10,
        },
    ];
    for queue in ["shared", "exclusive"] {
        let flags = "--unlimited --feedback-batching 1s --feedback-lock 5s --feedback-records 1";
        let flags: Vec<_> = flags.split(' ').collect();
        let hub = Hub::start(&fleet(&canaries), &flags);
        // Answers for a rollout of another engine, without any process left to read the answers.
        let mut other = Engine::new(&Access::shared(), vec![("north", hub)]);
        other.grow(1, 1);
        other.pipeline().command_ok(&start_command(
            0,
            &json!({"failure_above": "50%", "approval": {}}),
        ));
        other.until_accepted(70, TIME_LIMIT);
        other.kill_all();
        let hub = other.hubs.remove(0).1;
        poll_until(TIME_LIMIT, "the answers at the hub", || {
            (hub.summary().feedback_made >= 70).then_some(())
        });
        let left = hub.summary().feedback_waiting;
        drop(other);

        let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
        engine.set("TWINCAST__HUBS__NORTH__FEEDBACK", queue);
        engine.grow(1, 1);
        let gate = json!({"failure_above": "5%", "deadline": "60s", "on_failure": "abort"});
        engine.pipeline().command_ok(&start_command(1, &gate));
        let (found, status) = verdict(&engine, 1);
        assert_eq!(found, "aborted", "{queue}, with {left} in front: {status}");
        let (_, hub) = &engine.hubs[0];
        assert_eq!(hub.summary().distinct_devices, 70 + 20, "{queue}");
    }
}
