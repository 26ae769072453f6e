use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    max_attempts: 3,
    retry_pause: SignedDuration::from_secs(60),
    restart_within: SignedDuration::from_secs(900),
};

fn now() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

fn manifest(version: &str) -> Manifest {
    serde_json::from_value(serde_json::json!({
        "schema": 1, "name": "fridge", "version": version, "expires": "2027-01-01T00:00:00Z",
        "artifact": { "url": "https://files/fw", "size": 1, "sha256": "00" },
    }))
    .unwrap()
}

fn message(id: &str) -> Event {
    Event::Message {
        id: id.to_owned(),
        body: "body".to_owned(),
    }
}

fn good() -> Event {
    Event::Checked {
        result: Ok(manifest("1.4.2")),
        until: now(),
    }
}

fn bad() -> Event {
    Event::Checked {
        result: Err(Reason::new("signature", "not signed")),
        until: now(),
    }
}

fn due() -> Event {
    Event::Due
}

fn fetched() -> Event {
    Event::Downloaded(Ok(()))
}

fn ended(result: HookResult) -> Event {
    Event::HookEnded {
        result,
        boot: "1".to_owned(),
        installed: None,
    }
}

fn done() -> Event {
    ended(HookResult::Done)
}

fn failed() -> Event {
    ended(HookResult::Failed("no".to_owned()))
}

fn retry() -> Event {
    ended(HookResult::Retry("busy".to_owned()))
}

fn healthy() -> Event {
    Event::HealthChecked(Ok(()))
}

fn started(boot: &str) -> Event {
    Event::Started {
        boot: boot.to_owned(),
        installed: None,
    }
}

fn after(events: Vec<Event>) -> State {
    let mut state = State::new(Some("1.4.1".to_owned()));
    for event in events {
        state.on(event, &LIMITS, now());
    }
    state
}

/// Returns the first `count` events of a successful update with the message id `fw.1`.
fn first_events(count: usize) -> Vec<Event> {
    let all = [
        message("fw.1"),
        good(),
        due(),
        fetched(),
        done(),
        done(),
        healthy(),
        done(),
    ];
    all[..count].to_vec()
}

fn end_of(state: &State) -> (Progress, Option<&str>) {
    let end = state.history.back().unwrap();
    (end.state, end.error.as_ref().map(|error| &*error.code))
}

#[test]
fn successful_update_reports_every_state() {
    let states: Vec<_> = (1..=8)
        .map(|count| after(first_events(count)).last_report.unwrap().state)
        .collect();
    use Progress::{Applied, Downloading, Installing, Received, Restarting, Verified};
    assert_eq!(
        states,
        [
            Received,
            Verified,
            Downloading,
            Installing,
            Restarting,
            Restarting,
            Restarting,
            Applied
        ]
    );
    let state = after(first_events(8));
    assert_eq!(state.installed.as_deref(), Some("1.4.2"));
    assert_eq!((state.current.as_ref(), state.work()), (None, None));
    let patch = state.patch().unwrap();
    assert_eq!(patch.version.as_deref(), Some("1.4.2"));
    assert_eq!(patch.update.unwrap().error, None);
}

#[test]
fn every_failure_ends_in_the_expected_state() {
    use Progress::{Cancelled, Failed, Refused, RolledBack};
    let full = Event::Downloaded(Err(Reason::new("disk_full", "")));
    let sick = Event::HealthChecked(Err("no answer".to_owned()));
    let cancel = || Event::Cancel("fw.1".to_owned());
    for (count, then, end, code) in [
        (1, vec![bad()], Refused, "signature"),
        (3, vec![full], Failed, "disk_full"),
        (4, vec![failed()], Failed, "install"),
        (
            4,
            vec![retry(), due(), retry(), due(), retry()],
            Failed,
            "install",
        ),
        (5, vec![failed(), done()], RolledBack, "activate"),
        (
            5,
            vec![ended(HookResult::Restart), due(), done()],
            RolledBack,
            "restart",
        ),
        (6, vec![sick.clone(), done()], RolledBack, "health_check"),
        (6, vec![sick.clone(), failed()], Failed, "rollback"),
        (
            6,
            vec![started("1"); 5].into_iter().chain([done()]).collect(),
            RolledBack,
            "health_check",
        ),
        (7, vec![failed(), done()], RolledBack, "confirm"),
        (1, vec![cancel()], Cancelled, "cancelled"),
        (2, vec![cancel()], Cancelled, "cancelled"),
        (3, vec![cancel()], Cancelled, "cancelled"),
    ] {
        let state = after(first_events(count).into_iter().chain(then).collect());
        assert_eq!(end_of(&state), (end, Some(code)), "{count}");
        assert_eq!(state.current, None);
        assert_eq!(state.installed.as_deref(), Some("1.4.1"));
    }
    let output = after(
        first_events(6)
            .into_iter()
            .chain([sick, failed()])
            .collect(),
    )
    .last_report
    .unwrap()
    .error
    .unwrap()
    .text;
    assert_eq!(
        output,
        "health_check: no answer; and the rollback failed: no"
    );
}

#[test]
fn update_resumes_after_a_restart() {
    for (count, then, step) in [
        (
            5,
            started("1"),
            Step::Activating {
                boot: "1".to_owned(),
            },
        ),
        (5, started("2"), Step::Checking { starts: 1 }),
        (6, started("1"), Step::Checking { starts: 2 }),
        (7, started("2"), Step::Confirming),
        (4, started("2"), Step::Installing),
    ] {
        let state = after(first_events(count).into_iter().chain([then]).collect());
        assert_eq!(state.current.unwrap().step, step, "{count}");
    }
    let waits = after(
        first_events(5)
            .into_iter()
            .chain([ended(HookResult::Restart)])
            .collect(),
    );
    assert!(matches!(waits.work(), Some(Work::Wait(_))));
    let mut comes = waits;
    comes.on(started("1"), &LIMITS, now());
    assert_eq!(comes.work(), Some(Work::Health));
}

#[test]
fn install_is_retried_and_the_attempt_is_reported() {
    let state = after(
        first_events(4)
            .into_iter()
            .chain([retry(), due()])
            .collect(),
    );
    assert_eq!(state.work(), Some(Work::Run(Hook::Install, 2)));
    let end = after(
        first_events(4)
            .into_iter()
            .chain([retry(), due(), done(), done(), healthy(), done()])
            .collect(),
    );
    assert_eq!(end.last_report.unwrap().attempt, 2);
}

#[test]
fn cancellation_is_ignored_from_installing_on() {
    for count in 4..=7 {
        let before = after(first_events(count));
        let mut state = before.clone();
        state.on(Event::Cancel("fw.1".to_owned()), &LIMITS, now());
        assert_eq!(state, before, "{count}");
    }
}

#[test]
fn targets_of_a_cancellation() {
    for (target, id, is_cancelled) in [
        ("fw", "fw.a.0.0.0.1", true),
        ("fw-1.4", "fw-1.4.a.0.0.0.1", true),
        ("fw-1", "fw-1.4.a.0.0.0.1", false),
        ("fw-1.4", "fw-1.4.2.a.0.0.0.1", false),
        ("fw.1.0", "fw.1.0", true),
        ("fw", "fw-2.a.0.0.0.1", false),
        ("fw.1.0.0", "fw.1.0", false),
        ("", ".1", false),
    ] {
        assert_eq!(cancels(target, id), is_cancelled, "{target} {id}");
    }
    let of = |rollout: &str, n: u32| message(&format!("{rollout}.a.0.0.{n}.1"));
    let mut state = after(vec![of("fw", 1), of("other", 1), of("fw", 2)]);
    state.on(Event::Desired(Some("fw".to_owned())), &LIMITS, now());
    assert_eq!(state.current.as_ref().unwrap().id, "other.a.0.0.1.1");
    assert_eq!(state.history.len(), 2);
    // The desired property stays in force: a later message is cancelled too.
    state.on(of("fw", 3), &LIMITS, now());
    assert_eq!(end_of(&state).0, Progress::Cancelled);
    state.on(Event::Desired(None), &LIMITS, now());
    state.on(message("fw.4"), &LIMITS, now());
    assert_eq!(state.waiting.back().unwrap().id, "fw.4");
}

#[test]
fn repeated_messages_keep_the_state_and_the_answer() {
    for count in 1..=8 {
        let before = after(first_events(count));
        let mut state = before.clone();
        for _ in 0..100 {
            state.on(message("fw.1"), &LIMITS, now());
        }
        assert_eq!(state, before, "{count}");
    }
    // After a report about another update, the first report is repeated.
    let mut state = after(first_events(8));
    state.on(message("fw.2"), &LIMITS, now());
    state.on(bad(), &LIMITS, now());
    for _ in 0..100 {
        state.on(message("fw.1"), &LIMITS, now());
    }
    assert_eq!(state.last_report.as_ref().unwrap().id, "fw.1");
    assert_eq!((state.history.len(), state.pending_reports.len()), (2, 2));
}

#[test]
fn updates_beyond_the_queue_limit_are_refused() {
    let many = (0..=WAITING_MAX + 1)
        .map(|at| message(&format!("fw.{at}")))
        .collect();
    let state = after(many);
    assert_eq!(state.waiting.len(), WAITING_MAX);
    assert_eq!(end_of(&state), (Progress::Refused, Some("busy")));
}

#[test]
fn update_expired_during_download_is_not_installed() {
    let mut state = after(first_events(3));
    state.on(fetched(), &LIMITS, "2027-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(end_of(&state), (Progress::Failed, Some("expired")));
}

#[test]
fn an_accepted_report_is_not_sent_again() {
    let mut state = after(first_events(8));
    let patch = state.patch().unwrap();
    state.on(Event::Reported(patch.clone()), &LIMITS, now());
    assert_eq!(state.patch(), None);
    state.on(Event::Twin(patch.clone()), &LIMITS, now());
    assert_eq!(state.patch(), None);
    // The answer to the write was lost.
    let mut state = after(first_events(8));
    state.on(Event::Twin(patch.clone()), &LIMITS, now());
    assert_eq!(state.patch(), None);
    // The device was created anew in the hub.
    state.on(Event::Twin(Patch::default()), &LIMITS, now());
    assert_eq!(state.patch(), Some(patch));
    // A later report does not wait for an earlier report, and accepting the earlier report does not
    // confirm the later report.
    let mut state = after(first_events(3));
    let early = state.patch().unwrap();
    state.on(fetched(), &LIMITS, now());
    state.on(Event::Reported(early), &LIMITS, now());
    assert_eq!(
        state.patch().unwrap().update.unwrap().state,
        Progress::Installing
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = || (0..4_u8).prop_map(|id| format!("fw.{id}"));
    prop_oneof![
        3 => id().prop_map(|id| message(&id)),
        2 => Just(good()),
        1 => Just(bad()),
        3 => Just(due()),
        3 => Just(fetched()),
        1 => Just(Event::Downloaded(Err(Reason::new("download", "")))),
        6 => Just(done()),
        1 => Just(failed()),
        1 => Just(retry()),
        1 => Just(ended(HookResult::Restart)),
        3 => Just(healthy()),
        1 => Just(Event::HealthChecked(Err(String::new()))),
        1 => id().prop_map(Event::Cancel),
        1 => prop::option::of(id()).prop_map(Event::Desired),
        1 => (0..2_u8).prop_map(|boot| started(&boot.to_string())),
        1 => Just(Event::Twin(Patch::default())),
    ]
}

proptest! {
    /// For any events in any order: an end is final, no update is installed after the end, each
    /// attempt has a single installation, the states of an update only go forward, all queues are
    /// bounded, and the stored state is the whole state.
    #[test]
    fn invariants(events in prop::collection::vec(any_event(), 0..80)) {
        let mut state = State::new(Some("1.4.1".to_owned()));
        let mut ends: std::collections::HashMap<String, Report> = std::collections::HashMap::new();
        let mut installed = std::collections::HashSet::new();
        for event in events {
            let stored = serde_json::to_vec(&state).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<State>(&stored).unwrap(), &state);
            let before = state.clone();
            let is_done = event == done();
            state.on(event, &LIMITS, now());
            if let Some(update) = &before.current
                && update.step == Step::Installing && is_done
            {
                prop_assert!(
                    installed.insert((update.id.clone(), update.attempt)),
                    "the attempt was installed twice"
                );
            }
            for end in &state.history {
                let first = ends.entry(end.id.clone()).or_insert_with(|| end.clone());
                prop_assert_eq!(&*first, end, "the final report has changed");
                prop_assert!(end.state.is_end());
                prop_assert_eq!(end.error.is_none(), end.state == Progress::Applied);
            }
            for update in state.current.iter().chain(&state.waiting) {
                prop_assert!(!ends.contains_key(&update.id), "the update continues after its end");
            }
            prop_assert!(state.current.is_some() || state.waiting.is_empty());
            prop_assert!(state.current.is_none() || state.work().is_some());
            prop_assert!(state.waiting.len() <= WAITING_MAX && state.pending_reports.len() <= 4);
            let reported: std::collections::HashSet<_> = state.pending_reports.iter().map(|it| &it.id).collect();
            prop_assert_eq!(reported.len(), state.pending_reports.len());
            // Every end is reported, or was reported before.
            prop_assert!(ends.len() <= reported.len() || !state.pending_reports.is_empty() || state.last_report.is_some());
        }
    }
}
