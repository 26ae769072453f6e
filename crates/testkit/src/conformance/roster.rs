//! Cases: the roster.

use std::time::Duration;

use twincast_core::ids::Version;
use twincast_core::ports::{Clock, Halt};
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
    let (r, a, b) = (name("r"), holder("a"), holder("b"));
    assert_eq!(roster.claim(&r, &a, TTL).await.unwrap(), None);
    let held = roster.claim(&r, &b, TTL).await.unwrap().unwrap();
    assert_eq!(held.by, a);
    assert_eq!(held.until, subject.clock.now().plus(TTL));
    assert_eq!(roster.claim(&name("other"), &b, TTL).await.unwrap(), None);
    roster.disclaim(&r, &b).await.unwrap();
    assert!(roster.claim(&r, &b, TTL).await.unwrap().is_some());
    roster.disclaim(&r, &a).await.unwrap();
    assert_eq!(roster.claim(&r, &b, TTL).await.unwrap(), None);
}

/// At its time, and not before; renewing moves the time.
pub async fn a_claim_lapses(subject: RosterSubject) {
    let roster = &*subject.roster;
    let (r, a, b) = (name("r"), holder("a"), holder("b"));
    let before = TTL.checked_sub(Duration::from_millis(1)).unwrap();
    roster.claim(&r, &a, TTL).await.unwrap();
    subject.clock.advance(before);
    assert!(roster.claim(&r, &b, TTL).await.unwrap().is_some());
    assert_eq!(roster.claim(&r, &a, TTL).await.unwrap(), None);
    subject.clock.advance(before);
    assert!(roster.claim(&r, &b, TTL).await.unwrap().is_some());
    subject.clock.advance(Duration::from_millis(1));
    assert_eq!(roster.claim(&r, &b, TTL).await.unwrap(), None);
    assert!(roster.claim(&r, &a, TTL).await.unwrap().is_some());
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
