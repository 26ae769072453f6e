//! How long a plan will take, and what it will cost of the hubs' daily quotas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HubPlan;
use super::course::{Part, courses};
use crate::hub::HubLimits;
use crate::spec::StagePace;

/// What one hub's part will take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HubEstimate {
    /// The hub and its devices.
    #[serde(flatten)]
    pub plan: HubPlan,
    /// Sends a minute, `None` without a limit; with a ramp, those in the end; of several stages, those of the fastest.
    pub sends_per_minute: Option<f64>,
    /// Time to send them all, `None` without a limit.
    #[serde(rename = "sending_seconds", with = "seconds")]
    pub sending: Option<Duration>,
    /// Messages that count against the daily quota.
    pub metered_messages: u64,
    /// The daily quota, `None` without a limit.
    pub messages_per_day: Option<u64>,
}

/// What a plan will take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// By hub.
    pub hubs: Vec<HubEstimate>,
    /// Until the slowest hub is done; `None` when none has a limit.
    #[serde(rename = "sending_seconds", with = "seconds")]
    pub sending: Option<Duration>,
}

/// A time as seconds, or null.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(
        clippy::ref_option,
        reason = "serde hands out a reference to the field"
    )]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        let time = seconds.map(Duration::try_from_secs_f64).transpose();
        time.map_err(serde::de::Error::custom)
    }
}

impl HubEstimate {
    /// Sends a minute on the average: with a ramp, less than in the end. `None` without a limit.
    #[must_use]
    pub fn mean_pace(&self) -> Option<f64> {
        let minutes = self.sending?.as_secs_f64() / 60.0;
        if minutes > 0.0 {
            Some(self.plan.devices as f64 / minutes)
        } else {
            self.sends_per_minute
        }
    }

    /// Days of the whole daily quota that this part uses.
    #[must_use]
    pub fn days_of_quota(&self) -> Option<f64> {
        self.messages_per_day
            .map(|quota| self.metered_messages as f64 / quota.max(1) as f64)
    }
}

impl Estimate {
    /// What this and `next` take one after the other, as stages do: each begins when the slowest hub is done with
    /// the one before. Both are of the same hubs. Waiting at gates is not part of it.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let hubs = self.hubs.into_iter().zip(next.hubs);
        Self {
            hubs: hubs.map(|(one, other)| one.then(&other)).collect(),
            sending: sum(self.sending, next.sending),
        }
    }
}

impl HubEstimate {
    fn then(self, next: &Self) -> Self {
        assert_eq!(
            self.plan.hub, next.plan.hub,
            "estimates are of the same hubs"
        );
        let paces = self.sends_per_minute.zip(next.sends_per_minute);
        Self {
            plan: HubPlan {
                hub: self.plan.hub,
                devices: self.plan.devices + next.plan.devices,
                batches: self.plan.batches + next.plan.batches,
            },
            sends_per_minute: paces.map(|(one, other)| one.max(other)),
            sending: sum(self.sending, next.sending),
            metered_messages: self.metered_messages + next.metered_messages,
            messages_per_day: self.messages_per_day,
        }
    }
}

/// Without a limit, sending takes no time that is known.
fn sum(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}

/// Estimates a plan, or one stage of it: `message_bytes` is body and properties of one message; `before` devices
/// have been counted by a ramp when it begins. All are taken to be sent to, and to succeed, at once.
#[must_use]
pub fn estimate(
    hubs: &[HubPlan],
    limits: impl Fn(&crate::ids::HubName) -> HubLimits,
    pace: &StagePace,
    before: u64,
    message_bytes: usize,
) -> Estimate {
    let part = |plan: &HubPlan| Part {
        devices: plan.devices,
        limits: limits(&plan.hub),
    };
    let parts: Vec<_> = hubs.iter().map(part).collect();
    let hubs: Vec<_> = hubs
        .iter()
        .zip(courses(pace, before, &parts))
        .map(|(plan, course)| {
            let limits = limits(&plan.hub);
            let metered = (message_bytes as u64).div_ceil(limits.meter_bytes).max(1);
            HubEstimate {
                plan: plan.clone(),
                sends_per_minute: course.pace,
                sending: course
                    .minutes
                    .map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
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
    use crate::hub::{HEADROOM, Tier};
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
                &StagePace::constant(rate.map(|r| r.parse().unwrap())),
                0,
                5_000,
            );
            assert_eq!(estimate.hubs[0].metered_messages, 2_000_000);
            estimate.sending.unwrap().as_secs_f64() / 3600.0
        };
        assert!((hours(Tier::S1, 1, None) - 168.35).abs() < 0.01);
        assert!((hours(Tier::S3, 10, None) - 0.3367).abs() < 0.001);
        assert!((hours(Tier::S3, 10, Some("1000/min")) - 16.835).abs() < 0.001);
    }

    #[test]
    fn a_stage_begins_when_the_slowest_hub_is_done() {
        let stage = |devices: [u64; 2], rate: &str| {
            let hubs = ["eu", "us"].into_iter().zip(devices);
            let hubs: Vec<_> = hubs
                .map(|(hub, devices)| HubPlan {
                    hub: HubName::new(hub).unwrap(),
                    devices,
                    batches: 1,
                })
                .collect();
            let pace = StagePace::constant(Some(rate.parse().unwrap()));
            estimate(&hubs, |_| HubLimits::unlimited(), &pace, 0, 100)
        };
        let minutes = |time: Option<Duration>| time.unwrap().as_secs_f64() / 60.0 * HEADROOM;
        let both = stage([10, 100], "10/min").then(stage([1_000, 0], "100/min"));
        assert!((minutes(both.sending) - 20.0).abs() < 1e-6);
        let hubs: Vec<_> = both
            .hubs
            .iter()
            .map(|hub| (hub.plan.devices, minutes(hub.sending).round()))
            .collect();
        assert_eq!(hubs, [(1_010, 11.0), (100, 10.0)]);
        assert_eq!(both.hubs[0].sends_per_minute, Some(100.0 * HEADROOM));
        assert_eq!(both.hubs[0].metered_messages, 1_010);
    }
}
