//! Faults of the hub, set at the start or at run time.
//!
//! The requests hit by a share depend on the fault seed and on the number of earlier requests
//! alone, so a run with one client is reproducible.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lock;

/// The frequency of a fault: the next `next` times with certainty, then a share of the time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chance {
    /// The number of further times with certainty; counts down.
    pub next: u64,
    /// The share of the remaining times, between 0 and 1.
    pub share: f64,
}

impl Chance {
    /// Creates a fault that occurs exactly `n` times.
    #[must_use]
    pub fn next(n: u64) -> Self {
        Self {
            next: n,
            share: 0.0,
        }
    }

    /// Creates a fault that occurs a share of the time.
    #[must_use]
    pub fn share(share: f64) -> Self {
        Self { next: 0, share }
    }

    fn is_set(&self) -> bool {
        self.next > 0 || self.share > 0.0
    }
}

/// All faults of a hub. The default is a hub without faults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// The seed of the draws for shares.
    pub seed: u64,
    /// Leave `next-incoming-id` out of every flow frame, as newer gateways do.
    pub flow_without_next_incoming_id: bool,
    /// Detach each sending link (`amqp:link:detach-forced`) after this many transfers on the link.
    pub detach_after_transfers: Option<u64>,
    /// Close each connection (`amqp:connection:forced`) after this many transfers on the
    /// connection.
    pub close_after_transfers: Option<u64>,
    /// Drop each TCP connection, without a close frame, after this many transfers on the
    /// connection.
    pub drop_after_transfers: Option<u64>,
    /// Close each AMQP connection as inactive after this many milliseconds, active or not.
    pub idle_close_ms: Option<u64>,
    /// Refuse new connections: TCP accepts, and the hub drops each connection.
    pub refuse_connections: bool,
    /// Answer every put-token with 401.
    pub refuse_cbs: bool,
    /// Behave as if the daily quota were used up.
    pub quota_exhausted: bool,
    /// Answer a send with `released`; the message is not enqueued.
    pub released: Chance,
    /// Answer a send with `modified`; the message is not enqueued.
    pub modified: Chance,
    /// Reject a send with `amqp:internal-error`; the message is not enqueued.
    pub internal_error: Chance,
    /// Reject a send with `com.microsoft:timeout`; the message *is* enqueued.
    pub timeout: Chance,
    /// Reject a send as throttled, whatever the rate; the message is not enqueued.
    pub throttled: Chance,
    /// Enqueue a message and never answer the send.
    pub lost_disposition: Chance,
    /// Delay the answer to every send by this many milliseconds.
    pub disposition_delay_ms: u64,
    /// Delay every HTTP answer by this many milliseconds.
    pub http_delay_ms: u64,
    /// Answer HTTP with 429.
    pub http_429: Chance,
    /// The `Retry-After` header of a 429, in seconds; absent if `None`.
    pub retry_after_s: Option<u64>,
    /// Answer HTTP with 500.
    pub http_500: Chance,
    /// Answer HTTP with 503.
    pub http_503: Chance,
    /// Refuse a device's connection with a retryable code: CONNACK 3 over MQTT.
    pub device_unavailable: Chance,
    /// Refuse a device's connection as not authorised, whatever the proof: CONNACK 5 over MQTT.
    pub device_unauthorized: Chance,
    /// Accept a device's connection over MQTT, and neither read nor write anything afterwards.
    pub device_half_open: Chance,
    /// Drop a device's MQTT connection on an acknowledgement, which does not count.
    pub device_drop_before_ack: Chance,
    /// Drop a device's MQTT connection after this many packets from the device.
    pub device_drop_after_packets: Option<u64>,
    /// Delay all output to devices over MQTT by this many milliseconds.
    pub device_delay_ms: u64,
    /// Answer a device's reads and patches of the twin with 429, whatever the rate.
    pub device_twin_429: Chance,
    /// Answer a query with an empty page and a continuation to the same position.
    pub empty_page: Chance,
}

/// The effect of a fault on one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendFault {
    Released,
    Modified,
    InternalError,
    Throttled,
    TimedOutYetEnqueued,
    DispositionLost,
}

/// The effect of a fault on one HTTP request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpFault {
    TooManyRequests { retry_after_s: Option<u64> },
    Internal,
    Unavailable,
}

/// The effect of a fault on a device's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectFault {
    Unavailable,
    Unauthorized,
    HalfOpen,
}

/// Rules for the connections of devices.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeviceRules {
    pub(crate) drop_after: Option<u64>,
    pub(crate) delay: Duration,
}

/// Rules for cutting connections, read once per batch of frames.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CutRules {
    pub(crate) detach_after: Option<u64>,
    pub(crate) close_after: Option<u64>,
    pub(crate) drop_after: Option<u64>,
    pub(crate) idle_close: Option<Duration>,
    pub(crate) omit_next_incoming_id: bool,
    pub(crate) disposition_delay: Duration,
    pub(crate) any_send_fault: bool,
}

/// The faults in force.
#[derive(Debug)]
pub(crate) struct ActiveFaults {
    inner: Mutex<Inner>,
    /// Whether any fault is set. The hot path reads only this flag.
    active: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    draws: u64,
}

impl Inner {
    fn occurs(&mut self, pick: impl Fn(&mut Faults) -> &mut Chance) -> bool {
        let chance = pick(&mut self.faults);
        if !chance.is_set() {
            return false;
        }
        if chance.next > 0 {
            chance.next -= 1;
            return true;
        }
        let share = chance.share;
        self.draws += 1;
        unit(self.faults.seed, self.draws) < share
    }
}

fn unit(seed: u64, draw: u64) -> f64 {
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&draw.to_le_bytes(), seed);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

impl ActiveFaults {
    pub(crate) fn new(faults: Faults) -> Self {
        let active = AtomicBool::new(faults != Faults::default());
        Self {
            inner: Mutex::new(Inner { faults, draws: 0 }),
            active,
        }
    }

    pub(crate) fn get(&self) -> Faults {
        lock(&self.inner).faults.clone()
    }

    pub(crate) fn set(&self, faults: Faults) {
        let active = faults != Faults::default();
        lock(&self.inner).faults = faults;
        self.active.store(active, Ordering::Release);
    }

    fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(crate) fn refuses_connections(&self) -> bool {
        self.is_active() && lock(&self.inner).faults.refuse_connections
    }

    pub(crate) fn refuses_cbs(&self) -> bool {
        self.is_active() && lock(&self.inner).faults.refuse_cbs
    }

    pub(crate) fn quota_exhausted(&self) -> bool {
        self.is_active() && lock(&self.inner).faults.quota_exhausted
    }

    pub(crate) fn http_delay(&self) -> Duration {
        if !self.is_active() {
            return Duration::ZERO;
        }
        Duration::from_millis(lock(&self.inner).faults.http_delay_ms)
    }

    pub(crate) fn cut_rules(&self) -> CutRules {
        if !self.is_active() {
            return CutRules::default();
        }
        let inner = lock(&self.inner);
        let faults = &inner.faults;
        CutRules {
            detach_after: faults.detach_after_transfers,
            close_after: faults.close_after_transfers,
            drop_after: faults.drop_after_transfers,
            idle_close: faults.idle_close_ms.map(Duration::from_millis),
            omit_next_incoming_id: faults.flow_without_next_incoming_id,
            disposition_delay: Duration::from_millis(faults.disposition_delay_ms),
            any_send_fault: [
                faults.released,
                faults.modified,
                faults.internal_error,
                faults.timeout,
                faults.throttled,
                faults.lost_disposition,
            ]
            .iter()
            .any(Chance::is_set),
        }
    }

    pub(crate) fn on_send(&self) -> Option<SendFault> {
        let mut inner = lock(&self.inner);
        if inner.occurs(|faults| &mut faults.released) {
            Some(SendFault::Released)
        } else if inner.occurs(|faults| &mut faults.modified) {
            Some(SendFault::Modified)
        } else if inner.occurs(|faults| &mut faults.internal_error) {
            Some(SendFault::InternalError)
        } else if inner.occurs(|faults| &mut faults.throttled) {
            Some(SendFault::Throttled)
        } else if inner.occurs(|faults| &mut faults.timeout) {
            Some(SendFault::TimedOutYetEnqueued)
        } else if inner.occurs(|faults| &mut faults.lost_disposition) {
            Some(SendFault::DispositionLost)
        } else {
            None
        }
    }

    pub(crate) fn on_http(&self) -> Option<HttpFault> {
        if !self.is_active() {
            return None;
        }
        let mut inner = lock(&self.inner);
        if inner.occurs(|faults| &mut faults.http_429) {
            let retry_after_s = inner.faults.retry_after_s;
            Some(HttpFault::TooManyRequests { retry_after_s })
        } else if inner.occurs(|faults| &mut faults.http_500) {
            Some(HttpFault::Internal)
        } else if inner.occurs(|faults| &mut faults.http_503) {
            Some(HttpFault::Unavailable)
        } else {
            None
        }
    }

    pub(crate) fn on_device_connect(&self) -> Option<ConnectFault> {
        if !self.is_active() {
            return None;
        }
        let mut inner = lock(&self.inner);
        if inner.occurs(|faults| &mut faults.device_unavailable) {
            Some(ConnectFault::Unavailable)
        } else if inner.occurs(|faults| &mut faults.device_unauthorized) {
            Some(ConnectFault::Unauthorized)
        } else if inner.occurs(|faults| &mut faults.device_half_open) {
            Some(ConnectFault::HalfOpen)
        } else {
            None
        }
    }

    pub(crate) fn device_rules(&self) -> DeviceRules {
        if !self.is_active() {
            return DeviceRules::default();
        }
        let inner = lock(&self.inner);
        DeviceRules {
            drop_after: inner.faults.device_drop_after_packets,
            delay: Duration::from_millis(inner.faults.device_delay_ms),
        }
    }

    pub(crate) fn on_device_acknowledgement(&self) -> bool {
        self.is_active() && lock(&self.inner).occurs(|faults| &mut faults.device_drop_before_ack)
    }

    pub(crate) fn on_device_twin(&self) -> bool {
        self.is_active() && lock(&self.inner).occurs(|faults| &mut faults.device_twin_429)
    }

    pub(crate) fn on_query_page(&self) -> bool {
        self.is_active() && lock(&self.inner).occurs(|faults| &mut faults.empty_page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_fault_applies_to_the_given_number_of_sends() {
        let faults = ActiveFaults::new(Faults {
            released: Chance::next(2),
            ..Faults::default()
        });
        let struck: Vec<_> = (0..4).map(|_| faults.on_send()).collect();
        assert_eq!(
            struck,
            [
                Some(SendFault::Released),
                Some(SendFault::Released),
                None,
                None
            ]
        );
        assert_eq!(faults.get().released.next, 0);
    }

    #[test]
    fn fault_share_is_kept_and_repeats_per_seed() {
        let draw = |seed| {
            let faults = Faults {
                seed,
                lost_disposition: Chance::share(0.25),
                ..Faults::default()
            };
            let faults = ActiveFaults::new(faults);
            (0..4000)
                .map(|_| faults.on_send().is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let hits = draw(7).iter().filter(|hit| **hit).count();
        assert!((900..1100).contains(&hits), "{hits}");
    }

    #[test]
    fn an_unknown_fault_is_an_error() {
        let error = serde_json::from_str::<Faults>(r#"{"relased":{}}"#).unwrap_err();
        assert!(error.to_string().contains("relased"), "{error}");
    }
}
