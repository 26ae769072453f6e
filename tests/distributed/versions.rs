//! Releases side by side: data of an older release is read, data of a newer release is left
//! unchanged.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::{Value, json};
use twincast_testkit::services::Redis;

use crate::engine::{Engine, get};
use crate::harness::{Fleet, Hub, assert_same_ids, eventually};
use crate::pipeline::{about, about_all, start, start_with};
use crate::services::{Access, wait};
use crate::waiting::poll_until;

const DEVICES: u64 = 1_000;
const TIME_LIMIT: Duration = Duration::from_secs(300);
const DISPATCH_V1: &str = "application/vnd.twincast.dispatch.v1+json";
const DISPATCH_V2: &str = "application/vnd.twincast.dispatch.v2+json";

/// Data of a newer release is neither lost nor treated as damaged, and holds up nothing else.
#[test]
fn data_of_a_newer_release_is_left_unchanged() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let access = Access::shared();
    let mut engine = Engine::new(&access, vec![("north", hub)]);
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    let stages = json!([{ "name": "canary", "percent": "10%", "gate": { "approval": {} } }]);
    pipeline.command_ok(&start_with("newer", json!({ "stages": stages })));
    until_an_approval_is_awaited(&engine, "newer");

    // According to the format, a newer release drives the rollout from here on.
    engine.stop_all();
    let set_format = |format: u32| {
        let head = format!("{}:{{newer}}", access.prefix);
        wait(async {
            let redis = Redis::shared().await;
            redis.command(&format!("HSET {head} format {format}")).await
        });
    };
    set_format(2);
    engine.grow(1, 1);
    for content_type in [DISPATCH_V1, DISPATCH_V2] {
        let body = br#"{"rollout":"newer","batch":1,"hub":"north"}"#;
        let properties = BasicProperties::default().with_content_type(content_type.into());
        pipeline.publish_to("dispatch.north", body, properties);
    }
    pipeline.command_ok(&start("known"));
    engine.until_phase("known", "succeeded", TIME_LIMIT);
    pipeline.command_ok(&about_all("stop-all"));
    pipeline.command_ok(&about_all("resume-all"));
    let refused = pipeline.command(&about("approve", "newer"));
    assert_eq!(refused["cause"], "newer_release", "{refused}");
    assert_eq!(engine.accepted(), DEVICES + DEVICES / 10);

    let of_worker = "twincast_batches_ended_total{end=\"newer\",hub=\"north\"} 1";
    for (role, sample, expected_lines) in [
        ("orchestrator", "twincast_rollouts_newer 1", 1),
        // Once for the rollout, and once for dispatches.
        ("worker", of_worker, 2),
    ] {
        let members = engine.members();
        let mut of_role = members.filter(|member| member.role() == role);
        let member = of_role.next().expect("a member of the role");
        let probes = member.probes();
        poll_until(TIME_LIMIT, sample, || {
            let metrics = get(probes, "/metrics").expect("metrics").1;
            metrics.contains(sample).then_some(())
        });
        let lines = || {
            let log = member.log();
            log.matches(&format!("left to newer {role}s")).count()
        };
        eventually("the lines in the log", || {
            (lines() >= expected_lines).then_some(())
        });
        assert_eq!(lines(), expected_lines, "each line is logged once");
    }
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    assert_eq!(all["of_newer_release"], json!(["newer"]));
    assert_eq!(all["rollouts"].as_array().map(Vec::len), Some(1));
    let output = engine.room.run(&["status", "newer"]).expect(7);
    output.says(&[
        "rollout newer was written by a newer release: format 2, and this release knows \
         formats up to 1",
    ]);
    assert_eq!(engine.dead_letters(), [Value::Null; 0]);

    // The data is unchanged: a release with knowledge of the format continues.
    engine.stop_all();
    set_format(1);
    engine.grow(1, 1);
    pipeline.command_ok(&about("approve", "newer"));
    engine.until_phase("newer", "succeeded", TIME_LIMIT);
    assert_eq!(engine.accepted(), 2 * DEVICES);
    engine.assert_reports_match_hubs("newer");
    engine.assert_reports_match_hubs("known");
}

#[test]
fn a_rollout_started_by_the_first_release_is_finished() {
    let fleet = std::fs::read_to_string(fixture("fleet.yaml")).expect("a fleet");
    let hub = Hub::unlimited(&Fleet::written(&fleet));
    let access = Access {
        prefix: "recorded".to_owned(),
        ..Access::shared()
    };
    let host = format!("localhost:{}", hub.amqp_port());
    restore(&fixture("v0.1/redis.txt"), &host);
    let mut engine = Engine::new(&access, vec![("north", hub)]);
    let recorded = engine.status("recorded");
    let canaries = recorded["counts"]["delivered"].as_u64().expect("a number");
    engine.grow(1, 1);
    let mut pipeline = engine.pipeline();
    let dispatch = std::fs::read(fixture("v0.1/dispatch.json")).expect("a dispatch");
    let properties = BasicProperties::default().with_content_type(DISPATCH_V1.into());
    pipeline.publish_to("dispatch.north", &dispatch, properties);
    until_an_approval_is_awaited(&engine, "recorded");
    assert_eq!(engine.accepted(), 0, "nothing is sent before the approval");
    let approve = std::fs::read_to_string(fixture("v0.1/approve.json")).expect("a command");
    pipeline.command_ok(&serde_json::from_str(&approve).expect("JSON"));

    let ended = engine.until_phase("recorded", "succeeded", TIME_LIMIT);
    let devices = ended["devices"].as_u64().expect("a number");
    assert_eq!(engine.accepted(), devices - canaries);
    assert_eq!(engine.repeats(), 0);
    assert_same_ids(&engine.hubs[0].1.message_log());
    let start = std::fs::read_to_string(fixture("v0.1/start.json")).expect("a command");
    let again = pipeline.command_ok(&serde_json::from_str(&start).expect("JSON"));
    assert_eq!(again["changed"], false, "the rollout is unchanged: {again}");
    assert_eq!(engine.dead_letters(), [Value::Null; 0]);
}

#[track_caller]
fn until_an_approval_is_awaited(engine: &Engine, rollout: &str) {
    poll_until(TIME_LIMIT, "the gate to wait", || {
        let status: Value = engine.status(rollout);
        let state = status["stages"][0]["state"].as_str()?;
        (state == "waits for an approval").then_some(())
    });
}

fn fixture(path: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/distributed/fixtures");
    Path::new(folder).join(path)
}

/// Loads the recorded commands into Redis, with the hub's host name replaced by `host`.
fn restore(commands: &Path, host: &str) {
    let address = wait(async { Redis::shared().await.address() });
    let recorded = std::fs::read_to_string(commands).expect("the recorded commands");
    let mut redis = Command::new("redis-cli")
        .args(["-p", &address.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli is installed");
    let mut stdin = redis.stdin.take().expect("a pipe");
    let recorded = recorded.replace("RECORDED-HOST", host);
    stdin
        .write_all(recorded.as_bytes())
        .expect("redis-cli reads the commands");
    drop(stdin);
    let restored = redis.wait_with_output().expect("redis-cli ends");
    let said = String::from_utf8_lossy(&restored.stdout);
    assert!(restored.status.success(), "{said}");
    assert!(!said.contains("ERR"), "{said}");
}
