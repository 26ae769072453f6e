//! The arithmetic of a hub's quota.
//!
//! A [`SendLimiter`] grants *reservations*: a number of sends, evenly spaced, from a given moment.
//! It is a GCRA whose theoretical arrival time may run ahead of the clock by up to [`HORIZON`]. So
//! a worker can fetch its next block of permits before the current block is used up, and no time is
//! lost in between. There is no burst: the sends in any time window fit the rate.
//!
//! A throttle from the hub cuts the rate and stops all sends for a while; then the rate climbs back
//! slowly (additive increase, multiplicative decrease).
//!
//! [`HubPermits`] shares the limiter of one hub between rollouts by their weights. The use of each
//! rollout is counted and divided by its weight. The rollout with the least use may reserve up to
//! the horizon. The other rollouts get permits only when the reservations run dry: then no rollout
//! with a better right has asked, and the quota would be lost.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{HubName, RolloutName};
use crate::time::Timestamp;

/// How far ahead of the clock permits may be reserved.
pub const HORIZON: Duration = Duration::from_secs(1);
/// The longest sending time of one block of permits.
pub const BLOCK: Duration = Duration::from_millis(100);
/// The factor by which a throttle cuts the rate.
pub const CUT: f64 = 0.7;
/// The lowest rate after cuts, as a part of the quota.
pub const FLOOR: f64 = 0.05;
/// How much the rate climbs back per second, as a part of the quota.
pub const CLIMB_PER_SECOND: f64 = 0.01;
/// How long sending stops after a throttle without a time from the hub: 10 s according to the hub's
/// own texts and SDKs.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(10);

/// Reservations below this duration count as dry: any rollout may take permits that no other
/// rollout asks for.
pub const DRY_BELOW: Duration = Duration::from_millis(20);
/// How late a rollout may ask again, after the time given to it, before it loses its turn.
pub const TURN_GRACE: Duration = Duration::from_millis(300);

/// How much time a rollout with its own limit may make up for after asking late.
pub const MAKE_UP: Duration = Duration::from_millis(300);

/// A request to send through a hub.
#[derive(Debug, Clone, PartialEq)]
pub struct PermitRequest {
    /// The hub.
    pub hub: HubName,
    /// The most messages to send.
    pub max_permits: u32,
    /// The pace of the hub for all senders together, per minute.
    pub per_minute: f64,
    /// The rollout.
    pub rollout: RolloutName,
    /// The weight of the rollout, relative to the weights of other rollouts.
    pub weight: u32,
    /// The rollout's own limit on this hub, per minute, if below the pace of the hub.
    pub limit: Option<f64>,
}

/// Permits to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The number of messages; 0 when the reservations already reach to the horizon.
    pub permits: u32,
    /// The time from now until the first send; with 0 permits, the time until the next request.
    pub wait: Duration,
}

/// The limiter of one hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SendLimiter {
    /// The time of the next send, in microseconds since the epoch.
    next_us: u64,
    /// The used part of the quota after throttles: [`FLOOR`] to 1, as of `factor_at`.
    factor: f64,
    factor_at: Timestamp,
}

impl Default for SendLimiter {
    fn default() -> Self {
        Self {
            next_us: 0,
            factor: 1.0,
            factor_at: Timestamp(0),
        }
    }
}

impl SendLimiter {
    /// Reserves up to `requested` permits at `per_minute`: at most one [`BLOCK`], and at least one
    /// permit unless the horizon is reached.
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use twincast_core::permits::{BLOCK, Grant, SendLimiter};
    /// use twincast_core::time::Timestamp;
    ///
    /// let now = Timestamp(1_000);
    /// let mut limiter = SendLimiter::default();
    /// // At 6,000 per minute, a block has 10 permits. The second block begins after the first.
    /// let first = limiter.take(now, 500, 6_000.0);
    /// assert_eq!(first, Grant { permits: 10, wait: Duration::ZERO });
    /// let second = limiter.take(now, 500, 6_000.0);
    /// assert_eq!(second, Grant { permits: 10, wait: BLOCK });
    /// limiter.throttled(now, Some(Duration::from_secs(30)));
    /// assert_eq!(limiter.take(now, 500, 6_000.0).permits, 0);
    /// ```
    pub fn take(&mut self, now: Timestamp, requested: u32, per_minute: f64) -> Grant {
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
        let permits = requested.min(block.max(1));
        self.next_us = start.saturating_add((f64::from(permits) * interval_us) as u64);
        Grant {
            permits,
            wait: ahead,
        }
    }

    /// Returns how far ahead of the clock permits are reserved.
    #[must_use]
    pub fn ahead(&self, now: Timestamp) -> Duration {
        Duration::from_micros(self.next_us.saturating_sub(now.0 * 1_000))
    }

    /// Notes a hub's refusal for its quota: cuts the rate, and stops all sends for the hub's
    /// `retry_after`.
    pub fn throttled(&mut self, now: Timestamp, retry_after: Option<Duration>) {
        // The hub also refuses everything in flight at the first refusal: all of this is one
        // throttle.
        let fresh = now.since(self.factor_at) >= Duration::from_secs(2) || self.factor >= 1.0;
        if fresh {
            self.factor = (self.factor(now) * CUT).max(FLOOR);
            self.factor_at = now;
        }
        let until = now.plus(retry_after.unwrap_or(THROTTLE_PAUSE)).0 * 1_000;
        self.next_us = self.next_us.max(until);
    }

    /// Returns the used part of the quota at `now`: 1 without recent throttles.
    #[must_use]
    pub fn factor(&self, now: Timestamp) -> f64 {
        (self.factor + now.since(self.factor_at).as_secs_f64() * CLIMB_PER_SECOND).min(1.0)
    }
}

/// The state of a hub's limiter at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LimiterState {
    /// The used part of the quota: 1 normally, less for a while after the hub has refused sends.
    pub factor: f64,
    /// How far ahead of the clock permits are reserved.
    pub ahead: Duration,
    /// The rollouts asking for permits, by name.
    pub asking: Vec<RolloutName>,
}

impl Default for LimiterState {
    /// Returns the state of an unused hub.
    fn default() -> Self {
        Self {
            factor: 1.0,
            ahead: Duration::ZERO,
            asking: Vec::new(),
        }
    }
}

impl LimiterState {
    /// Returns how long nothing is sent after a throttle, at a pace of `per_minute`; `None` while
    /// permits are given. Without a throttle, reservations reach to the horizon at most, and beyond
    /// it only by the last grant.
    #[must_use]
    pub fn paused_for(&self, per_minute: f64) -> Option<Duration> {
        let interval = Duration::try_from_secs_f64(60.0 / (per_minute * self.factor));
        let most = HORIZON.saturating_add(BLOCK.max(interval.unwrap_or_default()));
        (self.ahead > most).then_some(self.ahead)
    }
}

/// The permits of one hub, for all rollouts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HubPermits {
    limiter: SendLimiter,
    shares: BTreeMap<RolloutName, Share>,
}

/// The share of a rollout in a hub.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    /// Used permits, divided by the weight. Only differences between rollouts are meaningful.
    used: f64,
    /// Until when the rollout counts as waiting for permits.
    asking_until: Timestamp,
    /// The rollout's own limit, if it has a limit.
    own: RolloutLimiter,
}

/// The limiter for a rollout's own limit. Unlike a [`SendLimiter`], it reserves nothing ahead of
/// time: a reservation in the hub's limiter used later than planned would come on top of the
/// reservations for that time. It lets a rollout make up for up to [`MAKE_UP`] of asking late,
/// because waiting for the hub's limiter delays the next request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct RolloutLimiter {
    next_us: u64,
}

impl RolloutLimiter {
    /// Returns the number of messages allowed now, or the time to wait.
    fn allowed(self, now: Timestamp, per_minute: f64) -> Result<u32, Duration> {
        let now_us = now.0 * 1_000;
        if self.next_us > now_us {
            return Err(Duration::from_micros(self.next_us - now_us));
        }
        let room_us = now_us - self.start_us(now) + BLOCK.as_micros() as u64;
        Ok(((room_us as f64 * per_minute / 60e6) as u32).max(1))
    }

    fn take(&mut self, now: Timestamp, permits: u32, per_minute: f64) {
        self.next_us = self.start_us(now) + (f64::from(permits) * 60e6 / per_minute) as u64;
    }

    /// Returns whether earlier permits still affect the limit.
    fn counts_at(self, now: Timestamp) -> bool {
        self.next_us > Self::earliest_us(now)
    }

    fn start_us(self, now: Timestamp) -> u64 {
        self.next_us.max(Self::earliest_us(now))
    }

    fn earliest_us(now: Timestamp) -> u64 {
        (now.0 * 1_000).saturating_sub(MAKE_UP.as_micros() as u64)
    }
}

impl HubPermits {
    /// Reserves permits for a rollout within the hub's rate, the rollout's own limit and the
    /// rollout's share.
    pub fn take(&mut self, now: Timestamp, request: &PermitRequest) -> Grant {
        let share = self.share(now, &request.rollout);
        let later = |wait: Duration| Grant { permits: 0, wait };
        let mut allowed = request.max_permits;
        if let Some(limit) = request.limit {
            match share.own.allowed(now, limit) {
                Ok(permits) => allowed = allowed.min(permits),
                Err(wait) => {
                    // The rollout cannot use the hub now, so it delays no other rollout.
                    share.asking_until = now;
                    return later(wait);
                }
            }
        }
        let least = self.least_of_others(now, &request.rollout);
        let ahead = self.limiter.ahead(now);
        let unfair = least.is_some_and(|least| self.shares[&request.rollout].used > least);
        let grant = if unfair && ahead > DRY_BELOW {
            later(ahead.checked_sub(DRY_BELOW).unwrap_or_default())
        } else {
            self.limiter.take(now, allowed, request.per_minute)
        };
        let share = self.share(now, &request.rollout);
        share.used += f64::from(grant.permits) / f64::from(request.weight.max(1));
        let mut content = false;
        if let Some(limit) = request.limit
            && grant.permits > 0
        {
            share.own.take(now, grant.permits, limit);
            content = grant.permits == allowed && allowed < request.max_permits;
        }
        if content {
            // The rollout got all permits allowed for now, so it delays no other rollout.
            share.asking_until = now;
        } else {
            let back = now.plus(grant.wait).plus(BLOCK).plus(TURN_GRACE);
            share.asking_until = share.asking_until.max(back);
        }
        grant
    }

    /// Skips the reservations that the store may have lost in a crash: writes of the last `time`
    /// may be missing, so the same time is left unused.
    pub fn skip(&mut self, now: Timestamp, time: Duration) {
        let next_us = self.limiter.next_us.max(now.0 * 1_000);
        self.limiter.next_us = next_us.saturating_add(time.as_micros() as u64);
    }

    /// Returns the state of the limiter at `now`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> LimiterState {
        let asking = self.shares.iter();
        let asking = asking.filter(|(_, share)| share.asking_until > now);
        LimiterState {
            factor: self.limiter.factor(now),
            ahead: self.limiter.ahead(now),
            asking: asking.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Notes a hub's refusal for its quota, see [`SendLimiter::throttled`].
    pub fn throttled(&mut self, now: Timestamp, retry_after: Option<Duration>) {
        self.limiter.throttled(now, retry_after);
    }

    /// Returns a rollout's share. A new or returning rollout starts level with the rollout of the
    /// least use: its absence gives no credit.
    fn share(&mut self, now: Timestamp, rollout: &RolloutName) -> &mut Share {
        let least = self.least_of_others(now, rollout);
        self.shares.retain(|name, share| {
            name == rollout || share.asking_until > now || share.own.counts_at(now)
        });
        let share = self.shares.entry(rollout.clone()).or_insert(Share {
            used: 0.0,
            asking_until: Timestamp(0),
            own: RolloutLimiter::default(),
        });
        if share.asking_until <= now {
            share.used = least.map_or(0.0, |least| share.used.max(least));
        }
        share
    }

    /// Returns the least use among the other rollouts waiting for permits now.
    fn least_of_others(&self, now: Timestamp, rollout: &RolloutName) -> Option<f64> {
        let others = self
            .shares
            .iter()
            .filter(|(name, share)| *name != rollout && share.asking_until > now);
        others.map(|(_, share)| share.used).reduce(f64::min)
    }
}

/// The budget for opening links to a hub. The hub has such a limit, too, without a number in its
/// documentation (`AmqpLinkOpen`). This budget lets a few dozen workers start at once, and then two
/// links per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Links {
    next: Timestamp,
}

impl Links {
    /// The number of links that may be opened at once after a quiet time.
    pub const BURST: u32 = 40;
    /// The interval between later links.
    pub const EACH: Duration = Duration::from_millis(500);

    /// Reserves the opening of one link, and returns the time to wait before opening.
    pub fn open(&mut self, now: Timestamp) -> Duration {
        let start = self.next.max(now);
        self.next = start.plus(Self::EACH);
        start
            .since(now)
            .saturating_sub(Self::EACH * (Self::BURST - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Simulates several workers asking as early as possible; returns the times of the sends in
    /// microseconds.
    fn run(per_minute: f64, seconds: u64, workers: usize, jitter: &[u16]) -> Vec<u64> {
        let mut limiter = SendLimiter::default();
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
            // The worker asks again when its block begins, or some time later.
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
    fn throttle_lowers_rate_pauses_sends_and_decays() {
        let mut limiter = SendLimiter::default();
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
                wait: Duration::from_millis(9_005),
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

    /// A hub with few permits reserves each far ahead; a long reservation is no throttle.
    #[test]
    fn a_limiter_is_paused_by_throttles_only() {
        let now = Timestamp(1_000_000);
        for per_minute in [1.0, 100.0, 6_000.0, f64::INFINITY] {
            let mut permits = HubPermits::default();
            let request = PermitRequest {
                hub: HubName::new("h").unwrap(),
                max_permits: 1_000,
                per_minute,
                rollout: rollout("r"),
                weight: 1,
                limit: None,
            };
            if per_minute.is_finite() {
                while permits.take(now, &request).permits > 0 {}
            }
            assert_eq!(permits.state(now).paused_for(per_minute), None);
            let pause = Duration::from_secs(100);
            permits.throttled(now, Some(pause));
            let paused = permits.state(now).paused_for(per_minute);
            assert_eq!(paused, Some(pause), "{per_minute}");
        }
    }

    fn rollout(name: &str) -> RolloutName {
        RolloutName::new(name).unwrap()
    }

    /// The demand of one worker for one rollout, as made by a pacer: the worker fetches a block
    /// when the block before begins.
    #[derive(Clone)]
    struct Asker {
        name: RolloutName,
        weight: u32,
        limit: Option<f64>,
        from_ms: u64,
        until_ms: u64,
        back_at: u64,
    }

    fn asker(name: &str, weight: u32) -> Asker {
        Asker {
            name: rollout(name),
            weight,
            limit: None,
            from_ms: 0,
            until_ms: u64::MAX,
            back_at: 0,
        }
    }

    /// Runs the askers against each other; returns the microsecond and the rollout of every send.
    fn contend(mut askers: Vec<Asker>, per_minute: f64, seconds: u64) -> Vec<(u64, RolloutName)> {
        let mut permits = HubPermits::default();
        let mut sends = Vec::new();
        let mut late = [0u64, 1, 0, 3, 0, 12].into_iter().cycle();
        for asker in &mut askers {
            asker.back_at = asker.from_ms;
        }
        loop {
            let asker = askers.iter_mut().min_by_key(|a| a.back_at).unwrap();
            let now = asker.back_at;
            if now >= seconds * 1_000 {
                return sends;
            }
            if now >= asker.until_ms {
                asker.back_at = u64::MAX;
                continue;
            }
            let request = PermitRequest {
                hub: HubName::new("h").unwrap(),
                max_permits: 10_000,
                per_minute,
                rollout: asker.name.clone(),
                weight: asker.weight,
                limit: asker.limit,
            };
            let grant = permits.take(Timestamp(now), &request);
            let start = now * 1_000 + grant.wait.as_micros() as u64;
            let interval = 60e6 / per_minute;
            sends.extend((0..grant.permits).map(|i| {
                let at = start + (f64::from(i) * interval) as u64;
                (at, asker.name.clone())
            }));
            asker.back_at = start.div_ceil(1_000).max(now + 1) + late.next().unwrap();
        }
    }

    fn sent(sends: &[(u64, RolloutName)], name: &str, seconds: std::ops::Range<u64>) -> f64 {
        let range = seconds.start * 1_000_000..seconds.end * 1_000_000;
        let of = sends
            .iter()
            .filter(|(at, rollout)| range.contains(at) && rollout.as_str() == name);
        of.count() as f64
    }

    #[test]
    fn rollouts_share_whole_rate_by_weight() {
        for per_minute in [600.0, 49_500.0] {
            for workers in [1usize, 4, 16] {
                let each = [asker("a", 5), asker("b", 3), asker("c", 2)];
                let askers = each.iter().flat_map(|a| vec![a.clone(); workers]).collect();
                let sends = contend(askers, per_minute, 120);
                let of = |name| sent(&sends, name, 30..90);
                let all = of("a") + of("b") + of("c");
                assert!(
                    all <= per_minute + 1.0 && all > per_minute * 0.985,
                    "{all} of {per_minute} used by {workers}"
                );
                for (name, share) in [("a", 0.5), ("b", 0.3), ("c", 0.2)] {
                    let got = of(name) / all;
                    assert!(
                        (got / share - 1.0).abs() < 0.05,
                        "{name} got {got} of {per_minute} with {workers} workers"
                    );
                }
            }
        }
    }

    #[test]
    fn unused_share_is_given_to_other_rollouts() {
        let small = Asker {
            limit: Some(600.0),
            ..asker("limited", 9)
        };
        let brief = Asker {
            until_ms: 60_000,
            ..asker("brief", 5)
        };
        let urgent = Asker {
            from_ms: 90_000,
            ..asker("urgent", 10)
        };
        let sends = contend(vec![small, brief, urgent, asker("big", 1)], 6_000.0, 120);
        let minute = |name| sent(&sends, name, 0..60);
        assert!(
            (590.0..=611.0).contains(&minute("limited")),
            "{}",
            minute("limited")
        );
        let (brief, big) = (minute("brief"), minute("big"));
        assert!((brief / big / 5.0 - 1.0).abs() < 0.05, "{brief} and {big}");
        // From the moment the brief rollout is gone, plus a second until its absence counts.
        let rest = sent(&sends, "big", 61..90) + sent(&sends, "limited", 61..90);
        assert!(rest > 29.0 * 100.0 * 0.985, "{rest}");
        let urgent = sent(&sends, "urgent", 91..119);
        assert!(urgent > 28.0 * 90.0 * 10.0 / 11.0 * 0.95, "{urgent}");
    }

    #[test]
    fn shares_of_inactive_rollouts_are_removed() {
        let mut permits = HubPermits::default();
        for n in 0..100u64 {
            let request = PermitRequest {
                hub: HubName::new("h").unwrap(),
                max_permits: 1,
                per_minute: 6_000.0,
                rollout: rollout(&format!("r{n}")),
                weight: 1,
                limit: Some(600.0),
            };
            permits.take(Timestamp(n * 1_000), &request);
        }
        assert!(permits.shares.len() <= 2);
    }

    #[test]
    fn links_open_in_a_burst_and_then_slowly() {
        let mut links = Links::default();
        let now = Timestamp(5_000);
        for _ in 0..Links::BURST {
            assert_eq!(links.open(now), Duration::ZERO);
        }
        assert_eq!(links.open(now), Links::EACH);
        assert_eq!(links.open(now), Links::EACH * 2);
        assert_eq!(
            links.open(now.plus(Duration::from_secs(60))),
            Duration::ZERO
        );
    }

    proptest! {
        #[test]
        fn reservations_never_overlap(requests in prop::collection::vec((0u64..300, 1u32..2_000), 1..100), rate in 1.0f64..100_000.0) {
            let mut limiter = SendLimiter::default();
            let (mut now, mut end) = (1_000u64, 0f64);
            for (later, requested) in requests {
                now += later;
                let grant = limiter.take(Timestamp(now), requested, rate);
                let start = (now * 1_000) as f64 + grant.wait.as_micros() as f64;
                if grant.permits > 0 {
                    prop_assert!(start + 2.0 >= end, "{start} is before {end}");
                    prop_assert!(grant.permits <= requested && grant.wait <= HORIZON);
                    end = start + f64::from(grant.permits) * 60e6 / rate - 1.0;
                }
            }
        }
    }
}
