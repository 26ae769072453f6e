//! Conformance cases about the rollout registry.

use std::collections::BTreeMap;
use std::slice;
use std::time::Duration;

use twincast_core::batch::Held;
use twincast_core::ids::{RolloutName, Version};
use twincast_core::ports::{Clock, Halt, RegistryEntry, RegistrySnapshot};
use twincast_core::rollout::Event;
use twincast_core::time::Timestamp;

use super::RegistrySubject;
use crate::build::{accepted, apply, holder, name};

const TTL: Duration = Duration::from_secs(10);

/// Active rollouts are listed in ascending order. A deactivated rollout is not active, and becomes
/// active with the next save.
pub async fn stored_rollouts_are_active_until_deactivated(subject: RegistrySubject) {
    let (registry, store) = (&*subject.registry, &*subject.store);
    assert!(registry.active().await.unwrap().is_empty());
    for each in ["b", "a"] {
        store.create(&accepted(each)).await.unwrap();
        store.create(&accepted(each)).await.unwrap();
    }
    assert_eq!(registry.active().await.unwrap(), [name("a"), name("b")]);
    for _ in 0..2 {
        registry.deactivate(&name("a"), Version(1)).await.unwrap();
        assert_eq!(registry.active().await.unwrap(), [name("b")]);
    }
    apply(store, &accepted("a"), Event::PlanningStarted).await;
    assert_eq!(registry.active().await.unwrap(), [name("a"), name("b")]);
}

/// Deactivating an older version has no effect: the caller has not seen the newest version.
pub async fn deactivating_an_older_version_has_no_effect(subject: RegistrySubject) {
    let (registry, store) = (&*subject.registry, &*subject.store);
    let first = accepted("a");
    store.create(&first).await.unwrap();
    let second = apply(store, &first, Event::PlanningStarted).await;
    registry
        .deactivate(&name("a"), first.version)
        .await
        .unwrap();
    assert_eq!(registry.active().await.unwrap(), [name("a")]);
    registry
        .deactivate(&name("a"), second.version)
        .await
        .unwrap();
    assert!(registry.active().await.unwrap().is_empty());
}

/// The holder can renew a claim. Another caller gets the current holder.
pub async fn one_claim_at_a_time(subject: RegistrySubject) {
    let registry = &*subject.registry;
    let (r, s, a, b) = (name("r"), name("s"), holder("a"), holder("b"));
    let claim = async |names: &[RolloutName], by| {
        let others = registry.claim(names, by, TTL).await.unwrap();
        let others = others.into_iter().map(|(name, held)| (name, held.by));
        Vec::from_iter(others)
    };
    assert_eq!(claim(slice::from_ref(&r), &a).await, []);
    let held = registry.claim(slice::from_ref(&r), &b, TTL).await.unwrap();
    assert_eq!(held[&r].until, subject.clock.now().plus(TTL));
    // Claims of other holders do not prevent claims of the remaining rollouts.
    let both = [r.clone(), s.clone()];
    assert_eq!(claim(&both, &b).await, [(r.clone(), a.clone())]);
    assert_eq!(claim(&both, &a).await, [(s.clone(), b.clone())]);
    registry.release_claim(&r, &b).await.unwrap();
    assert_eq!(claim(&both, &b).await, [(r.clone(), a.clone())]);
    registry.release_claim(&r, &a).await.unwrap();
    assert_eq!(claim(&both, &b).await, []);
    assert_eq!(claim(&[], &b).await, []);
}

/// A claim lapses at the end of its time and not before. A renewal moves the end.
pub async fn a_claim_lapses(subject: RegistrySubject) {
    let registry = &*subject.registry;
    let (r, a, b) = (name("r"), holder("a"), holder("b"));
    let claim = async |by| {
        let others = registry.claim(slice::from_ref(&r), by, TTL).await.unwrap();
        others.is_empty()
    };
    let before = TTL.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(claim(&a).await);
    subject.clock.advance(before);
    assert!(!claim(&b).await);
    assert!(claim(&a).await);
    subject.clock.advance(before);
    assert!(!claim(&b).await);
    subject.clock.advance(Duration::from_millis(1));
    assert!(claim(&b).await);
    assert!(!claim(&a).await);
}

/// The registry shows newest versions, valid claims, and the halt.
pub async fn a_snapshot_lists_the_active_rollouts(subject: RegistrySubject) {
    let (registry, store) = (&*subject.registry, &*subject.store);
    assert_eq!(
        registry.snapshot().await.unwrap(),
        RegistrySnapshot::default()
    );
    let (r, s, a) = (name("r"), name("s"), holder("a"));
    let rollout = accepted("r");
    store.create(&rollout).await.unwrap();
    store.create(&accepted("s")).await.unwrap();
    apply(store, &rollout, Event::PlanningStarted).await;
    let lapses = subject.clock.now().plus(TTL);
    registry
        .claim(&[r.clone(), name("t")], &a, TTL)
        .await
        .unwrap();
    let listed = |version, held| RegistryEntry {
        newest: Version(version),
        held,
    };
    let held = Held {
        by: a.clone(),
        until: lapses,
    };
    let snapshot = registry.snapshot().await.unwrap();
    let active = [
        (r.clone(), listed(2, Some(held))),
        (s.clone(), listed(1, None)),
    ];
    assert_eq!(snapshot.active, BTreeMap::from(active));
    subject.clock.advance(TTL);
    registry.deactivate(&s, Version(1)).await.unwrap();
    let halt = Halt {
        reason: "bad build".into(),
        by: None,
        since: Timestamp(5),
    };
    registry.set_halted(Some(&halt)).await.unwrap();
    let snapshot = registry.snapshot().await.unwrap();
    assert_eq!(snapshot.active, BTreeMap::from([(r, listed(2, None))]));
    assert_eq!(snapshot.halt, Some(halt));
}

/// The published version of each rollout only rises.
pub async fn the_published_version_never_decreases(subject: RegistrySubject) {
    let registry = &*subject.registry;
    let rollout = accepted("r");
    subject.store.create(&rollout).await.unwrap();
    assert_eq!(registry.published(&name("r")).await.unwrap(), Version(0));
    for (noted, then) in [(3, 3), (2, 3), (11, 11)] {
        let noted = Version(noted);
        registry
            .set_published(&name("r"), rollout.id, noted)
            .await
            .unwrap();
        let published = registry.published(&name("r")).await.unwrap();
        assert_eq!(published, Version(then));
    }
    assert_eq!(registry.published(&name("s")).await.unwrap(), Version(0));
}

/// A halt, with the reason, stays until lifted.
pub async fn a_halt_stays_until_lifted(subject: RegistrySubject) {
    let registry = &*subject.registry;
    assert_eq!(registry.halted().await.unwrap(), None);
    let halt = Halt {
        reason: "bad \"build\"".into(),
        by: Some("ann".to_owned()),
        since: Timestamp(5),
    };
    registry.set_halted(Some(&halt)).await.unwrap();
    assert_eq!(registry.halted().await.unwrap(), Some(halt));
    registry.set_halted(None).await.unwrap();
    assert_eq!(registry.halted().await.unwrap(), None);
}
