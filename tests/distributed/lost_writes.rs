//! A Redis returns without the last second of writes after a power failure of the machine, at any
//! moment.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::engine::{Engine, scattered};
use crate::harness::{Chance, Hub, assert_same_ids};
use crate::pipeline::{about, start_with};
use crate::services::OwnServices;
use crate::waiting::{long_or, poll_until};

/// Time limit for planning twice.
const PLANNING_TIMEOUT: Duration = Duration::from_secs(300);

/// A plan with lost batches is detected and repeated: no device is missing, and no device is sent
/// to again under another id.
#[test]
fn a_plan_with_lost_batches_is_made_again() {
    let devices: u64 = long_or(100_000, 8_000);
    let services = OwnServices::start(&["--appendfsync", "everysec"]);
    let hub = Hub::unlimited(&scattered(devices));
    // Pages arrive slowly, so batches are stored over the whole time.
    hub.faults(&format!(r#"{{"http_delay_ms": {}}}"#, long_or(10, 40)));
    let mut engine = Engine::new(&services.access(), vec![("north", hub)]);
    engine.grow(1, 1);
    let mut chance = Chance::seeded(13);
    let mut forgotten = 0;
    for round in 0..long_or(10, 2) {
        let name = format!("plan-{round}");
        let stages = json!([{ "name": "one", "max_devices": 1, "gate": { "approval": {} } }]);
        let spec = json!({ "batch_by": ["region", "site"], "stages": stages });
        let before = services.written();
        let mut pipeline = engine.pipeline();
        pipeline.publish_command(&start_with(&name, spec));
        // The record takes some kilobytes; batches follow.
        let enough = chance.within(10_000..60_000);
        poll_until(PLANNING_TIMEOUT, "batches to be stored", || {
            (services.written() > before + enough).then_some(())
        });
        let lost = Duration::from_millis(chance.within(300..1_000));
        forgotten += services.power_cut(lost);
        let status = engine.until_phase(&name, "running", PLANNING_TIMEOUT);
        assert_eq!(status["devices"], devices, "{status}");
        let rows = engine.room.report(&name);
        let ids: BTreeSet<_> = rows.iter().map(|row| row.device.clone()).collect();
        assert_eq!((rows.len() as u64, ids.len() as u64), (devices, devices));
        assert!(pipeline.answer().1["ok"] == true);
        pipeline.command_ok(&about("abort", &name));
        engine.until_phase(&name, "aborted", PLANNING_TIMEOUT);
    }
    println!("Redis forgot {forgotten} bytes");
    for (_, hub) in &engine.hubs {
        assert_same_ids(&hub.message_log());
    }
}
