//! A hub's keys are regenerated in turn while a rollout runs, and the key files are replaced as the
//! kubelet replaces mounted secrets.

use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::harness::{Fleet, Hub, Room, Running, assert_report_matches, eventually};

const DEVICES: u64 = 3_000;

/// A folder of secrets: each file is a link into a linked folder, and an update replaces the link
/// to the folder.
struct Secrets<'a> {
    room: &'a Room,
    hub: &'a Hub,
    version: u32,
}

impl Secrets<'_> {
    fn write(&mut self, first: &str, second: &str) {
        self.version += 1;
        let folder = self.room.path().join("secrets");
        let version = folder.join(format!("v{}", self.version));
        std::fs::create_dir_all(&version).expect("the folder is writable");
        let string = self.hub.connection_string();
        for (name, key) in [("first", first), ("second", second)] {
            let text = string.replace(self.hub.key(), &STANDARD.encode(key));
            std::fs::write(version.join(name), text).expect("the folder is writable");
            if self.version == 1 {
                symlink(format!("..data/{name}"), folder.join(name)).expect("a link");
            }
        }
        symlink(&version, folder.join("..new")).expect("a link");
        std::fs::rename(folder.join("..new"), folder.join("..data")).expect("a link");
    }
}

fn regenerate(hub: &Hub, first: &str, second: &str) {
    let keys = json!({ "primary": STANDARD.encode(first), "secondary": STANDARD.encode(second) });
    hub.put("/policies/iothubowner/keys", &keys.to_string());
    // Open connections continue with the old key; new connections need the new key.
    hub.drop_connections();
}

fn until_more(hub: &Hub, run: &mut Running, more: u64) {
    let before = hub.summary().accepted;
    eventually("sends", || {
        assert!(!run.is_over(), "the run ended early: {}", run.stderr());
        (hub.summary().accepted >= before + more).then_some(())
    });
}

#[test]
fn key_rotation_during_a_rollout_loses_no_message() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let room = Room::configured(&format!(
        "[hubs.emulator]\nconnection_string_file = \"secrets/first\"\n\
         secondary_connection_string_file = \"secrets/second\"\nca_file = \"{}\"\naddress = \"127.0.0.1\"\n\
         amqp_port = {}\nhttps_port = {}\nunlimited = true\nquery_lag = \"0s\"\n",
        hub.ca().display(),
        hub.amqp_port(),
        hub.https_port(),
    ));
    let mut secrets = Secrets {
        room: &room,
        hub: &hub,
        version: 0,
    };
    secrets.write("first-1", "second-1");
    regenerate(&hub, "first-1", "second-1");
    let spec = room.rollout("rotated", "rate: 12000/min");
    let mut run = room.start(&["run", &spec]);
    until_more(&hub, &mut run, 100);
    // The first key is regenerated, and the file follows later.
    regenerate(&hub, "first-2", "second-1");
    until_more(&hub, &mut run, 100);
    secrets.write("first-2", "second-1");
    regenerate(&hub, "first-2", "second-2");
    until_more(&hub, &mut run, 100);
    secrets.write("first-2", "second-2");
    regenerate(&hub, "first-3", "second-2");
    until_more(&hub, &mut run, 100);
    run.wait().expect(0);
    let report = room.run(&["--json", "report", "rotated"]).expect(0).json();
    let rows: Vec<_> = serde_json::from_value(report["devices_list"].clone()).expect("rows");
    assert_report_matches(&rows, &hub.message_log());
    assert_eq!(rows.len() as u64, DEVICES);
    assert!(hub.summary().tokens_refused >= 2, "{:?}", hub.summary());
}

#[test]
fn connection_strings_of_two_hubs_are_refused() {
    let string = |host: &str| format!("HostName={host};SharedAccessKeyName=s;SharedAccessKey=YQ==");
    let room = Room::configured(&format!(
        "[hubs.eu]\nconnection_string = \"{}\"\nsecondary_connection_string = \"{}\"\n",
        string("one.example"),
        string("two.example"),
    ));
    let spec = room.rollout("two", "");
    room.run(&["plan", &spec])
        .expect(3)
        .says(&["for two hubs", "one.example", "two.example"]);
}
