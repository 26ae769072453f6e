//! The limits of a hub: the tier, the units, and the configured share of them.
//!
//! The numbers are from `iot-hub-devguide-quotas-throttling` (2023-02). They are defaults: each can
//! be configured.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::{BATCHING, LOCK};

/// The tier of a hub. The basic tiers cannot send to devices, so they are missing here.
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
    /// Returns the cloud-to-device sends per minute and unit, for all senders together.
    #[must_use]
    pub fn sends_per_minute(self) -> f64 {
        match self {
            Self::F1 | Self::S1 | Self::S2 => 100.0,
            Self::S3 => 5_000.0,
        }
    }

    /// Returns the twin queries (pages) per minute and unit.
    #[must_use]
    pub fn queries_per_minute(self) -> f64 {
        match self {
            Self::F1 | Self::S1 | Self::S2 => 20.0,
            Self::S3 => 1_000.0,
        }
    }

    /// Returns the messages per day and unit, for all uses of the hub.
    #[must_use]
    pub fn messages_per_day(self) -> u64 {
        match self {
            Self::F1 => 8_000,
            Self::S1 => 400_000,
            Self::S2 => 6_000_000,
            Self::S3 => 300_000_000,
        }
    }

    /// Returns the number of bytes that count as one message against the daily quota.
    #[must_use]
    pub fn meter_bytes(self) -> u64 {
        match self {
            Self::F1 => 512,
            _ => 4096,
        }
    }

    /// Returns the most units of a hub of this tier.
    #[must_use]
    pub fn max_units(self) -> u32 {
        match self {
            Self::F1 => 1,
            Self::S1 | Self::S2 => 200,
            Self::S3 => 10,
        }
    }
}

/// How fast one hub may be used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HubLimits {
    /// Sends per minute; `None` for a hub without limits (an emulator configured so).
    pub sends_per_minute: Option<f64>,
    /// Query pages per minute; `None` likewise.
    pub queries_per_minute: Option<f64>,
    /// Messages per day; `None` likewise.
    pub messages_per_day: Option<u64>,
    /// Bytes that count as one message against the daily quota.
    pub meter_bytes: u64,
    /// The handling of the hub's feedback.
    pub feedback: FeedbackRules,
    /// The longest time for which a change of a twin may be missing in query results.
    pub query_lag: Duration,
}

/// The handling of a hub's feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedbackRules {
    /// Whether other applications use the hub's feedback queue.
    pub queue: FeedbackQueue,
    /// How long the hub hides a feedback message from other listeners after handing it out.
    pub lock: Duration,
    /// How long the hub collects records before sending a feedback message.
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

/// Whether other applications use a hub's only feedback queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedbackQueue {
    /// Other applications use the queue, too: their messages are left for them.
    #[default]
    Shared,
    /// No other application uses the queue: foreign messages are removed, so no message is stuck
    /// behind them.
    Exclusive,
}

/// The used part of the quota. The rest is for jitter on the way to the hub: messages sent at an
/// even pace can arrive a little closer together, and the hub counts arrivals. A reserve of 1 %
/// tolerates 0.6 s of jitter, for a hub with 100 sends per minute as well as with 50,000. The same
/// part applies to a rollout's own rate: the rate is a promise, too, and the rollout may catch up
/// for a moment ([`MAKE_UP`](crate::permits::MAKE_UP), half of those 0.6 s).
pub const HEADROOM: f64 = 0.99;

impl HubLimits {
    /// Returns the limits for a `share` (0 to 1] of a hub with `units` units of `tier`.
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

    /// Returns the limits of an unlimited hub.
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

    /// Returns the pace of sending, per minute: the lower of the quota and the rollout's own rate,
    /// less the headroom.
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
