//! Gates with metrics, on a server that answers as Prometheus does.

use serde_json::json;
use wiremock::matchers::{header, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::harness::{Fleet, Hub, Room};

const TOKEN: &str = "a-token-that-is-not-to-show";

/// A server that gives this sample to whoever has the token.
fn server(runtime: &tokio::runtime::Runtime, sample: &str) -> MockServer {
    let result = json!([{"metric": {}, "value": [1_790_000_000.0, sample]}]);
    let answer = json!({"status": "success", "data": {"resultType": "vector", "result": result}});
    runtime.block_on(async {
        let server = MockServer::start().await;
        Mock::given(path("/api/v1/query"))
            .and(header("authorization", format!("Bearer {TOKEN}").as_str()))
            .respond_with(ResponseTemplate::new(200).set_body_json(answer))
            .mount(&server)
            .await;
        server
    })
}

const GATED: &str = "stages:\n  - name: first\n    percent: 10%\n    gate:\n      metrics: [{ name: check-ins, query: sum(up), success: '>= 0.99' }]";

#[test]
fn a_metric_stops_a_rollout_and_says_why() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = server(&runtime, "0.5");
    let hub = Hub::unlimited(&Fleet::of(100));
    let room = Room::with(&hub);
    let spec = room.rollout("measured", GATED);
    // Nobody is there to be asked.
    let validated = room.run(&["validate", &spec]).expect(0);
    assert!(
        validated.stderr.contains("no Prometheus server"),
        "{validated}"
    );
    let refused = room.run(&["run", &spec]).expect(3);
    assert!(refused.stderr.contains("prometheus.url"), "{refused}");

    let room = room
        .set("TWINCAST__PROMETHEUS__URL", &server.uri())
        .set("TWINCAST__PROMETHEUS__TOKEN", TOKEN);
    let paused = room.run(&["--log", "debug", "run", &spec]).expect(8);
    let because = "the gate of stage first failed: metric check-ins has failed once, more than 0; the last was 0.5, and is to be >= 0.99";
    assert!(paused.stdout.contains(because), "{paused}");
    let report = room.report("measured");
    assert!(report.iter().filter(|row| row.outcome != "pending").count() <= 10);
    let status = room.run(&["--json", "status", "measured"]).expect(0);
    let shown = room.run(&["--print-config"]).expect(0);
    for ended in [paused, status, shown] {
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains(TOKEN), "the token shows: {ended}");
    }
}
