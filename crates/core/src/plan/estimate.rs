//! Estimates the sending time of a plan, and the use of the hubs' daily quotas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HubPlan;
use super::sending_time::{Part, sending_times};
use crate::hub::HubLimits;
use crate::spec::StagePace;

/// The estimate for a hub's part of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HubEstimate {
    /// The hub and the number of devices.
    #[serde(flatten)]
    pub plan: HubPlan,
    /// Sends per minute; `None` without a limit. With a ramp, the final pace. Over several stages,
    /// the pace of the fastest stage.
    pub sends_per_minute: Option<f64>,
    /// Time from the first send to the last; `None` without a limit.
    #[serde(rename = "sending_seconds", with = "seconds")]
    pub sending: Option<Duration>,
    /// Messages counted against the daily quota.
    pub metered_messages: u64,
    /// The daily quota; `None` without a limit.
    pub messages_per_day: Option<u64>,
}

/// The estimate of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate of each hub.
    pub hubs: Vec<HubEstimate>,
    /// Time until the slowest hub is done; `None` if no hub has a limit.
    #[serde(rename = "sending_seconds", with = "seconds")]
    pub sending: Option<Duration>,
}

/// Serializes a duration as seconds, or null.
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
    /// Returns the average number of seconds between two sends; zero without a limit. With a ramp,
    /// the average exceeds the final interval.
    #[must_use]
    pub fn mean_interval(&self) -> f64 {
        match (self.sending, self.plan.devices) {
            (Some(sending), devices @ 2..) => sending.as_secs_f64() / (devices - 1) as f64,
            _ => self.last_interval().as_secs_f64(),
        }
    }

    /// Returns how long after the last send the hub takes no further message of this rollout.
    #[must_use]
    pub fn last_interval(&self) -> Duration {
        let pace = self.sends_per_minute;
        pace.map_or(Duration::ZERO, |pace| Duration::from_secs_f64(60.0 / pace))
    }

    /// Returns the number of days of the full daily quota; `None` without a quota.
    #[must_use]
    pub fn days_of_quota(&self) -> Option<f64> {
        self.messages_per_day
            .map(|quota| self.metered_messages as f64 / quota.max(1) as f64)
    }

    /// Adds a further stage, which begins `wait` after the stage's turn.
    fn add(&mut self, stage: &Self, wait: Duration) {
        assert_eq!(
            self.plan.hub, stage.plan.hub,
            "estimates are of the same hubs"
        );
        self.plan.devices += stage.plan.devices;
        self.plan.batches += stage.plan.batches;
        let paces = self.sends_per_minute.zip(stage.sends_per_minute);
        self.sends_per_minute = paces.map(|(one, other)| one.max(other));
        let sending = stage.sending.map(|sending| sending + wait);
        // Without a limit, the sending time is unknown and counts as zero.
        self.sending = match (self.sending, sending) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        self.metered_messages += stage.metered_messages;
    }
}

impl Estimate {
    /// Sums up consecutive stages; `None` without stages. A stage begins when the slowest hub is
    /// done with the stage before, and on each hub no sooner than an interval after the last send
    /// of that hub. All estimates must have the same hubs. The sum does not include waits at gates.
    #[must_use]
    pub fn of_stages(stages: &[Self]) -> Option<Self> {
        let (first, others) = stages.split_first()?;
        let mut whole = first.clone();
        let mut now = first.sending.unwrap_or_default();
        let free_at = |start, hub: &HubEstimate| match (hub.plan.devices, hub.sending) {
            (1.., Some(sending)) => start + sending + hub.last_interval(),
            _ => Duration::ZERO,
        };
        let free = first.hubs.iter().map(|hub| free_at(Duration::ZERO, hub));
        let mut free: Vec<_> = free.collect();
        for stage in others {
            let mut done = now;
            for ((sum, hub), free) in whole.hubs.iter_mut().zip(&stage.hubs).zip(&mut free) {
                let mut wait = Duration::ZERO;
                if hub.plan.devices > 0 {
                    wait = free.saturating_sub(now);
                    *free = free_at(now + wait, hub);
                    done = done.max(now + wait + hub.sending.unwrap_or_default());
                }
                sum.add(hub, wait);
            }
            now = done;
            whole.sending = whole.sending.or(stage.sending).map(|_| now);
        }
        Some(whole)
    }
}

/// Estimates a plan or a stage. `message_bytes` is the size of the body and properties of a
/// message. `before` is the number of devices counted by a ramp before the start. The estimate
/// assumes that every send succeeds immediately.
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
        .zip(sending_times(pace, before, &parts))
        .map(|(plan, time)| {
            let limits = limits(&plan.hub);
            let metered = (message_bytes as u64).div_ceil(limits.meter_bytes).max(1);
            HubEstimate {
                plan: plan.clone(),
                sends_per_minute: time.pace,
                sending: time
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
    use crate::ids::{HubHost, HubName, RolloutName};
    use crate::permits::{HubPermits, MAKE_UP, PermitRequest};
    use crate::time::Timestamp;

    #[test]
    fn sending_time_of_a_million_devices_follows_quota() {
        let plan = HubPlan {
            hub: HubName::new("eu").unwrap(),
            host: HubHost::new("h").unwrap(),
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
                    host: HubHost::new("h").unwrap(),
                    devices,
                    batches: 1,
                })
                .collect();
            let pace = StagePace::constant(Some(rate.parse().unwrap()));
            estimate(&hubs, |_| HubLimits::unlimited(), &pace, 0, 100)
        };
        let minutes = |time: Option<Duration>| time.unwrap().as_secs_f64() / 60.0 * HEADROOM;
        let whole = |stages: &[Estimate]| Estimate::of_stages(stages).unwrap();
        let both = whole(&[stage([11, 101], "10/min"), stage([1_001, 0], "100/min")]);
        assert!((minutes(both.sending) - 20.0).abs() < 1e-6);
        let hubs: Vec<_> = both
            .hubs
            .iter()
            .map(|hub| (hub.plan.devices, minutes(hub.sending).round()))
            .collect();
        assert_eq!(hubs, [(1_012, 11.0), (101, 10.0)]);
        assert_eq!(both.hubs[0].sends_per_minute, Some(100.0 * HEADROOM));
        assert_eq!(both.hubs[0].metered_messages, 1_012);
        // As many intervals as without stages: the first send of a stage follows an interval after
        // the last send of the stage before.
        let three = [
            stage([2, 1], "1/min"),
            stage([3, 0], "1/min"),
            stage([1, 1], "1/min"),
        ];
        let three = whole(&three);
        assert!((minutes(three.sending) - 5.0).abs() < 1e-6, "{three:?}");
        assert!(
            (minutes(three.hubs[0].sending) - 5.0).abs() < 1e-6,
            "{three:?}"
        );
        assert!(minutes(three.hubs[1].sending) < 1e-6, "{three:?}");
    }

    /// Returns the seconds from the first send to the last, according to a hub's permits.
    fn paced(messages: u32, hub: f64, own: Option<f64>) -> f64 {
        let mut permits = HubPermits::default();
        let request = |messages| PermitRequest {
            hub: HubName::new("eu").unwrap(),
            max_permits: messages,
            per_minute: hub,
            rollout: RolloutName::new("r").unwrap(),
            weight: 1,
            limit: own,
        };
        let interval = 60.0 / own.map_or(hub, |own| own.min(hub));
        let (mut now, mut left, mut last) = (Timestamp(1_000_000), messages, 0.0);
        while left > 0 {
            let grant = permits.take(now, &request(left));
            now = now.plus(grant.wait).plus(Duration::from_millis(1));
            let start = now.since(Timestamp(1_000_001)).as_secs_f64();
            left -= grant.permits;
            last = start + interval * f64::from(grant.permits.saturating_sub(1));
        }
        last
    }

    #[test]
    fn few_messages_take_as_long_as_their_permits() {
        let limits = HubLimits::of(Tier::S1, 1, 1.0);
        let hub = limits.pace(None).unwrap();
        for messages in [1, 2, 5, 7, 30] {
            for rate in [None, Some("1/min"), Some("6/min"), Some("60/min")] {
                let rate = rate.map(|rate| rate.parse().unwrap());
                let plan = HubPlan {
                    hub: HubName::new("eu").unwrap(),
                    host: HubHost::new("h").unwrap(),
                    devices: u64::from(messages),
                    batches: 1,
                };
                let pace = StagePace::constant(rate);
                let estimate = estimate(&[plan], |_| limits, &pace, 0, 100);
                let expected = estimate.sending.unwrap().as_secs_f64();
                let own = rate.and_then(|_| HubLimits::unlimited().pace(rate));
                let took = paced(messages, hub, own);
                let sooner = match own {
                    // A rollout with a limit of its own may make up for a moment once.
                    Some(_) => MAKE_UP.as_secs_f64(),
                    None => 0.0,
                };
                let range = expected - sooner - 0.01..expected + 0.05;
                assert!(
                    range.contains(&took),
                    "{messages} at {rate:?}: {took} s, and not {expected}"
                );
            }
        }
    }
}
