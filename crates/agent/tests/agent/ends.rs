//! The ends of updates, and updates that must never be installed.

use reqwest::Method;
use serde_json::{Value, json};
use twincast_agent::envelope::{self, SecretKey};
use twincast_agent::report::Progress;

use crate::device::{Device, Setup, artifact, content};
use crate::hub::Hub;
use crate::until;

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_applied_and_reported_with_one_write_per_state() {
    let hub = Hub::start().await;
    let device = Device::started(&hub, "dev-0").await;
    hub.send("dev-0", "fw.1.0", &device.update("1.1.0")).await;
    let report = hub.wait_for("dev-0", "fw.1.0", Progress::Applied).await;
    assert_eq!(report["version"], "1.1.0");
    assert_eq!(report["error"], Value::Null);
    let lines: Vec<_> = ["install", "activate", "health", "confirm"]
        .into_iter()
        .flat_map(|hook| [format!("{hook} begin 1.1.0"), format!("{hook} done 1.1.0")])
        .collect();
    assert_eq!(device.log(), lines);
    let twin = hub.twin("dev-0").await;
    assert_eq!(twin["properties"]["reported"]["firmware"], "1.1.0");
    let (_, writes) = hub.reported("dev-0").await;
    // The version at the start, and at most six states.
    assert!(writes <= 1 + 7, "{writes} writes");
    let log = content(&device.path("agent.log"));
    assert!(log.contains("\"state\":\"applied\""), "{log}");
    for secret in ["SharedAccessSignature", "SharedAccessKey", "sig="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    for line in log.lines() {
        assert!(
            serde_json::from_str::<Value>(line).is_ok(),
            "not JSON: {line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failed_hook_ends_in_the_expected_state() {
    let hub = Hub::start().await;
    let mut devices = Vec::new();
    for (at, (fails, state, code, rolled_back)) in [
        (&["install"][..], Progress::Failed, "install", 0),
        (&["activate"], Progress::RolledBack, "activate", 1),
        (&["health"], Progress::RolledBack, "health_check", 1),
        (&["confirm"], Progress::RolledBack, "confirm", 1),
        (&["health", "rollback"], Progress::Failed, "rollback", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let device = Device::started(&hub, &format!("dev-{at}")).await;
        fails.iter().for_each(|hook| device.fail(hook));
        hub.send(&device.id, "fw.1", &device.update("1.1.0")).await;
        devices.push((device, fails, state, code, rolled_back));
    }
    for (device, fails, state, code, rolled_back) in devices {
        let report = hub.end_of(&device.id, "fw.1").await;
        assert_eq!(
            (&report["state"], &report["error"]["code"]),
            (&json!(state), &json!(code)),
            "{fails:?}"
        );
        let text = report["error"]["text"].as_str().unwrap();
        let expected = format!("this is the output of {}", fails[fails.len() - 1]);
        assert!(text.contains(&expected), "{text}");
        assert_eq!(
            device.count("rollback done 1.1.0"),
            rolled_back,
            "{fails:?}"
        );
        let twin = hub.twin(&device.id).await;
        assert_eq!(twin["properties"]["reported"]["firmware"], "1.0.0");
        // A working update is applied afterwards.
        for hook in fails {
            std::fs::remove_file(device.path(&format!("fail-{hook}"))).unwrap();
        }
        hub.send(&device.id, "fw.2", &device.update("1.1.1")).await;
        hub.wait_for(&device.id, "fw.2", Progress::Applied).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_and_unsuitable_updates_are_not_installed() {
    let hub = Hub::start().await;
    let device = Device::started(&hub, "dev-0").await;
    let (stranger, _) = SecretKey::new().unwrap();
    let changed = |from: &str, to: &str| {
        let body = String::from_utf8(device.update("1.1.0")).unwrap();
        let mut envelope: envelope::Envelope = serde_json::from_str(&body).unwrap();
        use base64::Engine as _;
        let standard = base64::engine::general_purpose::STANDARD;
        let payload = String::from_utf8(standard.decode(&envelope.payload).unwrap()).unwrap();
        assert!(payload.contains(from));
        envelope.payload = standard.encode(payload.replace(from, to));
        serde_json::to_vec(&envelope).unwrap()
    };
    let wrong_bytes = device.update_with("1.3.0", |_| {});
    let mut other = artifact("1.3.0");
    other[100_000] ^= 1;
    device.files.put("1.3.0", &other);
    let wrong_size = device.update_with("1.4.0", |manifest| manifest.artifact.size -= 1);
    let foreign = envelope::seal(b"{\"schema\":1}", std::slice::from_ref(&stranger));
    for (at, (body, state, code)) in [
        (changed("1.1.0", "1.1.1"), Progress::Refused, "signature"),
        (
            changed("\"force\":false", "\"force\":true"),
            Progress::Refused,
            "signature",
        ),
        (
            serde_json::to_vec(&foreign).unwrap(),
            Progress::Refused,
            "signature",
        ),
        (b"hello".to_vec(), Progress::Refused, "malformed"),
        (b"\xff\x00".to_vec(), Progress::Refused, "malformed"),
        (wrong_bytes, Progress::Failed, "sha256"),
        (wrong_size, Progress::Failed, "size"),
        (
            device.update_with("1.5.0", |manifest| manifest.schema = 2),
            Progress::Refused,
            "schema",
        ),
        (
            device.update_with("1.5.0", |manifest| manifest.name = "oven".to_owned()),
            Progress::Refused,
            "name",
        ),
        (
            device.update_with("1.5.0", |manifest| {
                manifest.hardware = Some(vec!["b".to_owned()]);
            }),
            Progress::Refused,
            "hardware",
        ),
        (device.update("1.0.0"), Progress::Refused, "downgrade"),
        (device.update("0.9"), Progress::Refused, "downgrade"),
        (
            device.update_with("1.5.0", |manifest| {
                manifest.expires = "2026-01-01T00:00:00Z".parse().ok();
            }),
            Progress::Refused,
            "expired",
        ),
        (
            device.update_with("1.5.0", |manifest| {
                manifest.artifact.url.push_str("-gone?sig=secret");
            }),
            Progress::Failed,
            "download",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("fw.{at}");
        hub.send("dev-0", &id, &body).await;
        let report = hub.end_of("dev-0", &id).await;
        assert_eq!(
            (&report["state"], &report["error"]["code"]),
            (&json!(state), &json!(code)),
            "{report}"
        );
        assert!(!report.to_string().contains("secret"), "{report}");
    }
    assert_eq!(device.log(), Vec::<String>::new(), "no hook has run");
    // A downgrade needs `force`.
    hub.send(
        "dev-0",
        "fw.force",
        &device.update_with("0.9", |manifest| manifest.force = true),
    )
    .await;
    hub.wait_for("dev-0", "fw.force", Progress::Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_repeats_are_one_update() {
    let hub = Hub::start().await;
    let device = Device::started(&hub, "dev-0").await;
    let body = device.update("1.1.0");
    device.hold("install");
    for _ in 0..40 {
        hub.send("dev-0", "fw.1", &body).await;
    }
    device.wait_for_line("install begin 1.1.0").await;
    device.release("install");
    hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    let (report, writes) = hub.reported("dev-0").await;
    for _ in 0..60 {
        hub.send("dev-0", "fw.1", &body).await;
        let drained = async || {
            let waiting = hub.twin("dev-0").await["cloudToDeviceMessageCount"].as_i64();
            (waiting.unwrap_or(0) < 20).then_some(())
        };
        until("the queue of the device has room", drained).await;
    }
    // A later message is answered after the repeats.
    hub.send("dev-0", "fw.2", b"not signed").await;
    hub.wait_for("dev-0", "fw.2", Progress::Refused).await;
    let (_, writes_after) = hub.reported("dev-0").await;
    assert!(writes_after <= writes + 2, "{writes} {writes_after}");
    assert_eq!(device.count("install begin 1.1.0"), 1);
    assert_eq!(device.count("activate begin 1.1.0"), 1);
    // A repeated message gets the first answer again, also after the answer to another message.
    hub.send("dev-0", "fw.1", &body).await;
    assert_eq!(
        hub.wait_for("dev-0", "fw.1", Progress::Applied).await,
        report
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_update_is_cancelled_by_message_or_property() {
    let hub = Hub::start().await;
    let setup = Setup {
        download: "jitter = \"720h\"".to_owned(),
        ..Setup::of(&hub)
    };
    let mut device = Device::new(&hub, "dev-0", setup).await;
    device.begin(&hub).await;
    for (id, cancel) in [("fw.a1.0.0.1.1", "fw"), ("fw.a2.0.0.1.1", "fw.a2.0.0.1.1")] {
        hub.send("dev-0", id, &device.update("1.1.0")).await;
        hub.wait_for("dev-0", id, Progress::Verified).await;
        let body = json!({ "cancel": cancel }).to_string();
        hub.send_kind("dev-0", "cancel.1", "cancel", body.as_bytes())
            .await;
        let report = hub.wait_for("dev-0", id, Progress::Cancelled).await;
        assert_eq!(report["error"]["code"], "cancelled");
    }
    hub.send("dev-0", "fw.a3.0.0.1.1", &device.update("1.1.0"))
        .await;
    hub.wait_for("dev-0", "fw.a3.0.0.1.1", Progress::Verified)
        .await;
    hub.set_desired("dev-0", json!({ "update": { "cancel": "fw" } }))
        .await;
    hub.wait_for("dev-0", "fw.a3.0.0.1.1", Progress::Cancelled)
        .await;
    // The desired property stays in force, also for an agent started later.
    device.kill();
    hub.send("dev-0", "fw.a4.0.0.1.1", &device.update("1.1.0"))
        .await;
    device.start();
    hub.wait_for("dev-0", "fw.a4.0.0.1.1", Progress::Cancelled)
        .await;
    assert_eq!(device.log(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn install_may_request_another_attempt_and_activate_a_restart() {
    let hub = Hub::start().await;
    let mut device = Device::started(&hub, "dev-0").await;
    device.code("install", Some(75));
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    let report = hub.end_of("dev-0", "fw.1").await;
    assert_eq!(
        (&report["state"], &report["attempt"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(device.count("install begin 1.1.0"), 3);
    device.code("install", None);
    device.code("activate", Some(3));
    hub.send("dev-0", "fw.2", &device.update("1.2.0")).await;
    hub.wait_for("dev-0", "fw.2", Progress::Restarting).await;
    let waits = async || {
        let status = call_status(&hub).await;
        (status["payload"]["step"]["at"] == "awaiting_restart").then_some(status)
    };
    until("the update awaits a restart", waits).await;
    assert_eq!(device.count("health begin 1.2.0"), 0);
    device.restart();
    hub.wait_for("dev-0", "fw.2", Progress::Applied).await;
    let status = call_status(&hub).await;
    assert_eq!(status["payload"]["version"], "1.2.0");
    assert_eq!(status["payload"]["update"]["state"], "applied");
}

async fn call_status(hub: &Hub) -> Value {
    let call =
        json!({ "methodName": "update.status", "responseTimeoutInSeconds": 10, "payload": null });
    hub.request(Method::POST, "/twins/dev-0/methods", Some(call))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_folders_take_turns() {
    let hub = Hub::start().await;
    let mut device = Device::new(&hub, "dev-0", Setup::of(&hub)).await;
    let root = device.path("root");
    let config = content(&device.path("agent.toml"));
    let (head, hooks) = config.split_once("[hooks]").unwrap();
    let hooks: String = hooks
        .lines()
        .filter(|line| !line.contains("hook"))
        .map(|line| format!("{line}\n"))
        .collect();
    let slots = format!(
        "{head}[slots]\nroot = \"{}\"\n[hooks]{hooks}",
        root.display()
    );
    std::fs::write(device.path("agent.toml"), slots).unwrap();
    device.begin(&hub).await;
    let runs = || content(&root.join("current/artifact"));
    for version in ["1.1.0", "1.2.0"] {
        hub.send("dev-0", version, &device.update(version)).await;
        hub.wait_for("dev-0", version, Progress::Applied).await;
        assert_eq!(runs().as_bytes(), artifact(version));
    }
    device.fail("health");
    hub.send("dev-0", "bad", &device.update("1.3.0")).await;
    let report = hub.wait_for("dev-0", "bad", Progress::RolledBack).await;
    assert_eq!(report["error"]["text"], "this is the output of health");
    assert_eq!(runs().as_bytes(), artifact("1.2.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unstored_update_is_not_acknowledged_and_is_redelivered() {
    let hub = Hub::start().await;
    let mut device = Device::started(&hub, "dev-0").await;
    // A folder in place of the temporary file blocks every write. Creating the folder may fail
    // while the agent writes the file.
    let blocker = device.path("state/state.new");
    let made = async || std::fs::create_dir(&blocker).ok();
    until("the folder blocks the state file", made).await;
    hub.send("dev-0", "fw.1", &device.update("1.1.0")).await;
    let log = device.path("agent.log");
    let logged = async || {
        content(&log)
            .contains("failed to store the state")
            .then_some(())
    };
    until("the failure is logged", logged).await;
    assert_eq!(hub.reported("dev-0").await.0, Value::Null);
    device.kill();
    std::fs::remove_dir(&blocker).unwrap();
    device.start();
    hub.wait_for("dev-0", "fw.1", Progress::Applied).await;
    assert_eq!(device.count("install done 1.1.0"), 1);
}
