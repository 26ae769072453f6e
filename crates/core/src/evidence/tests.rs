use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Returns a listener with a heard-until time and a report of the given ages in seconds, and locks
/// of a minute.
fn listener(received_ago: Option<u64>, reported: u64) -> ListenerStatus {
    ListenerStatus {
        listener: Holder::new("l").unwrap(),
        received_ago: received_ago.map(secs),
        reported_ago: secs(reported),
        state: ListenerState {
            listening: true,
            hidden_ms: 60_000,
            batching_ms: 15_000,
            ..ListenerState::default()
        },
    }
}

/// Returns the age of the watermark in seconds, and the obstacle as text.
fn watermark(listeners: &[ListenerStatus]) -> (Option<u64>, String) {
    let watermark = Watermark::of(listeners, NOW);
    let ago = watermark.heard_until.map(|at| NOW.since(at).as_secs());
    let obstacle = watermark.obstacle.map(|it| it.to_string());
    (ago, obstacle.unwrap_or_default())
}

#[test]
fn watermark_follows_slowest_listener() {
    let no_listener = "no worker listens to its feedback";
    assert_eq!(watermark(&[]), (None, no_listener.into()));
    assert_eq!(watermark(&[listener(Some(1), 0)]), (Some(1), "".into()));
    let two = [listener(Some(1), 0), listener(Some(7), 1)];
    assert_eq!(watermark(&two), (Some(7), "".into()));
    let behind = "its feedback is being received";
    let new = [listener(Some(1), 0), listener(None, 0)];
    assert_eq!(watermark(&new), (None, behind.into()));
    let long = [listener(Some(61), 0)];
    assert_eq!(watermark(&long), (Some(61), behind.into()));
}

#[test]
fn lost_listener_counts_until_message_locks_expire() {
    // Lost 11 s ago, with messages hidden by the hub for 49 s more.
    let lost = listener(Some(12), 11);
    let hidden = "a worker is gone, and the hub redelivers its messages within 49 s";
    let others = [lost.clone(), listener(Some(1), 0)];
    assert_eq!(watermark(&others), (Some(12), hidden.into()));
    let never = [listener(None, 11), listener(Some(1), 0)];
    assert_eq!(watermark(&never), (None, hidden.into()));
    // The present listener has heard beyond the end of the lost listener's locks.
    let late = [listener(Some(80), 70), listener(Some(10), 0)];
    assert_eq!(watermark(&late), (Some(10), "".into()));
    let (ago, obstacle) = watermark(&[listener(Some(80), 70), listener(Some(11), 0)]);
    assert_eq!(ago, Some(80), "the lost listener's age");
    assert!(obstacle.contains("a worker is gone"), "{obstacle}");
    // A lost listener alone gives no watermark.
    assert_eq!(watermark(&[lost]).0, None);
    // A listener without messages hides none.
    let mut idle = listener(None, 11);
    idle.state.hidden_ms = 0;
    assert_eq!(watermark(&[idle, listener(Some(1), 0)]).0, Some(1));
}

#[test]
fn obstacles_are_described() {
    let mut foreign = listener(Some(20), 0);
    foreign.state.foreign = 37;
    let text = "37 feedback messages of other applications are ahead in the queue";
    assert_eq!(watermark(&[foreign]), (Some(20), text.into()));
    let mut away = listener(Some(20), 0);
    away.state.listening = false;
    away.state = away.state.troubled_by("no route to host");
    let text = "its feedback is not received: no route to host";
    assert_eq!(watermark(&[away]), (None, text.into()));
    let hub = |n: usize| HubName::new(format!("hub-{n}")).unwrap();
    let hubs = (0..5).map(|n| (hub(n), Watermark::of(&[], NOW)));
    assert_eq!(
        Evidence::of(hubs).obstacles(),
        "hub hub-0: no worker listens to its feedback; hub hub-1: no worker listens to its feedback; \
         hub hub-2: no worker listens to its feedback; and 2 more hubs"
    );
}

#[test]
fn evidence_coverage_allows_for_hub_batching() {
    let hub = HubName::new("main").unwrap();
    let evidence = Evidence::of([(hub, Watermark::of(&[listener(Some(5), 0)], NOW))]);
    assert!(evidence.covers(NOW.minus(secs(20))));
    assert!(!evidence.covers(NOW.minus(secs(19))));
    assert!(evidence.is_current(NOW));
    assert!(!evidence.is_current(NOW.plus(secs(56))));
    assert!(Evidence::complete().covers(NOW) && Evidence::complete().is_current(NOW));
}

#[test]
fn clock_counts_driven_time_with_evidence() {
    let hub = HubName::new("main").unwrap();
    let evidence = |at: u64, until: u64| {
        let now = NOW.plus(secs(at));
        let listeners = [listener(Some(at - until), 0)];
        Evidence::of([(hub.clone(), Watermark::of(&listeners, now))])
    };
    let mut clock = EvidenceClock::default();
    clock.start_bake(NOW);
    let at = |clock: &mut EvidenceClock, at, until| {
        clock.advance(true, &evidence(at, until), NOW.plus(secs(at)));
        (clock.baked().as_secs(), clock.without_evidence().as_secs())
    };
    assert_eq!(at(&mut clock, 5, 4), (5, 0));
    assert_eq!(at(&mut clock, 10, 9), (10, 0));
    // The rollout was not driven for half a minute.
    assert_eq!(at(&mut clock, 40, 39), (10, 0));
    assert_eq!(at(&mut clock, 45, 44), (15, 0));
    // The watermark stands still: up to 60 s the evidence is current, and the bake goes on.
    for step in 1..=6 {
        at(&mut clock, 45 + 10 * step, 44);
    }
    assert_eq!(
        (clock.baked().as_secs(), clock.without_evidence().as_secs()),
        (65, 60)
    );
    assert_eq!(at(&mut clock, 115, 44), (65, 70));
    assert_eq!(at(&mut clock, 120, 119), (70, 0), "feedback is current");
    // Stopped time does not count.
    clock.resume(NOW.plus(secs(500)));
    assert_eq!(at(&mut clock, 503, 502), (73, 0));
    // Failed twin queries are no evidence either.
    clock.note_query(Some("503"));
    assert_eq!(at(&mut clock, 506, 505), (76, 3));
    clock.note_query(None);
    assert_eq!(at(&mut clock, 508, 507), (78, 0));
}

#[test]
fn listener_reports_are_kept_for_retention_period() {
    let hub = HubName::new("main").unwrap();
    let report = |name: &str| ListenerReport {
        listener: Holder::new(name).unwrap(),
        received_ago: Some(secs(2)),
        state: ListenerState::default(),
    };
    let mut listeners = Listeners::default();
    assert!(listeners.report(&hub, &report("a"), NOW));
    assert!(!listeners.report(&hub, &report("a"), NOW));
    let later = NOW.plus(secs(599));
    assert!(listeners.report(&hub, &report("b"), later));
    let ages = |listeners: &Listeners, now| {
        let all = listeners.of(&hub, now);
        all.iter()
            .map(|it| {
                (
                    it.received_ago.unwrap().as_secs(),
                    it.reported_ago.as_secs(),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(ages(&listeners, later), [(601, 599), (2, 0)]);
    assert!(!listeners.report(&hub, &report("b"), NOW.plus(REPORT_RETENTION)));
    assert_eq!(ages(&listeners, NOW.plus(REPORT_RETENTION)), [(2, 0)]);
}
