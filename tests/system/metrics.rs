//! Gates with metrics, on a server with the API of Prometheus.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use wiremock::matchers::{header, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::harness::{Fleet, Hub, Room, Running, eventually};

const TOKEN: &str = "a-token-that-is-not-to-show";

/// Starts a server with this sample, for clients with the token.
fn server(runtime: &tokio::runtime::Runtime, sample: &str) -> MockServer {
    let result = json!([{"metric": {}, "value": [1_790_000_000.0, sample]}]);
    let answer = json!({"status": "success", "data": {"resultType": "vector", "result": result}});
    runtime.block_on(async {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/query"))
            .and(header("authorization", format!("Bearer {TOKEN}").as_str()))
            // Mimir, Cortex and Thanos identify tenants by this header.
            .and(header("x-scope-orgid", "fleet"))
            .respond_with(ResponseTemplate::new(200).set_body_json(answer))
            .mount(&server)
            .await;
        server
    })
}

const GATED: &str = "stages:\n  - name: first\n    percent: 10%\n    gate:\n      metrics: [{ name: check-ins, query: sum(up), success: '>= 0.99' }]";

#[test]
fn a_failing_metric_stops_a_rollout_with_the_reason() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = server(&runtime, "0.5");
    let hub = Hub::unlimited(&Fleet::of(100));
    let room = Room::with(&hub);
    let spec = room.rollout("measured", GATED);
    // No Prometheus server is configured.
    let validated = room.run(&["validate", &spec]).expect(0);
    assert!(
        validated.stderr.contains("no Prometheus server"),
        "{validated}"
    );
    let refused = room.run(&["run", &spec]).expect(3);
    assert!(refused.stderr.contains("prometheus.url"), "{refused}");

    let room = room
        .set("TWINCAST__PROMETHEUS__URL", &server.uri())
        .set("TWINCAST__PROMETHEUS__TOKEN", TOKEN)
        .set("TWINCAST__PROMETHEUS__HEADERS", "X-Scope-OrgID=fleet");
    let paused = room.run(&["--log", "debug", "run", &spec]).expect(8);
    let because = "the gate of stage first failed: metric check-ins has failed once (limit 0); \
         last result 0.5, expected >= 0.99";
    assert!(paused.stdout.contains(because), "{paused}");
    let report = room.report("measured");
    assert!(report.iter().filter(|row| row.outcome != "pending").count() <= 10);
    let status = room.run(&["--json", "status", "measured"]).expect(0);
    let shown = room.run(&["--print-config"]).expect(0);
    for ended in [paused, status, shown] {
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains(TOKEN), "the output has the token: {ended}");
    }
}

const PASSWORD: &str = "a-password-that-is-not-to-show";
/// The password in Prometheus' configuration, hashed with bcrypt.
const HASH: &str = "$2b$04$mI/14krmyo5rqDyHybmdruLGeRpNlaHENiyd2xdhKwqiStZqqtlsa";

/// Starts a Prometheus with a single user and without targets.
fn prometheus(room: &Room) -> (Running, SocketAddr) {
    let web = room.write("web.yml", &format!("basic_auth_users:\n  ann: {HASH}\n"));
    let config = room.write("prometheus.yml", "global: {}\n");
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--web.config.file={}", web.display()))
        .arg(format!(
            "--storage.tsdb.path={}/data",
            room.path().display()
        ))
        .arg("--web.listen-address=127.0.0.1:0");
    let running = Running::start(&mut command);
    let address = eventually("the address of Prometheus in the log", || {
        let log = running.stderr();
        let (_, rest) = log.split_once("msg=\"Listening on\" address=")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    (running, address)
}

#[test]
fn the_password_file_is_read_for_each_query() {
    let servers = Room::bare();
    let (_running, address) = prometheus(&servers);
    let hub = Hub::unlimited(&Fleet::of(100));
    let secret = servers.write("password", "not this one\n");
    let room = Room::with(&hub)
        .set("TWINCAST__PROMETHEUS__URL", &format!("http://{address}"))
        .set("TWINCAST__PROMETHEUS__USER", "ann")
        .set(
            "TWINCAST__PROMETHEUS__PASSWORD_FILE",
            &secret.display().to_string(),
        );
    let gated = GATED.replace("sum(up)", "vector(0.5)");
    let spec = room.rollout("measured", &gated);
    let run = room.start(&["--log", "debug", "run", &spec]);
    eventually("the server to refuse", || {
        run.stderr().contains("401").then_some(())
    });
    servers.write("password", &format!("{PASSWORD}\n"));
    let paused = run.wait().expect(8);
    let because = "metric check-ins has failed once (limit 0); last result 0.5";
    assert!(paused.stdout.contains(because), "{paused}");
    let shown = room.run(&["--print-config"]).expect(0);
    for ended in [paused, shown] {
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(
            !said.contains(PASSWORD),
            "the output has the password: {ended}"
        );
    }
}
