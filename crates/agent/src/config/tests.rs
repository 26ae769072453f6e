use super::*;

const MINIMAL: &str = r#"
state = "state"
[identity]
connection_string = "HostName=h;DeviceId=d;SharedAccessKey=MTIz"
[update]
name = "fridge"
hardware = "a"
keys = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
[slots]
root = "/opt/fridge"
"#;

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|error| error.to_string())
}

#[test]
fn a_minimal_configuration_is_accepted() {
    let config = load(MINIMAL).unwrap();
    assert!(config.state.is_absolute() && config.state.ends_with("state"));
    assert_eq!(
        config.slots.as_ref().unwrap().root,
        Path::new("/opt/fridge")
    );
    let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
    assert!(
        shown.contains("(secret)") && !shown.contains("MTIz"),
        "{shown}"
    );
    assert!(toml::from_str::<Config>(MINIMAL).is_ok());
}

#[test]
fn errors_name_the_key_and_hide_secrets() {
    for (from, to, expected) in [
        (
            "[slots]\nroot = \"/opt/fridge\"",
            "",
            "hooks.activate are required without slots",
        ),
        (
            "name = \"fridge\"",
            "name = \"\"",
            "update.name: must not be empty",
        ),
        (
            "keys = [",
            "keys = [\"x\", ",
            "update.keys: each must be an ed25519 public key",
        ),
        (
            "keys = [\"A",
            "keys = [] #",
            "update.keys: must be one key, or two",
        ),
        (
            "[update]",
            "hub = \"h\"\n[update]",
            "identity: must have exactly one of",
        ),
        (
            "state =",
            "colour = 1\nstate =",
            "line 2: unknown field `colour`",
        ),
        ("state =", "log = \"loud\"\nstate =", "log: must be error"),
        (
            "connection_string = \"",
            "connection_string = [] #\"",
            "line 4: invalid type or value, expected",
        ),
        (
            "connection_string = ",
            "certificate_file = \"c\"\nconnection_string = ",
            "must be set together",
        ),
        (
            "[slots]",
            "[download]\njitter = \"-1s\"\n[slots]",
            "download.jitter: must be 0",
        ),
        (
            "[slots]",
            "[hub]\nkeep_alive = \"1h\"\n[slots]",
            "hub.keep_alive: must be 1s to 1177s",
        ),
        (
            "[slots]",
            "[hooks]\nmax_attempts = 0\ninstall = []\n[slots]",
            "hooks.install: must not be empty; hooks.max_attempts",
        ),
        ("[slots]", "[hooks]\ntimeout = \"MTIz\"\n[slots]", "line 10"),
    ] {
        assert!(MINIMAL.contains(from), "{from}");
        let error = load(&MINIMAL.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in {error}");
        assert!(!error.contains("MTIz"), "{error}");
    }
}
