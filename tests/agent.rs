//! `twincast sign` and `twincast agent`, as used on the command line.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the program in a folder; returns the exit code and the JSON.
fn twincast(folder: &Path, arguments: &str) -> (i32, Value) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_twincast"))
        .args(["--json"])
        .args(arguments.split(' '))
        .current_dir(folder)
        .env_remove("TWINCAST_CONFIG")
        .output()
        .unwrap();
    let answer = serde_json::from_slice(&stdout);
    let answer =
        answer.unwrap_or_else(|_| panic!("{arguments}: {}", String::from_utf8_lossy(&stderr)));
    (status.code().unwrap(), answer)
}

#[test]
fn an_update_is_signed_by_two_keys_and_verified_by_either() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &str| twincast(folder.path(), arguments);
    let (code, old) = run("sign key new old.pem");
    assert_eq!(code, 0);
    assert_eq!(run("sign key show old.pem"), (0, old.clone()));
    let (_, new) = run("sign key new new.pem");
    let (_, stranger) = run("sign key new stranger.pem");
    assert_eq!(
        run("sign key new new.pem").0,
        3,
        "a key is never overwritten"
    );
    std::fs::write(folder.path().join("fw.bin"), "firmware").unwrap();
    let update =
        "--name fridge --version 1.4.2 --hardware a,b --url https://files/fw --artifact fw.bin";
    let (code, signed) = run(&format!(
        "sign update --key old.pem --key new.pem {update} --expires 2099-01-01T00:00:00Z"
    ));
    assert_eq!(code, 0, "{signed}");
    assert_eq!(
        signed["keyids"],
        serde_json::json!([old["keyid"], new["keyid"]])
    );
    for (key, code) in [(&old, 0), (&new, 0), (&stranger, 3)] {
        let key = key["public_key"].as_str().unwrap();
        let (found, answer) = run(&format!(
            "sign verify --public-key {key} --artifact fw.bin update.json"
        ));
        assert_eq!(found, code, "{answer}");
        if code == 0 {
            assert_eq!(answer["manifest"], signed["manifest"]);
        }
    }
    std::fs::write(folder.path().join("fw.bin"), "firmwarf").unwrap();
    let key = old["public_key"].as_str().unwrap();
    assert_eq!(
        run(&format!(
            "sign verify --public-key {key} --artifact fw.bin update.json"
        ))
        .0,
        3
    );
    for (wrong, expected) in [
        ("--expires soon", "--expires is not a time"),
        ("--url file:///fw", "must be https, http or ftp"),
        ("--key fw.bin", "is not an ed25519 secret key"),
    ] {
        let update = update.replace("--url https://files/fw", "");
        let url = if wrong.contains("--url") {
            ""
        } else {
            " --url https://files/fw"
        };
        let arguments = format!("sign update --key old.pem {update}{url} {wrong}");
        let arguments = arguments.split_whitespace().collect::<Vec<_>>().join(" ");
        let (code, answer) = run(&arguments);
        assert_eq!(code, 3);
        assert!(answer.to_string().contains(expected), "{answer}");
    }
}

#[test]
fn agent_configuration_errors_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &str| twincast(folder.path(), arguments);
    assert_eq!(run("agent").0, 2);
    assert_eq!(run("agent --config missing.toml").0, 3);
    let config = "state = \"s\"\n[identity]\nconnection_string = \"HostName=h;DeviceId=d;SharedAccessKey=MTIz\"\n\
        [update]\nname = \"fridge\"\nhardware = \"a\"\nkeys = [\"x\"]\n[slots]\nroot = \"r\"\n";
    std::fs::write(folder.path().join("agent.toml"), config).unwrap();
    let (code, answer) = run("agent --config agent.toml");
    assert_eq!(code, 3);
    assert!(answer.to_string().contains("update.keys"), "{answer}");
    let key = format!("{}=", "A".repeat(43));
    std::fs::write(
        folder.path().join("agent.toml"),
        config.replace("\"x\"", &format!("\"{key}\"")),
    )
    .unwrap();
    let (code, answer) = run("agent --config agent.toml --print-config");
    assert_eq!(
        (code, &answer["identity"]["connection_string"]),
        (0, &Value::from("(secret)"))
    );
}
