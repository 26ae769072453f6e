//! The exported metrics, as seen by a real Prometheus: every metric is documented, and every query
//! of the shipped dashboards and alerts returns data.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::engine::{Engine, get};
use crate::harness::{Fleet, Hub, Room, Running, eventually};
use crate::pipeline::start_with;
use crate::services::Access;
use crate::waiting::poll_until;

const DEVICES: u64 = 400;
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn metrics_are_documented_and_shipped_queries_return_data() {
    let fleet = Fleet::behaving(DEVICES, "{ latency: 10ms, answers: { after: 10ms } }");
    let hub = Hub::start(&fleet, &["--tier", "S3", "--units", "10"]);
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    let stages = json!([{ "name": "canary", "percent": "50%", "gate": { "approval": {} } }]);
    pipeline.command_ok(&start_with(
        "watched",
        json!({ "stages": stages, "answers": true }),
    ));
    let addresses: Vec<_> = engine
        .members()
        .map(|it| (it.role(), it.probes()))
        .collect();
    let metrics = |role: &str| {
        let of_role = addresses.iter().find(|(of, _)| of == role);
        let (_, address) = of_role.expect("a member of the role");
        get(*address, "/metrics").expect("metrics").1
    };
    // The rollout waits, so the metrics of the rollout stay.
    poll_until(TIME_LIMIT, "the metric of the approval", || {
        let exported = metrics("orchestrator");
        let awaits = exported.contains("twincast_rollout_awaits_approval{rollout=\"watched\"} 1");
        (awaits && exported.contains("state=\"applied\"} ")).then_some(())
    });
    let (orchestrator, worker) = (metrics("orchestrator"), metrics("worker"));
    let accepted = format!(
        "twincast_messages_accepted_total{{hub=\"north\"}} {}",
        DEVICES / 2
    );
    assert!(worker.contains(&accepted), "{worker}");
    let done = "twincast_commands_total{result=\"done\"} 1";
    assert!(orchestrator.contains(done), "{orchestrator}");
    assert_eq!(exported(&[&orchestrator, &worker]), documented());

    let prometheus = Prometheus::scraping(&addresses);
    for (place, query) in shipped_queries() {
        // A rate needs two scrapes.
        let mut last = Value::Null;
        poll_until(TIME_LIMIT, &format!("data for {place}: {query}"), || {
            last = prometheus.ask(&query);
            assert_ne!(last["status"], "error", "{place}: {query}: {last}");
            let found = last["data"]["result"].as_array().map_or(0, Vec::len);
            (found > 0).then_some(())
        });
    }
    let rules = prometheus.get("/api/v1/rules");
    let rules = &rules["data"]["groups"][0]["rules"];
    let rules = rules.as_array().expect("rules");
    assert!(rules.len() >= 10, "{rules:?}");
    for rule in rules {
        assert_eq!(rule["lastError"], Value::Null, "{rule}");
    }
    engine.room.run(&["approve", "watched"]).expect(0);
    engine.until_phase("watched", "succeeded", TIME_LIMIT);
    poll_until(TIME_LIMIT, "the end of the rollout's metrics", || {
        let exported = metrics("orchestrator");
        (!exported.contains("rollout=\"watched\"")).then_some(())
    });
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the names of exported metrics, without the Prometheus library's process metrics.
fn exported(texts: &[&str]) -> BTreeSet<String> {
    let lines = texts.iter().flat_map(|text| text.lines());
    let helped = lines.filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let names = helped.map(|(name, help)| {
        assert!(!help.trim().is_empty(), "{name} has no help");
        name.to_owned()
    });
    names.filter(|name| !name.starts_with("process_")).collect()
}

/// Returns the names in the first column of the tables of docs/reference/metrics.md.
fn documented() -> BTreeSet<String> {
    let text = read("docs/reference/metrics.md");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `twincast_"));
    let names = rows.map(|row| row.split(['`', '{']).next().unwrap_or_default());
    names.map(|name| format!("twincast_{name}")).collect()
}

/// Returns every query of every panel, and the metrics of every alert, each with the place.
fn shipped_queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for board in ["rollouts", "engine"] {
        let board: Value = serde_json::from_str(&read(&format!("deploy/grafana/{board}.json")))
            .expect("a dashboard");
        for panel in board["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let place = format!("panel {} of {}", panel["title"], board["title"]);
                let query = target["expr"].as_str().expect("a query");
                let query = query
                    .replace("$rollout", ".*")
                    .replace("$hub", ".*")
                    .replace("$namespace", ".*")
                    .replace("$engine", ".*")
                    .replace("$__rate_interval", "1m");
                assert!(!query.contains('$'), "{place}: a variable in {query}");
                queries.push((place, query));
            }
        }
    }
    let dashboards = queries.len();
    let rules = read("deploy/prometheus/twincast.rules.yml");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("twincast_")).collect();
    let of_alerts = names
        .into_iter()
        .map(|name| ("the alerts".to_owned(), name.to_owned()));
    queries.extend(of_alerts);
    assert!(
        dashboards > 30 && queries.len() > dashboards + 8,
        "{queries:?}"
    );
    queries
}

/// A Prometheus server for this test, killed with the test.
struct Prometheus {
    address: SocketAddr,
    _running: Running,
    _room: Room,
}

impl Prometheus {
    fn scraping(members: &[(String, SocketAddr)]) -> Self {
        let room = Room::bare();
        let jobs = ["orchestrator", "worker"].map(|role| {
            let of_role = members.iter().filter(|(of, _)| of == role);
            let targets: Vec<_> = of_role.map(|(_, address)| address.to_string()).collect();
            json!({ "job_name": role, "static_configs": [{ "targets": targets }] })
        });
        let rules: PathBuf = repository().join("deploy/prometheus/twincast.rules.yml");
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": jobs,
        });
        let config = room.write("prometheus.yml", &config.to_string());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                room.path().join("data").display()
            ))
            .arg("--web.listen-address=127.0.0.1:0");
        let running = Running::start(&mut command);
        let address = eventually("the address of Prometheus in the log", || {
            let log = running.stderr();
            let (_, rest) = log.split_once("msg=\"Listening on\" address=")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        Self {
            address,
            _running: running,
            _room: room,
        }
    }

    /// Returns null until the server is ready.
    fn get(&self, path: &str) -> Value {
        let (_, body) = get(self.address, path).expect("an answer of Prometheus");
        serde_json::from_str(&body).unwrap_or_default()
    }

    fn ask(&self, query: &str) -> Value {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        self.get(&format!("/api/v1/query?query={query}"))
    }
}
