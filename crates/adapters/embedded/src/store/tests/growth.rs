//! The file does not grow with time.

use std::sync::Arc;

use twincast_core::outcome::Outcome;
use twincast_core::ports::Batches as _;
use twincast_core::rollout::{Adding, Event, PlanId};
use twincast_testkit::ManualClock;
use twincast_testkit::build::{TTL, apply, batch, leased, name, planning, report, running};
use twincast_testkit::conformance::run;

use super::sim::SimDisk;

#[test]
fn overwriting_takes_no_room() {
    run(async {
        let disk = SimDisk::default();
        let store = disk.open(Arc::new(ManualClock::default())).unwrap();
        running(&store, "r", vec![batch(0, 10_000)]).await;
        let lease = leased(&store, &name("r"), 0, "w").await;
        let mut after_a_few = 0;
        for round in 0..400 {
            let reports = [report(round, Outcome::Enqueued)];
            store.record(&lease, &reports, TTL).await.unwrap();
            if round == 20 {
                after_a_few = disk.bytes();
            }
        }
        assert!(disk.bytes() <= after_a_few, "{} bytes", disk.bytes());
    });
}

#[test]
fn abandoned_plans_are_removed() {
    run(async {
        let disk = SimDisk::default();
        let store = disk.open(Arc::new(ManualClock::default())).unwrap();
        let mut rollout = planning(&store, "r").await;
        let mut after_a_few = 0;
        for round in 1..=40 {
            for id in 0..5 {
                let batches = vec![batch(id, 2_000)];
                let added = store
                    .add_batches(&name("r"), Adding::Plan(PlanId(round)), batches)
                    .await;
                added.unwrap();
            }
            rollout = apply(&store, &rollout, Event::PlanningStarted).await;
            if round == 4 {
                after_a_few = disk.bytes();
            }
        }
        assert!(disk.bytes() <= after_a_few * 2, "{} bytes", disk.bytes());
    });
}
