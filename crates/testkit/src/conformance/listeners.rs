//! Conformance cases about listeners to the feedback of hubs.

use std::time::Duration;

use twincast_core::evidence::{ListenerReport, ListenerState, ListenerStatus, REPORT_RETENTION};
use twincast_core::ids::Holder;
use twincast_core::ports::Store;

use super::Subject;
use crate::build::hub;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn report(listener: &str, received_ago: Option<u64>, foreign: u64) -> ListenerReport {
    let state = ListenerState {
        listening: true,
        hidden_ms: 75_000,
        foreign,
        batching_ms: 15_000,
        ..ListenerState::default()
    };
    ListenerReport {
        listener: Holder::new(listener).expect("a name"),
        received_ago: received_ago.map(secs),
        state,
    }
}

/// The listeners to a hub, sorted by name.
async fn listeners(store: &dyn Store, name: &str) -> Vec<ListenerStatus> {
    let mut listeners = store.listeners(&hub(name)).await.expect("an answer");
    listeners.sort_by(|a, b| a.listener.cmp(&b.listener));
    listeners
}

/// A report is stored unchanged. The ages in a report grow.
///
/// # Panics
/// When the contract is broken, as all cases.
pub async fn the_newest_report_of_a_listener_is_kept(subject: Subject) {
    let Subject { store, clock, .. } = &subject;
    assert_eq!(listeners(&**store, "a").await, []);
    for (name, received_ago, foreign) in [("l1", None, 0), ("l2", Some(2), 37)] {
        let report = report(name, received_ago, foreign);
        store.report_listener(&hub("a"), &report).await.unwrap();
    }
    clock.advance(secs(5));
    let again = report("l1", Some(1), 0);
    store.report_listener(&hub("a"), &again).await.unwrap();
    clock.advance(secs(3));
    let known = listeners(&**store, "a").await;
    let of = |report: &ListenerReport, received: u64, reported: u64| ListenerStatus {
        listener: report.listener.clone(),
        received_ago: Some(secs(received)),
        reported_ago: secs(reported),
        state: report.state.clone(),
    };
    let second = report("l2", Some(2), 37);
    assert_eq!(known, [of(&again, 4, 3), of(&second, 10, 8)]);
    assert_eq!(
        listeners(&**store, "b").await,
        [],
        "another hub has no reports"
    );
}

/// A listener's trouble is stored unchanged, with any characters.
///
/// # Panics
/// When the contract is broken, as all cases.
pub async fn listener_trouble_is_stored_unchanged(subject: Subject) {
    let store = &*subject.store;
    let mut report = report("l1", None, 0);
    report.state.listening = false;
    report.state = report
        .state
        .troubled_by("no \"route\"\n to host 'é' \\ {1: 2}");
    store.report_listener(&hub("a"), &report).await.unwrap();
    let known = listeners(store, "a").await.remove(0);
    assert_eq!((known.received_ago, known.state), (None, report.state));
}

/// A store may delete reports older than [`REPORT_RETENTION`], and keeps newer reports.
///
/// # Panics
/// When the contract is broken, as all cases.
pub async fn old_reports_are_deleted(subject: Subject) {
    let Subject { store, clock, .. } = &subject;
    for n in 0..20 {
        let name = format!("l{n}");
        let report = report(&name, Some(0), 0);
        store.report_listener(&hub("a"), &report).await.unwrap();
        clock.advance(REPORT_RETENTION / 4);
    }
    let known = listeners(&**store, "a").await.len();
    assert!((4..=5).contains(&known), "{known}");
}
