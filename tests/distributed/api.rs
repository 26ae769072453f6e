//! The HTTP API of a real orchestrator, over TLS: a rollout is started, approved and exported
//! through the API alone, and the command line has the same effects and output over the API as over
//! the services.

use std::time::Duration;

use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};
use twincast_oidc::TokenSigner;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::engine::{Engine, get};
use crate::harness::{Ended, Fleet, Hub, Room, eventually};
use crate::services::{Access, wait};
use crate::waiting::poll_until;

const DEVICES: u64 = 300;
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// Starts an issuer on this machine, with a discovery document.
async fn issuer(signer: &TokenSigner) -> MockServer {
    let server = MockServer::start().await;
    let discovery = json!({ "issuer": server.uri(), "jwks_uri": format!("{}/keys", server.uri()) });
    let answers = [
        ("/.well-known/openid-configuration", discovery),
        ("/keys", TokenSigner::key_set(&[signer])),
    ];
    for (at, answer) in answers {
        let answer = ResponseTemplate::new(200).set_body_json(answer);
        let mock = Mock::given(path(at)).respond_with(answer);
        mock.mount(&server).await;
    }
    server
}

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
    let (admin, admin_line) = engine.token("admin");
    let (viewer, viewer_line) = engine.token("viewer");
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
    let signer = TokenSigner::new("k");
    let issuer = wait(issuer(&signer));
    engine.set("TWINCAST__API__OIDC__ISSUER", &issuer.uri());
    engine.set("TWINCAST__API__OIDC__AUDIENCE", "twincast");
    engine.set("TWINCAST__API__OIDC__ROLES__APPROVER", "release-managers");
    let rita = signer.sign(&json!({
        "iss": issuer.uri(), "aud": "twincast", "exp": 4_000_000_000_u64, "preferred_username": "rita",
        "roles": ["release-managers"],
    }));
    engine.grow(1, 1);
    let base = eventually("the address of the API in the log", || {
        let log = engine.orchestrators[0].log();
        let (_, rest) = log.split_once("API: https://127.0.0.1:")?;
        let port = rest.split_once('/')?.0.to_owned();
        Some(format!("https://localhost:{port}/api/v1"))
    });
    _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Certificate::from_pem(key.cert.pem().as_bytes()).expect("a certificate");
    let client = Client::builder()
        .tls_certs_only([authority])
        .timeout(TIME_LIMIT)
        .build();
    let client = client.expect("a client");
    let admin = Visitor {
        client: client.clone(),
        base: base.clone(),
        token: admin,
    };
    let approver = Visitor {
        client: client.clone(),
        base: base.clone(),
        token: rita.clone(),
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
    is_audited(
        &engine,
        &[
            "operation=\"start\"",
            "result=\"denied\"",
            "by=\"viewer\" role=\"viewer\"",
            "address=\"127.0.0.1\"",
        ],
    );
    let started = admin.json(Method::POST, "/rollouts", Some(spec));
    assert_eq!(started["changed"], true, "{started}");
    let waiting = poll_until(TIME_LIMIT, "the gate to wait", || {
        let rollout = viewer.json(Method::GET, "/rollouts/over-http", None);
        (rollout["waits_for"] == "an approval").then_some(rollout)
    });
    assert_eq!(
        waiting["stages"][0]["counts"],
        json!({ "enqueued": DEVICES / 10 })
    );
    let approved = approver.json(
        Method::POST,
        "/rollouts/over-http/approve",
        Some(json!({ "reason": "looks well" })),
    );
    assert_eq!(approved["changed"], true, "{approved}");
    engine.until_phase("over-http", "succeeded", TIME_LIMIT);
    let ended = viewer.json(Method::GET, "/rollouts/over-http", None);
    let approved = &ended["stages"][0]["approved"];
    assert_eq!(approved["by"], "rita", "{ended}");
    assert_eq!(approved["reason"], "looks well", "{ended}");
    assert!(approved["at"].is_string(), "{ended}");
    let (status, lines) = viewer.ask(Method::GET, "/rollouts/over-http/export?format=csv", None);
    assert_eq!(
        (status, lines.lines().count() as u64),
        (StatusCode::OK, DEVICES + 1)
    );
    assert_eq!(engine.accepted(), DEVICES);
    let hubs = viewer.json(Method::GET, "/hubs", None);
    assert_eq!(hubs["hubs"][0]["workers"], 1, "{hubs}");
    is_audited(
        &engine,
        &[
            "operation=\"start\"",
            "rollout=over-http",
            "by=\"admin\"",
            "result=\"done\"",
        ],
    );
    is_audited(
        &engine,
        &[
            "operation=\"approve\"",
            "rollout=over-http",
            "by=\"rita\"",
            "reason=\"looks well\"",
            "address=\"127.0.0.1\"",
        ],
    );
    let probes = engine.orchestrators[0].probes();
    let (_, exported) = get(probes, "/metrics").expect("metrics");
    for sample in [
        "{result=\"done\"} 2",
        "{result=\"denied\"} 1",
        "{result=\"conflict\"} 0",
    ] {
        let sample = format!("twincast_commands_total{sample}\n");
        assert!(exported.contains(&sample), "{sample}: {exported}");
    }
    let remote = Remote {
        server: admin.base.trim_end_matches("/api/v1").to_owned(),
        certificate,
        admin: admin.token,
        viewer: viewer.token,
    };
    remote.prints_the_same_as_direct_access(&engine);
    remote.changes_a_rollout_over_the_server(&engine);
    remote.reports_refusals_with_advice();
    let log = engine.orchestrators[0].log();
    for token in ["twc_", &rita[..40]] {
        assert!(!log.contains(token), "no token is in the log");
    }
    engine.stop_all();
}

/// Asserts that a line of the audit trail contains all words. A process's log is read as it
/// arrives, so the answer to a request may arrive before the line.
#[track_caller]
fn is_audited(engine: &Engine, words: &[&str]) {
    eventually(&format!("a line of the audit trail with {words:?}"), || {
        let log = engine.orchestrators[0].log();
        let audit = log
            .lines()
            .filter(|line| line.contains("twincast_orchestrator::audit"));
        let mut audit = audit.filter(|line| words.iter().all(|word| line.contains(word)));
        audit.next().map(|_| ())
    });
}

#[test]
fn a_log_in_json_has_no_other_lines() {
    let hub = Hub::unlimited(&Fleet::of(1));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.set("TWINCAST__LOG__FORMAT", "json");
    engine.set("TWINCAST__API__LISTEN", "127.0.0.1:0");
    engine.grow(1, 1);
    let refused = engine
        .room
        .command(&["orchestrator"])
        .env("TWINCAST__API__TOKENS_FILE", "there-is-none")
        .output()
        .expect("the program runs");
    assert_eq!(refused.status.code(), Some(3));
    let mut logs = vec![String::from_utf8(refused.stderr).expect("a text")];
    assert!(
        logs[0].contains("cannot use api.tokens_file"),
        "{}",
        logs[0]
    );
    let members: Vec<_> = engine
        .orchestrators
        .drain(..)
        .chain(engine.workers.drain(..))
        .collect();
    logs.extend(members.into_iter().map(|member| member.stop().stderr));
    for log in &logs {
        assert!(!log.is_empty());
        for line in log.lines() {
            let line: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(line["level"].is_string(), "{line}");
        }
    }
    for said in ["Probes: http://", "API: http://", "is stopping"] {
        assert!(logs[1].contains(said), "{said}: {}", logs[1]);
    }
}

/// Users with access to the server only.
struct Remote {
    server: String,
    certificate: String,
    admin: String,
    viewer: String,
}

impl Remote {
    fn with(&self, token: &str) -> Room {
        Room::bare()
            .set("TWINCAST_SERVER", &self.server)
            .set("TWINCAST__SERVER__CA_FILE", &self.certificate)
            .set("TWINCAST_TOKEN", token)
    }

    /// Asserts that every command on a finished rollout prints the same bytes and returns the same
    /// exit code over the API.
    fn prints_the_same_as_direct_access(&self, engine: &Engine) {
        let remote = self.with(&self.viewer);
        let rows = engine.room.report("over-http");
        let device = rows[0].device.clone();
        let (name, device) = ("over-http", &*device);
        let looks: &[&[&str]] = &[
            &["status"],
            &["--json", "status"],
            &["status", name],
            &["--json", "status", name],
            &["watch", name],
            &["report", name],
            &["--json", "report", name],
            &["report", name, "--format", "csv"],
            &["report", name, "--format", "jsonl", "--outcome", "enqueued"],
            &["report", name, "--failed"],
            &["report", name, "--class", "taken,silent"],
            &["explain", name, device],
            &["--json", "explain", name, device],
            &["dead-letters"],
            &["--json", "dead-letters"],
            // Missing rollouts and devices.
            &["status", "nobody"],
            &["explain", name, "nobody"],
            &["--json", "explain", name, "nobody"],
        ];
        for arguments in looks {
            let here = said(&engine.room, arguments);
            assert_eq!(said(&remote, arguments), here, "{arguments:?}");
        }
        let hubs = remote.run(&["--json", "hubs"]).expect(0).json();
        assert_eq!(hubs["hubs"][0]["name"], "north");
        assert_eq!(hubs["hubs"][0]["workers"], 1, "{hubs}");
        let hubs = engine.room.run(&["--json", "hubs"]).expect(0).json();
        assert_eq!(hubs["hubs"][0]["permits"]["rollouts"], json!([]), "{hubs}");
    }

    /// Drives a rollout through all changes, by commands over the server alone.
    fn changes_a_rollout_over_the_server(&self, engine: &Engine) {
        let remote = self.with(&self.admin);
        let name = "remote";
        let gates = "stages: [{ name: canary, percent: 10%, gate: { approval: {} } }]";
        let file = remote.rollout(name, gates);
        let here = engine.room.rollout(name, gates);
        let planned = remote.run(&["--json", "plan", &file]).expect(0).json();
        let expected = engine.room.run(&["--json", "plan", &here]).expect(0).json();
        for part in ["plan", "groups", "estimate", "overlaps", "warnings"] {
            assert_eq!(planned[part], expected[part], "{part}");
        }
        assert_eq!(planned["plan"]["devices"], DEVICES);

        let submitted = remote.run(&["submit", &file]).expect(0);
        assert!(submitted.stdout.starts_with("remote is "), "{submitted}");
        let again = remote.run(&["submit", &file]).expect(0);
        again.says(&["remote already exists with the same spec"]);
        poll_until(TIME_LIMIT, "the gate to wait", || {
            let status = remote.run(&["--json", "status", name]).expect(0).json();
            (status["waits_for"] == "an approval").then_some(())
        });
        let done = |arguments: &[&str]| remote.run(arguments).expect(0).stdout;
        assert_eq!(
            done(&["pause", name, "--reason", "smoke"]),
            "remote is paused\n"
        );
        assert_eq!(done(&["pause", name]), "remote is paused already\n");
        assert_eq!(done(&["resume", name]), "remote is running\n");
        let stopped = done(&["stop-all", "--reason", "fire"]);
        assert!(stopped.contains("remote: halted"), "{stopped}");
        for room in [&remote, &engine.room] {
            for command in ["status", "hubs"] {
                let text = room.run(&[command]).expect(0).stdout;
                let (line, _) = text.split_once('\n').expect("lines");
                assert!(
                    line.starts_with("All rollouts are stopped since 2"),
                    "{text}"
                );
                assert!(line.contains(": fire (stop-all by admin). "), "{text}");
                let shown = room.run(&["--json", command]).expect(0).json();
                assert_eq!(shown["stopped"]["by"], "admin", "{shown}");
            }
        }
        assert!(done(&["resume-all"]).contains("remote: running"));
        assert_eq!(
            done(&["reject", name, "--reason", "too slow"]),
            "remote is paused\n"
        );
        let other = ["approve", name, "--stage", "rest"];
        assert_eq!(said(&remote, &other), said(&engine.room, &other));
        let promoted = done(&["promote", name, "--stage", "canary", "--reason", "known"]);
        assert!(promoted.starts_with("remote is promoted"), "{promoted}");
        remote.run(&["watch", name]).expect(0);
        let waited = remote.run(&["submit", &file, "--wait"]).expect(0);
        assert!(waited.stdout.starts_with("remote succeeded: "), "{waited}");
        assert!(done(&["retry", name]).starts_with("nothing to retry"));
        let late = ["abort", name];
        assert_eq!(said(&remote, &late), said(&engine.room, &late));
        let by = &engine.status(name)["stages"][0]["promoted"]["by"];
        assert_eq!(by, "admin", "the token's name");
    }

    fn reports_refusals_with_advice(&self) {
        let none = Room::bare()
            .set("TWINCAST_SERVER", &self.server)
            .set("TWINCAST__SERVER__CA_FILE", &self.certificate);
        let output = none.run(&["status"]).expect(3);
        output.says(&["authentication at the server at ", "TWINCAST_TOKEN"]);
        let viewer = self.with(&self.viewer);
        let output = viewer.run(&["pause", "over-http"]).expect(3);
        output
            .says(&["viewer has the role viewer; the request requires the role operator or admin"]);
        let output = viewer.run(&["dead-letters", "replay", "--all"]).expect(3);
        output.says(&["dead-letters replay is not available over the HTTP API"]);
        let output = viewer.run(&["run", "spec.yaml"]).expect(3);
        output.says(&["run is not available over the HTTP API"]);
        let away = self
            .with(&self.viewer)
            .set("TWINCAST_SERVER", "https://localhost:1")
            .set("TWINCAST__SERVER__TIMEOUT", "1s");
        let output = away.run(&["status"]).expect(9);
        output.says(&[
            "request to the server at https://localhost:1 failed",
            "--server",
        ]);
        let stranger = Room::bare()
            .set("TWINCAST_SERVER", &self.server)
            .set("TWINCAST_TOKEN", &self.viewer);
        let output = stranger.run(&["status"]).expect(9);
        output.says(&[
            "the certificate of the server is not trusted",
            "server.ca_file",
        ]);
        let in_clear = self
            .server
            .replace("https://localhost", "http://example.org");
        let output = viewer.run(&["--server", &in_clear, "status"]).expect(3);
        output.says(&["plain http is for this machine only"]);
        for arguments in [
            ["--log", "trace", "status"],
            ["--print-config", "--json", "status"],
        ] {
            let shown = viewer.run(&arguments).expect(0);
            let (_, secret) = self.viewer.split_once('_').expect("a token's form");
            let shown = shown.stdout + &shown.stderr;
            assert!(!shown.contains(secret), "no token is shown");
        }
    }
}

/// Returns the exit code and the output of a command, without log lines about connections.
fn said(room: &Room, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Ended {
        code,
        stdout,
        stderr,
        ..
    } = room.run(&[&["--log", "error"], arguments].concat());
    (code, stdout, stderr)
}
