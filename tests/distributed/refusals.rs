//! Bad messages are named and put aside; no command is performed partly or twice, and no other
//! command is held up.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub};
use crate::pipeline::{Pipeline, start, start_with};
use crate::services::Access;
use crate::waiting::poll_until;

const DEVICES: u64 = 1_000;
const TIME_LIMIT: Duration = Duration::from_secs(300);

fn engine(orchestrators: usize) -> Engine {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(orchestrators, 1);
    engine
}

#[test]
fn a_process_with_another_hub_of_the_same_name_is_refused() {
    let staging = Hub::unlimited(&Fleet::of(DEVICES));
    let production = Hub::unlimited(&Fleet::of(DEVICES));
    let access = Access::shared();
    let host = |hub: &Hub| format!("localhost:{}", hub.amqp_port());
    let hosts = [host(&staging), host(&production)];
    let mut engine = Engine::new(&access, vec![("main", staging)]);
    engine.grow(1, 1);
    let other = engine.beside(vec![("main", production)]);
    for role in ["orchestrator", "worker"] {
        let ended = other.room.run(&[role]).expect(3);
        let words: Vec<_> = hosts.iter().map(String::as_str).chain(["main"]).collect();
        ended.says(&words);
    }
    let mut pipeline = engine.pipeline();
    pipeline.command_ok(&start("bound"));
    engine.until_phase("bound", "succeeded", TIME_LIMIT);
    assert_eq!((engine.accepted(), other.accepted()), (DEVICES, 0));
}

#[test]
fn a_start_repeated_a_hundred_times_creates_one_rollout() {
    let engine = engine(2);
    let changed: usize = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|_| {
                let mut pipeline = engine.pipeline();
                scope.spawn(move || {
                    for _ in 0..25 {
                        pipeline.publish_command(&start("often"));
                    }
                    let answers = (0..25).map(|_| pipeline.answer().1);
                    answers
                        .inspect(|answer| assert_eq!(answer["ok"], true, "{answer}"))
                        .filter(|answer| answer["changed"] == true)
                        .count()
                })
            })
            .collect();
        let counts = publishers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join);
        counts.map(|count| count.expect("a publisher")).sum()
    });
    assert_eq!(changed, 1, "one answer reports a new rollout");
    engine.until_phase("often", "succeeded", TIME_LIMIT);
    assert_eq!((engine.accepted(), engine.repeats()), (DEVICES, 0));
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    assert_eq!(all["rollouts"].as_array().expect("a list").len(), 1);
    assert_eq!(engine.dead_letters(), Vec::<Value>::new());
}

/// Ten kinds of bad messages, each with the cause of being put aside.
fn malformed() -> Vec<(Vec<u8>, Option<&'static str>, &'static str)> {
    let json = |value: Value| value.to_string().into_bytes();
    let v2 = "application/vnd.twincast.command.v2+json";
    let ttl = json!({ "message": { "body": { "text": "x" }, "ttl": "3 weeks" } });
    let hub = json!({ "target": { "all": true, "hubs": ["atlantis"] } });
    let file = json!({ "message": { "body": { "file": "/etc/passwd" } } });
    vec![
        (b"not json".to_vec(), None, "unreadable"),
        (Vec::new(), None, "unreadable"),
        (vec![0xff, 0xfe, 0x00], None, "unreadable"),
        (json(json!([1, 2])), None, "invalid_command"),
        (json(json!({ "command": "dance" })), None, "invalid_command"),
        (json(json!({ "command": "pause" })), None, "invalid_command"),
        (json(start("versioned")), Some(v2), "unsupported_version"),
        (json(start_with("bad-ttl", ttl)), None, "invalid_spec"),
        (json(start_with("bad-file", file)), None, "invalid_spec"),
        (json(start_with("bad-hub", hub)), None, "unknown_hub"),
    ]
}

#[test]
fn malformed_messages_are_dead_lettered_without_blocking() {
    let engine = engine(1);
    let mut pipeline = engine.pipeline();
    let mut expected = BTreeMap::new();
    for round in 0..5 {
        for (number, (body, content_type, cause)) in malformed().into_iter().enumerate() {
            let id = format!("malformed-{round}-{number}");
            let mut properties = BasicProperties::default().with_message_id(id.as_str().into());
            if let Some(content_type) = content_type {
                properties = properties.with_content_type(content_type.into());
            }
            pipeline.publish(&body, properties);
            expected.insert(id, cause.to_owned());
        }
    }
    // A good command behind the bad messages on the same queue.
    pipeline.command_ok(&start("sound"));
    engine.until_phase("sound", "succeeded", TIME_LIMIT);
    assert_eq!((engine.accepted(), engine.repeats()), (DEVICES, 0));

    let letters = poll_until(TIME_LIMIT, "50 dead letters", || {
        Some(engine.dead_letters()).filter(|letters| letters.len() >= 50)
    });
    let found: BTreeMap<String, String> = letters
        .iter()
        .map(|letter| (text(letter, "message_id"), text(letter, "cause")))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(letters.len(), 50, "no dead letter is listed twice");
    assert!(
        letters
            .iter()
            .all(|letter| !text(letter, "detail").is_empty())
    );
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    assert_eq!(all["rollouts"].as_array().expect("a list").len(), 1);

    shown_replayed_and_discarded(&engine, &letters);
}

#[track_caller]
fn shown_replayed_and_discarded(engine: &Engine, letters: &[Value]) {
    let room = &engine.room;
    let of = |cause: &str| letters.iter().find(|letter| letter["cause"] == cause);
    let unknown_hub = of("unknown_hub").expect("a letter with this cause");
    let id = text(unknown_hub, "id");
    let shown = room.run(&["--json", "dead-letters", "show", &id]).expect(0);
    assert_eq!(shown.json(), *unknown_hub);
    assert!(text(unknown_hub, "body").contains("bad-hub"));
    assert!(text(unknown_hub, "detail").contains("configured hubs: north"));
    let table = room.run(&["dead-letters"]).expect(0).stdout;
    assert!(
        table.contains(&id) && table.contains("unknown_hub"),
        "{table}"
    );

    // A replayed message is tried again, and put aside again.
    let queue = text(unknown_hub, "queue");
    room.run(&["dead-letters", "replay", &id]).expect(0);
    let again = poll_until(TIME_LIMIT, "the dead letter of the replay", || {
        let letters = engine.dead_letters();
        let again = letters.iter().find(|letter| {
            letter["message_id"] == unknown_hub["message_id"] && letter["id"] != id.as_str()
        });
        again.cloned().filter(|_| letters.len() == 50)
    });
    assert_eq!(text(&again, "queue"), queue);
    assert_eq!(text(&again, "body"), text(unknown_hub, "body"));

    let id = text(&again, "id");
    room.run(&["dead-letters", "discard", &id]).expect(0);
    assert_eq!(engine.dead_letters().len(), 49);
    room.run(&["dead-letters", "show", &id])
        .expect(3)
        .says(&[&id]);
    let discarded = room
        .run(&["--json", "dead-letters", "discard", "--all"])
        .expect(0);
    assert_eq!(
        discarded.json()["discarded"]
            .as_array()
            .expect("a list")
            .len(),
        49
    );
    assert_eq!(engine.dead_letters(), Vec::<Value>::new());
}

#[test]
fn command_errors_are_reported_to_the_sender() {
    let engine = engine(1);
    let mut pipeline = engine.pipeline();

    let spec = json!({ "message": { "body": { "text": "x" }, "ttl": "3 weeks" }, "weight": 1000 });
    let answer = refused(
        &mut pipeline,
        &start_with("two-mistakes", spec),
        "invalid_spec",
    );
    let details = answer["details"].to_string();
    assert!(details.contains("message.ttl"), "{answer}");

    let hub = json!({ "target": { "all": true, "hubs": ["atlantis"] } });
    let answer = refused(&mut pipeline, &start_with("nowhere", hub), "unknown_hub");
    assert!(text(&answer, "error").contains("atlantis"), "{answer}");

    pipeline.command_ok(&start("taken"));
    let other = json!({ "weight": 2 });
    let answer = refused(&mut pipeline, &start_with("taken", other), "conflict");
    assert!(answer["details"].to_string().contains("weight"), "{answer}");
    let spec = engine.room.rollout("taken", "weight: 2");
    engine
        .room
        .run(&["submit", &spec])
        .expect(3)
        .says(&["weight"]);

    let pause = json!({ "command": "pause", "rollout": "nothing" });
    refused(&mut pipeline, &pause, "unknown_rollout");
    engine.until_phase("taken", "succeeded", TIME_LIMIT);
    let resume = json!({ "command": "resume", "rollout": "taken" });
    refused(&mut pipeline, &resume, "not_possible");

    // A faulty command is kept as a dead letter. A command at the wrong time is not kept if the
    // caller receives the answer; this command has no reply address.
    pipeline.publish(
        start_with("taken", json!({ "weight": 2 }))
            .to_string()
            .as_bytes(),
        BasicProperties::default(),
    );
    let letters = poll_until(TIME_LIMIT, "three dead letters", || {
        Some(engine.dead_letters()).filter(|letters| letters.len() >= 3)
    });
    let causes: Vec<_> = letters.iter().map(|letter| text(letter, "cause")).collect();
    assert_eq!(causes, ["invalid_spec", "unknown_hub", "conflict"]);
}

#[test]
fn a_ten_megabyte_message_is_dead_lettered_truncated() {
    let engine = engine(1);
    let mut pipeline = engine.pipeline();
    let huge = json!({ "message": { "body": { "text": "x".repeat(10 << 20) } } });
    let command = start_with("huge", huge);
    let size = command.to_string().len();
    let answer = refused(&mut pipeline, &command, "too_large");
    assert!(
        text(&answer, "error").contains(&size.to_string()),
        "{answer}"
    );
    pipeline.command_ok(&start("small"));
    engine.until_phase("small", "succeeded", TIME_LIMIT);

    let letters = poll_until(TIME_LIMIT, "a dead letter", || {
        Some(engine.dead_letters()).filter(|letters| !letters.is_empty())
    });
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["truncated_from"], size);
    assert!(text(&letters[0], "body").len() < size / 100);
    let id = text(&letters[0], "id");
    let replay = engine.room.run(&["dead-letters", "replay", &id]).expect(3);
    replay.says(&[&format!("of its {size} bytes")]);
}

/// Asserts that the command is refused for this cause; returns the answer.
#[track_caller]
fn refused(pipeline: &mut Pipeline, command: &Value, cause: &str) -> Value {
    let answer = pipeline.command(command);
    assert_eq!(answer["ok"], false, "{answer}");
    assert_eq!(answer["cause"], cause, "{answer}");
    answer
}

#[track_caller]
fn text(value: &Value, field: &str) -> String {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("{field} is no text: {value}"))
        .to_owned()
}
