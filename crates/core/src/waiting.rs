//! What is waited for: by a gate, by a rollout, by a device of it.
//!
//! Every reason is a [`Waiting`] with its data; its words stand in its `Display`, and nowhere else.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::budget::FullGroup;
use crate::ids::{GroupName, Holder, HubName, MetricName, RolloutName, StageName};
use crate::link::Impasse;
use crate::outcome::thousands;
use crate::query::TagPath;
use crate::rollout::SearchTrouble;
use crate::spec::{Closed, Opening};
use crate::text::{ERROR_CHARS, cut};
use crate::time::Timestamp;

/// A reason for waiting. Its `Display` are words that follow "waits for".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// A gate waits for devices still to be sent to.
    Sends {
        /// How many.
        left: u64,
    },
    /// A gate waits for devices without feedback so far.
    Silent {
        /// How many.
        devices: u64,
        /// The end of the wait.
        until: Timestamp,
    },
    /// Silence is meaningless without feedback of the hub.
    Evidence {
        /// How many devices are silent.
        devices: u64,
        /// The obstacles, for people; empty if none is known.
        in_the_way: String,
    },
    /// The hub is asked how many devices have applied the change; or why it cannot be asked, for people.
    Applied(Option<String>),
    /// Everything was sent, all gates have passed, and devices have not answered.
    Answers {
        /// How many.
        devices: u64,
        /// When every message has been answered or has expired.
        until: Timestamp,
    },
    /// A retry is being prepared.
    Retry,
    /// Devices may join the target.
    Joiners {
        /// The time of the next look for new devices; `None` during a look.
        look: Option<Timestamp>,
        /// What looks are given up for, if they are.
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
        /// The end; `None` if there is none, or none is near.
        until: Option<Timestamp>,
        /// Why not.
        why: Closed,
    },
    /// Budgets have no room.
    Budgets(Named<FullGroup>),
    /// Nothing can be sent through some hubs.
    Hubs {
        /// These, with what keeps them.
        stuck: Named<(HubName, Impasse)>,
        /// The number of hubs through which something can be sent.
        others: usize,
    },
    /// No worker takes the batches of this hub.
    NoWorker(HubName),
    /// Hubs have refused sends for their quota of late.
    Quota(Named<HubName>),
    /// The queue takes no dispatches, and why, for people.
    Queue(String),
    /// Something is to be sent through a hub that the orchestrator does not have.
    HubNotConfigured {
        /// The hub.
        hub: HubName,
        /// Those that it has.
        configured: Named<HubName>,
    },
    /// A hub is another one than the rollout was planned for: which, and what to do, for people.
    OtherHub(String),
    /// Its devices cannot be found.
    Search(SearchTrouble),
    /// Another rollout of the group comes first.
    Line {
        /// That one.
        behind: RolloutName,
        /// The group.
        group: GroupName,
    },
    /// A device waits until its rollout is planned.
    Plan,
    /// The device's rollout is paused, and why, for people.
    Paused(String),
    /// All rollouts are stopped, and why, for people.
    Halted(String),
    /// The device is about to be skipped: why its rollout is aborted, for people.
    Aborting(String),
    /// The device's stage has not begun.
    Stage {
        /// The current stage, and those between it and the device's.
        before: Vec<StageName>,
        /// What the current one waits for, if it waits.
        standstill: Option<Box<Waiting>>,
    },
    /// The device's batch has brought down too many workers.
    Quarantined,
    /// A worker has the device's batch.
    Held {
        /// The worker.
        by: Holder,
        /// The end of its lease.
        until: Timestamp,
    },
    /// The worker that had the device's batch has not been heard of.
    Lapsed,
    /// Nobody has the device's batch; the tag that its stage is ordered by, if it is.
    Worker(Option<TagPath>),
    /// The device's message is with the hub.
    Delivery,
    /// One thing, and another one after it.
    Then(Box<Waiting>, Box<Waiting>),
}

impl Waiting {
    /// A schedule that is closed; `None` while it is open.
    #[must_use]
    pub fn of_schedule(opening: &Opening) -> Option<Self> {
        match opening.clone() {
            Opening::Open { .. } => None,
            Opening::Closed { until, why } => Some(Self::Closed { until, why }),
        }
    }

    /// Budgets without room; `None` when none is full.
    #[must_use]
    pub fn of_budgets(full: &[FullGroup]) -> Option<Self> {
        (!full.is_empty()).then(|| Self::Budgets(Named::of(full.iter().cloned())))
    }

    /// Hubs that nothing can be sent through, while something can be sent through `others`.
    #[must_use]
    pub fn of_hubs(stuck: impl IntoIterator<Item = (HubName, Impasse)>, others: usize) -> Self {
        let stuck = Named::of(stuck);
        Self::Hubs { stuck, others }
    }

    /// A queue that takes no dispatches. A long reason is cut.
    #[must_use]
    pub fn of_queue(why: &str) -> Self {
        Self::Queue(cut(why, ERROR_CHARS))
    }

    /// A hub that is another one than was planned for. A long reason is cut.
    #[must_use]
    pub fn of_other_hub(why: &str) -> Self {
        Self::OtherHub(cut(why, ERROR_CHARS))
    }

    /// This, and then the other.
    #[must_use]
    pub fn then(self, other: Self) -> Self {
        Self::Then(self.into(), other.into())
    }

    /// When the wait ends or changes by itself, if that is known.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Silent { until, .. } | Self::Answers { until, .. } | Self::Bake { until } => {
                Some(*until)
            }
            Self::Approval { until } | Self::Closed { until, .. } => *until,
            Self::Joiners { look, .. } => *look,
            _ => None,
        }
    }

    /// The one that ends first.
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
    // Long, for it has an arm for each reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { left } => write!(f, "{} devices to be sent to", thousands(*left)),
            Self::Silent { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "{devices} silent devices to be heard of, until {until}")
            }
            Self::Evidence {
                devices,
                in_the_way,
            } => {
                let devices = thousands(*devices);
                write!(f, "evidence of {devices} silent devices")?;
                because((!in_the_way.is_empty()).then_some(in_the_way), f)
            }
            Self::Applied(not_asked) => {
                f.write_str("the hub's word on how many devices have applied it")?;
                because(not_asked.as_ref(), f)
            }
            Self::Answers { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "the answers of {devices} devices, until {until}")
            }
            Self::Retry => f.write_str("the retry to be prepared: until then nothing is sent"),
            Self::Joiners { look, trouble } => {
                match look {
                    Some(at) => write!(f, "devices to join: the next look is at {at}")?,
                    None => f.write_str("devices to join: a look is under way")?,
                }
                let Some(trouble) = trouble else {
                    return Ok(());
                };
                write!(f, "; looks are given up: {trouble}")
            }
            Self::Bake { until } => write!(f, "the end of its bake at {until}"),
            Self::Metric { metric, left } => {
                write!(f, "{left} more measurements of metric {metric} to succeed")
            }
            Self::ApprovalToBeNoted | Self::Approval { until: None } => f.write_str("an approval"),
            Self::Approval { until: Some(until) } => write!(f, "an approval, until {until}"),
            Self::Closed { until, why } => match until {
                Some(until) => write!(f, "{until}: it is {why}"),
                None => write!(f, "ever: it is {why}"),
            },
            Self::Budgets(full) => write!(f, "room in {full}"),
            Self::Hubs { stuck, others } => stuck_hubs(stuck, *others, f),
            Self::NoWorker(hub) => write!(f, "a worker: none takes the batches of hub {hub}"),
            Self::Quota(hubs) => write!(
                f,
                "the quota of hub {hubs}: it has refused sends of late, so they are slower"
            ),
            Self::Queue(why) => write!(f, "the queue to take dispatches: {why}"),
            Self::HubNotConfigured { hub, configured } => write!(
                f,
                "hub {hub}, which is not configured for the orchestrator; configured are: {configured}"
            ),
            Self::OtherHub(why) => f.write_str(why),
            Self::Search(trouble) => write!(f, "its devices to be found: {trouble}"),
            Self::Line { behind, group } => {
                write!(f, "rollout {behind}, which is before it in group {group}")
            }
            Self::Plan => f.write_str("the plan to be whole"),
            Self::Paused(reason) => {
                write!(f, "the rollout to be resumed; it is paused: {reason}")
            }
            Self::Halted(reason) => {
                write!(f, "all rollouts to go on; they are stopped: {reason}")
            }
            Self::Aborting(reason) => {
                write!(f, "being skipped; the rollout is being aborted: {reason}")
            }
            Self::Stage { before, standstill } => {
                let names: Vec<_> = before.iter().map(StageName::as_str).collect();
                match &*names {
                    [current, _, ..] => {
                        let names = names.join(", ");
                        write!(
                            f,
                            "the turn of its stage, after stages {names}; now it is the turn of {current}"
                        )?;
                    }
                    one => write!(f, "the turn of its stage, after stage {}", one.concat())?,
                }
                match standstill {
                    Some(waiting) => write!(f, ", which waits for {waiting}"),
                    None => f.write_str(", which is under way"),
                }
            }
            Self::Quarantined => {
                f.write_str("somebody to look: its batch has brought down the workers that had it")
            }
            Self::Held { by, until } => {
                write!(
                    f,
                    "worker {by}, which has its batch until {until} or longer"
                )
            }
            Self::Lapsed => {
                f.write_str("another worker: the one that had its batch has not been heard of")
            }
            Self::Worker(Some(tag)) => {
                write!(f, "its turn in the order of {tag}, and a worker")
            }
            Self::Worker(None) => f.write_str("a worker to take its batch"),
            Self::Delivery => {
                f.write_str("the device to take the message, and the hub to tell of it")
            }
            Self::Then(first, then) => write!(f, "{first}; then {then}"),
        }
    }
}

/// The reason behind a colon, if there is one.
fn because(why: Option<&String>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    why.map_or(Ok(()), |why| write!(f, ": {why}"))
}

fn stuck_hubs(
    stuck: &Named<(HubName, Impasse)>,
    others: usize,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    for (index, (hub, impasse)) in stuck.first.iter().enumerate() {
        let mark = if index > 0 { "; " } else { "" };
        write!(f, "{mark}hub {hub}, which {impasse}")?;
    }
    if stuck.more > 0 {
        write!(f, "; and {} more hubs", stuck.more)?;
    }
    match others {
        0 => Ok(()),
        1 => f.write_str("; 1 other hub goes on"),
        n => write!(f, "; {n} other hubs go on"),
    }
}

/// Some of many: a line has room for so many. The rest is a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named<T> {
    first: Vec<T>,
    more: usize,
}

impl<T> Named<T> {
    /// The most that are named.
    const MOST: usize = 3;

    /// The first of them.
    #[must_use]
    pub fn of(all: impl IntoIterator<Item = T>) -> Self {
        let mut all = all.into_iter();
        Self {
            first: all.by_ref().take(Self::MOST).collect(),
            more: all.count(),
        }
    }
}

impl<T: Display> Display for Named<T> {
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

    /// Each reason as it is stored, and below it its words.
    const WORDS: &str = r#"
{"sends": {"left": 1000}}
    1,000 devices to be sent to
{"silent": {"devices": 1000, "until": "2026-09-21T14:13:20Z"}}
    1,000 silent devices to be heard of, until 2026-09-21T14:13:20Z
{"evidence": {"devices": 3, "in_the_way": ""}}
    evidence of 3 silent devices
{"evidence": {"devices": 3, "in_the_way": "no link"}}
    evidence of 3 silent devices: no link
{"applied": null}
    the hub's word on how many devices have applied it
{"applied": "no route"}
    the hub's word on how many devices have applied it: no route
{"answers": {"devices": 3, "until": "2026-09-21T14:13:20Z"}}
    the answers of 3 devices, until 2026-09-21T14:13:20Z
"retry"
    the retry to be prepared: until then nothing is sent
{"joiners": {"look": "2026-09-21T14:13:20Z"}}
    devices to join: the next look is at 2026-09-21T14:13:20Z
{"joiners": {"trouble": {"since": "2026-09-21T14:13:20Z", "error": "no route"}}}
    devices to join: a look is under way; looks are given up: no route; in vain since 2026-09-21T14:13:20Z
{"bake": {"until": "2026-09-21T14:13:20Z"}}
    the end of its bake at 2026-09-21T14:13:20Z
{"metric": {"metric": "errors", "left": 2}}
    2 more measurements of metric errors to succeed
"approval_to_be_noted"
    an approval
{"approval": {}}
    an approval
{"approval": {"until": "2026-09-21T14:13:20Z"}}
    an approval, until 2026-09-21T14:13:20Z
{"closed": {"until": "2026-09-21T14:13:20Z", "why": "outside_window"}}
    2026-09-21T14:13:20Z: it is outside its windows
{"closed": {"why": {"frozen": {"reason": "winter"}}}}
    ever: it is frozen: winter
{"budgets": {"first": [{"group": "a", "in_progress": 1, "at_most": 2}, {"group": "b", "in_progress": 1, "at_most": 2}], "more": 0}}
    room in a (1 of 2 devices in progress), b (1 of 2 devices in progress)
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}], ["b", {"trouble": "unauthorized", "reason": "401"}]], "more": 0}, "others": 0}}
    hub a, which refuses the key: 401; hub b, which refuses the key: 401
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}]], "more": 0}, "others": 1}}
    hub a, which refuses the key: 401; 1 other hub goes on
{"hubs": {"stuck": {"first": [["a", {"trouble": "unauthorized", "reason": "401"}]], "more": 4}, "others": 2}}
    hub a, which refuses the key: 401; and 4 more hubs; 2 other hubs go on
{"no_worker": "a"}
    a worker: none takes the batches of hub a
{"quota": {"first": ["a", "b", "c"], "more": 2}}
    the quota of hub a, b, c and 2 more: it has refused sends of late, so they are slower
{"queue": "no broker"}
    the queue to take dispatches: no broker
{"hub_not_configured": {"hub": "a", "configured": {"first": ["b", "c"], "more": 0}}}
    hub a, which is not configured for the orchestrator; configured are: b, c
{"other_hub": "hub a at x"}
    hub a at x
{"search": {"since": "2026-09-21T14:13:20Z", "error": "no route", "next_try": "2026-09-21T14:13:20Z"}}
    its devices to be found: no route; in vain since 2026-09-21T14:13:20Z, next try at 2026-09-21T14:13:20Z
{"line": {"behind": "b", "group": "g"}}
    rollout b, which is before it in group g
"plan"
    the plan to be whole
{"paused": "lunch"}
    the rollout to be resumed; it is paused: lunch
{"halted": "fire"}
    all rollouts to go on; they are stopped: fire
{"aborting": "bad"}
    being skipped; the rollout is being aborted: bad
{"stage": {"before": ["one"], "standstill": {"approval": {}}}}
    the turn of its stage, after stage one, which waits for an approval
{"stage": {"before": ["one", "two"]}}
    the turn of its stage, after stages one, two; now it is the turn of one, which is under way
"quarantined"
    somebody to look: its batch has brought down the workers that had it
{"held": {"by": "w", "until": "2026-09-21T14:13:20Z"}}
    worker w, which has its batch until 2026-09-21T14:13:20Z or longer
"lapsed"
    another worker: the one that had its batch has not been heard of
{"worker": "site"}
    its turn in the order of site, and a worker
{"worker": null}
    a worker to take its batch
"delivery"
    the device to take the message, and the hub to tell of it
{"then": ["retry", "plan"]}
    the retry to be prepared: until then nothing is sent; then the plan to be whole
"#;

    #[test]
    fn each_reason_has_its_words_and_reads_back() {
        let lines: Vec<_> = WORDS.trim().lines().map(str::trim).collect();
        for pair in lines.chunks_exact(2) {
            let waiting: Waiting = serde_json::from_str(pair[0]).expect(pair[0]);
            assert_eq!(waiting.to_string(), pair[1]);
            let stored = serde_json::to_string(&waiting).unwrap();
            assert_eq!(serde_json::from_str::<Waiting>(&stored).unwrap(), waiting);
        }
    }

    #[test]
    fn what_is_stored_is_bounded() {
        let long = "é".repeat(2_000);
        for waiting in [Waiting::of_queue(&long), Waiting::of_other_hub(&long)] {
            assert!(waiting.to_string().chars().count() < 700);
        }
        let many = Named::of(1..=9);
        assert_eq!(many.to_string(), "1, 2, 3 and 6 more");
    }
}
