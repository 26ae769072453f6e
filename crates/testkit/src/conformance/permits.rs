//! Cases: permits.

use std::time::Duration;

use twincast_core::permits::Grant;
use twincast_core::ports::PermitRequest;

use super::Subject;
use crate::build::{hub, name};

fn request(on: &str, wanted: u32, per_minute: f64) -> PermitRequest {
    PermitRequest {
        hub: hub(on),
        wanted,
        per_minute,
        rollout: None,
    }
}

/// Takes what it can get for a minute; gives how much that was.
async fn a_minute(subject: &Subject, request: &PermitRequest) -> u32 {
    let mut taken = 0;
    let mut left = Duration::from_secs(60);
    loop {
        let grant = subject.store.take_permits(request).await.unwrap();
        assert!(grant.permits <= request.wanted);
        taken += grant.permits;
        // The clock has milliseconds; a wait below one would not move it.
        let ask_again = grant.wait.max(Duration::from_millis(1));
        subject.clock.advance(ask_again);
        match left.checked_sub(ask_again) {
            Some(rest) => left = rest,
            None => return taken,
        }
    }
}

/// The rate is kept: neither more, nor much less.
pub async fn the_quota_is_used_and_not_exceeded(subject: Subject) {
    for per_minute in [60.0, 4_950.0, 49_500.0] {
        let on = format!("hub-{per_minute}");
        let taken = a_minute(&subject, &request(&on, 1_000, per_minute)).await;
        // Permits for the next second may be reserved already.
        let most = per_minute * 61.2 / 60.0 + 1.0;
        assert!(f64::from(taken) <= most, "{taken} of {per_minute}");
        assert!(
            f64::from(taken) >= per_minute * 0.99,
            "{taken} of {per_minute}"
        );
    }
}

/// One hub's senders do not hold up another's.
pub async fn hubs_have_quotas_of_their_own(subject: Subject) {
    let store = &*subject.store;
    let full = async |on: &str| {
        while store
            .take_permits(&request(on, 9, 60.0))
            .await
            .unwrap()
            .permits
            > 0
        {}
    };
    full("a").await;
    let other = store.take_permits(&request("b", 9, 60.0)).await.unwrap();
    assert!(other.permits > 0 && other.wait.is_zero());
}

/// Below the hub's, on each hub, and without taking from others what it does not use.
pub async fn a_rollout_keeps_to_its_own_limit(subject: Subject) {
    let limited = PermitRequest {
        rollout: Some((name("r"), 600.0)),
        ..request("a", 1_000, 6_000.0)
    };
    let taken = a_minute(&subject, &limited).await;
    assert!((580..=611).contains(&taken), "{taken} of 600");

    subject.clock.advance(Duration::from_secs(5));
    let all = a_minute(&subject, &request("a", 1_000, 6_000.0)).await;
    assert!(all >= 5_940, "{all} of 6000 for another rollout");
}

/// For as long as the hub says, and more slowly after it.
pub async fn a_throttle_holds_everyone_back(subject: Subject) {
    let store = &*subject.store;
    let pause = Duration::from_secs(7);
    store.throttled(&hub("a"), Some(pause)).await.unwrap();
    let ask = request("a", 100, 6_000.0);
    let Grant { permits, wait } = store.take_permits(&ask).await.unwrap();
    assert_eq!(permits, 0);
    assert!(wait > Duration::from_secs(5) && wait <= pause, "{wait:?}");
    subject.clock.advance(pause);
    let slower = a_minute(&subject, &ask).await;
    assert!((4_200..5_990).contains(&slower), "{slower} of 6000");
}
