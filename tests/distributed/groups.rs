//! Rollouts of a concurrency group, started at the same moment with several orchestrators over
//! RabbitMQ and Redis.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub};
use crate::pipeline::start_with;
use crate::services::Access;

const DEVICES: u64 = 500;
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn simultaneous_starts_admit_one_rollout() {
    let hub = Hub::unlimited(&Fleet::of(DEVICES));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    engine.grow(3, 1);
    // The rollout stays active: after the first device, the gate waits for an approval.
    let stages = json!([{ "name": "canary", "max_devices": 1, "gate": { "approval": {} } }]);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let publishers = (0..6).map(|number| {
            let spec = json!({ "concurrency": { "group": "firmware" }, "stages": stages });
            let command = start_with(&format!("rival-{number}"), spec);
            let mut pipeline = engine.pipeline();
            scope.spawn(move || pipeline.command(&command))
        });
        let publishers: Vec<_> = publishers.collect();
        let answers = publishers.into_iter();
        let answers = answers.map(|publisher| publisher.join().expect("an answer"));
        answers.collect()
    });
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer["ok"] == true);
    assert_eq!(taken.len(), 1, "{answers:?}");
    assert!(
        refused.iter().all(|answer| answer["cause"] == "conflict"),
        "{answers:?}"
    );
    let all = engine.room.run(&["--json", "status"]).expect(0).json();
    assert_eq!(all["rollouts"].as_array().expect("a list").len(), 1);

    let older = taken[0]["rollouts"][0]["name"].as_str().expect("a name");
    engine.until_accepted(1, TIME_LIMIT);
    let newer = json!({ "concurrency": { "group": "firmware", "policy": "supersede" } });
    engine.pipeline().command_ok(&start_with("newer", newer));
    engine.until_phase("newer", "succeeded", TIME_LIMIT);
    let older = engine.status(older);
    assert_eq!(older["reason"], "superseded by newer", "{older}");
    assert_eq!(older["counts"]["skipped"], DEVICES - 1, "{older}");
    // The canary of the older rollout got the message, too.
    assert_eq!(engine.accepted(), DEVICES + 1);
}
