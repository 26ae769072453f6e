//! `twincast check` tests the configured connections, and names every fault with advice.

use serde_json::{Value, json};

use crate::harness::{Fleet, Hub, Room};

/// Returns the result of a check.
fn found<'a>(report: &'a Value, check: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("a list");
    let found = checks.iter().find(|it| it["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {report}"))
}

#[test]
fn a_usable_hub_is_reported_without_sends() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    let ended = room.run(&["check"]).expect(0);
    assert!(
        ended
            .stdout
            .contains("All configured services can be used."),
        "{ended}"
    );
    let ended = room.run(&["--json", "check"]).expect(0).json();
    assert_eq!(ended["ok"], true);
    for check in ["quota", "https", "clock", "messages", "feedback"] {
        assert_eq!(found(&ended, check)["result"], "ok", "{ended}");
    }
    assert_eq!(
        found(&ended, "messages")["finding"],
        format!(
            "messages can be sent, over AMQP on port {}",
            hub.amqp_port()
        )
    );
    assert_eq!(hub.summary().transfers, 0);
}

#[test]
fn each_fault_is_reported_with_advice_and_exit_code() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let room = Room::with(&hub);
    hub.faults(&json!({ "refuse_cbs": true }).to_string());
    let ended = room.run(&["--json", "check"]).expect(6).json();
    assert_eq!(ended["ok"], false);
    assert_eq!(found(&ended, "https")["result"], "ok");
    let refused = found(&ended, "messages");
    assert_eq!(refused["result"], "failed", "{ended}");
    assert!(
        refused["advice"]
            .as_str()
            .unwrap_or_default()
            .contains("service connect"),
        "{ended}"
    );
    hub.faults(&json!({ "refuse_cbs": false }).to_string());

    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let blocked = config.replace(&hub.amqp_port().to_string(), "1");
    let other = Room::configured(&blocked);
    for name in ["ca.pem", "connection-string"] {
        let text = std::fs::read_to_string(hub.folder().join(name));
        let text = text.expect("the hub wrote the file");
        other.write(name, &text);
    }
    let ended = other.run(&["check"]).expect(0);
    let websocket = format!("over a WebSocket on port {}", hub.https_port());
    assert!(ended.stdout.contains(&websocket), "{ended}");
    let nowhere = blocked.replace(&hub.https_port().to_string(), "1");
    other.write("twincast.toml", &nowhere);
    let ended = other.run(&["check"]).expect(5);
    for words in ["was refused", "What to do: "] {
        assert!(ended.stdout.contains(words), "{ended}");
    }
}

#[test]
fn other_services_are_tried_as_well() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let room = Room::configured(&format!(
        "{}\n[amqp]\nurl = \"amqp://127.0.0.1:1\"\n[redis]\nurl = \"redis://127.0.0.1:1\"\n[prometheus]\nurl = \"http://127.0.0.1:1\"\n",
        config
            .replace(
                "\"connection-string\"",
                &format!("\"{}\"", hub.folder().join("connection-string").display())
            )
            .replace("\"ca.pem\"", &format!("\"{}\"", hub.ca().display())),
    ));
    let ended = room.run(&["--json", "check"]).expect(9).json();
    for check in ["topology", "connection", "query"] {
        assert_eq!(found(&ended, check)["result"], "failed", "{ended}");
        assert!(found(&ended, check)["advice"].is_string(), "{ended}");
    }
    assert_eq!(found(&ended, "messages")["result"], "ok");
}

#[test]
fn check_without_configuration_is_refused() {
    Room::bare().run(&["check"]).expect(3).says(&["--config"]);
}
