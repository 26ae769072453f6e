//! Cases: a change of a batch is committed on what was read, and on nothing else.

use twincast_core::batch::Batch;
use twincast_core::budget::{BudgetGroup, Limit};
use twincast_core::ids::{Attempt, BatchId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{
    Begins, Change, Committed, Disposition, Loaded, Operation, Part, Store, Tally,
};

use twincast_core::time::Timestamp;

use super::Subject;
use crate::build::{TTL, batch, lease_request, leased, name, paused, report, running, step};

async fn read(store: &dyn Store, part: Part) -> Loaded {
    store.batch(&name("r"), BatchId(0), part).await.unwrap()
}

/// A change that merges one report.
fn merging(from: &Loaded, index: u32, outcome: Outcome) -> Change {
    let reports = vec![report(index, outcome)];
    let mut next = from.batch.clone();
    next.merge(Attempt::FIRST, &reports);
    Change {
        operation: Operation::Merge(Attempt::FIRST, reports),
        next,
        under: None,
        begins: None,
    }
}

async fn commit(store: &dyn Store, from: &Loaded, change: &Change) -> Committed {
    store.commit(&name("r"), from, change).await.unwrap()
}

async fn is_overtaken(store: &dyn Store, from: &Loaded, change: &Change) {
    let is = read(store, Part::State).await;
    let tallies = store.tallies(&name("r")).await.unwrap();
    let Committed::Overtaken(told) = commit(store, from, change).await else {
        panic!("it has changed since");
    };
    if let Some(told) = told {
        assert_eq!(
            Loaded {
                now: is.now,
                ..*told
            },
            is
        );
    }
    assert_eq!(read(store, Part::State).await.batch, is.batch);
    assert_eq!(store.tallies(&name("r")).await.unwrap(), tallies);
}

/// What is read back is what was committed, in a version that there was not before.
pub async fn what_is_committed_is_read(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3), batch(1, 2)]).await;
    let mut versions = Vec::new();
    for (index, outcome) in [(0, Outcome::Enqueued), (2, Outcome::Refused)] {
        let from = read(store, Part::State).await;
        assert_eq!(from.devices, None);
        versions.push(from.version);
        let mut change = merging(&from, index, outcome);
        if outcome == Outcome::Refused {
            change.next.codes.insert(index, 404);
        }
        let Committed::Done { version, .. } = commit(store, &from, &change).await else {
            panic!("nobody has changed it");
        };
        let now = read(store, Part::Whole).await;
        assert_eq!((&now.batch, now.version), (&change.next, version));
        assert_eq!(now.devices, Some(batch(0, 3).devices));
        versions.push(version);
    }
    versions.dedup();
    versions.sort_unstable();
    let all = versions.len();
    versions.dedup();
    assert_eq!(versions.len(), all, "a version was given twice");
    let counts = Tally::sum(&store.tallies(&name("r")).await.unwrap());
    assert_eq!(counts.get(Outcome::Pending), 3);
    assert_eq!(counts.get(Outcome::Refused), 1);
}

/// Whoever comes second reads again: what the first one has changed is not lost.
pub async fn a_change_of_what_has_changed_is_overtaken(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3)]).await;
    let from = read(store, Part::State).await;
    let first = merging(&from, 0, Outcome::Enqueued);
    let second = merging(&from, 1, Outcome::Enqueued);
    commit(store, &from, &first).await;
    is_overtaken(store, &from, &second).await;
    // The very same again, too.
    is_overtaken(store, &from, &first).await;
    // A lease changes nothing of its devices, and is a change all the same.
    let from = read(store, Part::State).await;
    let lease = leased(store, &name("r"), 0, "w").await;
    is_overtaken(store, &from, &merging(&from, 1, Outcome::Enqueued)).await;
    let from = read(store, Part::State).await;
    store.record(&lease, &[], TTL).await.unwrap();
    is_overtaken(store, &from, &merging(&from, 1, Outcome::Enqueued)).await;
}

/// What depends on the rollout's record is overtaken by the next record, and by that alone.
pub async fn a_change_holds_under_the_record_that_was_read(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 3)]).await;
    let from = read(store, Part::State).await;
    assert_eq!(from.rollout, rollout.stance());
    let mut bound = merging(&from, 0, Outcome::Enqueued);
    bound.under = Some(from.rollout.revision);
    step(store, &rollout, paused()).await;
    is_overtaken(store, &from, &bound).await;
    let free = Change {
        under: None,
        ..bound
    };
    let committed = commit(store, &from, &free).await;
    assert!(matches!(committed, Committed::Done { .. }));
}

/// Two batches that were read while a budget had room do not both begin.
pub async fn budgets_begin_to_count_one_batch_at_a_time(subject: Subject) {
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
        let from = store.batch(&name("r"), BatchId(id), Part::State).await;
        let from = from.unwrap();
        let mut next = from.batch.clone();
        next.begun.given();
        let begins = Begins {
            seen: from.begun,
            over: Vec::new(),
        };
        let change = Change {
            operation: Operation::Merge(Attempt::FIRST, Vec::new()),
            next,
            under: None,
            begins: Some(begins),
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

/// A batch of no rollout, and one that is not in the plan.
pub async fn a_change_of_what_is_gone_is_overtaken(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 2)]).await;
    let from = read(store, Part::State).await;
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

/// A worker records while the hub's feedback overtakes it, and the other way round.
pub async fn no_change_is_lost_to_another(subject: Subject) {
    const DEVICES: u32 = 60;
    let store = &*subject.store;
    running(store, "r", vec![batch(0, DEVICES)]).await;
    let id = read(store, Part::State).await.rollout.id;
    let request = lease_request(&name("r"), 0, "w");
    let mut leased = store.take(&request, Part::State).await.unwrap().unwrap();
    // Whoever is overtaken again and again is told so, and comes again.
    let recording = async {
        for index in 0..DEVICES {
            let sent = [report(index, Outcome::Enqueued)];
            while let Err(error) = store
                .record_taken(&mut leased, &sent, TTL, Timestamp(0))
                .await
            {
                assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
            }
        }
        while let Err(error) = store.release_taken(&mut leased, Timestamp(0)).await {
            assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
        }
    };
    let merging = async |from: u32| {
        for index in (from..DEVICES).step_by(2) {
            let heard = [report(index, Outcome::Delivered)];
            while let Err(error) = store
                .merge(&name("r"), id, BatchId(0), Attempt::FIRST, &heard)
                .await
            {
                assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
            }
        }
    };
    futures::join!(recording, merging(0), merging(1));
    let outcomes = read(store, Part::State).await.batch.outcomes;
    let lost: Vec<_> = (0..)
        .zip(outcomes.iter())
        .filter(|(_, it)| *it != Outcome::Delivered)
        .collect();
    assert_eq!(lost, [], "their devices were heard of");
    let counts = Tally::sum(&store.tallies(&name("r")).await.unwrap());
    assert_eq!(counts.get(Outcome::Delivered), u64::from(DEVICES));
}
