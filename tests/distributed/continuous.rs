//! A continuous rollout on the distributed engine: any remaining orchestrator finds the late
//! joiners of the target.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{Engine, of_rollout};
use crate::harness::{Fleet, Hub, from_now, repeats};
use crate::pipeline::start_with;
use crate::services::Access;
use crate::waiting::poll_until;

const OLD: u64 = 300;
const NEW: u64 = 100;
/// The time until the last scan. The update must reach all devices before.
const LAST_SCAN: Duration = Duration::from_secs(90);
const TIME_LIMIT: Duration = Duration::from_secs(300);

fn fleet() -> Fleet {
    Fleet::written(&format!(
        "{{seed: 3, groups: [\
         {{count: {OLD}, id: \"old-{{index:03}}\", tags: {{type: fridge}}, reported: {{firmware: \"1\"}}, reported_after_delivery: {{firmware: \"2\"}}}}, \
         {{count: {NEW}, id: \"new-{{index:03}}\", tags: {{type: fridge}}, reported: {{firmware: \"2\"}}}}]}}"
    ))
}

/// Returns the number of devices with the new firmware, as reported by the hubs.
fn updated(engine: &Engine) -> Option<u64> {
    let text = "name: counted\ntarget: { where: \"properties.reported.firmware = '2'\" }\nmessage: { body: { text: hello } }\n";
    engine.room.write("counted.yaml", text);
    let plan = engine.room.run(&["--json", "plan", "counted.yaml"]);
    let plan: Value = serde_json::from_str(&plan.stdout).ok()?;
    plan["plan"]["devices"].as_u64()
}

#[test]
fn late_joiners_are_found_by_a_replacement_orchestrator() {
    let hub = Hub::unlimited(&fleet());
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(2, 2);
    let mut pipeline = engine.pipeline();
    let until = from_now(LAST_SCAN);
    let spec = json!({
        "target": { "where": "properties.reported.firmware = '2'" },
        "continuous": { "every": "1m", "until": until.to_string() },
    });
    pipeline.command_ok(&start_with("moving", spec));
    engine.until_accepted(NEW, TIME_LIMIT);

    // Another rollout brings the remaining devices into the target.
    let spec = json!({ "target": { "where": "properties.reported.firmware = '1'" } });
    pipeline.command_ok(&start_with("update", spec));
    engine.until_phase("update", "succeeded", TIME_LIMIT);
    poll_until(TIME_LIMIT, "the devices to report", || {
        (updated(&engine)? == OLD + NEW).then_some(())
    });
    assert_eq!(
        engine.status("moving")["phase"],
        "running",
        "the rollout is still running"
    );
    for orchestrator in engine.orchestrators.drain(..) {
        orchestrator.kill();
    }
    engine.grow(1, 0);

    let ended = engine.until_phase("moving", "succeeded", TIME_LIMIT);
    let stages = ended["stages"].as_array().expect("stages");
    let of = |name: &str| {
        let found = stages.iter().find(|stage| stage["name"] == name);
        found.map(|stage| stage["counts"]["enqueued"].clone())
    };
    assert_eq!(of("all"), Some(json!(NEW)), "{ended}");
    assert_eq!(of("late"), Some(json!(OLD)), "{ended}");
    let rows = engine.assert_reports_match_hubs("moving");
    assert_eq!(rows.len() as u64, OLD + NEW);
    let (_, hub) = &engine.hubs[0];
    let repeated = repeats(&of_rollout(hub, "moving"));
    assert_eq!(repeated, 0, "no device received the message twice");
}
