//! Conformance cases about removed rollouts.

use twincast_core::ids::{Attempt, BatchId, Revision, RolloutId, Version};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Created, Store};
use twincast_core::rollout::Rollout;

use super::{RegistrySubject, Subject};
use crate::assert_refused;
use crate::build::{TTL, accepted, batch, leased, name, planned, report, running};

/// Removes the rollout `r`, and returns the last record.
async fn removed(store: &dyn Store) -> Rollout {
    let rollout = store.rollout(&name("r")).await.unwrap().unwrap();
    let result = store.remove(&name("r"), rollout.revision()).await;
    result.unwrap();
    rollout
}

/// A removal deletes record, batches and outcomes. Other rollouts keep theirs, and a repeated
/// removal does nothing.
pub async fn a_removed_rollout_leaves_no_records(subject: Subject) {
    let store = &*subject.store;
    running(store, "q", vec![batch(0, 2)]).await;
    let before = running(store, "r", vec![batch(0, 2), batch(1, 1)]).await;
    for _ in 0..2 {
        let result = store.remove(&name("r"), before.revision()).await;
        result.unwrap();
        assert_eq!(store.rollouts().await.unwrap(), [name("q")]);
        assert_eq!(store.rollout(&name("r")).await.unwrap(), None);
        assert_eq!(store.revision(&name("r")).await.unwrap(), None);
        assert_refused!(store.batches(&name("r"), None, 9).await, NotFound);
        assert_refused!(store.load(&name("r"), BatchId(0)).await, NotFound);
        assert_refused!(store.tallies(&name("r")).await, NotFound);
    }
    let kept = store.load(&name("q"), BatchId(0)).await.unwrap();
    assert_eq!(kept.batch.devices.len(), 2);
}

/// A removal under an older revision is refused: the rollout has changed in the meantime.
pub async fn removal_requires_the_seen_revision(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 1)]).await;
    let older = Revision {
        version: Version(rollout.version.0 - 1),
        ..rollout.revision()
    };
    assert_refused!(store.remove(&name("r"), older).await, Superseded);
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(rollout));
    assert_eq!(
        store.load(&name("r"), BatchId(0)).await.unwrap().attempt,
        Attempt::FIRST
    );
}

/// Sends, leases and feedback of a removed rollout do not affect the next rollout with the same
/// name.
pub async fn the_name_of_a_removed_rollout_is_free(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let sent = [report(0, Outcome::Enqueued)];
    store.record(&lease, &sent, TTL).await.unwrap();
    let old = removed(store).await;
    assert_refused!(store.record(&lease, &sent, TTL).await, Superseded);

    let next = Rollout {
        id: RolloutId(7),
        ..accepted("r")
    };
    assert_eq!(store.create(&next).await.unwrap(), Created::New);
    assert_eq!(store.rollouts().await.unwrap(), [name("r")]);
    assert_refused!(store.remove(&name("r"), old.revision()).await, Superseded);
    planned(store, &next, vec![batch(0, 3)]).await;
    assert_refused!(store.record(&lease, &sent, TTL).await, Superseded);
    let (r, reports) = (name("r"), [report(1, Outcome::Delivered)]);
    let merged = store.merge(&r, old.id, BatchId(0), Attempt::FIRST, &reports);
    assert_refused!(merged.await, NotFound);
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!(work.rollout, next.id);
    let outcomes: Vec<_> = work.outcomes.iter().collect();
    assert_eq!(outcomes, [Outcome::Pending; 3]);
}

/// The next rollout with the same name is active, and its events are published from the first
/// version on.
pub async fn a_removal_resets_the_registry_entry(subject: RegistrySubject) {
    let (registry, store) = (&*subject.registry, &*subject.store);
    let old = running(store, "r", vec![batch(0, 1)]).await;
    let (id, version) = (old.id, old.version);
    registry
        .set_published(&name("r"), id, version)
        .await
        .unwrap();
    registry.deactivate(&name("r"), version).await.unwrap();
    removed(store).await;
    assert!(registry.active().await.unwrap().is_empty());

    let next = Rollout {
        id: RolloutId(7),
        ..accepted("r")
    };
    store.create(&next).await.unwrap();
    assert_eq!(registry.active().await.unwrap(), [name("r")]);
    assert_eq!(registry.published(&name("r")).await.unwrap(), Version(0));
    // A late call about the removed rollout has no effect.
    registry
        .set_published(&name("r"), id, version)
        .await
        .unwrap();
    assert_eq!(registry.published(&name("r")).await.unwrap(), Version(0));
    registry.deactivate(&name("r"), version).await.unwrap();
    assert_eq!(registry.active().await.unwrap(), [name("r")]);
}
