//! What a hub allows: its tier, its units, and our share of them.
//!
//! The numbers are those of `iot-hub-devguide-quotas-throttling` (2023-02). They are defaults:
//! every one of them can be set in the configuration.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::{BATCHING, LOCK};

/// A hub's tier. The basic tiers cannot send to devices, so they are not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// The free tier; one unit.
    #[serde(alias = "free", alias = "f1")]
    F1,
    /// Standard 1; up to 200 units.
    #[serde(alias = "s1")]
    S1,
    /// Standard 2; up to 200 units.
    #[serde(alias = "s2")]
    S2,
    /// Standard 3; up to 10 units.
    #[serde(alias = "s3")]
    S3,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Tier {
    /// Cloud-to-device sends a minute and unit, for all senders together.
    #[must_use]
    pub fn sends_per_minute(self) -> f64 {
        match self {
            Self::F1 | Self::S1 | Self::S2 => 100.0,
            Self::S3 => 5_000.0,
        }
    }

    /// Twin queries (pages) a minute and unit.
    #[must_use]
    pub fn queries_per_minute(self) -> f64 {
        match self {
            Self::F1 | Self::S1 | Self::S2 => 20.0,
            Self::S3 => 1_000.0,
        }
    }

    /// Messages a day and unit, for everything that the hub is used for.
    #[must_use]
    pub fn messages_per_day(self) -> u64 {
        match self {
            Self::F1 => 8_000,
            Self::S1 => 400_000,
            Self::S2 => 6_000_000,
            Self::S3 => 300_000_000,
        }
    }

    /// Bytes that count as one message against the daily quota.
    #[must_use]
    pub fn meter_bytes(self) -> u64 {
        match self {
            Self::F1 => 512,
            _ => 4096,
        }
    }

    /// How many units a hub of this tier can have.
    #[must_use]
    pub fn max_units(self) -> u32 {
        match self {
            Self::F1 => 1,
            Self::S1 | Self::S2 => 200,
            Self::S3 => 10,
        }
    }
}

/// How fast we may use one hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HubLimits {
    /// Sends a minute; `None` for a hub without limits (an emulator that is told so).
    pub sends_per_minute: Option<f64>,
    /// Query pages a minute; `None` likewise.
    pub queries_per_minute: Option<f64>,
    /// Messages a day; `None` likewise.
    pub messages_per_day: Option<u64>,
    /// Bytes that count as one message against the daily quota.
    pub meter_bytes: u64,
    /// How its feedback is handled.
    pub feedback: FeedbackRules,
    /// For how long at the most a change of a twin is missing in the answers to queries.
    pub query_lag: Duration,
}

/// How a hub's feedback is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedbackRules {
    /// Whose the hub's feedback queue is.
    pub queue: FeedbackQueue,
    /// How long the hub hides a message that it has handed out.
    pub lock: Duration,
    /// How long the hub collects records before it tells.
    pub batching: Duration,
}

impl Default for FeedbackRules {
    fn default() -> Self {
        Self {
            queue: FeedbackQueue::Shared,
            lock: LOCK,
            batching: BATCHING,
        }
    }
}

/// Whose a hub's one feedback queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedbackQueue {
    /// Other applications take from it, too: what is not ours is left to them.
    #[default]
    Shared,
    /// Nobody else takes from it: what is not ours is removed, so that nothing stands behind it.
    Exclusive,
}

/// Of the quota, what we plan to use. The rest is for the jitter of the way to the hub: messages
/// that left evenly can arrive a little closer together, and the hub counts arrivals.
/// At 1 %, a hub with 100 sends a minute tolerates 0.6 s of it, one with 50,000 as much. The same
/// of a rollout's own rate, which is a promise, too, and may be caught up with for a moment
/// ([`MAKE_UP`](crate::permits::MAKE_UP), half of those 0.6 s).
pub const HEADROOM: f64 = 0.99;

impl HubLimits {
    /// The limits of a hub with `units` of `tier`, of which we may use `share` (0 to 1].
    #[must_use]
    pub fn of(tier: Tier, units: u32, share: f64) -> Self {
        let units = f64::from(units);
        Self {
            sends_per_minute: Some(tier.sends_per_minute() * units * share),
            queries_per_minute: Some(tier.queries_per_minute() * units * share),
            messages_per_day: Some((tier.messages_per_day() as f64 * units * share) as u64),
            meter_bytes: tier.meter_bytes(),
            feedback: FeedbackRules::default(),
            query_lag: Duration::ZERO,
        }
    }

    /// A hub without limits.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            sends_per_minute: None,
            queries_per_minute: None,
            messages_per_day: None,
            meter_bytes: 4096,
            feedback: FeedbackRules::default(),
            query_lag: Duration::ZERO,
        }
    }

    /// The pace of sending, a minute: the quota or the rollout's own lower rate, less the headroom.
    #[must_use]
    pub fn pace(&self, rollout: Option<crate::spec::Rate>) -> Option<f64> {
        let rate = rollout.map(crate::spec::Rate::as_per_minute);
        let lower = match (self.sends_per_minute, rate) {
            (Some(quota), Some(rate)) => Some(quota.min(rate)),
            (quota, rate) => quota.or(rate),
        };
        lower.map(|most| most * HEADROOM)
    }
}
