//! The HTTP API of a real orchestrator, over TLS: a rollout is started, approved and exported with nothing else.

use std::time::Duration;

use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub, eventually};
use crate::services::{Access, wait};
use crate::waiting::within;

const DEVICES: u64 = 300;
const SOON: Duration = Duration::from_secs(60);

struct Visitor {
    client: Client,
    base: String,
    token: String,
}

impl Visitor {
    fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, String) {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        wait(async {
            let response = request.send().await.expect("an answer");
            (response.status(), response.text().await.expect("a body"))
        })
    }

    #[track_caller]
    fn json(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, text) = self.ask(method, path, body);
        assert!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

#[test]
fn a_rollout_is_started_approved_and_exported_over_https() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    let token = |role: &str| {
        let made = engine.room.run(&["--json", "token", role, "--role", role]);
        let made = made.expect(0).json();
        let part = |part: &str| made[part].as_str().expect("a text").to_owned();
        (part("token"), part("line"))
    };
    let (admin, admin_line) = token("admin");
    let (viewer, viewer_line) = token("viewer");
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    engine
        .room
        .write("tokens", &format!("{admin_line}\n{viewer_line}\n"));
    engine.room.write("api.crt", &key.cert.pem());
    engine
        .room
        .write("api.key", &key.signing_key.serialize_pem());
    let path = |name: &str| engine.room.path().join(name).display().to_string();
    let (tokens, certificate, key_file) = (path("tokens"), path("api.crt"), path("api.key"));
    engine.set("TWINCAST__API__LISTEN", "127.0.0.1:0");
    engine.set("TWINCAST__API__TOKENS_FILE", &tokens);
    engine.set("TWINCAST__API__TLS_CERT_FILE", &certificate);
    engine.set("TWINCAST__API__TLS_KEY_FILE", &key_file);
    engine.grow(1, 1);
    let base = eventually("the orchestrator to say where its API is", || {
        let log = engine.orchestrators[0].log();
        let (_, rest) = log.split_once("API: https://127.0.0.1:")?;
        let port = rest.split_once('/')?.0.to_owned();
        Some(format!("https://localhost:{port}/api/v1"))
    });
    _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Certificate::from_pem(key.cert.pem().as_bytes()).expect("a certificate");
    let client = Client::builder()
        .tls_certs_only([authority])
        .timeout(SOON)
        .build();
    let client = client.expect("a client");
    let admin = Visitor {
        client: client.clone(),
        base: base.clone(),
        token: admin,
    };
    let viewer = Visitor {
        client,
        base,
        token: viewer,
    };

    let spec = json!({
        "name": "over-http", "target": { "tags": { "type": "fridge" } }, "message": { "body": { "text": "hi" } },
        "stages": [{ "name": "canary", "percent": "10%", "gate": { "approval": {} } }],
    });
    let (status, text) = viewer.ask(Method::POST, "/rollouts", Some(spec.clone()));
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    let started = admin.json(Method::POST, "/rollouts", Some(spec));
    assert_eq!(started["changed"], true, "{started}");
    let waiting = within(SOON, "the gate to wait", || {
        let rollout = viewer.json(Method::GET, "/rollouts/over-http", None);
        (rollout["waits_for"] == "an approval").then_some(rollout)
    });
    assert_eq!(
        waiting["stages"][0]["counts"],
        json!({ "enqueued": DEVICES / 10 })
    );
    let approved = admin.json(
        Method::POST,
        "/rollouts/over-http/approve",
        Some(json!({ "reason": "looks well" })),
    );
    assert_eq!(approved["changed"], true, "{approved}");
    engine.until_phase("over-http", "succeeded", SOON);
    let ended = viewer.json(Method::GET, "/rollouts/over-http", None);
    assert_eq!(
        ended["stages"][0]["approved"],
        json!({ "by": "admin", "reason": "looks well" })
    );
    let (status, lines) = viewer.ask(Method::GET, "/rollouts/over-http/export?format=csv", None);
    assert_eq!(
        (status, lines.lines().count() as u64),
        (StatusCode::OK, DEVICES + 1)
    );
    assert_eq!(engine.accepted(), DEVICES);
    let hubs = viewer.json(Method::GET, "/hubs", None);
    assert_eq!(hubs["hubs"][0]["workers"], 1, "{hubs}");
    let log = engine.orchestrators[0].log();
    assert!(
        log.contains("by=\"admin\"") && log.contains("operation=\"approve\""),
        "no audit trail"
    );
    assert!(!log.contains("twc_"), "a token in the log");
    engine.stop_all();
}
