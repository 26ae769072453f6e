//! Configuration of hubs.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use twincast_core::hub::{FeedbackQueue, FeedbackRules, HubLimits, Tier};
use twincast_core::spec::HumanDuration;
use twincast_iothub::{Proxy, ProxyUrlError, Transport};

use super::auth::AuthSettings;
use super::values::{SecretText, Share};
use crate::output::with_noun;

/// Bounds of a hub's feedback lock and feedback batching: locks of IoT Hub last 5 s to 5 min;
/// emulators are faster.
const FEEDBACK_TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// The default query lag. Microsoft documents that twin queries lag behind by "a few minutes".
const QUERY_LAG: Duration = Duration::from_secs(300);
/// Bounds of a hub's query lag.
const QUERY_LAGS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// Bounds of the send timeout. Below a second, a slow hub would count as unresponsive; beyond an
/// hour, a lost answer would hold up a batch for longer than any outage of a hub.
const SEND_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// A hub.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection_string: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection_string_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secondary_connection_string: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secondary_connection_string_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth: Option<AuthSettings>,
    #[serde(default)]
    pub(crate) transport: HubTransport,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tier: Option<Tier>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) units: Option<u32>,
    #[serde(default)]
    pub(crate) share: Share,
    #[serde(default)]
    pub(crate) unlimited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) https_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) amqp_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) send_timeout: Option<HumanDuration>,
    #[serde(default)]
    pub(crate) feedback: FeedbackQueue,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) feedback_lock: Option<HumanDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) feedback_batching: Option<HumanDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) query_lag: Option<HumanDuration>,
}

/// The transport of AMQP to a hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HubTransport {
    #[default]
    Auto,
    Amqp,
    AmqpWs,
}

impl From<HubTransport> for Transport {
    fn from(transport: HubTransport) -> Self {
        match transport {
            HubTransport::Auto => Self::Auto,
            HubTransport::Amqp => Self::Amqp,
            HubTransport::AmqpWs => Self::AmqpWs,
        }
    }
}

impl HubSettings {
    /// Returns the proxy; the environment's proxy if none is configured.
    pub(crate) fn proxy(&self) -> Proxy {
        let text = self.proxy.as_ref().map(SecretText::expose);
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Describes the assumed limits of a hub without a configured quota.
    pub(crate) fn assumed_limits(&self) -> Option<String> {
        if self.unlimited || self.tier.is_some() {
            return None;
        }
        let units = with_noun(self.units.unwrap_or(1).into(), "unit", "units");
        let rate = self.limits().sends_per_minute.unwrap_or_default();
        Some(format!(
            "tier is not configured; using the limits of the smallest paid tier (S1, {units}, \
             {rate} messages a minute). Set tier and units."
        ))
    }

    /// Returns the limits of the hub. The default is the smallest paid hub.
    pub(crate) fn limits(&self) -> HubLimits {
        let limits = match (self.unlimited, self.tier, self.units) {
            (true, ..) => HubLimits::unlimited(),
            (false, tier, units) => {
                HubLimits::of(tier.unwrap_or(Tier::S1), units.unwrap_or(1), self.share.0)
            }
        };
        let defaults = FeedbackRules::default();
        let feedback = FeedbackRules {
            queue: self.feedback,
            lock: self
                .feedback_lock
                .map_or(defaults.lock, |duration| duration.0),
            batching: self
                .feedback_batching
                .map_or(defaults.batching, |duration| duration.0),
        };
        let query_lag = self.query_lag.map_or(QUERY_LAG, |duration| duration.0);
        HubLimits {
            feedback,
            query_lag,
            ..limits
        }
    }

    /// Returns the problems: the key below the hub's key, and the rule.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let strings = [
            self.connection_string.is_some(),
            self.connection_string_file.is_some(),
            self.host.is_some(),
        ];
        let seconds = [
            self.secondary_connection_string.is_some(),
            self.secondary_connection_string_file.is_some(),
        ];
        let given = |of: &[bool]| of.iter().filter(|given| **given).count();
        let (tier, units) = (self.tier.unwrap_or(Tier::S1), self.units.unwrap_or(1));
        let most = tier.max_units();
        let is_in = |duration: Option<HumanDuration>, range: &RangeInclusive<Duration>| {
            duration.is_none_or(|duration| range.contains(&duration.0))
        };
        let rules = [
            (
                given(&strings) == 1,
                "",
                "must have exactly one of connection_string, connection_string_file and host"
                    .to_owned(),
            ),
            (
                given(&seconds) <= 1,
                "",
                "must have only one of secondary_connection_string and secondary_connection_string_file"
                    .to_owned(),
            ),
            (
                given(&seconds) == 0 || self.host.is_none(),
                "",
                "must have a connection string besides the secondary connection string".to_owned(),
            ),
            (
                self.host.is_some() == self.auth.is_some(),
                "",
                "must have host and auth together: auth is for hubs without a connection string"
                    .to_owned(),
            ),
            (
                (1..=most).contains(&units),
                ".units",
                format!("must be 1 to {most} for tier {tier}"),
            ),
            (
                is_in(self.send_timeout, &SEND_TIMEOUTS),
                ".send_timeout",
                "must be 1s to 1h".to_owned(),
            ),
            (
                is_in(self.feedback_lock, &FEEDBACK_TIMES),
                ".feedback_lock",
                "must be 1s to 5m".to_owned(),
            ),
            (
                is_in(self.feedback_batching, &FEEDBACK_TIMES),
                ".feedback_batching",
                "must be 1s to 5m".to_owned(),
            ),
            (
                is_in(self.query_lag, &QUERY_LAGS),
                ".query_lag",
                "must be 0s to 1h".to_owned(),
            ),
        ];
        let broken = rules.into_iter().filter(|(holds, ..)| !holds);
        let broken = broken.map(|(_, at, otherwise)| (at, otherwise));
        let proxy = self
            .proxy
            .as_ref()
            .map(|text| text.expose().parse::<Proxy>());
        let of_proxy = proxy.and_then(Result::err);
        let of_proxy = of_proxy.map(|error: ProxyUrlError| (".proxy", error.to_string()));
        let of_auth = self.auth.iter().flat_map(AuthSettings::problems);
        broken.chain(of_proxy).chain(of_auth).collect()
    }
}
