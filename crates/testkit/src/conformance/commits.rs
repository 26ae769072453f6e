//! Conformance cases about commits: a change of a batch is committed only on the state read before.

use twincast_core::batch::Batch;
use twincast_core::budget::{BudgetGroup, Limit};
use twincast_core::ids::{Attempt, BatchId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    BudgetEntry, Change, Committed, Disposition, Loaded, Operation, Part, Store, Tally,
};

use twincast_core::time::Timestamp;

use super::Subject;
use crate::build::{
    TTL, apply, batch, lease_request, leased, name, pause_requested, report, running,
};

async fn read(store: &dyn Store, part: Part) -> Loaded {
    store.batch(&name("r"), BatchId(0), part).await.unwrap()
}

/// Returns a change merging a single report.
fn merging(from: &Loaded, index: u32, outcome: Outcome) -> Change {
    let reports = vec![report(index, outcome)];
    let mut next = from.batch.clone();
    next.merge(Attempt::FIRST, &reports);
    Change {
        operation: Operation::Merge(Attempt::FIRST, reports),
        next,
        under: None,
        budget_entry: None,
    }
}

async fn commit(store: &dyn Store, from: &Loaded, change: &Change) -> Committed {
    store.commit(&name("r"), from, change).await.unwrap()
}

async fn is_overtaken(store: &dyn Store, from: &Loaded, change: &Change) {
    let is = read(store, Part::WithoutDevices).await;
    let tallies = store.tallies(&name("r")).await.unwrap();
    let Committed::Overtaken(newer) = commit(store, from, change).await else {
        panic!("the commit of a changed batch succeeded");
    };
    if let Some(newer) = newer {
        assert_eq!(
            Loaded {
                now: is.now,
                ..*newer
            },
            is
        );
    }
    assert_eq!(read(store, Part::WithoutDevices).await.batch, is.batch);
    assert_eq!(store.tallies(&name("r")).await.unwrap(), tallies);
}

/// A committed state is read back, with a version never used before.
pub async fn a_committed_change_is_read_back(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3), batch(1, 2)]).await;
    let mut versions = Vec::new();
    for (index, outcome) in [(0, Outcome::Enqueued), (2, Outcome::Refused)] {
        let from = read(store, Part::WithoutDevices).await;
        assert_eq!(from.devices, None);
        versions.push(from.version);
        let mut change = merging(&from, index, outcome);
        if outcome == Outcome::Refused {
            change.next.codes.insert(index, 404);
        }
        let Committed::Done { version, .. } = commit(store, &from, &change).await else {
            panic!("the commit of an unchanged batch failed");
        };
        let now = read(store, Part::WithDevices).await;
        assert_eq!((&now.batch, now.version), (&change.next, version));
        assert_eq!(now.devices, Some(batch(0, 3).devices));
        versions.push(version);
    }
    versions.dedup();
    versions.sort_unstable();
    let all = versions.len();
    versions.dedup();
    assert_eq!(versions.len(), all, "the versions are distinct");
    let counts = Tally::sum(&store.tallies(&name("r")).await.unwrap());
    assert_eq!(counts.get(Outcome::Pending), 3);
    assert_eq!(counts.get(Outcome::Refused), 1);
}

/// The second of two concurrent changes is overtaken: the first change is not lost.
pub async fn a_change_of_a_changed_batch_is_overtaken(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3)]).await;
    let from = read(store, Part::WithoutDevices).await;
    let first = merging(&from, 0, Outcome::Enqueued);
    let second = merging(&from, 1, Outcome::Enqueued);
    commit(store, &from, &first).await;
    is_overtaken(store, &from, &second).await;
    // A repetition of the first change is overtaken too.
    is_overtaken(store, &from, &first).await;
    // A lease changes no outcome, but counts as a change.
    let from = read(store, Part::WithoutDevices).await;
    let lease = leased(store, &name("r"), 0, "w").await;
    is_overtaken(store, &from, &merging(&from, 1, Outcome::Enqueued)).await;
    let from = read(store, Part::WithoutDevices).await;
    store.record(&lease, &[], TTL).await.unwrap();
    is_overtaken(store, &from, &merging(&from, 1, Outcome::Enqueued)).await;
}

/// A change bound to the rollout's record is overtaken by the next record; an unbound change is
/// not.
pub async fn a_bound_change_requires_the_current_rollout_record(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 3)]).await;
    let from = read(store, Part::WithoutDevices).await;
    assert_eq!(from.rollout, rollout.control());
    let mut bound = merging(&from, 0, Outcome::Enqueued);
    bound.under = Some(from.rollout.revision);
    apply(store, &rollout, pause_requested()).await;
    is_overtaken(store, &from, &bound).await;
    let free = Change {
        under: None,
        ..bound
    };
    let committed = commit(store, &from, &free).await;
    assert!(matches!(committed, Committed::Done { .. }));
}

/// Of two batches read while a budget had room, only the first begins, and the second is overtaken.
pub async fn concurrent_changes_of_a_budget_are_serialized(subject: Subject) {
    let store = &*subject.store;
    let batches = [0, 1].map(|id| {
        let mut batch = batch(id, 1);
        batch.header.budgets = vec![BudgetGroup {
            group: "site=1".into(),
            limit: Limit::Devices(1),
            silent_ms: 1_000,
        }];
        batch
    });
    running(store, "r", batches.into()).await;
    let begin = async |id: u32| {
        let from = store
            .batch(&name("r"), BatchId(id), Part::WithoutDevices)
            .await;
        let from = from.unwrap();
        let mut next = from.batch.clone();
        next.budget_usage.on_lease();
        let budget_entry = BudgetEntry {
            stamp: from.budget_stamp,
            finished: Vec::new(),
        };
        let change = Change {
            operation: Operation::Merge(Attempt::FIRST, Vec::new()),
            next,
            under: None,
            budget_entry: Some(budget_entry),
        };
        (from, change)
    };
    let (first, second) = (begin(0).await, begin(1).await);
    let committed = commit(store, &first.0, &first.1).await;
    assert!(matches!(committed, Committed::Done { .. }));
    let overtaken = commit(store, &second.0, &second.1).await;
    assert!(matches!(overtaken, Committed::Overtaken(_)));
    let again = begin(1).await;
    let committed = commit(store, &again.0, &again.1).await;
    assert!(matches!(committed, Committed::Done { .. }));
}

/// A change of a batch without a rollout, or of a batch outside of the plan, is overtaken.
pub async fn a_change_of_a_missing_batch_is_overtaken(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 2)]).await;
    let from = read(store, Part::WithoutDevices).await;
    let change = merging(&from, 0, Outcome::Enqueued);
    let elsewhere = store.commit(&name("nobody"), &from, &change).await;
    assert_eq!(elsewhere.unwrap(), Committed::Overtaken(None));
    let mut other = from.clone();
    other.batch = Batch::new(batch(7, 2).header, from.batch.added_at);
    let mut unknown = change.clone();
    unknown.next.header = other.batch.header.clone();
    let missing = store.commit(&name("r"), &other, &unknown).await;
    assert_eq!(missing.unwrap(), Committed::Overtaken(None));
    let counts = Tally::sum(&store.tallies(&name("r")).await.unwrap());
    assert_eq!(counts, Counts::pending(2));
}

/// A worker's records and the hub's feedback overtake each other without a loss.
pub async fn concurrent_changes_are_not_lost(subject: Subject) {
    const DEVICES: u32 = 60;
    let store = &*subject.store;
    running(store, "r", vec![batch(0, DEVICES)]).await;
    let id = read(store, Part::WithoutDevices).await.rollout.id;
    let request = lease_request(&name("r"), 0, "w");
    let mut leased = store
        .lease_for_work(&request, Part::WithoutDevices)
        .await
        .unwrap()
        .unwrap();
    // A call overtaken too often fails with the disposition `Retry`, and is repeated.
    let recording = async {
        for index in 0..DEVICES {
            let sent = [report(index, Outcome::Enqueued)];
            while let Err(error) = store
                .record_leased(&mut leased, &sent, TTL, Timestamp(0))
                .await
            {
                assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
            }
        }
        while let Err(error) = store.release_leased(&mut leased, Timestamp(0)).await {
            assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
        }
    };
    let merging = async |from: u32| {
        for index in (from..DEVICES).step_by(2) {
            let reports = [report(index, Outcome::Delivered)];
            while let Err(error) = store
                .merge(&name("r"), id, BatchId(0), Attempt::FIRST, &reports)
                .await
            {
                assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
            }
        }
    };
    futures::join!(recording, merging(0), merging(1));
    let outcomes = read(store, Part::WithoutDevices).await.batch.outcomes;
    let lost: Vec<_> = (0..)
        .zip(outcomes.iter())
        .filter(|(_, it)| *it != Outcome::Delivered)
        .collect();
    assert_eq!(lost, [], "the deliveries are recorded");
    let counts = Tally::sum(&store.tallies(&name("r")).await.unwrap());
    assert_eq!(counts.get(Outcome::Delivered), u64::from(DEVICES));
}
