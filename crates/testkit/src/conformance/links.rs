//! Conformance cases about the workers' sending links to hubs.

use std::time::Duration;

use twincast_core::evidence::REPORT_RETENTION;
use twincast_core::ids::Holder;
use twincast_core::link::{LinkReport, LinkState, LinkStatus};
use twincast_core::ports::{HubTrouble, Store};

use super::Subject;
use crate::build::hub;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn report(worker: &str, lasting: u64, state: LinkState) -> LinkReport {
    LinkReport {
        worker: Holder::new(worker).expect("a name"),
        lasting: secs(lasting),
        state,
    }
}

/// The links to a hub, sorted by worker.
async fn links(store: &dyn Store, name: &str) -> Vec<LinkStatus> {
    let mut links = store.links(&hub(name)).await.expect("an answer");
    links.sort_by(|a, b| a.worker.cmp(&b.worker));
    links
}

/// A report is stored unchanged, with any characters, and replaces the worker's last report. The
/// ages in a report grow.
///
/// # Panics
/// When the contract is broken, as all cases.
pub async fn the_newest_report_of_a_link_is_kept(subject: Subject) {
    let Subject { store, clock, .. } = &subject;
    assert_eq!(links(&**store, "a").await, []);
    let why = "no \"route\"\n to host 'é' \\ {1: 2}";
    let away = LinkState::hindered(HubTrouble::Unreachable, why);
    let first = report("w1", 0, LinkState::Open);
    let second = report("w2", 40, away.clone());
    for report in [&first, &second] {
        store.report_link(&hub("a"), report).await.unwrap();
    }
    clock.advance(secs(5));
    let again = report("w1", 0, LinkState::Unused);
    store.report_link(&hub("a"), &again).await.unwrap();
    clock.advance(secs(3));
    let of = |report: &LinkReport, lasting: u64, reported: u64| LinkStatus {
        worker: report.worker.clone(),
        lasting: secs(lasting),
        reported_ago: secs(reported),
        state: report.state.clone(),
    };
    let known = links(&**store, "a").await;
    assert_eq!(known, [of(&again, 3, 3), of(&second, 48, 8)]);
    assert_eq!(links(&**store, "b").await, [], "another hub has no reports");
    let listeners = store.listeners(&hub("a")).await.unwrap();
    assert_eq!(listeners, [], "a link is no listener");
}

/// A store may delete reports older than [`REPORT_RETENTION`], and keeps newer reports.
///
/// # Panics
/// When the contract is broken, as all cases.
pub async fn old_links_are_deleted(subject: Subject) {
    let Subject { store, clock, .. } = &subject;
    for n in 0..20 {
        let report = report(&format!("w{n}"), 0, LinkState::Open);
        store.report_link(&hub("a"), &report).await.unwrap();
        clock.advance(REPORT_RETENTION / 4);
    }
    let known = links(&**store, "a").await.len();
    assert!((4..=5).contains(&known), "{known}");
}
