//! The arithmetic of a hub's quota.
//!
//! A [`Limiter`] hands out *reservations*: so many sends, from this moment on, evenly. It is a
//! GCRA whose theoretical arrival time may run ahead of the clock by up to [`HORIZON`], so a
//! worker can fetch its next block before the current one is used up and no time is lost between
//! them. There is no burst: whatever window one lays over the sends, they fit the rate.
//!
//! A throttle from the hub cuts the rate and holds everyone back for a while; then it climbs
//! back, slowly (additive increase, multiplicative decrease).

use std::time::Duration;

use crate::time::Timestamp;

/// How far ahead of the clock permits may be reserved.
pub const HORIZON: Duration = Duration::from_secs(1);
/// How much sending one block of permits is, at the most.
pub const BLOCK: Duration = Duration::from_millis(100);
/// What a throttle leaves of the rate.
pub const CUT: f64 = 0.7;
/// The rate is never cut below this part of the quota.
pub const FLOOR: f64 = 0.05;
/// What the rate wins back a second, as a part of the quota.
pub const CLIMB_PER_SECOND: f64 = 0.01;
/// How long nothing is sent after a throttle, when the hub does not say: the hub's own texts
/// and SDKs say 10 s.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(10);

/// The right to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many messages; 0 when the reservations already reach to the horizon.
    pub permits: u32,
    /// Not before this long from now; with 0 permits, ask again then.
    pub wait: Duration,
}

/// One hub's (or one rollout's) limiter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limiter {
    /// The next send's time, in microseconds since the epoch.
    next_us: u64,
    /// What of the quota is used after throttles: [`FLOOR`] to 1, as of `factor_at`.
    factor: f64,
    factor_at: Timestamp,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            next_us: 0,
            factor: 1.0,
            factor_at: Timestamp(0),
        }
    }
}

impl Limiter {
    /// Reserves up to `wanted` permits at `per_minute`. Gives no more than one [`BLOCK`] of them,
    /// and at least one unless the horizon is reached.
    pub fn take(&mut self, now: Timestamp, wanted: u32, per_minute: f64) -> Grant {
        let now_us = now.0 * 1_000;
        let rate = per_minute * self.factor(now);
        let interval_us = 60e6 / rate;
        let start = self.next_us.max(now_us);
        let ahead = Duration::from_micros(start - now_us);
        if ahead > HORIZON {
            return Grant {
                permits: 0,
                wait: ahead.checked_sub(HORIZON).unwrap_or_default(),
            };
        }
        let block = (BLOCK.as_micros() as f64 / interval_us) as u32;
        let permits = wanted.min(block.max(1));
        self.next_us = start.saturating_add((f64::from(permits) * interval_us) as u64);
        Grant {
            permits,
            wait: ahead,
        }
    }

    /// The hub refused a send for its quota: cuts the rate, and lets nothing through until the
    /// hub's `retry_after` is over.
    pub fn throttled(&mut self, now: Timestamp, retry_after: Option<Duration>) {
        // Everything in flight at the first refusal is refused too: that is one throttle.
        let fresh = now.since(self.factor_at) >= Duration::from_secs(2) || self.factor >= 1.0;
        if fresh {
            self.factor = (self.factor(now) * CUT).max(FLOOR);
            self.factor_at = now;
        }
        let until = now.plus(retry_after.unwrap_or(THROTTLE_PAUSE)).0 * 1_000;
        self.next_us = self.next_us.max(until);
    }

    /// What of the quota is used at `now`: 1 when all is well.
    #[must_use]
    pub fn factor(&self, now: Timestamp) -> f64 {
        (self.factor + now.since(self.factor_at).as_secs_f64() * CLIMB_PER_SECOND).min(1.0)
    }
}

/// Reserves permits where a hub has room and, if it has a limit of its own there, a rollout too.
/// Each limiter comes with its rate, a minute.
///
/// A rollout's limiter gives nothing ahead of time: a place in the hub's line that is used later
/// than it was reserved for would come on top of the places reserved for then.
pub fn take_within(
    hub: (&mut Limiter, f64),
    rollout: Option<(&mut Limiter, f64)>,
    now: Timestamp,
    wanted: u32,
) -> Grant {
    let (hub, hub_rate) = hub;
    let Some((limiter, rate)) = rollout else {
        return hub.take(now, wanted, hub_rate);
    };
    let mut tried = *limiter;
    let allowed = tried.take(now, wanted, rate);
    if !allowed.wait.is_zero() {
        return Grant {
            permits: 0,
            wait: allowed.wait,
        };
    }
    let grant = hub.take(now, allowed.permits, hub_rate);
    if grant.permits > 0 {
        limiter.take(now, grant.permits, rate);
    }
    grant
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends by several workers that ask whenever they may; gives the send times in microseconds.
    fn run(per_minute: f64, seconds: u64, workers: usize, jitter: &[u16]) -> Vec<u64> {
        let mut limiter = Limiter::default();
        let mut sends = Vec::new();
        let mut free_at = vec![0u64; workers];
        let mut jitter = jitter.iter().cycle();
        loop {
            let worker = (0..workers).min_by_key(|w| free_at[*w]).unwrap();
            let now = free_at[worker];
            if now >= seconds * 1_000 {
                sends.sort_unstable();
                return sends;
            }
            let grant = limiter.take(Timestamp(now), 1_000, per_minute);
            let start = now * 1_000 + grant.wait.as_micros() as u64;
            let interval = 60e6 / per_minute;
            sends.extend((0..grant.permits).map(|i| start + (f64::from(i) * interval) as u64));
            // Asks again when its block begins, some time late.
            free_at[worker] =
                start.div_ceil(1_000).max(now + 1) + u64::from(*jitter.next().unwrap() % 50);
        }
    }

    #[test]
    fn the_quota_is_used_and_never_exceeded() {
        for per_minute in [60.0, 99.0, 4_950.0, 49_500.0] {
            for workers in [1, 4, 16] {
                let sends = run(per_minute, 180, workers, &[0, 3, 17, 49]);
                let most = sends
                    .iter()
                    .enumerate()
                    .map(|(i, at)| sends[i..].partition_point(|other| *other < at + 60_000_000))
                    .max()
                    .unwrap();
                assert!(
                    most as f64 <= per_minute + 1.0,
                    "{most} sends in a minute of {per_minute}"
                );
                let used = sends.iter().filter(|at| **at < 120_000_000).count() as f64
                    / (2.0 * per_minute);
                assert!(
                    used > 0.995,
                    "{used} of {per_minute} a minute used by {workers}"
                );
            }
        }
    }

    #[test]
    fn a_throttle_cuts_holds_back_and_is_forgiven() {
        let mut limiter = Limiter::default();
        let now = Timestamp(1_000_000);
        limiter.throttled(now, None);
        limiter.throttled(now.plus(Duration::from_millis(5)), None);
        assert!(
            (limiter.factor(now) - CUT).abs() < 1e-3,
            "one burst of refusals is one throttle"
        );
        assert_eq!(
            limiter.take(now, 1, 60.0),
            Grant {
                permits: 0,
                wait: Duration::from_millis(9_005)
            }
        );
        assert!((limiter.factor(now.plus(Duration::from_secs(15))) - 0.85).abs() < 1e-3);
        assert!((limiter.factor(now.plus(Duration::from_secs(31))) - 1.0).abs() < 1e-9);
        for second in 0..100 {
            limiter.throttled(
                now.plus(Duration::from_secs(60 + 3 * second)),
                Some(Duration::ZERO),
            );
        }
        assert!(limiter.factor(now.plus(Duration::from_secs(60 + 3 * 99))) >= FLOOR);
    }

    proptest! {
        #[test]
        fn reservations_never_overlap(asks in prop::collection::vec((0u64..300, 1u32..2_000), 1..100), rate in 1.0f64..100_000.0) {
            let mut limiter = Limiter::default();
            let (mut now, mut end) = (1_000u64, 0f64);
            for (later, wanted) in asks {
                now += later;
                let grant = limiter.take(Timestamp(now), wanted, rate);
                let start = (now * 1_000) as f64 + grant.wait.as_micros() as f64;
                if grant.permits > 0 {
                    prop_assert!(start + 2.0 >= end, "{start} is before {end}");
                    prop_assert!(grant.permits <= wanted && grant.wait <= HORIZON);
                    end = start + f64::from(grant.permits) * 60e6 / rate - 1.0;
                }
            }
        }
    }
}
