//! How long a plan will take, and what it will cost of the hubs' daily quotas.

use std::time::Duration;

use serde::Serialize;

use super::HubPlan;
use crate::hub::HubLimits;
use crate::spec::Rate;

/// What one hub's part will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HubEstimate {
    /// The hub and its devices.
    #[serde(flatten)]
    pub plan: HubPlan,
    /// Sends a minute, `None` without a limit.
    pub sends_per_minute: Option<f64>,
    /// Time to send them all, `None` without a limit.
    #[serde(rename = "sending_seconds", serialize_with = "as_seconds")]
    pub sending: Option<Duration>,
    /// Messages that count against the daily quota.
    pub metered_messages: u64,
    /// The daily quota, `None` without a limit.
    pub messages_per_day: Option<u64>,
}

/// What a plan will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// By hub.
    pub hubs: Vec<HubEstimate>,
    /// Until the slowest hub is done; `None` when none has a limit.
    #[serde(rename = "sending_seconds", serialize_with = "as_seconds")]
    pub sending: Option<Duration>,
}

#[expect(
    clippy::ref_option,
    reason = "serde hands out a reference to the field"
)]
fn as_seconds<S: serde::Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

impl HubEstimate {
    /// Days of the whole daily quota that this part uses.
    #[must_use]
    pub fn days_of_quota(&self) -> Option<f64> {
        self.messages_per_day
            .map(|quota| self.metered_messages as f64 / quota.max(1) as f64)
    }
}

/// Estimates a plan: `message_bytes` is body and properties of one message.
#[must_use]
pub fn estimate(
    hubs: &[HubPlan],
    limits: impl Fn(&crate::ids::HubName) -> HubLimits,
    rate: Option<Rate>,
    message_bytes: usize,
) -> Estimate {
    let hubs: Vec<_> = hubs
        .iter()
        .map(|plan| {
            let limits = limits(&plan.hub);
            let pace = limits.pace(rate);
            let metered = (message_bytes as u64).div_ceil(limits.meter_bytes).max(1);
            HubEstimate {
                plan: plan.clone(),
                sends_per_minute: pace,
                sending: pace
                    .map(|pace| Duration::from_secs_f64(plan.devices as f64 / pace * 60.0)),
                metered_messages: plan.devices * metered,
                messages_per_day: limits.messages_per_day,
            }
        })
        .collect();
    let sending = hubs.iter().filter_map(|hub| hub.sending).max();
    Estimate { hubs, sending }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Tier;
    use crate::ids::HubName;

    #[test]
    fn a_million_devices_take_what_the_quota_says() {
        let plan = HubPlan {
            hub: HubName::new("eu").unwrap(),
            devices: 1_000_000,
            batches: 1,
        };
        let hours = |tier, units, rate: Option<&str>| {
            let estimate = estimate(
                std::slice::from_ref(&plan),
                |_| HubLimits::of(tier, units, 1.0),
                rate.map(|r| r.parse().unwrap()),
                5_000,
            );
            assert_eq!(estimate.hubs[0].metered_messages, 2_000_000);
            estimate.sending.unwrap().as_secs_f64() / 3600.0
        };
        assert!((hours(Tier::S1, 1, None) - 168.35).abs() < 0.01);
        assert!((hours(Tier::S3, 10, None) - 0.3367).abs() < 0.001);
        assert!((hours(Tier::S3, 10, Some("1000/min")) - 16.835).abs() < 0.001);
    }
}
