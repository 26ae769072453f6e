//! The history of a rollout.
//!
//! The actions of operators and the verdicts of gates are kept permanently. Routine events, which
//! recur without an end (tries at planning, measurements, scans), would push them out. So only the
//! newest routine events are kept, and readers see repeated events as one entry.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::event::Event;
use crate::ids::Version;
use crate::time::Timestamp;

/// The most routine entries kept: the newest ones.
pub const ROUTINE: usize = 200;

/// The most other entries kept. Further entries are removed from the middle.
pub const KEPT: usize = 1_000;

/// An event in the history of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The version of the record after the event.
    #[serde(default)]
    pub version: Version,
    /// The time of the event.
    pub at: Timestamp,
    /// The name of the phase after the event.
    #[serde(default)]
    pub phase: String,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// Repeated entries, folded into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repeated<'a> {
    /// The newest entry.
    #[serde(flatten)]
    pub entry: &'a HistoryEntry,
    /// The number of entries; omitted for a single entry.
    #[serde(skip_serializing_if = "is_one")]
    pub times: usize,
    /// The time of the oldest entry; omitted for a single entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(times: &usize) -> bool {
    *times == 1
}

/// Removes the entries beyond [`ROUTINE`] and [`KEPT`], and keeps the order.
pub fn bound(history: &mut Vec<HistoryEntry>) {
    let routine = history.iter().filter(|it| it.event.is_routine()).count();
    let mut surplus = routine.saturating_sub(ROUTINE);
    let others = history.len() - routine;
    let left_out = KEPT / 2..KEPT / 2 + others.saturating_sub(KEPT);
    let mut other = 0;
    history.retain(|entry| {
        if entry.event.is_routine() {
            let is_kept = surplus == 0;
            surplus = surplus.saturating_sub(1);
            return is_kept;
        }
        let is_kept = !left_out.contains(&other);
        other += 1;
        is_kept
    });
}

/// Returns the history with repeated entries folded into the newest of them. Entries repeat each
/// other if their [`Event::fold_key`] are equal and only routine entries lie between them.
#[must_use]
pub fn folded(history: &[HistoryEntry]) -> Vec<Repeated<'_>> {
    let mut folded = Vec::new();
    // From the newest to the oldest: the places of entries open for repeats.
    let mut open = HashMap::new();
    for entry in history.iter().rev() {
        let fold_key = entry.event.fold_key();
        if !entry.event.is_routine() {
            open.clear();
        }
        if let Some(place) = fold_key.as_ref().and_then(|fold_key| open.get(fold_key)) {
            let newer: &mut Repeated<'_> = &mut folded[*place];
            newer.times += 1;
            newer.since = Some(entry.at);
            continue;
        }
        if let Some(fold_key) = fold_key {
            open.insert(fold_key, folded.len());
        }
        folded.push(Repeated {
            entry,
            times: 1,
            since: None,
        });
    }
    folded.reverse();
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MetricName, StageName};
    use crate::rollout::{Attribution, MetricResult};

    fn entry(at: u64, event: Event) -> HistoryEntry {
        HistoryEntry {
            version: Version(at),
            at: Timestamp(at),
            phase: "running".into(),
            event,
        }
    }

    fn resumed() -> Event {
        Event::ResumeRequested {
            attribution: Attribution::default(),
        }
    }

    fn measured(metric: &str, samples: &str) -> Event {
        Event::MetricMeasured {
            stage: StageName::new("first").unwrap(),
            metric: MetricName::new(metric).unwrap(),
            result: MetricResult::Succeeded,
            samples: samples.into(),
        }
    }

    fn bounded(events: impl IntoIterator<Item = Event>) -> Vec<u64> {
        let entries = (0..).zip(events).map(|(at, event)| entry(at, event));
        let mut history = entries.collect();
        bound(&mut history);
        history.iter().map(|entry| entry.at.0).collect()
    }

    #[test]
    fn routine_events_do_not_displace_operator_events() {
        let routine = (0..5_000).map(|_| measured("errors", "0.1"));
        let events = [resumed()].into_iter().chain(routine).chain([resumed()]);
        let left: Vec<_> = [0].into_iter().chain(4_801..=5_001).collect();
        assert_eq!(bounded(events), left);
    }

    #[test]
    fn first_and_last_history_entries_are_kept() {
        let few: Vec<u64> = (0..1_000).collect();
        assert_eq!(bounded((0..1_000).map(|_| resumed())), few);
        let left: Vec<u64> = (0..500).chain(1_500..2_000).collect();
        assert_eq!(bounded((0..2_000).map(|_| resumed())), left);
    }

    #[test]
    fn repeated_events_are_folded_until_another_event() {
        let events = [
            Event::PlanningStarted,
            Event::PlanningStarted,
            resumed(),
            measured("errors", "0.1"),
            measured("latency", "20"),
            measured("errors", "0.2"),
            measured("latency", "21"),
            resumed(),
            resumed(),
            measured("errors", "0.3"),
        ];
        let history: Vec<_> = (0..).zip(events).map(|(at, it)| entry(at, it)).collect();
        let folded = folded(&history);
        let seen: Vec<_> = folded
            .iter()
            .map(|it| (it.entry.at.0, it.times, it.since.map(|at| at.0)))
            .collect();
        assert_eq!(
            seen,
            [
                (1, 2, Some(0)),
                (2, 1, None),
                (5, 2, Some(3)),
                (6, 2, Some(4)),
                (7, 1, None),
                (8, 1, None),
                (9, 1, None),
            ]
        );
        let text = serde_json::to_value(&folded[0]).unwrap();
        assert_eq!(text["times"], 2);
        assert_eq!(text["event"], "planning_started");
        let once = serde_json::to_value(&folded[1]).unwrap();
        assert!(once.get("times").is_none() && once.get("since").is_none());
    }
}
