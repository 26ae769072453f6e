//! A disk without room.

use std::error::Error;
use std::sync::Arc;

use twincast_core::ids::BatchId;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Batches as _, StoreError};
use twincast_core::rollout::{Adding, Directive, PlanId};
use twincast_testkit::ManualClock;
use twincast_testkit::build::{TTL, apply, batch, leased, name, plan_completed, planning, report};
use twincast_testkit::conformance::run;

use super::sim::SimDisk;

/// Formats the whole chain of errors in a single line, as a program prints the chain.
fn describe(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        message += &format!(": {error}");
        source = error.source();
    }
    message
}

#[test]
fn write_refused_on_full_disk_can_be_retried() {
    run(async {
        let disk = SimDisk::default();
        let store = disk.open(Arc::new(ManualClock::default())).unwrap();
        let r = name("r");
        let rollout = planning(&store, "r").await;
        let add = async |id| {
            store
                .add_batches(&r, Adding::Plan(PlanId(1)), vec![batch(id, 5_000)])
                .await
        };
        add(0).await.unwrap();
        disk.set_room(Some(disk.bytes()));
        let mut added = 1;
        let error = loop {
            match add(added).await {
                Ok(_) => added += 1,
                Err(error) => break error,
            }
            assert!(added < 1_000, "the disk never was full");
        };
        assert!(matches!(error, StoreError::NotWritable { .. }), "{error:?}");
        let message = describe(&error);
        assert!(
            message.starts_with("cannot add batches to rollout r: "),
            "{message}"
        );
        assert!(message.contains("no storage space"), "{message}");

        for _ in 0..3 {
            assert!(add(added).await.is_err(), "the disk is still full");
            let there = store.batches(&r, None, 1_000).await.unwrap();
            assert_eq!(there.len(), added as usize, "reads still succeed");
        }
        store.verify(&r).await.unwrap();

        disk.set_room(None);
        add(added).await.unwrap();
        store.verify(&r).await.unwrap();
        apply(&store, &rollout, plan_completed(1)).await;
        assert!(store.load(&r, BatchId(added)).await.is_ok());
    });
}

#[test]
fn lease_survives_a_failed_write() {
    run(async {
        let disk = SimDisk::default();
        let store = disk.open(Arc::new(ManualClock::default())).unwrap();
        twincast_testkit::build::running(&store, "r", vec![batch(0, 10)]).await;
        let lease = leased(&store, &name("r"), 0, "w").await;
        let reports = [report(3, Outcome::Enqueued)];
        // Even existing data cannot be rewritten.
        disk.set_room(Some(0));
        for _ in 0..3 {
            let error = store.record(&lease, &reports, TTL).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    StoreError::NotWritable { .. } | StoreError::Unavailable { .. }
                ),
                "{error:?}"
            );
        }
        disk.set_room(None);
        let directive = store.record(&lease, &reports, TTL).await.unwrap();
        assert_eq!(directive, Directive::Continue);
        let work = store.load(&name("r"), BatchId(0)).await.unwrap();
        assert_eq!(work.outcomes.get(3), Outcome::Enqueued);
        store.verify(&name("r")).await.unwrap();
    });
}
