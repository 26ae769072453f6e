//! Reports of processes on hubs, as kept by a store within a single process.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{Holder, HubName};
use crate::time::Timestamp;

/// Older reports are meaningless, because no lock lasts as long. Stores may delete old reports.
pub const REPORT_RETENTION: Duration = Duration::from_secs(600);

/// The newest report of each reporter on each hub. Reports older than [`REPORT_RETENTION`] are
/// deleted with the next report.
#[derive(Debug, Clone)]
pub struct Reports<S>(BTreeMap<HubName, BTreeMap<Holder, Entry<S>>>);

#[derive(Debug, Clone)]
struct Entry<S> {
    at: Option<Timestamp>,
    reported: Timestamp,
    state: S,
}

/// A report, with ages on the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported<S> {
    /// The reporter.
    pub by: Holder,
    /// The age of the reported moment, if the report has one.
    pub at_ago: Option<Duration>,
    /// The age of the report.
    pub reported_ago: Duration,
    /// The content.
    pub state: S,
}

impl<S> Default for Reports<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S: Clone> Reports<S> {
    /// Stores a report at `now` in place of the reporter's last report. Returns `true` for a new
    /// reporter.
    pub fn report(
        &mut self,
        hub: &HubName,
        by: &Holder,
        at_ago: Option<Duration>,
        state: &S,
        now: Timestamp,
    ) -> bool {
        let reports = self.0.entry(hub.clone()).or_default();
        reports.retain(|_, entry| now.since(entry.reported) < REPORT_RETENTION);
        let entry = Entry {
            at: at_ago.map(|ago| now.minus(ago)),
            reported: now,
            state: state.clone(),
        };
        reports.insert(by.clone(), entry).is_none()
    }

    /// The reports on a hub, with ages at `now`.
    pub fn of(&self, hub: &HubName, now: Timestamp) -> impl Iterator<Item = Reported<S>> {
        let reports = self.0.get(hub).into_iter().flatten();
        reports.map(move |(by, entry)| Reported {
            by: by.clone(),
            at_ago: entry.at.map(|at| now.since(at)),
            reported_ago: now.since(entry.reported),
            state: entry.state.clone(),
        })
    }
}
