//! No secret is visible at any log level.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{Ended, Fleet, Hub, Room};

/// The visible forms of a key or a signature.
struct Traces(Vec<(&'static str, String)>);

impl Traces {
    fn of(key: &str) -> Self {
        let bytes = STANDARD.decode(key).expect("keys are base64");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let list: Vec<_> = bytes[..8].iter().map(ToString::to_string).collect();
        let encoded = key
            .replace('/', "%2F")
            .replace('+', "%2B")
            .replace('=', "%3D");
        Self(vec![
            ("the key", key.trim_end_matches('=').to_owned()),
            ("the key, URL-encoded", encoded),
            ("the key's beginning", key[..12].to_owned()),
            ("the key in hexadecimal", hex),
            ("the key as a list of bytes", list.join(", ")),
            ("a signature", "sig=".to_owned()),
            ("a token", "SharedAccessSignature".to_owned()),
        ])
    }

    /// Returns the forms found in `text`.
    fn found_in(&self, text: &str) -> Vec<&'static str> {
        let text = text.to_lowercase();
        let found = self.0.iter();
        found
            .filter(|(_, trace)| text.contains(&trace.to_lowercase()))
            .map(|(what, _)| *what)
            .collect()
    }

    #[track_caller]
    fn assert_none(&self, ended: &Ended) {
        let shown = self.found_in(&format!("{}{}", ended.stdout, ended.stderr));
        assert!(shown.is_empty(), "{shown:?} can be seen: {ended}");
    }
}

#[test]
fn secret_detection_finds_known_secrets() {
    let hub = Hub::unlimited(&Fleet::of(1));
    let traces = Traces::of(hub.key());
    let file = std::fs::read_to_string(hub.folder().join("connection-string"));
    for text in [file.expect("the hub wrote the file"), hub.stdout()] {
        assert_eq!(traces.found_in(&text), ["the key", "the key's beginning"]);
    }
    let token = "Authorization: SharedAccessSignature sr=localhost&sig=abc%3D&se=1&skn=service";
    assert_eq!(traces.found_in(token), ["a signature", "a token"]);
    let bytes = STANDARD.decode(hub.key()).expect("keys are base64");
    assert_eq!(
        traces.found_in(&format!("{bytes:?}")),
        ["the key as a list of bytes"]
    );
}

#[test]
fn no_secret_shows_at_the_highest_log_level() {
    let hub = Hub::start_with(&Fleet::of(60), &["--unlimited"], &[("RUST_LOG", "trace")]);
    let room = Room::with(&hub).set("RUST_LOG", "trace");
    let traces = Traces::of(hub.key());
    let spec = room.rollout("quiet", "");
    for arguments in [
        &["plan", spec.as_str()][..],
        &["--json", "run", &spec],
        &["run", &spec],
        &["report", "quiet"],
        &["--print-config"],
        &["--print-config", "--json"],
    ] {
        let ended = room.run(arguments).expect(0);
        traces.assert_none(&ended);
        if arguments[0] == "plan" {
            assert!(
                ended.stderr.contains("TRACE"),
                "the program logs traces: {ended}"
            );
        }
    }
    // The hub prints secrets to standard output on purpose, so only the log is checked.
    assert!(hub.stderr().contains("TRACE"), "the hub logs traces");
    let shown = traces.found_in(&hub.stderr());
    assert!(shown.is_empty(), "{shown:?} can be seen in the hub's log");
}

#[test]
fn a_refused_key_does_not_show() {
    let hub = Hub::unlimited(&Fleet::of(5));
    let wrong = STANDARD.encode("no hub has this key, which is wrong");
    let string = hub.connection_string().replace(hub.key(), &wrong);
    let traces = Traces::of(&wrong);
    assert!(!traces.found_in(&string).is_empty());
    let config = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
    // The key is in the configuration itself, and could be printed with the other settings.
    let config = config.replace(
        "connection_string_file = \"connection-string\"",
        &format!("connection_string = \"{string}\""),
    );
    let room = Room::configured(&config).set("RUST_LOG", "trace");
    std::fs::copy(hub.ca(), room.path().join("ca.pem")).expect("the folder is writable");
    let spec = room.rollout("quiet", "");
    for command in ["plan", "run"] {
        traces.assert_none(&room.run(&[command, &spec]).expect(6));
        traces.assert_none(&room.run(&["--json", command, &spec]).expect(6));
    }
    let shown = room.run(&["--print-config"]).expect(0);
    traces.assert_none(&shown);
    assert!(shown.stdout.contains("(secret)"), "{shown}");
    // A mistake beside the key.
    room.write("twincast.toml", &config.replace("amqp_port", "amqp_prot"));
    traces.assert_none(&room.run(&["run", &spec]).expect(3));
}

#[test]
fn passwords_of_addresses_do_not_show() {
    let secret = "pass-word/that@is:not&to-show";
    let room = Room::bare()
        .set("TWINCAST__PROMETHEUS__URL", "https://metrics.example")
        .set(
            "TWINCAST_SERVER",
            &format!("https://ann:{secret}@twincast.example"),
        );
    for (arguments, code) in [
        (&["--print-config"][..], 0),
        (&["status"], 3),
        (&["--json", "status"], 3),
    ] {
        let ended = room.run(arguments).expect(code);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains("that"), "{ended}");
    }
    let shown = room.run(&["--print-config"]).expect(0).stdout;
    assert!(
        shown.contains("https://(secret)@twincast.example"),
        "{shown}"
    );
    assert!(shown.contains("https://metrics.example"), "{shown}");
}

#[test]
fn tokens_refused_while_sending_do_not_show() {
    let hub = Hub::unlimited(&Fleet::of(5));
    hub.faults(r#"{"refuse_cbs": true}"#);
    let room = Room::with(&hub).set("RUST_LOG", "trace");
    let spec = room.rollout("quiet", "");
    let ended = room.run(&["run", &spec]).expect(6);
    assert!(
        ended.stderr.contains("TRACE"),
        "the program logs traces: {ended}"
    );
    Traces::of(hub.key()).assert_none(&ended);
}
