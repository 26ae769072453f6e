//! The hub tiers and the limits published by Microsoft, in one table.
//!
//! The figures are from the quotas and throttling page of February 2023.
//! [`HubConfig::limits`](crate::HubConfig::limits) overrides the limits of a hub.

use serde::{Deserialize, Serialize};

/// A tier of Azure IoT Hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Tier {
    /// The free tier.
    Free,
    /// Basic 1, without cloud-to-device messages.
    B1,
    /// Basic 2, without cloud-to-device messages.
    B2,
    /// Basic 3, without cloud-to-device messages.
    B3,
    /// Standard 1.
    #[default]
    S1,
    /// Standard 2.
    S2,
    /// Standard 3.
    S3,
}

/// The limits of a hub, shared by all clients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Cloud-to-device sends per minute.
    pub sends_per_minute: f64,
    /// Queries per minute, counted by pages.
    pub queries_per_minute: f64,
    /// Identity registry operations per minute; a bulk request counts once per device.
    pub registry_per_minute: f64,
    /// Twin reads per second.
    pub twin_reads_per_second: f64,
    /// Twin updates per second.
    pub twin_updates_per_second: f64,
    /// AMQP link openings per second. Not published; see [`Tier::limits`].
    pub link_opens_per_second: f64,
    /// New device connections per second.
    pub device_connects_per_second: f64,
    /// Messages from devices per second.
    pub device_sends_per_second: f64,
    /// Receive requests of devices over HTTPS, per minute.
    pub device_receives_per_minute: f64,
    /// Direct methods per second, counted per started 4 KB of a request.
    pub methods_per_second: f64,
    /// Messages per day, counted per started 4 KB (0.5 KB in the free tier).
    pub daily_messages: u64,
}

impl Tier {
    /// Returns the published limits of this tier with `units` units.
    ///
    /// The throttle on opening AMQP links exists (`Operation type: AmqpLinkOpen`), and the rate is
    /// published nowhere. Fifty per second is well above the needs of a handful of long-lived
    /// clients, and well below the load of a client per message.
    #[must_use]
    pub fn limits(self, units: u32) -> Limits {
        let units = f64::from(units.max(1));
        let (large, medium) = match self {
            Self::B3 | Self::S3 => (true, false),
            Self::B2 | Self::S2 => (false, true),
            Self::Free | Self::B1 | Self::S1 => (false, false),
        };
        let per_unit = |small: f64, big: f64| if large { big * units } else { small * units };
        // Connections and messages of devices have the same rate.
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

    /// Returns the number of message bytes counted as one message against the daily quota.
    #[must_use]
    pub fn meter_bytes(self) -> usize {
        if self == Self::Free { 512 } else { 4096 }
    }

    /// Whether the tier supports cloud-to-device messages.
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
