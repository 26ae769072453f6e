//! How far the feedback of a hub has been received.
//!
//! A hub reports the fate of messages through a single feedback queue, in batches, to any listener.
//! Silence of a device is meaningful only if an answer would have been received. Every listener
//! therefore reports its progress to the store, and the *watermark* of a hub is computed from these
//! reports:
//!
//! ```text
//!  worker ──report: heard until 12:00:07──┐
//!  worker ──report: heard until 12:00:09──┼─▶ watermark 12:00:07: all feedback queued by then is merged
//!  lost worker: heard until 11:59:58 ─────┘   (11:59:58 until the hub redelivers the messages of the lost worker)
//! ```
//!
//! The *heard-until* time of a listener is the latest moment at which the queue was empty or the
//! newest received message was enqueued, provided every message handed to the listener was merged.
//! The watermark is the earliest heard-until time of all present listeners: each message in the
//! queue by then was handed to a present listener, and is merged.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Holder, HubName};
use crate::outcome::{Counts, Outcome};
use crate::reports::{Reported, Reports};
use crate::time::{Timestamp, ms};

pub use crate::reports::REPORT_RETENTION;

/// How long a hub collects feedback before sending a batch, unless the hub is configured otherwise:
/// 64 records or 15 s, whichever comes first (`iot-hub-devguide-messages-c2d`).
pub const BATCHING: Duration = Duration::from_secs(15);
/// How long a hub hides a feedback message that it has handed out, unless the hub is configured
/// otherwise (`lockDurationAsIso8601`).
pub const LOCK: Duration = Duration::from_secs(60);
/// Allowance for the hub's clock, its housekeeping and the network.
pub const MARGIN: Duration = Duration::from_secs(15);
/// A listener without a report for longer than this is lost.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The watermark of a hub is current up to this age.
const CURRENT_FOR: Duration = Duration::from_secs(60);
/// A longer gap between two passes of a driver does not count as driven time.
pub const MAX_PASS_GAP: Duration = Duration::from_secs(10);
/// The maximum number of obstacles in a text.
const MAX_NAMED_OBSTACLES: usize = 3;
/// The longest kept text about a listener's trouble, in characters.
const MAX_TROUBLE_CHARS: usize = 200;

/// A listener's report about its own progress, sent about once a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerReport {
    /// The listener.
    pub listener: Holder,
    /// The age of the heard-until time; `None` before the first heard-until time.
    pub received_ago: Option<Duration>,
    /// The listener's condition.
    pub state: ListenerState,
}

/// The condition of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    /// Whether messages of the queue can reach the listener.
    pub listening: bool,
    /// How long after this report, in milliseconds, the hub may hide unanswered messages of the
    /// listener from other listeners, should the listener be lost now.
    pub hidden_ms: u64,
    /// The number of messages of other applications at the front of the queue.
    pub foreign: u64,
    /// How long the hub collects feedback, in milliseconds.
    pub batching_ms: u64,
    /// Why the listener is not listening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl ListenerState {
    /// Adds the reason for not listening. A long text is cut.
    #[must_use]
    pub fn troubled_by(mut self, why: &str) -> Self {
        self.trouble = Some(why.chars().take(MAX_TROUBLE_CHARS).collect());
        self
    }
}

/// The newest report of a listener, as returned by the store. Times are ages on the store's clock,
/// so the clocks of the reporting and the reading process need not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// The listener.
    pub listener: Holder,
    /// The age of the heard-until time; `None` before the first heard-until time.
    pub received_ago: Option<Duration>,
    /// The age of the report.
    pub reported_ago: Duration,
    /// The listener's condition at the time of the report.
    pub state: ListenerState,
}

impl ListenerStatus {
    /// Returns whether the listener receives feedback now, according to the listener's reports.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.state.listening && self.reported_ago <= PRESENCE_TIMEOUT
    }

    /// Returns how long ago the locks on the listener's messages ended. `Err`: locks may be held
    /// for at most this time more.
    fn hidden_until_ago(&self) -> Result<Duration, Duration> {
        let hidden = Duration::from_millis(self.state.hidden_ms);
        match self.reported_ago.checked_sub(hidden) {
            Some(ago) => Ok(ago),
            None => Err(hidden - self.reported_ago),
        }
    }
}

/// The listeners to the feedback of hubs, as kept by a store within a single process.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Reports<ListenerState>);

impl Listeners {
    /// Stores a report at `now`, and deletes reports older than [`REPORT_RETENTION`]. Returns
    /// `true` for a new listener.
    pub fn report(&mut self, hub: &HubName, report: &ListenerReport, now: Timestamp) -> bool {
        let (listener, received_ago) = (&report.listener, report.received_ago);
        self.0
            .report(hub, listener, received_ago, &report.state, now)
    }

    /// Returns the listeners of a hub, with ages at `now`.
    #[must_use]
    pub fn of(&self, hub: &HubName, now: Timestamp) -> Vec<ListenerStatus> {
        self.0.of(hub, now).map(ListenerStatus::from).collect()
    }
}

impl From<Reported<ListenerState>> for ListenerStatus {
    fn from(report: Reported<ListenerState>) -> Self {
        Self {
            listener: report.by,
            received_ago: report.at_ago,
            reported_ago: report.reported_ago,
            state: report.state,
        }
    }
}

/// Why the feedback of a hub is not fully received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// No listener is present.
    NoListener,
    /// The listeners cannot receive feedback.
    ListenersFailing {
        /// The reason, for people.
        why: String,
    },
    /// Feedback of other applications is at the front of the queue.
    Foreign {
        /// The number of messages of other applications.
        messages: u64,
    },
    /// A listener was lost, and the hub still hides its messages.
    Hidden {
        /// The maximum time until the hub redelivers the messages.
        left: Duration,
    },
    /// The queue is being drained.
    Behind,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoListener => f.write_str("no worker listens to its feedback"),
            Self::ListenersFailing { why } => write!(f, "its feedback is not received: {why}"),
            Self::Foreign { messages: 1 } => {
                f.write_str("1 feedback message of other applications is ahead in the queue")
            }
            Self::Foreign { messages } => {
                write!(
                    f,
                    "{messages} feedback messages of other applications are ahead in the queue"
                )
            }
            Self::Hidden { left } => write!(
                f,
                "a worker is gone, and the hub redelivers its messages within {} s",
                left.as_secs().max(1)
            ),
            Self::Behind => f.write_str("its feedback is being received"),
        }
    }
}

/// How far the feedback of a single hub was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// All feedback enqueued by the hub until this moment is merged; `None` before the first such
    /// moment.
    pub heard_until: Option<Timestamp>,
    /// How long the hub collects feedback.
    pub batching: Duration,
    /// The current obstacle to further progress, if any.
    pub obstacle: Option<Obstacle>,
}

impl Watermark {
    /// Computes the watermark of a hub with these listeners, at `now` on the caller's clock.
    #[must_use]
    pub fn of(listeners: &[ListenerStatus], now: Timestamp) -> Self {
        let (present, lost): (Vec<_>, Vec<_>) =
            listeners.iter().partition(|listener| listener.is_present());
        let batching = listeners.iter().map(|it| it.state.batching_ms).max();
        let batching = batching.map_or(BATCHING, Duration::from_millis);
        let without_watermark = |obstacle| Self {
            heard_until: None,
            batching,
            obstacle: Some(obstacle),
        };
        if present.is_empty() {
            let troubled = lost.iter().filter(|it| it.reported_ago <= PRESENCE_TIMEOUT);
            let why = troubled.filter_map(|it| it.state.trouble.clone()).next();
            return without_watermark(why.map_or(Obstacle::NoListener, |why| {
                Obstacle::ListenersFailing { why }
            }));
        }
        let foreign = present.iter().map(|it| it.state.foreign).sum();
        let behind = match foreign {
            0 => Obstacle::Behind,
            messages => Obstacle::Foreign { messages },
        };
        let ages: Option<Vec<_>> = present.iter().map(|it| it.received_ago).collect();
        let Some(mut ago) = ages.and_then(|ages| ages.into_iter().max()) else {
            return without_watermark(behind);
        };
        let mut obstacle = (ago > CURRENT_FOR || foreign > 0).then_some(behind);
        // A lost listener's message is merged once the present listeners have heard beyond the end
        // of its lock.
        for listener in lost {
            let left = match listener.hidden_until_ago() {
                Ok(until_ago) if ago <= until_ago => continue,
                Ok(_) => Duration::ZERO,
                Err(left) => left,
            };
            obstacle = Some(Obstacle::Hidden { left });
            match listener.received_ago {
                Some(received_ago) => ago = ago.max(received_ago),
                None => return without_watermark(Obstacle::Hidden { left }),
            }
        }
        Self {
            heard_until: Some(now.minus(ago)),
            batching,
            obstacle,
        }
    }
}

/// How far the feedback of all relevant hubs was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// `None`: unknown. [`Timestamp::MAX`]: no feedback is expected.
    heard_until: Option<Timestamp>,
    /// The longest time for which a hub collects feedback, in milliseconds.
    batching_ms: u64,
    /// The obstacles, for people; empty without obstacles.
    obstacles: String,
}

impl Default for Evidence {
    fn default() -> Self {
        Self::complete()
    }
}

impl Evidence {
    /// Returns the evidence when no feedback is expected.
    #[must_use]
    pub fn complete() -> Self {
        Self {
            heard_until: Some(Timestamp::MAX),
            batching_ms: ms(BATCHING),
            obstacles: String::new(),
        }
    }

    /// Returns the evidence of several hubs: no more than of the least advanced hub.
    #[must_use]
    pub fn of(hubs: impl IntoIterator<Item = (HubName, Watermark)>) -> Self {
        let mut evidence = Self::complete();
        let (mut named, mut others) = (Vec::new(), 0);
        for (hub, watermark) in hubs {
            evidence.heard_until = evidence.heard_until.min(watermark.heard_until);
            evidence.batching_ms = evidence.batching_ms.max(ms(watermark.batching));
            match watermark.obstacle {
                Some(obstacle) if named.len() < MAX_NAMED_OBSTACLES => {
                    named.push(format!("hub {hub}: {obstacle}"));
                }
                Some(_) => others += 1,
                None => {}
            }
        }
        if others > 0 {
            named.push(format!("and {others} more hubs"));
        }
        evidence.obstacles = named.join("; ");
        evidence
    }

    fn is_complete(&self) -> bool {
        self.heard_until == Some(Timestamp::MAX)
    }

    /// Returns the longest time for which a hub collects feedback.
    #[must_use]
    pub fn batching(&self) -> Duration {
        Duration::from_millis(self.batching_ms)
    }

    /// Returns whether everything done by devices until `at` is merged: the hubs had their batching
    /// time to report, and the reports were received.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        self.heard_until
            .is_some_and(|until| until >= at.plus(self.batching()))
    }

    /// Returns whether the feedback of the hubs is being received at `now`.
    #[must_use]
    pub fn is_current(&self, now: Timestamp) -> bool {
        self.heard_until
            .is_some_and(|until| now.since(until) <= CURRENT_FOR)
    }

    /// Returns the obstacles, for people; empty without obstacles.
    #[must_use]
    pub fn obstacles(&self) -> &str {
        &self.obstacles
    }
}

/// The clock of a rollout. Time counts only while the rollout is driven and its hubs are heard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceClock {
    /// The bake time of the current stage so far, in milliseconds.
    #[serde(default)]
    baked_ms: u64,
    /// How long no new evidence has arrived, in milliseconds: the watermark stood still, or twin
    /// queries failed.
    #[serde(default)]
    without_evidence_ms: u64,
    /// Why the last twin query failed, for people; `None` after a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    query_failure: Option<String>,
    /// The evidence at the last count.
    #[serde(default)]
    evidence: Evidence,
    /// The time of the last count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted_to: Option<Timestamp>,
    /// When the rollout was resumed; `None` once all feedback until then is received, and the
    /// answers of devices were queried since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resumed_at: Option<Timestamp>,
}

impl EvidenceClock {
    /// Returns the bake time of the current stage so far.
    #[must_use]
    pub fn baked(&self) -> Duration {
        Duration::from_millis(self.baked_ms)
    }

    /// Returns how long no new evidence has arrived.
    #[must_use]
    pub fn without_evidence(&self) -> Duration {
        Duration::from_millis(self.without_evidence_ms)
    }

    /// Returns the evidence at the last count.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Returns why the last twin query failed, for people; `None` after a success.
    #[must_use]
    pub fn query_failure(&self) -> Option<&str> {
        self.query_failure.as_deref()
    }

    /// Notes the result of a twin query: `None` for success, or the reason for the failure.
    pub fn note_query(&mut self, failure: Option<&str>) {
        self.query_failure = failure.map(|why| why.chars().take(MAX_TROUBLE_CHARS).collect());
    }

    /// Returns whether reports of the time before the resume may be missing, and are still waited
    /// for: until no new evidence has arrived for `within`.
    #[must_use]
    pub fn is_behind_resume(&self, within: Duration) -> bool {
        self.resumed_at.is_some() && self.without_evidence() < within
    }

    /// Starts the bake of a stage.
    pub(crate) fn start_bake(&mut self, now: Timestamp) {
        *self = Self {
            counted_to: Some(now),
            resumed_at: self.resumed_at,
            ..Self::default()
        };
    }

    /// Starts to count. The time before does not count.
    pub(crate) fn start(&mut self, now: Timestamp) {
        (self.without_evidence_ms, self.counted_to) = (0, Some(now));
    }

    /// Resumes after a pause or halt, in which reports may not have been received.
    pub(crate) fn resume(&mut self, now: Timestamp) {
        self.start(now);
        self.resumed_at = Some(now);
    }

    /// Notes the time of the newest query for answers; `None` if the gate does not need answers.
    pub(crate) fn note_received(&mut self, queried_at: Option<Timestamp>) {
        let feedback = self.evidence.heard_until;
        let has_reached = |at| feedback >= Some(at) && queried_at.is_none_or(|time| time >= at);
        self.resumed_at = self.resumed_at.filter(|at| !has_reached(*at));
    }

    /// Counts the time up to `now`. A gap longer than the interval between two passes of a driver
    /// was not driven, and is left out.
    pub(crate) fn advance(&mut self, bakes: bool, evidence: &Evidence, now: Timestamp) {
        let passed = self.counted_to.map_or(Duration::ZERO, |to| now.since(to));
        let passed = if passed <= MAX_PASS_GAP {
            ms(passed)
        } else {
            0
        };
        self.counted_to = Some(now);
        if bakes && evidence.is_current(now) {
            self.baked_ms += passed;
        }
        let has_moved = evidence.heard_until > self.evidence.heard_until
            || self.evidence.is_complete()
            || evidence.is_complete();
        if self.query_failure.is_none() && has_moved {
            self.without_evidence_ms = 0;
        } else {
            self.without_evidence_ms += passed;
        }
        self.evidence = evidence.clone();
    }
}

/// Returns the number of devices with a message accepted by the hub, without feedback so far.
#[must_use]
pub fn silent_devices(counts: &Counts) -> u64 {
    counts.get(Outcome::Enqueued)
}

/// Returns the number of devices that may have a message, without feedback so far.
#[must_use]
pub fn unanswered_devices(counts: &Counts) -> u64 {
    silent_devices(counts) + counts.get(Outcome::Unknown)
}

#[cfg(test)]
mod tests;
