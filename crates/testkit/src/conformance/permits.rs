//! Conformance cases about permits.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use twincast_core::permits::{
    BLOCK, CLIMB_PER_SECOND, CUT, Grant, HORIZON, HubPermits, LimiterState, Links, PermitRequest,
    THROTTLE_PAUSE, TURN_GRACE,
};
use twincast_core::ports::Clock;

use super::Subject;
use crate::build::{host, hub, name};

fn request(on: &str, permits: u32, per_minute: f64) -> PermitRequest {
    PermitRequest {
        hub: hub(on),
        max_permits: permits,
        per_minute,
        rollout: name("r"),
        weight: 1,
        limit: None,
    }
}

/// Takes as many permits as possible for a minute. Returns the number of permits.
async fn a_minute(subject: &Subject, request: &PermitRequest) -> u32 {
    let mut taken = 0;
    let mut left = Duration::from_secs(60);
    loop {
        let grant = subject.store.take_permits(request).await.unwrap();
        assert!(grant.permits <= request.max_permits);
        taken += grant.permits;
        // The clock has milliseconds: a shorter wait would not move the clock.
        let ask_again = grant.wait.max(Duration::from_millis(1));
        subject.clock.advance(ask_again);
        match left.checked_sub(ask_again) {
            Some(rest) => left = rest,
            None => return taken,
        }
    }
}

/// The permits use almost the whole quota, and do not exceed it.
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

/// The senders of a hub do not delay the senders of another hub.
pub async fn hubs_have_separate_quotas(subject: Subject) {
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

/// A rollout's own limit below the hub's quota holds on each hub, and leaves the unused quota to
/// other rollouts.
pub async fn a_rollout_limit_below_the_hub_quota_is_respected(subject: Subject) {
    let limited = PermitRequest {
        rollout: name("limited"),
        limit: Some(600.0),
        ..request("a", 1_000, 6_000.0)
    };
    let taken = a_minute(&subject, &limited).await;
    assert!((580..=611).contains(&taken), "{taken} of 600");

    subject.clock.advance(Duration::from_secs(5));
    let all = a_minute(&subject, &request("a", 1_000, 6_000.0)).await;
    assert!(all >= 5_940, "{all} of 6000 for another rollout");
}

/// After a throttle, permits stop for the time named by the hub, and are fewer afterwards.
pub async fn a_throttle_pauses_and_slows_the_hub(subject: Subject) {
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

/// A throttle lowers the factor to [`CUT`], and the factor climbs back. No permits are granted
/// during the pause. The limiter of another hub stays unchanged.
pub async fn a_throttle_lowers_the_factor_until_recovery(subject: Subject) {
    let store = &*subject.store;
    let state = async |on: &str| store.limiter(&hub(on)).await.unwrap();
    let unused = LimiterState::default();
    assert_eq!(state("a").await, unused, "the hub is unused");
    store.take_permits(&request("a", 9, 600.0)).await.unwrap();
    let used = state("a").await;
    assert_eq!((used.factor, used.paused_for(600.0)), (1.0, None));
    store.throttled(&hub("a"), None).await.unwrap();
    let close = |found: f64, expected: f64| (found - expected).abs() < 1e-9;
    let cut = state("a").await;
    assert!(close(cut.factor, CUT), "{cut:?}");
    assert_eq!(cut.paused_for(600.0), Some(THROTTLE_PAUSE));
    assert_eq!(state("b").await, unused);
    subject.clock.advance(THROTTLE_PAUSE);
    let later = state("a").await;
    assert!(
        close(later.factor, CUT + 10.0 * CLIMB_PER_SECOND),
        "{later:?}"
    );
    assert_eq!(later.paused_for(600.0), None);
    subject.clock.advance(Duration::from_secs(60));
    assert_eq!(state("a").await, unused);
}

/// The state of a limiter shows the reservations and their rollouts, for as long as these matter.
pub async fn limiter_state_shows_reservations(subject: Subject) {
    let store = &*subject.store;
    let full = HORIZON + BLOCK;
    for rollout in ["b", "a"] {
        let ask = PermitRequest {
            rollout: name(rollout),
            ..request("h", 1_000, 6_000.0)
        };
        while store.take_permits(&ask).await.unwrap().permits > 0 {}
    }
    let state = store.limiter(&hub("h")).await.unwrap();
    assert_eq!(state.asking, [name("a"), name("b")]);
    assert!(state.ahead > HORIZON && state.ahead <= full, "{state:?}");
    assert_eq!(state.paused_for(6_000.0), None);
    subject.clock.advance(full + TURN_GRACE + BLOCK);
    let later = store.limiter(&hub("h")).await.unwrap();
    assert_eq!(later, LimiterState::default());
}

/// Two rollouts asking for all permits share by weight, and use the whole quota together.
pub async fn rollouts_share_by_weight(subject: Subject) {
    let rollouts = [("big", 1), ("urgent", 4)].map(|(rollout, weight)| PermitRequest {
        rollout: name(rollout),
        weight,
        ..request("a", 1_000, 6_000.0)
    });
    let mut taken = [0u32; 2];
    let mut back = [Duration::ZERO; 2];
    let mut now = Duration::ZERO;
    while now < Duration::from_secs(60) {
        let next = usize::from(back[1] < back[0]);
        if let Some(wait) = back[next].checked_sub(now) {
            subject.clock.advance(wait);
            now = back[next];
        }
        let grant = subject.store.take_permits(&rollouts[next]).await.unwrap();
        taken[next] += grant.permits;
        back[next] = now + grant.wait.max(Duration::from_millis(1));
    }
    let [big, urgent] = taken.map(f64::from);
    assert!((urgent / big / 4.0 - 1.0).abs() < 0.05, "{urgent} to {big}");
    let all = big + urgent;
    assert!((5_940.0..=6_120.0).contains(&all), "{all} of 6000");
}

/// Links open in a burst of a few dozen, then slowly. Each hub has a separate budget.
pub async fn links_have_a_budget(subject: Subject) {
    let (store, mut model) = (&*subject.store, Links::default());
    for n in 0..Links::BURST + 5 {
        let wait = store.open_link(&hub("a")).await.unwrap();
        assert_eq!(wait, model.open(subject.clock.now()), "link {n}");
        subject
            .clock
            .advance(Duration::from_millis(u64::from(n % 3)));
    }
    assert!(!store.open_link(&hub("a")).await.unwrap().is_zero());
    assert!(store.open_link(&hub("b")).await.unwrap().is_zero());
}

/// The first host name under an alias stays. Other aliases are independent.
pub async fn a_hub_is_bound_once(subject: Subject) {
    let store = &*subject.store;
    for (alias, configured, bound) in [
        ("main", "staging", "staging"),
        ("main", "production", "staging"),
        ("main", "staging", "staging"),
        ("other", "production", "production"),
    ] {
        let found = store.bind_hub(&hub(alias), &host(configured)).await;
        assert_eq!(found.unwrap(), host(bound), "{alias} as {configured}");
    }
}

/// For any requests at any times, every grant equals the grant of [`HubPermits`].
pub async fn agrees_with_the_arithmetic(subject: Subject) {
    let asks = prop::collection::vec(
        (
            0..4u8,
            1..3_000u32,
            0..400u64,
            prop::sample::select(vec![60.0, 99.0, 6_000.0, 49_500.0]),
        ),
        400,
    );
    let mut runner = TestRunner::deterministic();
    let asks = asks.new_tree(&mut runner);
    let asks = asks.expect("the strategy has no filters").current();
    for (hub_no, per_minute) in [("x", None), ("y", Some(49_500.0))] {
        let mut model = HubPermits::default();
        for (n, (rollout, permits, later, rate)) in asks.iter().enumerate() {
            subject.clock.advance(Duration::from_millis(*later));
            let ask = PermitRequest {
                rollout: name(["a", "b", "c", "d"][usize::from(*rollout)]),
                weight: [1, 3, 10, 100][usize::from(*rollout)],
                limit: (*rollout > 1).then_some(700.0 * f64::from(*rollout)),
                ..request(hub_no, *permits, per_minute.unwrap_or(*rate))
            };
            if n % 97 == 96 {
                let retry_after = (n % 2 == 0).then_some(Duration::from_millis(333));
                let hub = hub(hub_no);
                subject.store.throttled(&hub, retry_after).await.unwrap();
                model.throttled(subject.clock.now(), retry_after);
            }
            let got = subject.store.take_permits(&ask).await.unwrap();
            let expected = model.take(subject.clock.now(), &ask);
            assert_eq!(got.permits, expected.permits, "ask {n}: {ask:?}");
            // Microseconds may be rounded differently.
            let apart = got.wait.abs_diff(expected.wait);
            assert!(
                apart <= Duration::from_micros(5),
                "ask {n}: {got:?}, {expected:?}"
            );
        }
    }
}
