//! Cases: the roster.

use std::collections::BTreeMap;
use std::slice;
use std::time::Duration;

use twincast_core::batch::Held;
use twincast_core::ids::{RolloutName, Version};
use twincast_core::ports::{Clock, Halt, Listed, RosterLook};
use twincast_core::rollout::Event;
use twincast_core::time::Timestamp;

use super::RosterSubject;
use crate::build::{accepted, holder, name, step};

const TTL: Duration = Duration::from_secs(10);

/// Ascending; retired ones are not, and what is stored again is again.
pub async fn what_is_stored_is_active_until_it_is_retired(subject: RosterSubject) {
    let (roster, store) = (&*subject.roster, &*subject.store);
    assert!(roster.active().await.unwrap().is_empty());
    for each in ["b", "a"] {
        store.create(&accepted(each)).await.unwrap();
        store.create(&accepted(each)).await.unwrap();
    }
    assert_eq!(roster.active().await.unwrap(), [name("a"), name("b")]);
    for _ in 0..2 {
        roster.retire(&name("a"), Version(1)).await.unwrap();
        assert_eq!(roster.active().await.unwrap(), [name("b")]);
    }
    step(store, &accepted("a"), Event::PlanningStarted).await;
    assert_eq!(roster.active().await.unwrap(), [name("a"), name("b")]);
}

/// Whoever retires an older one has not seen the newest.
pub async fn only_the_version_that_ended_is_retired(subject: RosterSubject) {
    let (roster, store) = (&*subject.roster, &*subject.store);
    let first = accepted("a");
    store.create(&first).await.unwrap();
    let second = step(store, &first, Event::PlanningStarted).await;
    roster.retire(&name("a"), first.version).await.unwrap();
    assert_eq!(roster.active().await.unwrap(), [name("a")]);
    roster.retire(&name("a"), second.version).await.unwrap();
    assert!(roster.active().await.unwrap().is_empty());
}

/// Its holder renews it; another one gets to know who has it.
pub async fn one_claim_at_a_time(subject: RosterSubject) {
    let roster = &*subject.roster;
    let (r, s, a, b) = (name("r"), name("s"), holder("a"), holder("b"));
    let claim = async |names: &[RolloutName], by| {
        let others = roster.claim(names, by, TTL).await.unwrap();
        let others = others.into_iter().map(|(name, held)| (name, held.by));
        Vec::from_iter(others)
    };
    assert_eq!(claim(slice::from_ref(&r), &a).await, []);
    let held = roster.claim(slice::from_ref(&r), &b, TTL).await.unwrap();
    assert_eq!(held[&r].until, subject.clock.now().plus(TTL));
    // What others have keeps nobody from the rest.
    let both = [r.clone(), s.clone()];
    assert_eq!(claim(&both, &b).await, [(r.clone(), a.clone())]);
    assert_eq!(claim(&both, &a).await, [(s.clone(), b.clone())]);
    roster.disclaim(&r, &b).await.unwrap();
    assert_eq!(claim(&both, &b).await, [(r.clone(), a.clone())]);
    roster.disclaim(&r, &a).await.unwrap();
    assert_eq!(claim(&both, &b).await, []);
    assert_eq!(claim(&[], &b).await, []);
}

/// At its time, and not before; renewing moves the time.
pub async fn a_claim_lapses(subject: RosterSubject) {
    let roster = &*subject.roster;
    let (r, a, b) = (name("r"), holder("a"), holder("b"));
    let claim = async |by| {
        let others = roster.claim(slice::from_ref(&r), by, TTL).await.unwrap();
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

/// Versions, claims that hold, and the halt.
pub async fn a_look_shows_what_there_is_to_drive(subject: RosterSubject) {
    let (roster, store) = (&*subject.roster, &*subject.store);
    assert_eq!(roster.look().await.unwrap(), RosterLook::default());
    let (r, s, a) = (name("r"), name("s"), holder("a"));
    let rollout = accepted("r");
    store.create(&rollout).await.unwrap();
    store.create(&accepted("s")).await.unwrap();
    step(store, &rollout, Event::PlanningStarted).await;
    let lapses = subject.clock.now().plus(TTL);
    roster
        .claim(&[r.clone(), name("t")], &a, TTL)
        .await
        .unwrap();
    let listed = |version, held| Listed {
        newest: Version(version),
        held,
    };
    let held = Held {
        by: a.clone(),
        until: lapses,
    };
    let look = roster.look().await.unwrap();
    let active = [
        (r.clone(), listed(2, Some(held))),
        (s.clone(), listed(1, None)),
    ];
    assert_eq!(look.active, BTreeMap::from(active));
    subject.clock.advance(TTL);
    roster.retire(&s, Version(1)).await.unwrap();
    let halt = Halt {
        reason: "bad build".into(),
        by: None,
        since: Timestamp(5),
    };
    roster.set_halted(Some(&halt)).await.unwrap();
    let look = roster.look().await.unwrap();
    assert_eq!(look.active, BTreeMap::from([(r, listed(2, None))]));
    assert_eq!(look.halt, Some(halt));
}

/// Each rollout on its own.
pub async fn announcing_never_goes_back(subject: RosterSubject) {
    let roster = &*subject.roster;
    let rollout = accepted("r");
    subject.store.create(&rollout).await.unwrap();
    assert_eq!(roster.announced(&name("r")).await.unwrap(), Version(0));
    for (noted, then) in [(3, 3), (2, 3), (11, 11)] {
        let noted = Version(noted);
        roster
            .set_announced(&name("r"), rollout.id, noted)
            .await
            .unwrap();
        let announced = roster.announced(&name("r")).await.unwrap();
        assert_eq!(announced, Version(then));
    }
    assert_eq!(roster.announced(&name("s")).await.unwrap(), Version(0));
}

/// With its reason.
pub async fn a_halt_stays_until_it_is_lifted(subject: RosterSubject) {
    let roster = &*subject.roster;
    assert_eq!(roster.halted().await.unwrap(), None);
    let halt = Halt {
        reason: "bad \"build\"".into(),
        by: Some("ann".to_owned()),
        since: Timestamp(5),
    };
    roster.set_halted(Some(&halt)).await.unwrap();
    assert_eq!(roster.halted().await.unwrap(), Some(halt));
    roster.set_halted(None).await.unwrap();
    assert_eq!(roster.halted().await.unwrap(), None);
}
