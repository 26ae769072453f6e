//! A rollout without failures: started over plain AMQP, performed by several processes, with
//! published events.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::engine::{Engine, Member};
use crate::harness::{Collector, Fleet, Hub, MAX_WAIT, ReceivedSpan, assert_same_ids};
use crate::pipeline::{about, start, start_with};
use crate::services::Access;
use crate::waiting::poll_until;

const DEVICES: u64 = 3_000;
/// The trace and the span of the pipeline.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[test]
fn a_rollout_reaches_all_devices_once_and_publishes_events() {
    let north = Hub::unlimited(&Fleet::of(DEVICES));
    let south = Hub::unlimited(&Fleet::of(DEVICES));
    let mut engine = Engine::new(&Access::shared(), vec![("north", north), ("south", south)]);
    let collector = Collector::start();
    engine.set("TWINCAST__OTLP__URL", &collector.address());
    engine.grow(2, 2);
    let tried = engine.room.run(&["--json", "check"]).expect(0).json();
    for of in ["hub north", "hub south", "RabbitMQ", "Redis"] {
        let checks = tried["checks"].as_array().expect("a list");
        assert!(checks.iter().any(|check| check["service"] == of), "{tried}");
    }
    let mut pipeline = engine.pipeline();
    let mut listener = pipeline.listen();

    let caller = format!("00-{TRACE}-{CALLER}-01");
    let answer = pipeline.command_ok_in_span(&start("firmware"), &caller);
    assert_eq!(answer["changed"], true);
    assert_eq!(answer["rollouts"][0]["name"], "firmware");

    let watched = engine
        .room
        .run(&["--json", "watch", "firmware"])
        .expect(0)
        .json();
    assert_eq!(watched["phase"], "succeeded");
    assert_eq!(watched["devices"], 2 * DEVICES);
    assert_eq!(watched["counts"], json!({ "enqueued": 2 * DEVICES }));
    for (name, hub) in &engine.hubs {
        let seen = hub.summary();
        assert_eq!(
            (seen.accepted, seen.repeats_by_device),
            (DEVICES, 0),
            "{name}"
        );
        assert_eq!(seen.transfers, DEVICES, "no send was repeated");
        assert_same_ids(&hub.message_log());
    }
    engine.assert_reports_match_hubs("firmware");

    let phases = ["accepted", "planning", "running", "succeeded"];
    for (version, phase) in (1..).zip(phases) {
        let (topic, event) = listener.next();
        assert_eq!(topic, format!("rollout.{phase}"));
        assert_event(&event, "firmware", version, phase);
        let parent = event["traceparent"].as_str().expect("a text");
        assert!(parent.starts_with(&format!("00-{TRACE}-")), "{event}");
    }
    assert_one_trace(&collector);
    let said = |member: &Member| member.log().contains(&format!("trace_id={TRACE}"));
    assert!(engine.orchestrators.iter().any(said) && engine.workers.iter().any(said));

    let status = engine.status("firmware");
    assert_eq!(status, watched, "status and watch show the same");
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    let all = all["rollouts"].as_array().expect("a list");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["name"], "firmware");
    assert_eq!(all[0]["by_class"]["sent"], 2 * DEVICES);
    assert_eq!(all[0]["version"], phases.len());

    // Both hubs have a device with this id.
    let device = ["--json", "explain", "firmware", "d-000042"];
    let explained = engine.room.run(&device).expect(0).json();
    let places = explained["places"].as_array().expect("a list");
    let mut hubs: Vec<_> = places.iter().map(|place| &place["hub"]).collect();
    hubs.sort_unstable_by_key(|hub| hub.as_str());
    assert_eq!(hubs, ["north", "south"]);

    // The same spec in YAML, from the command line: the rollout exists, and nothing is sent again.
    let spec = engine.room.rollout("firmware", "");
    let again = engine
        .room
        .run(&["--json", "submit", &spec, "--wait"])
        .expect(0);
    assert_eq!(again.json()["rollouts"][0]["phase"], "succeeded");
    again.says(&["already exists with the same spec"]);
    assert_eq!(engine.accepted(), 2 * DEVICES);
}

/// Asserts a single trace from the pipeline's span to the batches, across all processes.
#[track_caller]
fn assert_one_trace(collector: &Collector) {
    let of_trace = || {
        let spans = collector.received().into_iter();
        spans
            .filter(|span| span.trace() == TRACE)
            .collect::<Vec<_>>()
    };
    let sent = |spans: &[ReceivedSpan]| {
        let batches = spans.iter().filter(|span| span.name() == "batch");
        let sent = batches.map(|it| it.attribute("twincast.outcome.enqueued"));
        sent.map(|it| it.parse::<u64>().unwrap_or_default())
            .sum::<u64>()
    };
    // The last spans arrive with the next request.
    let spans = poll_until(MAX_WAIT, "all spans", || {
        let spans = of_trace();
        let is_over = spans.iter().any(|span| span.name() == "rollout");
        (is_over && sent(&spans) == 2 * DEVICES).then_some(spans)
    });
    let one = |name: &str| {
        let all: Vec<_> = spans.iter().filter(|span| span.name() == name).collect();
        assert_eq!(all.len(), 1, "{name}: {spans:#?}");
        all[0]
    };
    let (command, stage) = (one("command"), one("stage"));
    assert_eq!(command.parent(), CALLER);
    for name in ["plan", "stage", "rollout"] {
        assert_eq!(one(name).parent(), command.id(), "{name}");
        assert_eq!(one(name).service, "twincast-orchestrator");
    }
    let batches: Vec<_> = spans.iter().filter(|span| span.name() == "batch").collect();
    let workers: BTreeSet<_> = batches.iter().map(|batch| &batch.process).collect();
    // On a busy machine, a single worker may send everything.
    assert!((1..=2).contains(&workers.len()), "{batches:#?}");
    for batch in batches {
        assert_eq!(
            (batch.parent(), &*batch.service),
            (stage.id(), "twincast-worker")
        );
    }
    let ids: BTreeSet<_> = spans.iter().map(ReceivedSpan::id).collect();
    assert_eq!(ids.len(), spans.len(), "the span ids are distinct");
    assert!(spans.iter().all(ReceivedSpan::is_in_order), "{spans:#?}");
}

#[track_caller]
fn assert_event(event: &Value, rollout: &str, version: u64, phase: &str) {
    assert_eq!(event["specversion"], "1.0", "{event}");
    assert_eq!(event["id"], format!("{rollout}/{version}"), "{event}");
    assert_eq!(event["type"], format!("io.twincast.rollout.{phase}"));
    assert_eq!(event["subject"], rollout);
    assert_eq!(event["data"]["version"], version);
    assert_eq!(event["data"]["phase"], phase);
}

/// Canaries, a gate, and an approval: the second stage sends nothing before the approval.
#[test]
fn a_stage_waits_for_the_gate_and_the_approval() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(2, 2);
    let mut pipeline = engine.pipeline();
    let stages = json!([
        { "name": "canary", "percent": "5%", "gate": { "success_at_least": "100%", "approval": {} } },
        { "name": "half", "percent": "50%", "gate": { "failure_above": "0%" } },
    ]);
    pipeline.command_ok(&start_with("staged", json!({ "stages": stages })));
    let waits = poll_until(MAX_WAIT, "the gate to wait", || {
        let status = engine.status("staged");
        let state = status["stages"][0]["state"].as_str()?;
        (state == "waits for an approval").then(|| status.clone())
    });
    assert_eq!(waits["phase"], "running");
    assert_eq!(engine.accepted(), DEVICES / 20);

    let word = json!({ "command": "promote", "rollout": "staged", "stage": "canary" });
    let refused = pipeline.command(&word);
    assert_eq!(refused["cause"], "invalid_command", "{refused}");
    let word = json!({ "command": "reject", "rollout": "staged", "reason": "noisy", "by": "bob" });
    assert_eq!(pipeline.command_ok(&word)["rollouts"][0]["phase"], "paused");
    pipeline.command_ok(&about("resume", "staged"));
    assert_eq!(
        engine.accepted(),
        DEVICES / 20,
        "the gate needs another approval"
    );
    let word = json!({ "command": "approve", "rollout": "staged", "stage": "canary", "by": "ann" });
    let answer = pipeline.command_ok(&word);
    assert_eq!(answer["changed"], true, "{answer}");
    let ended = engine.until_phase("staged", "succeeded", MAX_WAIT);
    assert_eq!(ended["stages"].as_array().map(Vec::len), Some(3));
    let state = ended["stages"][0]["state"].as_str().expect("a text");
    assert!(state.ends_with("approved by ann"), "{state}");
    assert_eq!(engine.accepted(), DEVICES);
    assert_eq!(engine.repeats(), 0);
    engine.assert_reports_match_hubs("staged");
}

#[test]
fn exit_codes_say_how_a_rollout_ended() {
    let hub = Hub::unlimited(&Fleet::behaving(1_000, "{ disabled: 3% }"));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 1);
    let room = &engine.room;

    let spec = room.rollout("some-disabled", "");
    let ended = room
        .run(&["--json", "submit", &spec, "--wait"])
        .expect(4)
        .json();
    let ended = &ended["rollouts"][0];
    assert_eq!(ended["phase"], "finished_with_failures");
    assert_eq!(
        (&ended["by_class"]["sent"], &ended["by_class"]["not_sent"]),
        (&json!(970), &json!(30))
    );
    room.run(&["watch", "some-disabled"]).expect(4);
    engine.assert_reports_match_hubs("some-disabled");

    // A target without devices is no success, because a tag was probably mistyped.
    let mut pipeline = engine.pipeline();
    let nobody = json!({ "target": { "tags": { "type": "toaster" } } });
    pipeline.command_ok(&start_with("nobody", nobody));
    let failed = engine.until_phase("nobody", "failed", MAX_WAIT);
    assert_eq!(failed["reason"], "the target matches no device");
    room.run(&["watch", "nobody"]).expect(3);

    let unknown = room.run(&["--json", "watch", "nothing"]).expect(3).json();
    assert_eq!(unknown["error"]["exit_code"], 3);
    room.run(&["pause", "nothing"])
        .expect(3)
        .says(&["there is no rollout nothing"]);
    room.run(&["pause", "some-disabled"]).expect(3);
}
