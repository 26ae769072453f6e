//! Everything about a hub that can be chosen.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::dps::Enrollments;
use crate::entra::Directory;
use crate::faults::Faults;
use crate::fleet::Fleet;
use crate::policy::Policy;
use crate::tier::{Limits, Tier};

/// A hub to be started. [`HubConfig::default`] is an S1 hub with one unit and no devices on free ports of
/// the loopback interface.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The name clients know the hub by; its certificate carries it.
    pub host_name: String,
    /// The address all ports are bound to.
    pub bind: IpAddr,
    /// The port for AMQP; 0 takes a free one. It also answers HTTPS, so that a host name with one port is
    /// enough for a client that honours it.
    pub amqp_port: u16,
    /// The port for HTTPS; 0 takes a free one. It also answers AMQP.
    pub https_port: u16,
    /// The port for MQTT; 0 takes a free one. The official device SDKs insist on 8883.
    pub mqtt_port: u16,
    /// The port for the control interface (plain HTTP); 0 takes a free one, none turns it off.
    pub control_port: Option<u16>,
    /// The tier, from which the limits follow.
    pub tier: Tier,
    /// How many units of the tier.
    pub units: u32,
    /// Limits to use instead of the tier's.
    pub limits: Option<Limits>,
    /// Turns all throttles and the daily quota off.
    pub unlimited: bool,
    /// Seed of the default policies' keys.
    pub seed: u64,
    /// The shared access policies; empty for the default ones.
    pub policies: Vec<Policy>,
    /// The devices.
    pub fleet: Fleet,
    /// Whether devices that are made over REST are connected and complete their messages, as well-behaved ones
    /// of the fleet do. If not, they are `Disconnected`, and their messages wait, expire, or are purged.
    pub added_devices_online: bool,
    /// The faults to start with.
    pub faults: Faults,
    /// The largest page of a query, whatever the client asks for.
    pub query_page_max: usize,
    /// How long a message waits if it does not say so itself.
    pub default_ttl: Duration,
    /// The longest a message may ask to wait.
    pub ttl_max: Duration,
    /// How often a message is given to a device, and a feedback batch to a service.
    pub delivery_count_max: u32,
    /// How many messages may wait for one device.
    pub queue_depth: u32,
    /// How many messages a connected device may hold unsettled at the same time. The hub's own bound is not documented.
    pub device_inflight_max: usize,
    /// How long a device has to settle a message that it holds over HTTPS or AMQP.
    pub device_lock: Duration,
    /// The authorities whose certificates devices with the authentication `certificateAuthority` may present: texts with
    /// one or more certificates in PEM each.
    pub device_ca_pem: Vec<String>,
    /// The principals of Microsoft Entra ID that the hub knows; the token service is on the hub's own ports. Without them,
    /// the hub takes no such tokens.
    pub directory: Option<Directory>,
    /// Whether shared access policies give access, as Azure's `disableLocalAuth` says the other way round. Devices' own
    /// keys do in any case.
    pub local_auth: bool,
    /// Who may register at the Device Provisioning Service; none for [`Enrollments::of_one_group`].
    pub enrollments: Option<Enrollments>,
    /// How long feedback is collected if there is less than a full batch of it.
    pub feedback_interval: Duration,
    /// How many records a full batch of feedback has.
    pub feedback_batch: usize,
    /// How long a service has to answer a feedback batch.
    pub feedback_lock: Duration,
    /// How long feedback waits for a service.
    pub feedback_ttl: Duration,
    /// How many feedback records wait at most; beyond that the oldest are dropped and counted. The default
    /// holds two records for each device of a full hub, in about 50 MB.
    pub feedback_records_max: usize,
    /// How many messages are remembered, finished ones included. The default takes about 2 GB if used up.
    pub messages_max: u32,
    /// How far ahead of the exact rate a client may be before it is slowed. A quarter of a second covers the
    /// jitter of a network, and adds no more than 0.4 % to a minute at the full rate.
    pub throttle_tolerance: Duration,
    /// How long an operation waits in the hub before it would rather be refused. Ten seconds is what
    /// the refusal's own text tells clients to wait, and the latency that users report.
    pub throttle_wait_max: Duration,
    /// How many connections are served at the same time.
    pub connections_max: usize,
    /// How long a change of a reported property is missing in the answers to queries.
    pub query_lag: Duration,
    /// How far the hub's clock is ahead of this machine's: of `Date` headers, expiries, tokens, and all that it tells.
    pub clock_ahead: Duration,
    /// How far it is behind.
    pub clock_behind: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            host_name: "localhost".to_owned(),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            amqp_port: 0,
            https_port: 0,
            mqtt_port: 0,
            control_port: Some(0),
            tier: Tier::S1,
            units: 1,
            limits: None,
            unlimited: false,
            seed: 0,
            policies: Vec::new(),
            fleet: Fleet::empty(),
            added_devices_online: false,
            faults: Faults::default(),
            query_page_max: 100,
            default_ttl: Duration::from_secs(3600),
            ttl_max: Duration::from_secs(48 * 3600),
            delivery_count_max: 10,
            queue_depth: 50,
            device_inflight_max: 10,
            device_lock: Duration::from_secs(60),
            device_ca_pem: Vec::new(),
            directory: None,
            local_auth: true,
            enrollments: None,
            feedback_interval: Duration::from_secs(15),
            feedback_batch: 64,
            feedback_lock: Duration::from_secs(60),
            feedback_ttl: Duration::from_secs(3600),
            feedback_records_max: 2_000_000,
            messages_max: 20_000_000,
            throttle_tolerance: Duration::from_millis(250),
            throttle_wait_max: Duration::from_secs(10),
            query_lag: Duration::ZERO,
            connections_max: 100_000,
            clock_ahead: Duration::ZERO,
            clock_behind: Duration::ZERO,
        }
    }
}

impl HubConfig {
    /// A hub with this fleet and otherwise the defaults.
    #[must_use]
    pub fn with_fleet(fleet: Fleet) -> Self {
        Self {
            fleet,
            ..Self::default()
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn effective_limits(&self) -> Limits {
        self.limits.unwrap_or_else(|| self.tier.limits(self.units))
    }

    /// The names the hub answers to: its own and those of the loopback interface.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = vec![self.host_name.to_ascii_lowercase()];
        for name in ["localhost", "127.0.0.1", "::1"] {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let bound = self.bind.to_string();
        if !self.bind.is_unspecified() && !names.contains(&bound) {
            names.push(bound);
        }
        names
    }
}
