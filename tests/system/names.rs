//! A rollout is identified by name, and never changes after the start.

use crate::harness::{Fleet, Hub, Room, Signal, assert_refused, eventually};

const DEVICES: u64 = 4_000;

#[test]
fn another_spec_under_a_used_name_is_refused_field_by_field() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    hub.faults(r#"{"disposition_delay_ms": 2000}"#);
    let room = Room::with(&hub);
    let spec = room.rollout("name", "rate: 100000/min");
    let original = std::fs::read_to_string(room.path().join(&spec)).expect("the file was written");
    let mut run = room.start(&["run", &spec]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted > 500).then_some(())
    });
    run.signal(Signal::Interrupt);
    run.wait().expect(130);
    hub.faults(r#"{"disposition_delay_ms": 0}"#);
    let sent = hub.summary().transfers;

    let changed = original
        .replace("text: hello", "text: goodbye")
        .replace("100000/min", "200/min")
        .replace("type: fridge", "type: oven");
    room.write(&spec, &changed);
    let ended = room.run(&["run", &spec]).expect(3).says(&[
        "rollout name was started at",
        "with another spec",
        "What to do: ",
        "choose another name",
        "message.body.text",
        "hello",
        "goodbye",
        "rate",
        "target.tags.type",
        "fridge",
        "oven",
    ]);
    assert!(
        !ended.stderr.contains("batch_by"),
        "batch_by is unchanged: {ended}"
    );
    assert_eq!(ended.stdout, "");
    assert_eq!(hub.summary().transfers, sent, "no further message is sent");

    // Comments and the order of fields make no difference.
    room.write(&spec, &format!("# The same.\n{original}"));
    room.run(&["run", &spec]).expect(0);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.repeats_by_device), (DEVICES, 0));
}

#[test]
fn a_changed_device_list_is_another_spec() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    room.write("list.txt", "d-000001\nd-000002\n");
    let spec =
        "name: listed\ntarget: { devices_file: list.txt }\nmessage: { body: { text: hi } }\n";
    room.write("listed.yaml", spec);
    room.run(&["run", "listed.yaml"]).expect(0);
    room.write("list.txt", "d-000001\nd-000003\n");
    room.run(&["run", "listed.yaml"])
        .expect(3)
        .says(&["the contents of list.txt changed"]);
    assert_eq!(hub.summary().accepted, 2);
}

#[test]
fn an_ended_rollout_returns_the_same_result_again() {
    let hub = Hub::unlimited(&Fleet::behaving(200, "{ disabled: 10% }"));
    let room = Room::with(&hub);
    let spec = room.rollout("over", "");
    let first = room.run(&["--json", "run", &spec]).expect(4);
    let again = room
        .run(&["--json", "run", &spec])
        .expect(4)
        .says(&["over has already ended", "choose another rollout name"]);
    assert_eq!(again.json(), first.json());
    assert_eq!(hub.summary().transfers, 200, "no message is sent again");
}

#[test]
fn a_failed_rollout_releases_the_name() {
    let hub = Hub::unlimited(&Fleet::of(100));
    let room = Room::with(&hub);
    let spec = room.rollout("typo", "");
    let right = std::fs::read_to_string(room.path().join(&spec)).expect("the file was written");
    room.write(&spec, &right.replace("fridge", "frigde"));
    let failed = room.run(&["run", &spec]).expect(3);
    assert!(failed.stdout.contains("failed: "), "{failed}");
    assert_eq!(hub.summary().transfers, 0);

    room.write(&spec, &right);
    room.run(&["run", &spec]).expect(0);
    assert_eq!(hub.summary().distinct_devices, 100);
}

#[test]
fn another_hub_under_a_known_name_is_refused() {
    let staging = Hub::unlimited(&Fleet::of(300));
    let production = Hub::unlimited(&Fleet::of(300));
    let mut room = Room::with(&staging);
    let over = room.rollout("over", "");
    room.run(&["run", &over]).expect(0);
    let slow = room.rollout("slow", "rate: 60/min");
    let mut run = room.start(&["run", &slow]);
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (staging.summary().accepted > 301).then_some(())
    });
    run.signal(Signal::Interrupt);
    run.wait().expect(130);
    let sent = staging.summary().accepted;

    room.configure(&production);
    let new = room.rollout("new", "");
    let host = |hub: &Hub| format!("localhost:{}", hub.amqp_port());
    let hosts = [host(&staging), host(&production)];
    let words: Vec<_> = hosts
        .iter()
        .map(String::as_str)
        .chain(["emulator"])
        .collect();
    for spec in [&over, &slow, &new] {
        assert_refused(&room, &["run", spec], 3, &words);
    }
    assert_eq!(production.summary().accepted, 0);

    room.configure(&staging);
    room.run(&["run", &over]).expect(0);
    assert_eq!(staging.summary().accepted, sent);
}

#[test]
fn a_hub_with_two_names_is_refused() {
    let hub = Hub::unlimited(&Fleet::of(1));
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let path = |file: &str| format!("\"{}\"", hub.folder().join(file).display());
    let config = config
        .replace("\"connection-string\"", &path("connection-string"))
        .replace("\"ca.pem\"", &path("ca.pem"));
    let twice = format!(
        "{config}\n{}",
        config.replace("[hubs.emulator]", "[hubs.twin]")
    );
    let room = Room::configured(&twice);
    let spec = room.rollout("twice", "");
    assert_refused(
        &room,
        &["run", &spec],
        3,
        &["emulator", "twin", "the same hub"],
    );
}
