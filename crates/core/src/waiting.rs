//! The reasons for waiting, of a gate, of a rollout or of a device.
//!
//! Every reason is a [`Waiting`] with its data. The text is in the `Display` implementation only.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::budget::FullGroup;
use crate::ids::{ConcurrencyGroup, Holder, HubName, MetricName, RolloutName, StageName};
use crate::link::LinkObstacle;
use crate::outcome::thousands;
use crate::query::TagPath;
use crate::rollout::SearchTrouble;
use crate::spec::{Closed, ScheduleState};
use crate::text::{ERROR_CHARS, cut};
use crate::time::Timestamp;

/// A reason for waiting. `Display` writes a text to follow "waits for".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// A gate waits for unsent devices.
    Sends {
        /// The number of unsent devices.
        left: u64,
    },
    /// A gate waits for devices without feedback so far.
    Silent {
        /// The number of silent devices.
        devices: u64,
        /// The end of the wait.
        until: Timestamp,
    },
    /// Silence is meaningless without feedback of the hub.
    Evidence {
        /// The number of silent devices.
        devices: u64,
        /// The obstacles, human-readable; empty if none is known.
        obstacles: String,
    },
    /// The hub's count of devices with the change applied is awaited. The text says why the hub
    /// cannot be asked.
    Applied(Option<String>),
    /// Everything was sent, all gates have passed, and devices have not answered.
    Answers {
        /// The number of devices without an answer.
        devices: u64,
        /// When every message has been answered or has expired.
        until: Timestamp,
    },
    /// A retry is being prepared.
    Retry,
    /// Devices may join the target.
    LateJoiners {
        /// The time of the next scan for new devices; `None` during a scan.
        next_scan: Option<Timestamp>,
        /// The trouble of failing scans, if there is any.
        trouble: Option<SearchTrouble>,
    },
    /// The bake is not over.
    Bake {
        /// The time of the end.
        until: Timestamp,
    },
    /// A metric does not yet hold.
    Metric {
        /// The metric.
        metric: MetricName,
        /// Successful measurements still needed.
        left: u32,
    },
    /// An approval is the last missing condition, which is still to be noted.
    ApprovalToBeNoted,
    /// An approval is the last missing condition.
    Approval {
        /// The end of the wait; `None` for an unlimited wait.
        until: Option<Timestamp>,
    },
    /// The schedule does not let anything be sent.
    Closed {
        /// The end; `None` for no end, or no end in the near future.
        until: Option<Timestamp>,
        /// Why the schedule is closed.
        why: Closed,
    },
    /// Budgets have no room.
    Budgets(Shortlist<FullGroup>),
    /// Nothing can be sent through some hubs.
    Hubs {
        /// The hubs, each with the reason.
        stuck: Shortlist<(HubName, LinkObstacle)>,
        /// The number of hubs through which something can be sent.
        others: usize,
    },
    /// No worker takes the batches of this hub.
    NoWorker(HubName),
    /// Hubs have recently refused sends for their quota.
    Quota(Shortlist<HubName>),
    /// The queue takes no dispatches; the reason is human-readable.
    Queue(String),
    /// Sends are due through a hub missing in the orchestrator's configuration.
    HubNotConfigured {
        /// The hub.
        hub: HubName,
        /// The configured hubs.
        configured: Shortlist<HubName>,
    },
    /// The alias of a hub denotes another hub than at planning. The text names the hub and the
    /// remedy.
    OtherHub(String),
    /// The rollout's devices cannot be found.
    Search(SearchTrouble),
    /// Another rollout is ahead in the queue of the concurrency group.
    GroupQueue {
        /// The rollout directly ahead.
        behind: RolloutName,
        /// The concurrency group.
        group: ConcurrencyGroup,
    },
    /// A device waits until its rollout is planned.
    Plan,
    /// The device's rollout is paused; the reason is human-readable.
    Paused(String),
    /// All rollouts are halted; the reason is human-readable.
    Halted(String),
    /// The device is about to be skipped, because its rollout is being aborted; the reason is
    /// human-readable.
    Aborting(String),
    /// The device's stage has not begun.
    Stage {
        /// The current stage, and the stages between the current stage and the device's stage.
        before: Vec<StageName>,
        /// The reason for a wait of the current stage, if there is one.
        standstill: Option<Box<Waiting>>,
    },
    /// The device's batch is quarantined.
    Quarantined,
    /// A worker holds the device's batch.
    Held {
        /// The worker.
        by: Holder,
        /// The end of its lease.
        until: Timestamp,
    },
    /// The last holder of the device's batch has not been heard of.
    Lapsed,
    /// No worker holds the device's batch. The tag is the release order of the stage, if the stage
    /// has one.
    Worker(Option<TagPath>),
    /// The device's message is with the hub.
    Delivery,
    /// Two reasons, one after the other.
    Then(Box<Waiting>, Box<Waiting>),
}

impl Waiting {
    /// Returns the reason for a closed schedule; `None` for an open schedule.
    #[must_use]
    pub fn of_schedule(schedule: &ScheduleState) -> Option<Self> {
        match schedule.clone() {
            ScheduleState::Open { .. } => None,
            ScheduleState::Closed { until, why } => Some(Self::Closed { until, why }),
        }
    }

    /// Returns the reason for full budgets; `None` if no budget is full.
    #[must_use]
    pub fn of_budgets(full: &[FullGroup]) -> Option<Self> {
        (!full.is_empty()).then(|| Self::Budgets(Shortlist::of(full.iter().cloned())))
    }

    /// Returns the reason for stuck hubs, while something can be sent through `others` other hubs.
    #[must_use]
    pub fn of_hubs(
        stuck: impl IntoIterator<Item = (HubName, LinkObstacle)>,
        others: usize,
    ) -> Self {
        let stuck = Shortlist::of(stuck);
        Self::Hubs { stuck, others }
    }

    /// Returns the reason for a queue accepting no dispatches. A long text is cut.
    #[must_use]
    pub fn of_queue(why: &str) -> Self {
        Self::Queue(cut(why, ERROR_CHARS))
    }

    /// Returns the reason for an alias that denotes another hub than at planning. A long text is
    /// cut.
    #[must_use]
    pub fn of_other_hub(why: &str) -> Self {
        Self::OtherHub(cut(why, ERROR_CHARS))
    }

    /// Returns the sequence of this reason and another.
    #[must_use]
    pub fn then(self, other: Self) -> Self {
        Self::Then(self.into(), other.into())
    }

    /// Returns when the wait ends or changes by itself, if known.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Silent { until, .. } | Self::Answers { until, .. } | Self::Bake { until } => {
                Some(*until)
            }
            Self::Approval { until } | Self::Closed { until, .. } => *until,
            Self::LateJoiners { next_scan, .. } => *next_scan,
            _ => None,
        }
    }

    /// Returns the reason with the earlier end.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        let end = |waiting: &Self| (waiting.until().is_none(), waiting.until());
        if end(&other) < end(&self) {
            other
        } else {
            self
        }
    }
}

impl Display for Waiting {
    // Long: one arm per reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { left } => write!(f, "sends to {} devices", thousands(*left)),
            Self::Silent { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "{devices} silent devices, until {until}")
            }
            Self::Evidence { devices, obstacles } => {
                let devices = thousands(*devices);
                write!(f, "evidence of {devices} silent devices")?;
                because((!obstacles.is_empty()).then_some(obstacles), f)
            }
            Self::Applied(query_failure) => {
                f.write_str("the hub's count of devices that have applied it")?;
                because(query_failure.as_ref(), f)
            }
            Self::Answers { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "the answers of {devices} devices, until {until}")
            }
            Self::Retry => f.write_str("the retry to be prepared; nothing is sent until then"),
            Self::LateJoiners { next_scan, trouble } => {
                match next_scan {
                    Some(at) => write!(f, "devices to join the target; the next scan is at {at}")?,
                    None => f.write_str("devices to join the target; a scan is under way")?,
                }
                let Some(trouble) = trouble else {
                    return Ok(());
                };
                write!(f, "; scans fail: {trouble}")
            }
            Self::Bake { until } => write!(f, "the end of its bake at {until}"),
            Self::Metric { metric, left } => {
                write!(f, "{left} more successful measurements of metric {metric}")
            }
            Self::ApprovalToBeNoted | Self::Approval { until: None } => f.write_str("an approval"),
            Self::Approval { until: Some(until) } => write!(f, "an approval, until {until}"),
            Self::Closed { until, why } => match until {
                Some(until) => write!(f, "the schedule to open at {until} ({why})"),
                None => write!(f, "the schedule to open at an unknown time ({why})"),
            },
            Self::Budgets(full) => write!(f, "room in the budget of {full}"),
            Self::Hubs { stuck, others } => stuck_hubs(stuck, *others, f),
            Self::NoWorker(hub) => write!(f, "a worker: no worker takes the batches of hub {hub}"),
            Self::Quota(hubs) => write!(
                f,
                "the quota of hub {hubs}: it has refused recent sends, so sends are slower"
            ),
            Self::Queue(why) => write!(f, "the queue to accept dispatches: {why}"),
            Self::HubNotConfigured { hub, configured } => write!(
                f,
                "hub {hub}, which is missing in the orchestrator's configuration; configured hubs: \
                 {configured}"
            ),
            Self::OtherHub(why) => f.write_str(why),
            Self::Search(trouble) => write!(f, "its devices to be found: {trouble}"),
            Self::GroupQueue { behind, group } => {
                write!(
                    f,
                    "rollout {behind}, which is ahead of it in concurrency group {group}"
                )
            }
            Self::Plan => f.write_str("the plan to be complete"),
            Self::Paused(reason) => {
                write!(f, "the rollout to be resumed; it is paused: {reason}")
            }
            Self::Halted(reason) => {
                write!(f, "all rollouts to be resumed; they are stopped: {reason}")
            }
            Self::Aborting(reason) => {
                write!(
                    f,
                    "the device to be skipped; the rollout is being aborted: {reason}"
                )
            }
            Self::Stage { before, standstill } => {
                let names: Vec<_> = before.iter().map(StageName::as_str).collect();
                match &*names {
                    [current, _, ..] => {
                        let names = names.join(", ");
                        write!(
                            f,
                            "the start of its stage, after stages {names}; the current stage is \
                             {current}"
                        )?;
                    }
                    one => write!(f, "the start of its stage, after stage {}", one.concat())?,
                }
                match standstill {
                    Some(waiting) => write!(f, ", which waits for {waiting}"),
                    None => f.write_str(", which is under way"),
                }
            }
            Self::Quarantined => f.write_str(
                "an operator: its batch is quarantined, because it has brought down its \
                     workers",
            ),
            Self::Held { by, until } => {
                write!(
                    f,
                    "worker {by}, which holds the lease on its batch until {until} or longer"
                )
            }
            Self::Lapsed => {
                f.write_str("another worker: the lease of the last worker on its batch has lapsed")
            }
            Self::Worker(Some(tag)) => {
                write!(f, "its turn in the release order of {tag}, and a worker")
            }
            Self::Worker(None) => f.write_str("a worker to take its batch"),
            Self::Delivery => {
                f.write_str("the device to accept the message, and the hub to report this")
            }
            Self::Then(first, then) => write!(f, "{first}; then {then}"),
        }
    }
}

/// Writes the reason after a colon, if there is one.
fn because(why: Option<&String>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    why.map_or(Ok(()), |why| write!(f, ": {why}"))
}

fn stuck_hubs(
    stuck: &Shortlist<(HubName, LinkObstacle)>,
    others: usize,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    for (index, (hub, obstacle)) in stuck.first.iter().enumerate() {
        let mark = if index > 0 { "; " } else { "" };
        write!(f, "{mark}hub {hub}, which {obstacle}")?;
    }
    if stuck.more > 0 {
        write!(f, "; and {} more hubs", stuck.more)?;
    }
    match others {
        0 => Ok(()),
        1 => f.write_str("; sends through 1 other hub continue"),
        n => write!(f, "; sends through {n} other hubs continue"),
    }
}

/// The first few of many items, and the number of the others: one line of text has room for only a
/// few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortlist<T> {
    first: Vec<T>,
    more: usize,
}

impl<T> Shortlist<T> {
    /// The most items kept.
    const MAX_ITEMS: usize = 3;

    /// Keeps the first items and counts the others.
    #[must_use]
    pub fn of(all: impl IntoIterator<Item = T>) -> Self {
        let mut all = all.into_iter();
        Self {
            first: all.by_ref().take(Self::MAX_ITEMS).collect(),
            more: all.count(),
        }
    }
}

impl<T: Display> Display for Shortlist<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<_> = self.first.iter().map(T::to_string).collect();
        f.write_str(&first.join(", "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reason in its stored form, followed by its text.
    const WORDS: &str = r#"
{"sends": {"left": 1000}}
    sends to 1,000 devices
{"silent": {"devices": 1000, "until": "2026-09-21T14:13:20Z"}}
    1,000 silent devices, until 2026-09-21T14:13:20Z
{"evidence": {"devices": 3, "obstacles": ""}}
    evidence of 3 silent devices
{"evidence": {"devices": 3, "obstacles": "no link"}}
    evidence of 3 silent devices: no link
{"applied": null}
    the hub's count of devices that have applied it
{"applied": "no route"}
    the hub's count of devices that have applied it: no route
{"answers": {"devices": 3, "until": "2026-09-21T14:13:20Z"}}
    the answers of 3 devices, until 2026-09-21T14:13:20Z
"retry"
    the retry to be prepared; nothing is sent until then
{"late_joiners": {"next_scan": "2026-09-21T14:13:20Z"}}
    devices to join the target; the next scan is at 2026-09-21T14:13:20Z
{"late_joiners": {"trouble": {"since": "2026-09-21T14:13:20Z", "error": "no route"}}}
    devices to join the target; a scan is under way; scans fail: no route; failing since 2026-09-21T14:13:20Z
{"bake": {"until": "2026-09-21T14:13:20Z"}}
    the end of its bake at 2026-09-21T14:13:20Z
{"metric": {"metric": "errors", "left": 2}}
    2 more successful measurements of metric errors
"approval_to_be_noted"
    an approval
{"approval": {}}
    an approval
{"approval": {"until": "2026-09-21T14:13:20Z"}}
    an approval, until 2026-09-21T14:13:20Z
{"closed": {"until": "2026-09-21T14:13:20Z", "why": "outside_window"}}
    the schedule to open at 2026-09-21T14:13:20Z (outside its windows)
{"closed": {"why": {"frozen": {"reason": "winter"}}}}
    the schedule to open at an unknown time (frozen: winter)
{"budgets": {"first": [{"group": "a", "in_progress": 1, "at_most": 2}, {"group": "b", "in_progress": 1, "at_most": 2}], "more": 0}}
    room in the budget of a (1 of 2 devices in progress), b (1 of 2 devices in progress)
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}], ["b", {"trouble": "unauthorized", "reason": "401"}]], "more": 0}, "others": 0}}
    hub a, which refuses the key: 401; hub b, which refuses the key: 401
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}]], "more": 0}, "others": 1}}
    hub a, which refuses the key: 401; sends through 1 other hub continue
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}]], "more": 4}, "others": 2}}
    hub a, which refuses the key: 401; and 4 more hubs; sends through 2 other hubs continue
{"no_worker": "a"}
    a worker: no worker takes the batches of hub a
{"quota": {"first": ["a", "b", "c"], "more": 2}}
    the quota of hub a, b, c and 2 more: it has refused recent sends, so sends are slower
{"queue": "no broker"}
    the queue to accept dispatches: no broker
{"hub_not_configured": {"hub": "a", "configured": {"first": ["b", "c"], "more": 0}}}
    hub a, which is missing in the orchestrator's configuration; configured hubs: b, c
{"other_hub": "hub a at x"}
    hub a at x
{"search": {"since": "2026-09-21T14:13:20Z", "error": "no route", "next_try": "2026-09-21T14:13:20Z"}}
    its devices to be found: no route; failing since 2026-09-21T14:13:20Z, next try at 2026-09-21T14:13:20Z
{"group_queue": {"behind": "b", "group": "g"}}
    rollout b, which is ahead of it in concurrency group g
"plan"
    the plan to be complete
{"paused": "lunch"}
    the rollout to be resumed; it is paused: lunch
{"halted": "fire"}
    all rollouts to be resumed; they are stopped: fire
{"aborting": "bad"}
    the device to be skipped; the rollout is being aborted: bad
{"stage": {"before": ["one"], "standstill": {"approval": {}}}}
    the start of its stage, after stage one, which waits for an approval
{"stage": {"before": ["one", "two"]}}
    the start of its stage, after stages one, two; the current stage is one, which is under way
"quarantined"
    an operator: its batch is quarantined, because it has brought down its workers
{"held": {"by": "w", "until": "2026-09-21T14:13:20Z"}}
    worker w, which holds the lease on its batch until 2026-09-21T14:13:20Z or longer
"lapsed"
    another worker: the lease of the last worker on its batch has lapsed
{"worker": "site"}
    its turn in the release order of site, and a worker
{"worker": null}
    a worker to take its batch
"delivery"
    the device to accept the message, and the hub to report this
{"then": ["retry", "plan"]}
    the retry to be prepared; nothing is sent until then; then the plan to be complete
"#;

    #[test]
    fn waiting_reasons_are_described_and_read_back() {
        let lines: Vec<_> = WORDS.trim().lines().map(str::trim).collect();
        for pair in lines.chunks_exact(2) {
            let waiting: Waiting = serde_json::from_str(pair[0]).expect(pair[0]);
            assert_eq!(waiting.to_string(), pair[1]);
            let stored = serde_json::to_string(&waiting).unwrap();
            assert_eq!(serde_json::from_str::<Waiting>(&stored).unwrap(), waiting);
        }
    }

    #[test]
    fn stored_texts_are_bounded() {
        let long = "é".repeat(2_000);
        for waiting in [Waiting::of_queue(&long), Waiting::of_other_hub(&long)] {
            assert!(waiting.to_string().chars().count() < 700);
        }
        let many = Shortlist::of(1..=9);
        assert_eq!(many.to_string(), "1, 2, 3 and 6 more");
    }
}
