//! Hubs out of reach, hubs with a wrong identity, and hubs that refuse the credentials.

use std::net::TcpListener;

use twincast_testkit::services::refusing_address;

use crate::harness::{Fleet, Hub, Room, assert_refused, assert_tidy};

/// Creates the folder of a user of `hub`, with changed lines in the configuration.
fn room_with(hub: &Hub, changed: impl Fn(&str) -> String) -> Room {
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let config = changed(&config);
    let room = Room::configured(&config);
    for file in ["ca.pem", "connection-string"] {
        if !room.path().join(file).exists() {
            let copied = std::fs::copy(hub.folder().join(file), room.path().join(file));
            copied.expect("the folder is writable");
        }
    }
    room.rollout("away", "");
    // Long enough to tell a brief outage from a lasting outage.
    room.set("TWINCAST__RUN__GIVE_UP_AFTER", "2s")
}

/// Lets later commands wait for a hub on a busy machine.
fn be_patient(room: &mut Room) {
    room.set_for_all("TWINCAST__RUN__GIVE_UP_AFTER", "15m");
}

fn small_hub() -> Hub {
    Hub::unlimited(&Fleet::of(20))
}

#[test]
fn a_closed_port_while_planning_is_reported() {
    let hub = small_hub();
    let (address, _closed) = refusing_address();
    let closed = address.port();
    let room = room_with(&hub, |config| {
        config.replace(
            &format!("https_port = {}", hub.https_port()),
            &format!("https_port = {closed}"),
        )
    });
    let words = [
        "hub emulator",
        "refused",
        &closed.to_string(),
        "check the HostName",
        "443 and 5671",
        "run the same command again",
    ];
    assert_refused(&room, &["plan", "away.yaml"], 5, &words);
    assert_refused(&room, &["run", "away.yaml"], 5, &words);
}

#[test]
fn a_closed_port_while_sending_is_reported_and_resumable() {
    let hub = small_hub();
    let (address, _closed) = refusing_address();
    let closed = address.port();
    let right = format!("amqp_port = {}", hub.amqp_port());
    let mut room = room_with(&hub, |config| {
        config.replace(
            &right,
            &format!("transport = \"amqp\"\namqp_port = {closed}"),
        )
    });
    let ended = room.run(&["run", "away.yaml"]).expect(5);
    let ended = ended.says(&[
        "waiting: hub emulator: ",
        "cannot send through hub emulator",
        "refused",
        "443 and 5671",
    ]);
    assert_tidy(&ended);
    // The hub is available again: the same command continues.
    let config = std::fs::read_to_string(room.path().join("twincast.toml"));
    let config = config.expect("the file exists");
    let config = config.replace(&format!("amqp_port = {closed}"), &right);
    room.write("twincast.toml", &config);
    be_patient(&mut room);
    room.run(&["run", "away.yaml"]).expect(0);
    let seen = hub.summary();
    assert_eq!((seen.accepted, seen.repeats_by_device), (20, 0));
}

#[test]
fn a_certificate_of_another_authority_is_not_trusted() {
    let hub = small_hub();
    let other = Hub::start(&Fleet::of(1), &["--seed", "2"]);
    let room = room_with(&hub, str::to_owned);
    std::fs::copy(other.ca(), room.path().join("ca.pem")).expect("the folder is writable");
    let words = ["hub emulator", "certificate"];
    assert_refused(&room, &["plan", "away.yaml"], 5, &words);
    assert_refused(&room, &["run", "away.yaml"], 5, &words);
    assert_eq!(hub.summary().transfers, 0);
}

#[test]
fn a_hub_without_a_configured_authority_is_not_trusted() {
    let hub = small_hub();
    let room = room_with(&hub, |config| config.replace("ca_file = \"ca.pem\"\n", ""));
    let words = ["hub emulator", "certificate", "ca_file"];
    assert_refused(&room, &["run", "away.yaml"], 5, &words);
}

#[test]
fn a_certificate_for_another_name_is_not_trusted() {
    let hub = small_hub();
    let room = room_with(&hub, str::to_owned);
    let string = hub.connection_string();
    let port = hub.amqp_port();
    let string = string.replace(&format!("localhost:{port}"), "other.example");
    assert!(string.contains("HostName=other.example;"));
    room.write("connection-string", &string);
    let words = ["hub emulator", "certificate", "other.example"];
    assert_refused(&room, &["run", "away.yaml"], 5, &words);
}

#[test]
fn a_port_without_tls_is_reported() {
    let hub = small_hub();
    // The listener answers any data in plain text.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let plain = listener.local_addr().expect("the listener is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    });
    let room = room_with(&hub, |config| {
        config.replace(
            &format!("https_port = {}", hub.https_port()),
            &format!("https_port = {plain}"),
        )
    });
    assert_refused(&room, &["run", "away.yaml"], 5, &["hub emulator", "TLS"]);
}

#[test]
fn a_wrong_key_is_reported_and_does_not_show() {
    let hub = small_hub();
    let mut room = room_with(&hub, str::to_owned);
    be_patient(&mut room);
    let wrong = "d3Jvbmcta2V5LXdyb25nLWtleS13cm9uZy1rZXkhISE=";
    room.write(
        "connection-string",
        &hub.connection_string().replace(hub.key(), wrong),
    );
    let words = [
        "hub emulator",
        "401",
        "check the key",
        "service connect",
        "clock",
    ];
    assert_refused(&room, &["plan", "away.yaml"], 6, &words);
    assert_refused(&room, &["run", "away.yaml"], 6, &words);
    let ended = room.run(&["run", "away.yaml"]);
    assert!(!ended.to_string().contains(&wrong[..10]), "{ended}");
}

#[test]
fn a_key_refused_while_sending_is_reported() {
    let hub = small_hub();
    hub.faults(r#"{"refuse_cbs": true}"#);
    let mut room = room_with(&hub, str::to_owned);
    be_patient(&mut room);
    let ended = room.run(&["run", "away.yaml"]).expect(6);
    let ended = ended.says(&["cannot send through hub emulator", "check the key"]);
    assert_tidy(&ended);
    hub.faults(r#"{"refuse_cbs": false}"#);
    room.run(&["run", "away.yaml"]).expect(0);
    assert_eq!(hub.summary().accepted, 20);
}
