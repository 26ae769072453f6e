//! The configuration of a hub.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::dps::Enrollments;
use crate::entra::Directory;
use crate::faults::Faults;
use crate::fleet::Fleet;
use crate::policy::Policy;
use crate::tier::{Limits, Tier};

/// The configuration of a hub. [`HubConfig::default`] is an S1 hub with one unit and no devices, on
/// free ports of the loopback interface.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The host name used by clients and written in the certificate.
    pub host_name: String,
    /// The address for all ports.
    pub bind: IpAddr,
    /// The port for AMQP; 0 takes a free port. The port also answers HTTPS, so that a host name
    /// with one port is enough for clients that honour the port.
    pub amqp_port: u16,
    /// The port for HTTPS; 0 takes a free port. The port also answers AMQP.
    pub https_port: u16,
    /// The port for MQTT; 0 takes a free port. The official device SDKs insist on 8883.
    pub mqtt_port: u16,
    /// The port for the control interface (plain HTTP); 0 takes a free port, `None` disables the
    /// interface.
    pub control_port: Option<u16>,
    /// The tier, which determines the limits.
    pub tier: Tier,
    /// The number of units of the tier.
    pub units: u32,
    /// Limits to use instead of the tier's.
    pub limits: Option<Limits>,
    /// Whether to disable all throttles and the daily quota.
    pub unlimited: bool,
    /// The seed of the default policies' keys, of the certificate authority, and of the default
    /// enrolment group.
    pub seed: u64,
    /// The shared access policies; empty for the default policies.
    pub policies: Vec<Policy>,
    /// The devices.
    pub fleet: Fleet,
    /// Whether devices added over REST are connected and complete messages, like well-behaved
    /// devices of the fleet. Otherwise, added devices are `Disconnected`, and messages wait,
    /// expire, or are purged.
    pub added_devices_online: bool,
    /// The initial faults.
    pub faults: Faults,
    /// The largest page of a query, whatever page size the client requests.
    pub query_page_max: usize,
    /// The time to live of a message without an expiry.
    pub default_ttl: Duration,
    /// The longest time to live of a message.
    pub ttl_max: Duration,
    /// The largest number of deliveries of a message to a device, and of a feedback batch to a
    /// service.
    pub delivery_count_max: u32,
    /// The largest number of pending messages of one device.
    pub queue_depth: u32,
    /// The largest number of unsettled messages held by a connected device. The real hub's limit is
    /// not documented.
    pub device_inflight_max: usize,
    /// The time for a device to settle a message received over HTTPS or AMQP.
    pub device_lock: Duration,
    /// The authorities for devices with the authentication `certificateAuthority`: texts with one
    /// or more certificates in PEM each.
    pub device_ca_pem: Vec<String>,
    /// The principals of Microsoft Entra ID; the token service is on the hub's ports. Without a
    /// directory, the hub refuses tokens of Entra ID.
    pub directory: Option<Directory>,
    /// Whether the keys of shared access policies are accepted: the inverse of Azure's
    /// `disableLocalAuth`. Devices' own keys are always accepted.
    pub local_auth: bool,
    /// The enrolments of the Device Provisioning Service; `None` for [`Enrollments::of_one_group`].
    pub enrollments: Option<Enrollments>,
    /// The time to collect feedback for less than a full batch.
    pub feedback_interval: Duration,
    /// The number of records in a full batch of feedback.
    pub feedback_batch: usize,
    /// The time for a service to settle a feedback batch.
    pub feedback_lock: Duration,
    /// The time feedback waits for a service.
    pub feedback_ttl: Duration,
    /// The largest number of waiting feedback records; beyond this number, the oldest are dropped
    /// and counted. The default holds two records for each device of a full hub, in about 50 MB.
    pub feedback_records_max: usize,
    /// The largest number of messages in memory, including ended messages. The default takes about
    /// 2 GB if used up.
    pub messages_max: u32,
    /// The time by which a client may be ahead of the exact rate before being slowed. A quarter of
    /// a second covers the jitter of a network, and adds no more than 0.4 % to a minute at the full
    /// rate.
    pub throttle_tolerance: Duration,
    /// The longest wait of an operation in the hub; an operation with a longer wait is refused. The
    /// refusal's own text tells clients to wait ten seconds, and users report this latency.
    pub throttle_wait_max: Duration,
    /// The largest number of open connections.
    pub connections_max: usize,
    /// The time before queries show a change of a reported property.
    pub query_lag: Duration,
    /// The time by which the hub's clock is ahead of this machine's clock. The hub's clock is used
    /// for `Date` headers, expiries, tokens, and all reported times.
    pub clock_ahead: Duration,
    /// The time by which the hub's clock is behind.
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
    /// Returns a configuration with this fleet, and defaults otherwise.
    #[must_use]
    pub fn with_fleet(fleet: Fleet) -> Self {
        Self {
            fleet,
            ..Self::default()
        }
    }

    /// Returns the limits in force.
    #[must_use]
    pub fn effective_limits(&self) -> Limits {
        self.limits.unwrap_or_else(|| self.tier.limits(self.units))
    }

    /// Returns the hub's names: the host name and the names of the loopback interface.
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
