//! Until when a hub was heard.
//!
//! A hub tells what became of messages over one feedback queue, in batches, to whoever listens. Silence of a device means
//! something only when its answer would have been heard. So every listener reports to the store how far it has heard, and
//! the *watermark* of a hub follows from these reports:
//!
//! ```text
//!  worker ──report: heard until 12:00:07──┐
//!  worker ──report: heard until 12:00:09──┼─▶ watermark 12:00:07: all that the hub had told by then is merged
//!  lost worker: heard until 11:59:58 ─────┘   (11:59:58 until the hub hands out again what the lost one held)
//! ```
//!
//! A listener has *heard until* the last moment at which the queue was empty, or its newest message was put into the
//! queue, while all messages that it had been handed were merged. The watermark is the earliest of these moments over the
//! listeners that are present: a message that was in the queue by then was handed to one of them, and is merged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Holder, HubName};
use crate::message::Ack;
use crate::outcome::Counts;
use crate::outcome::Outcome;
use crate::ports::Tally;
use crate::rollout::Rollout;
use crate::spec::Rung;
use crate::time::Timestamp;

/// How long a hub collects feedback before it tells, unless the hub's configuration says otherwise: 64 records or 15 s,
/// whichever comes first (`iot-hub-devguide-messages-c2d`).
pub const BATCHING: Duration = Duration::from_secs(15);
/// How long a feedback message is hidden from others once it was handed out, unless the hub's configuration says
/// otherwise (`lockDurationAsIso8601`).
pub const LOCK: Duration = Duration::from_secs(60);
/// The allowance for the hub's clock, its housekeeping and the network.
pub const MARGIN: Duration = Duration::from_secs(15);
/// A listener that has not reported for longer is lost.
const PRESENT: Duration = Duration::from_secs(10);
/// A report that is older says nothing any more: no lock is that long. Stores may forget it.
pub const FORGOTTEN: Duration = Duration::from_secs(600);
/// A hub is being heard while its watermark is no older than this.
const CURRENT: Duration = Duration::from_secs(60);
/// Time between two looks of a driver that is longer than this was not driven.
const DRIVEN: Duration = Duration::from_secs(10);
/// Obstacles that are named.
const NAMED: usize = 3;
/// The longest text about a listener's trouble that is kept, in characters.
const TROUBLE: usize = 200;

/// What a listener says of itself, about once a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerReport {
    /// The listener.
    pub listener: Holder,
    /// How long ago the moment is until which it has heard; `None` before there is one.
    pub heard_ago: Option<Duration>,
    /// How it is doing.
    pub state: ListenerState,
}

/// How a listener is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    /// The queue can reach it.
    pub listening: bool,
    /// For how long after this report, in milliseconds, messages may be hidden from others that it was handed and has not
    /// answered for, should it be lost now.
    pub hidden_ms: u64,
    /// Messages of other applications that stand in front.
    pub foreign: u64,
    /// How long the hub collects feedback, in milliseconds.
    pub batching_ms: u64,
    /// Why it does not listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl ListenerState {
    /// The same, with why it does not listen. A long text is cut.
    #[must_use]
    pub fn troubled_by(mut self, why: &str) -> Self {
        self.trouble = Some(why.chars().take(TROUBLE).collect());
        self
    }
}

/// A listener's newest report, as the store gives it back. Times are ages on the store's clock, so the clocks of those
/// who report and of those who read need not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStatus {
    /// The listener.
    pub listener: Holder,
    /// How long ago the moment is until which it has heard.
    pub heard_ago: Option<Duration>,
    /// How long ago it reported.
    pub reported_ago: Duration,
    /// How it was doing then.
    pub state: ListenerState,
}

impl ListenerStatus {
    fn is_present(&self) -> bool {
        self.state.listening && self.reported_ago <= PRESENT
    }

    /// How long ago others could have been handed all that it had; `None` when they may not have been yet, with how long
    /// that may take.
    fn hidden_until_ago(&self) -> Result<Duration, Duration> {
        let hidden = Duration::from_millis(self.state.hidden_ms);
        match self.reported_ago.checked_sub(hidden) {
            Some(ago) => Ok(ago),
            None => Err(hidden - self.reported_ago),
        }
    }
}

/// Listeners to the hubs' feedback, as a store in one process keeps them.
#[derive(Debug, Clone, Default)]
pub struct Listeners(BTreeMap<HubName, BTreeMap<Holder, Known>>);

#[derive(Debug, Clone)]
struct Known {
    heard: Option<Timestamp>,
    reported: Timestamp,
    state: ListenerState,
}

impl Listeners {
    /// Takes a report at `now`, and forgets those that say nothing any more. `true` for a listener that was not known.
    pub fn report(&mut self, hub: &HubName, report: &ListenerReport, now: Timestamp) -> bool {
        let listeners = self.0.entry(hub.clone()).or_default();
        listeners.retain(|_, known| now.since(known.reported) < FORGOTTEN);
        let known = Known {
            heard: report.heard_ago.map(|ago| now.minus(ago)),
            reported: now,
            state: report.state.clone(),
        };
        let listener = report.listener.clone();
        listeners.insert(listener, known).is_none()
    }

    /// The listeners of a hub at `now`.
    #[must_use]
    pub fn of(&self, hub: &HubName, now: Timestamp) -> Vec<ListenerStatus> {
        let listeners = self.0.get(hub).into_iter().flatten();
        let status = |(listener, known): (&Holder, &Known)| ListenerStatus {
            listener: listener.clone(),
            heard_ago: known.heard.map(|heard| now.since(heard)),
            reported_ago: now.since(known.reported),
            state: known.state.clone(),
        };
        listeners.map(status).collect()
    }
}

/// Why a hub is not heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Nobody listens.
    NoListener,
    /// Those who should listen cannot.
    Away {
        /// Why, for people.
        why: String,
    },
    /// Feedback of other applications stands in front.
    Foreign {
        /// So many messages of it.
        messages: u64,
    },
    /// A listener was lost, and the hub still hides messages that it had.
    Hidden {
        /// For how long, at the most.
        left: Duration,
    },
    /// The queue is being emptied.
    Behind,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoListener => f.write_str("no worker listens to its feedback"),
            Self::Away { why } => write!(f, "its feedback cannot be received: {why}"),
            Self::Foreign { messages: 1 } => {
                f.write_str("1 feedback message of other applications is in front")
            }
            Self::Foreign { messages } => {
                write!(
                    f,
                    "{messages} feedback messages of other applications are in front"
                )
            }
            Self::Hidden { left } => write!(
                f,
                "a worker has gone, and the hub hands out again what it had within {} s",
                left.as_secs().max(1)
            ),
            Self::Behind => f.write_str("its feedback is being received"),
        }
    }
}

/// How far one hub was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// All feedback that the hub had put into its queue by this moment is merged; `None` before there is such a moment.
    pub heard_until: Option<Timestamp>,
    /// How long the hub collects feedback.
    pub batching: Duration,
    /// What stands in the way of hearing more, if anything does.
    pub obstacle: Option<Obstacle>,
}

impl Watermark {
    /// The watermark of a hub with these listeners, at `now` of the caller's clock.
    #[must_use]
    pub fn of(listeners: &[ListenerStatus], now: Timestamp) -> Self {
        let (present, lost): (Vec<_>, Vec<_>) =
            listeners.iter().partition(|listener| listener.is_present());
        let batching = listeners.iter().map(|it| it.state.batching_ms).max();
        let batching = batching.map_or(BATCHING, Duration::from_millis);
        let not_heard = |obstacle| Self {
            heard_until: None,
            batching,
            obstacle: Some(obstacle),
        };
        if present.is_empty() {
            let troubled = lost.iter().filter(|it| it.reported_ago <= PRESENT);
            let why = troubled.filter_map(|it| it.state.trouble.clone()).next();
            return not_heard(why.map_or(Obstacle::NoListener, |why| Obstacle::Away { why }));
        }
        let foreign = present.iter().map(|it| it.state.foreign).sum();
        let behind = match foreign {
            0 => Obstacle::Behind,
            messages => Obstacle::Foreign { messages },
        };
        let heard: Option<Vec<_>> = present.iter().map(|it| it.heard_ago).collect();
        let Some(mut ago) = heard.and_then(|heard| heard.into_iter().max()) else {
            return not_heard(behind);
        };
        let mut obstacle = (ago > CURRENT || foreign > 0).then_some(behind);
        // A message that a lost listener had is merged once the others have heard beyond its hiding.
        for listener in lost {
            let left = match listener.hidden_until_ago() {
                Ok(until_ago) if ago <= until_ago => continue,
                Ok(_) => Duration::ZERO,
                Err(left) => left,
            };
            obstacle = Some(Obstacle::Hidden { left });
            match listener.heard_ago {
                Some(heard_ago) => ago = ago.max(heard_ago),
                None => return not_heard(Obstacle::Hidden { left }),
            }
        }
        Self {
            heard_until: Some(now.minus(ago)),
            batching,
            obstacle,
        }
    }
}

/// How far the hubs were heard that something is to be heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// `None`: nothing is known. [`Timestamp::MAX`]: there is nothing to be heard.
    heard_until: Option<Timestamp>,
    /// How long the hubs collect feedback, in milliseconds.
    batching_ms: u64,
    /// What stands in the way, for people; empty when nothing does.
    in_the_way: String,
}

impl Default for Evidence {
    fn default() -> Self {
        Self::complete()
    }
}

impl Evidence {
    /// There is nothing to be heard.
    #[must_use]
    pub fn complete() -> Self {
        Self {
            heard_until: Some(Timestamp::MAX),
            batching_ms: ms(BATCHING),
            in_the_way: String::new(),
        }
    }

    /// Of several hubs: as little as of the one that was heard least.
    #[must_use]
    pub fn of(hubs: impl IntoIterator<Item = (HubName, Watermark)>) -> Self {
        let mut evidence = Self::complete();
        let (mut named, mut others) = (Vec::new(), 0);
        for (hub, watermark) in hubs {
            evidence.heard_until = evidence.heard_until.min(watermark.heard_until);
            evidence.batching_ms = evidence.batching_ms.max(ms(watermark.batching));
            match watermark.obstacle {
                Some(obstacle) if named.len() < NAMED => {
                    named.push(format!("hub {hub}: {obstacle}"));
                }
                Some(_) => others += 1,
                None => {}
            }
        }
        if others > 0 {
            named.push(format!("and {others} more hubs"));
        }
        evidence.in_the_way = named.join("; ");
        evidence
    }

    fn is_complete(&self) -> bool {
        self.heard_until == Some(Timestamp::MAX)
    }

    /// How long the hubs collect feedback, at the most.
    #[must_use]
    pub fn batching(&self) -> Duration {
        Duration::from_millis(self.batching_ms)
    }

    /// All is merged that devices had done by `at`: the hubs have told it, within their batching, and were heard.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        self.heard_until
            .is_some_and(|until| until >= at.plus(self.batching()))
    }

    /// The hubs are being heard at `now`.
    #[must_use]
    pub fn is_current(&self, now: Timestamp) -> bool {
        self.heard_until
            .is_some_and(|until| now.since(until) <= CURRENT)
    }

    /// What stands in the way, for people; empty when nothing does.
    #[must_use]
    pub fn in_the_way(&self) -> &str {
        &self.in_the_way
    }
}

/// Time of a rollout that counts only while it is driven and its hubs are heard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceClock {
    /// What its current stage has baked, in milliseconds.
    #[serde(default)]
    baked_ms: u64,
    /// For how long nothing more was learned, in milliseconds: the watermark has not moved, or twins could not be asked.
    #[serde(default)]
    unheard_ms: u64,
    /// Why the hubs could not be asked for twins the last time, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_asked: Option<String>,
    /// How far the hubs were heard the last time.
    #[serde(default)]
    evidence: Evidence,
    /// Up to when time was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted_to: Option<Timestamp>,
}

impl EvidenceClock {
    /// What the current stage has baked.
    #[must_use]
    pub fn baked(&self) -> Duration {
        Duration::from_millis(self.baked_ms)
    }

    /// For how long nothing more was learned.
    #[must_use]
    pub fn unheard(&self) -> Duration {
        Duration::from_millis(self.unheard_ms)
    }

    /// How far the hubs were heard the last time.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Why the hubs could not be asked for twins the last time, for people.
    #[must_use]
    pub fn not_asked(&self) -> Option<&str> {
        self.not_asked.as_deref()
    }

    /// The hubs were asked for twins, or could not be.
    pub fn asked(&mut self, failure: Option<&str>) {
        self.not_asked = failure.map(|why| why.chars().take(TROUBLE).collect());
    }

    /// The bake of a stage begins.
    pub(crate) fn start_bake(&mut self, now: Timestamp) {
        *self = Self {
            counted_to: Some(now),
            ..Self::default()
        };
    }

    /// The rollout goes on after a stop: the time of the stop does not count.
    pub(crate) fn go_on(&mut self, now: Timestamp) {
        (self.unheard_ms, self.counted_to) = (0, Some(now));
    }

    /// Counts the time up to `now`. A longer time than a driver leaves between two looks was not driven, and is left out.
    pub(crate) fn advance(&mut self, bakes: bool, evidence: &Evidence, now: Timestamp) {
        let passed = self.counted_to.map_or(Duration::ZERO, |to| now.since(to));
        let passed = if passed <= DRIVEN { ms(passed) } else { 0 };
        self.counted_to = Some(now);
        if bakes && evidence.is_current(now) {
            self.baked_ms += passed;
        }
        let has_moved = evidence.heard_until > self.evidence.heard_until
            || self.evidence.is_complete()
            || evidence.is_complete();
        if self.not_asked.is_none() && has_moved {
            self.unheard_ms = 0;
        } else {
            self.unheard_ms += passed;
        }
        self.evidence = evidence.clone();
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Rollout {
    /// The hubs that are to be heard before it is known what a running rollout does next: those with silent devices, if
    /// its current gate, or its end, asks for their answers. `left`: something is to be sent.
    #[must_use]
    pub fn hubs_to_hear<'a>(&self, tallies: &'a [Tally], left: bool) -> BTreeSet<&'a HubName> {
        if self.spec.message.ack == Ack::None || self.retry.is_some() {
            return BTreeSet::new();
        }
        let stage = self.stage();
        let is_open = self
            .stage_progress()
            .is_some_and(|progress| progress.passed_at.is_none());
        let gate = self.spec.gate_of(stage).filter(|_| is_open);
        let counts: fn(&Counts) -> u64 = match gate {
            Some(gate) if gate.counts != Rung::Enqueued && gate.measures() => silent,
            None if !left => unanswered,
            _ => return BTreeSet::new(),
        };
        let of_stage = |tally: &&Tally| gate.is_none() || tally.stage == stage;
        let tallies = tallies.iter().filter(of_stage);
        let heard = tallies.filter(|tally| counts(&tally.counts) > 0);
        heard.map(|tally| &tally.hub).collect()
    }
}

/// Devices that the hub has a message for, and that have not been heard of.
#[must_use]
pub fn silent(counts: &Counts) -> u64 {
    counts.get(Outcome::Enqueued)
}

/// Devices that may have a message and have not been heard of.
#[must_use]
pub fn unanswered(counts: &Counts) -> u64 {
    silent(counts) + counts.get(Outcome::Unknown)
}

#[cfg(test)]
mod tests;
