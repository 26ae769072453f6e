//! The hub's throttles: operations above the rate are delayed first, and refused beyond that.
//!
//! Each throttle is a generic cell rate algorithm: a theoretical arrival time moves by one interval
//! per operation. An operation earlier than this time by no more than the tolerance passes at once,
//! so that a few milliseconds of network jitter do not slow a client paced exactly at the quota. An
//! operation earlier than that is *shaped*: the permit's time is later than now. An operation whose
//! permit would be later than the longest wait is refused, and does not count.

use std::sync::Mutex;
use std::time::Duration;

use crate::lock;
use crate::tier::Limits;

/// A throttled operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Send,
    Query,
    Registry,
    TwinRead,
    TwinUpdate,
    LinkOpen,
    DeviceConnect,
    DeviceSend,
    /// A receive request over HTTPS; over other protocols the hub pushes messages.
    DeviceReceive,
    /// Counted for each started 4 KB of a request.
    Method,
}

impl Operation {
    /// Returns the operation's name in the hub's texts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Send => "SendCommand",
            Self::Query => "QueryDevices",
            Self::Registry => "IdentityRegistryOperations",
            Self::TwinRead => "GetTwin",
            Self::TwinUpdate => "UpdateTwin",
            Self::LinkOpen => "AmqpLinkOpen",
            Self::DeviceConnect => "DeviceConnection",
            Self::DeviceSend => "SendEvent",
            Self::DeviceReceive => "ReceiveDeviceBoundMessage",
            Self::Method => "InvokeDeviceMethod",
        }
    }
}

/// The answer of a throttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The operation may proceed now.
    Now,
    /// The operation may proceed after the delay.
    After(Duration),
    /// The operation is refused.
    Refused,
}

/// One rate limit.
#[derive(Debug)]
struct Rate {
    interval_ns: u64,
    tolerance_ns: u64,
    /// The theoretical arrival time of the next operation.
    next_ns: u64,
}

impl Rate {
    fn new(per_second: f64, tolerance: Duration) -> Self {
        let interval_ns = (1e9 / per_second.max(1e-6)) as u64;
        // At least one whole interval: with less, a slow limit would never allow an early
        // operation.
        let tolerance_ns = nanos(tolerance).max(interval_ns);
        Self {
            interval_ns,
            tolerance_ns,
            next_ns: 0,
        }
    }

    fn admit(&mut self, now_ns: u64, count: u64, longest_wait_ns: u64) -> Admission {
        let start = self.next_ns.max(now_ns);
        let wait = start
            .saturating_sub(self.tolerance_ns)
            .saturating_sub(now_ns);
        if wait > longest_wait_ns {
            return Admission::Refused;
        }
        self.next_ns = start + self.interval_ns * count;
        if wait == 0 {
            Admission::Now
        } else {
            Admission::After(Duration::from_nanos(wait))
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// All throttles of a hub.
#[derive(Debug)]
pub(crate) struct Throttles {
    rates: Option<[Mutex<Rate>; 10]>,
    longest_wait_ns: u64,
}

impl Throttles {
    /// Creates the throttles for the limits; `None` admits every operation.
    pub(crate) fn new(
        limits: Option<&Limits>,
        tolerance: Duration,
        longest_wait: Duration,
    ) -> Self {
        let rates = limits.map(|limits| {
            [
                limits.sends_per_minute / 60.0,
                limits.queries_per_minute / 60.0,
                limits.registry_per_minute / 60.0,
                limits.twin_reads_per_second,
                limits.twin_updates_per_second,
                limits.link_opens_per_second,
                limits.device_connects_per_second,
                limits.device_sends_per_second,
                limits.device_receives_per_minute / 60.0,
                limits.methods_per_second,
            ]
            .map(|per_second| Mutex::new(Rate::new(per_second, tolerance)))
        });
        Self {
            rates,
            longest_wait_ns: nanos(longest_wait),
        }
    }

    /// Asks for `count` operations at once.
    #[inline]
    pub(crate) fn admit(&self, operation: Operation, count: u64, now_ns: u64) -> Admission {
        match &self.rates {
            None => Admission::Now,
            Some(rates) => {
                lock(&rates[operation as usize]).admit(now_ns, count, self.longest_wait_ns)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn rate(per_minute: f64) -> Rate {
        Rate::new(per_minute / 60.0, Duration::from_millis(250))
    }

    #[test]
    fn a_client_at_exactly_the_quota_is_never_slowed_by_jitter() {
        for per_minute in [100.0, 5_000.0, 50_000.0] {
            let mut rate = rate(per_minute);
            let interval = 60e9 / per_minute;
            for i in 0..10_000u64 {
                let jitter = if i % 3 == 0 {
                    0
                } else {
                    (i * 7919) % (200 * MS)
                };
                let at = 1_000 * MS + (i as f64 * interval) as u64;
                // Late by up to 200 ms, then on time again: relative to the late operation, the
                // next is early by as much.
                assert_eq!(
                    rate.admit(at + jitter.min(200 * MS), 1, 10_000 * MS),
                    Admission::Now,
                    "{per_minute} {i}"
                );
            }
        }
    }

    #[test]
    fn excess_operations_are_shaped_and_then_refused() {
        let mut rate = rate(5_000.0);
        let answers: Vec<_> = (0..2_000)
            .map(|_| rate.admit(1_000 * MS, 1, 10_000 * MS))
            .collect();
        let now = answers.iter().filter(|a| **a == Admission::Now).count();
        let refused = answers.iter().filter(|a| **a == Admission::Refused).count();
        // 250 ms of tolerance at 12 ms each, and ten seconds of backlog.
        assert!((21..=22).contains(&now), "{now}");
        assert!((1_140..=1_150).contains(&refused), "{refused}");
        assert!(matches!(answers[500], Admission::After(wait) if wait > Duration::from_secs(5)));
        // A refusal costs nothing: after the backlog has drained, the full rate is available again.
        assert_eq!(rate.admit(12_000 * MS, 1, 10_000 * MS), Admission::Now);
    }

    #[test]
    fn no_minute_has_more_than_the_quota_and_the_tolerance() {
        let mut rate = rate(5_000.0);
        let mut permitted = Vec::new();
        for ms in 0..180_000u64 {
            let now = (1_000 + ms) * MS;
            match rate.admit(now, 1, 10_000 * MS) {
                Admission::Now => permitted.push(now),
                Admission::After(wait) => permitted.push(now + nanos(wait)),
                Admission::Refused => {}
            }
        }
        let in_minute = |start: u64| {
            permitted
                .iter()
                .filter(|at| (start..start + 60_000 * MS).contains(*at))
                .count()
        };
        let most = permitted
            .iter()
            .step_by(50)
            .map(|at| in_minute(*at))
            .max()
            .unwrap();
        assert!((5_000..=5_022).contains(&most), "{most}");
    }
}
