//! Refused configurations and connection strings, without showing the key.

use crate::harness::{Fleet, Hub, Room, assert_refused};

const SPEC: &str = "name: a\ntarget: { all: true }\nmessage: { body: { text: hi } }\n";
/// A key in a connection string with a mistake elsewhere.
const KEY: &str = "dGhlLWtleS10aGF0LW11c3Qtbm90LXNob3c=";

#[track_caller]
fn refused(toml: &str, words: &[&str]) {
    let room = Room::configured(toml);
    room.write("spec.yaml", SPEC);
    assert_refused(&room, &["plan", "spec.yaml"], 3, words);
    assert_refused(&room, &["run", "spec.yaml"], 3, words);
}

/// Asserts that the connection string is refused with these words at every place, and that the key
/// is not repeated.
#[track_caller]
fn string_refused(text: &str, words: &[&str]) {
    let in_place = Room::configured(&format!("[hubs.main]\nconnection_string = '{text}'\n"));
    let in_file = Room::configured("[hubs.main]\nconnection_string_file = 'hub.secret'\n");
    in_file.write("hub.secret", text);
    for (room, place) in [(in_place, "hub main"), (in_file, "hub.secret")] {
        room.write("spec.yaml", SPEC);
        let mut words = words.to_vec();
        words.extend(["hub main cannot be used", place]);
        assert_refused(&room, &["run", "spec.yaml"], 3, &words);
        for arguments in [
            &["run", "spec.yaml"][..],
            &["--json", "run", "spec.yaml"],
            &["--log", "trace", "plan", "spec.yaml"],
            &["--print-config"],
        ] {
            let ended = room.run(arguments);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            for part in [KEY, &KEY[..12], "c2VjcmV0", "not base64 at all"] {
                assert!(!said.contains(part), "the output has {part:?}: {ended}");
            }
        }
    }
}

#[test]
fn invalid_connection_strings_are_refused_with_the_error() {
    string_refused("", &["empty"]);
    string_refused(
        &format!("HostName=h.azure-devices.net;SharedAccessKey={KEY}"),
        &["lacks SharedAccessKeyName"],
    );
    string_refused(
        &format!("SharedAccessKeyName=service;SharedAccessKey={KEY}"),
        &["lacks HostName"],
    );
    string_refused(
        "HostName=h.azure-devices.net;SharedAccessKeyName=service",
        &["lacks SharedAccessKey"],
    );
    string_refused(
        "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=",
        &["empty SharedAccessKey"],
    );
    string_refused(
        "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=not base64 at all",
        &["SharedAccessKey is not base64"],
    );
    string_refused(
        &format!("HostName=https://h/;SharedAccessKeyName=service;SharedAccessKey={KEY}"),
        &["HostName is not a bare host name"],
    );
    string_refused(
        &format!("HostName=h.azure-devices.net;{KEY};SharedAccessKeyName=service"),
        &["part 2"],
    );
    string_refused(
        &format!("HostName=a.net;HostName=b.net;SharedAccessKeyName=s;SharedAccessKey={KEY}"),
        &["HostName twice"],
    );
    string_refused(
        &format!("HostName=h.azure-devices.net;DeviceId=d;SharedAccessKey={KEY}"),
        &["device"],
    );
    string_refused(
        "HostName=h.azure-devices.net;SharedAccessKeyName=s;SharedAccessSignature=SharedAccessSignature sr=h&sig=c2VjcmV0",
        &["SharedAccessSignature"],
    );
}

#[test]
fn a_hub_must_be_configured() {
    let room = Room::bare();
    room.write("spec.yaml", SPEC);
    for command in ["plan", "run"] {
        assert_refused(
            &room,
            &[command, "spec.yaml"],
            3,
            &[
                "no hub is configured",
                "[hubs.main]",
                "--config",
                "twincast hub",
            ],
        );
    }
}

#[test]
fn a_hub_of_the_spec_must_be_configured() {
    let string = format!("HostName=h.net;SharedAccessKeyName=s;SharedAccessKey={KEY}");
    let room = Room::configured(&format!("[hubs.eu]\nconnection_string = '{string}'\n"));
    room.write(
        "spec.yaml",
        &SPEC.replace("all: true", "all: true, hubs: [mars, eu]"),
    );
    let words = [
        "target.hubs",
        "unconfigured hubs: mars",
        "configured hubs: eu",
    ];
    assert_refused(&room, &["run", "spec.yaml"], 3, &words);
}

#[test]
fn unknown_keys_and_wrong_values_are_refused() {
    refused(
        "stat = 'x'\n",
        &["twincast.toml", "stat: is not a key", "state, log"],
    );
    refused(
        "[worker]\nslot = 1\n",
        &["worker.slot: is not a field here", "slots"],
    );
    refused("[worker]\nslots = 'many'\n", &["worker.slots: ", "many"]);
    refused(
        "[worker]\nwindow = 0\n",
        &["worker.window: must be 1 to 10000"],
    );
    refused(
        "[log]\nformat = 'xml'\n",
        &["log.format: ", "xml", "pretty"],
    );
    refused(
        "[hubs.eu]\ntier = 'S1'\n",
        &["hubs.eu: ", "exactly one of connection_string"],
    );
    refused(
        "worker = [\n",
        &["configuration", "twincast.toml", "line 1"],
    );
    let room = Room::bare();
    room.write("spec.yaml", SPEC);
    assert_refused(
        &room,
        &["--config", "gone.toml", "run", "spec.yaml"],
        3,
        &["configuration", "gone.toml", "No such file"],
    );
    let room = Room::bare().set("TWINCAST__WORKER__SLOTS", "0");
    room.write("spec.yaml", SPEC);
    let words = ["environment", "worker.slots: must be 1 to 64"];
    assert_refused(&room, &["validate", "spec.yaml"], 3, &words);
}

#[test]
fn several_errors_are_reported_at_once() {
    refused(
        "colour = 1\n[worker]\nslots = 0\n[hubs.eu]\ntier = 'S3'\nunits = 99\n[hubs.us]\nshare = 'half'\n",
        &[
            "colour: is not a key",
            "worker.slots: must be 1 to 64",
            "hubs.eu: must have exactly one of",
            "hubs.eu.units: must be 1 to 10 for tier S3",
            "hubs.us.share: ",
            "half",
        ],
    );
}

#[test]
fn files_named_in_a_configuration_must_exist() {
    refused(
        "[hubs.main]\nconnection_string_file = 'gone.secret'\n",
        &["hub main cannot be used", "gone.secret", "No such file"],
    );
    let string = format!("HostName=h.net;SharedAccessKeyName=s;SharedAccessKey={KEY}");
    let hub = format!("[hubs.main]\nconnection_string = '{string}'\nca_file = ");
    refused(
        &format!("{hub}'gone.pem'\n"),
        &["hub main cannot be used", "gone.pem", "No such file"],
    );
    let room = Room::configured(&format!("{hub}'ca.pem'\n"));
    room.write("ca.pem", "no certificate\n");
    room.write("spec.yaml", SPEC);
    let words = ["hub main cannot be used", "certificate"];
    assert_refused(&room, &["run", "spec.yaml"], 3, &words);
}

#[test]
fn a_connection_string_in_the_wrong_place_does_not_show() {
    let string =
        format!("HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey={KEY}");
    let places = [
        format!("[hubs]\nmain = '{string}'\n"),
        format!("hubs = '{string}'\n"),
        format!("[hubs.main]\nconnection_string = {string}\n"),
        format!("[hubs.main]\nconnection_string = '{string}\n"),
        format!("[hubs.main]\nconnection_string_file = '{string}'\n"),
        format!("[hubs.main]\nconnection_string_file = 'x'\ntier = '{string}'\n"),
    ];
    for toml in places {
        let room = Room::configured(&toml);
        room.write("spec.yaml", SPEC);
        for arguments in [
            &["run", "spec.yaml"][..],
            &["--json", "run", "spec.yaml"],
            &["--print-config"],
        ] {
            let ended = room.run(arguments);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(
                !said.contains(&KEY[..12]),
                "the output has the key: {ended}"
            );
            assert!(matches!(ended.code, Some(0 | 3)), "{ended}");
        }
    }
}

#[test]
fn a_rollout_on_an_unconfigured_hub_is_refused() {
    let hub = Hub::unlimited(&Fleet::of(20));
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    let room = Room::configured(&config);
    for file in ["ca.pem", "connection-string"] {
        let copied = std::fs::copy(hub.folder().join(file), room.path().join(file));
        copied.expect("the folder is writable");
    }
    let spec = room.rollout(
        "moved",
        "stages: [{ name: first, max_devices: 5, gate: { approval: {} } }]",
    );
    room.run(&["run", &spec]).expect(8);
    room.write(
        "twincast.toml",
        &config.replace("[hubs.emulator]", "[hubs.other]"),
    );
    let words = [
        "rollout moved has devices on hub emulator, which is not configured; configured hubs: \
         other",
        "configure the hub under this name again",
    ];
    assert_refused(&room, &["run", &spec], 3, &words);
    room.run(&["approve", "moved"]).expect(0);
    assert_refused(&room, &["run", &spec], 3, &words);
    assert_eq!(hub.summary().accepted, 5);
    // The stored state of the rollout is shown all the same.
    room.run(&["status", "moved"]).expect(0);
    room.write("twincast.toml", &config);
    room.run(&["run", &spec]).expect(0);
    assert_eq!(hub.summary().accepted, 20);
}
