//! Conformance cases about late joiners, and about devices leaving the target.

use twincast_core::ids::BatchId;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::Checksum;
use twincast_core::ports::{LeaseReply, Skip, Store, StoreError, Tally};
use twincast_core::rollout::{Adding, Event, PlanId, ScanId};

use super::Subject;
use crate::assert_refused;
use crate::build::{
    ALL_STAGES, TTL, abort_requested, apply, batch, batch_on, continuous, hub, lease_request,
    leased, name, pause_requested, plan_completed, planning, report, retry_of, running,
    running_continuous, scan_completed,
};

async fn add(store: &dyn Store, scan: u32, id: u32) -> Result<Checksum, StoreError> {
    let by = Adding::Scan(ScanId(scan));
    let late = vec![batch_on(id, "a", 1, 2)];
    store.add_batches(&name("r"), by, late).await
}

async fn left(
    store: &dyn Store,
    scan: u32,
    devices: &[u32],
) -> Result<Option<twincast_core::batch::Held>, StoreError> {
    let which = Skip::Departed {
        scan: ScanId(scan),
        devices: devices.to_vec(),
    };
    store.skip(&name("r"), BatchId(0), &which).await
}

async fn ids(store: &dyn Store) -> Vec<u32> {
    let batches = store.batches(&name("r"), None, 9).await.unwrap();
    batches.iter().map(|batch| batch.header.id.0).collect()
}

async fn counts(store: &dyn Store) -> Counts {
    Tally::sum(&store.tallies(&name("r")).await.unwrap())
}

/// Batches are added only during a scan of the target, and only under the number of the current
/// scan.
pub async fn only_the_current_scan_adds_batches(subject: Subject) {
    let store = &*subject.store;
    let rollout = running_continuous(store, "r", vec![batch(0, 3)]).await;
    assert_refused!(add(store, 0, 1).await, Superseded);
    assert_refused!(add(store, 1, 1).await, Superseded);
    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    for _ in 0..2 {
        add(store, 1, 1).await.unwrap();
    }
    let late = vec![batch_on(2, "a", 1, 1)];
    let by_plan = Adding::Plan(PlanId(1));
    let added = store.add_batches(&name("r"), by_plan, late).await;
    assert_refused!(added, Superseded);

    // Another driver starts the scan anew.
    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    assert_refused!(add(store, 1, 2).await, Superseded);
    add(store, 2, 2).await.unwrap();
    let rollout = apply(store, &rollout, scan_completed(4, 0)).await;
    assert_refused!(add(store, 2, 3).await, Superseded);
    assert_eq!(ids(store).await, [0, 1, 2]);
    assert_eq!(counts(store).await, Counts::pending(7));

    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    let rollout = apply(store, &rollout, pause_requested()).await;
    assert_refused!(add(store, 3, 3).await, Superseded);
    apply(store, &rollout, abort_requested()).await;
    assert_refused!(add(store, 3, 3).await, Superseded);
    assert_eq!(ids(store).await, [0, 1, 2]);
}

/// A scan adds nothing while a retry is prepared.
pub async fn a_scan_adds_no_batches_while_a_retry_is_prepared(subject: Subject) {
    let store = &*subject.store;
    let rollout = running_continuous(store, "r", vec![batch(0, 3)]).await;
    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    let rollout = apply(store, &rollout, retry_of(&[Outcome::Refused])).await;
    assert_refused!(add(store, 1, 1).await, Superseded);
    assert_refused!(left(store, 1, &[0]).await, Superseded);
    apply(store, &rollout, Event::RetryPrepared).await;
    add(store, 1, 1).await.unwrap();
}

/// Late batches are leased and recorded like all other batches.
pub async fn late_batches_are_worked_on(subject: Subject) {
    let store = &*subject.store;
    let rollout = running_continuous(store, "r", vec![batch(0, 1)]).await;
    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    add(store, 1, 5).await.unwrap();
    // The stage before is not over.
    let early = store.lease(&lease_request(&name("r"), 5, "w")).await;
    assert_eq!(early.unwrap(), LeaseReply::NotWanted);
    apply(store, &rollout, crate::build::stage_passed("all")).await;
    let lease = leased(store, &name("r"), 5, "w").await;
    let sent = [0, 1].map(|index| report(index, Outcome::Enqueued));
    store.record(&lease, &sent, TTL).await.unwrap();
    let tallies = store.tallies(&name("r")).await.unwrap();
    let late = tallies.iter().find(|tally| tally.stage.0 == 1).unwrap();
    assert_eq!(late.counts.get(Outcome::Enqueued), 2);
    let (r, on) = (name("r"), hub("a"));
    let open = store.open_batches(&r, &on, ALL_STAGES, 9).await.unwrap();
    assert_eq!(open.len(), 1);
    let work = store.load(&name("r"), BatchId(5)).await.unwrap();
    assert_eq!(work.batch.devices, batch_on(5, "a", 1, 2).devices);
}

/// Of the devices that left the target, only pending devices are skipped, and only while the batch
/// has no holder.
pub async fn departed_pending_devices_are_skipped(subject: Subject) {
    let store = &*subject.store;
    let rollout = running_continuous(store, "r", vec![batch(0, 5)]).await;
    let lease = leased(store, &name("r"), 0, "w").await;
    let reports = [report(0, Outcome::Enqueued), report(1, Outcome::Attempting)];
    store.record(&lease, &reports, TTL).await.unwrap();
    assert_refused!(left(store, 0, &[2]).await, Superseded);
    assert_refused!(left(store, 1, &[2]).await, Superseded);
    let rollout = apply(store, &rollout, Event::ScanStarted).await;
    let held = left(store, 1, &[2]).await.unwrap();
    assert_eq!(held.expect("the batch has a holder").by, lease.holder);

    store.release(&lease).await.unwrap();
    for _ in 0..2 {
        // The first two devices are not pending, and the last device is not in the batch.
        assert_eq!(left(store, 1, &[0, 1, 2, 4, 5]).await.unwrap(), None);
    }
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    let expected = [
        Outcome::Enqueued,
        Outcome::Attempting,
        Outcome::Skipped,
        Outcome::Pending,
        Outcome::Skipped,
    ];
    assert_eq!(work.outcomes.iter().collect::<Vec<_>>(), expected);
    assert_eq!(counts(store).await.get(Outcome::Skipped), 2);
    // Skipped devices are settled; the other devices can still be sent to.
    let lease = leased(store, &name("r"), 0, "v").await;
    let rest = [report(1, Outcome::Enqueued), report(3, Outcome::Enqueued)];
    store.record(&lease, &rest, TTL).await.unwrap();
    assert_eq!(counts(store).await.unsettled(), 0);

    apply(store, &rollout, scan_completed(0, 2)).await;
    assert_refused!(left(store, 1, &[3]).await, Superseded);
    let nobody = Skip::Departed {
        scan: ScanId(1),
        devices: vec![0],
    };
    let skipped = store.skip(&name("nobody"), BatchId(0), &nobody).await;
    assert_refused!(skipped, NotFound);
}

/// Rollouts other than continuous rollouts have no scans.
pub async fn only_continuous_rollouts_have_scans(subject: Subject) {
    let store = &*subject.store;
    let before = planning(store, "p").await;
    let plan = apply(store, &before, plan_completed(1)).await;
    assert_eq!(plan.scans, None);
    running(store, "r", vec![batch(0, 1)]).await;
    assert_refused!(add(store, 0, 1).await, Superseded);
    assert_refused!(left(store, 0, &[0]).await, Superseded);
    assert_eq!(continuous("c").scans, None);
}
