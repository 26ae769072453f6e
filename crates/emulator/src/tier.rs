//! The hub tiers and the limits that Microsoft publishes for them, in one table.
//!
//! Figures are those of the quotas and throttling page of February 2023. They are data, not code: a hub's
//! effective limits can be overridden one by one in [`HubConfig::limits`](crate::HubConfig::limits).

use serde::{Deserialize, Serialize};

/// A tier of Azure IoT Hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Tier {
    /// The free tier.
    Free,
    /// Basic 1; has no cloud-to-device messages.
    B1,
    /// Basic 2; has no cloud-to-device messages.
    B2,
    /// Basic 3; has no cloud-to-device messages.
    B3,
    /// Standard 1.
    #[default]
    S1,
    /// Standard 2.
    S2,
    /// Standard 3.
    S3,
}

/// What a hub allows, for the whole hub and all its clients together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Cloud-to-device sends per minute.
    pub sends_per_minute: f64,
    /// Queries per minute; each page counts as one.
    pub queries_per_minute: f64,
    /// Identity registry operations per minute; bulk requests count each device.
    pub registry_per_minute: f64,
    /// Twin reads per second.
    pub twin_reads_per_second: f64,
    /// Twin updates per second.
    pub twin_updates_per_second: f64,
    /// AMQP link openings per second. Not published; see [`Tier::limits`].
    pub link_opens_per_second: f64,
    /// New connections of devices per second.
    pub device_connects_per_second: f64,
    /// Messages of devices per second.
    pub device_sends_per_second: f64,
    /// Messages that devices ask for over HTTPS, per minute.
    pub device_receives_per_minute: f64,
    /// Direct methods per second; each started 4 KB of a request counts.
    pub methods_per_second: f64,
    /// Messages per day, counted per started 4 KB (0.5 KB in the free tier).
    pub daily_messages: u64,
}

impl Tier {
    /// The published limits of this tier with `units` units.
    ///
    /// The throttle on opening AMQP links exists (`Operation type: AmqpLinkOpen`) but its size is published
    /// nowhere. Fifty per second stands well above what a handful of long-lived clients need and well below
    /// what a client per message causes.
    #[must_use]
    pub fn limits(self, units: u32) -> Limits {
        let units = f64::from(units.max(1));
        let (large, medium) = match self {
            Self::B3 | Self::S3 => (true, false),
            Self::B2 | Self::S2 => (false, true),
            Self::Free | Self::B1 | Self::S1 => (false, false),
        };
        let per_unit = |small: f64, big: f64| if large { big * units } else { small * units };
        // The same for their connections and their messages.
        let devices = match (large, medium) {
            (true, _) => 6_000.0 * units,
            (_, true) => 120.0 * units,
            _ => (12.0 * units).max(100.0),
        };
        Limits {
            sends_per_minute: per_unit(100.0, 5_000.0),
            queries_per_minute: per_unit(20.0, 1_000.0),
            registry_per_minute: per_unit(100.0, 5_000.0),
            twin_reads_per_second: match (large, medium) {
                (true, _) => 500.0 * units,
                (_, true) => (10.0 * units).max(100.0),
                _ => 100.0,
            },
            twin_updates_per_second: match (large, medium) {
                (true, _) => 250.0 * units,
                (_, true) => (5.0 * units).max(50.0),
                _ => 50.0,
            },
            link_opens_per_second: 50.0,
            device_connects_per_second: devices,
            device_sends_per_second: devices,
            device_receives_per_minute: per_unit(1_000.0, 50_000.0),
            methods_per_second: match (large, medium) {
                (true, _) => 6_144.0 * units,
                (_, true) => 120.0 * units,
                _ => 40.0 * units,
            },
            daily_messages: self.daily_messages_per_unit() * units as u64,
        }
    }

    fn daily_messages_per_unit(self) -> u64 {
        match self {
            Self::Free => 8_000,
            Self::B1 | Self::S1 => 400_000,
            Self::B2 | Self::S2 => 6_000_000,
            Self::B3 | Self::S3 => 300_000_000,
        }
    }

    /// How many bytes of a message count as one against the daily quota.
    #[must_use]
    pub fn meter_bytes(self) -> usize {
        if self == Self::Free { 512 } else { 4096 }
    }

    /// Whether the tier has cloud-to-device messages.
    #[must_use]
    pub fn has_commands(self) -> bool {
        !matches!(self, Self::B1 | Self::B2 | Self::B3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_matches_the_published_figures() {
        let sends = |tier: Tier, units| tier.limits(units).sends_per_minute;
        assert_eq!(sends(Tier::Free, 1), 100.0);
        assert_eq!(sends(Tier::S1, 200), 20_000.0);
        assert_eq!(sends(Tier::S2, 200), 20_000.0);
        assert_eq!(sends(Tier::S3, 10), 50_000.0);
        assert_eq!(Tier::S1.limits(3).queries_per_minute, 60.0);
        assert_eq!(Tier::S2.limits(5).twin_reads_per_second, 100.0);
        assert_eq!(Tier::S2.limits(50).twin_updates_per_second, 250.0);
        assert_eq!(Tier::S3.limits(2).daily_messages, 600_000_000);
        assert_eq!(Tier::S1.limits(20).device_connects_per_second, 240.0);
        assert_eq!(Tier::S1.limits(1).device_sends_per_second, 100.0);
        assert_eq!(Tier::S3.limits(2).methods_per_second, 12_288.0);
        assert!(!Tier::B2.has_commands());
    }
}
