//! The arithmetic of a hub's quota.
//!
//! A [`Limiter`] hands out *reservations*: so many sends, from this moment on, evenly. It is a
//! GCRA whose theoretical arrival time may run ahead of the clock by up to [`HORIZON`], so a
//! worker can fetch its next block before the current one is used up and no time is lost between
//! them. There is no burst: whatever window one lays over the sends, they fit the rate.
//!
//! A throttle from the hub cuts the rate and holds everyone back for a while; then it climbs
//! back, slowly (additive increase, multiplicative decrease).
//!
//! [`HubPermits`] shares one hub's limiter between rollouts by their weights. It counts what each
//! has used for its weight, and whoever has used the least may reserve up to the horizon. The
//! others get something only when the line runs dry: then nobody with a better right has asked,
//! and the quota would be lost.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{HubName, RolloutName};
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

/// A line with less than this reserved is dry: anyone may have what nobody else asks for.
pub const DRY: Duration = Duration::from_millis(20);
/// How much later than it was told to a rollout may come back before its turn is no longer kept.
pub const KEEP: Duration = Duration::from_millis(300);

/// Up to how much time a rollout with a limit of its own may make up for after asking late.
pub const MAKE_UP: Duration = Duration::from_millis(300);

/// A wish to send through a hub.
#[derive(Debug, Clone, PartialEq)]
pub struct PermitRequest {
    /// The hub.
    pub hub: HubName,
    /// So many messages at the most.
    pub wanted: u32,
    /// The hub's pace for all senders together, a minute.
    pub per_minute: f64,
    /// For which rollout.
    pub rollout: RolloutName,
    /// The rollout's share, compared with those of the others.
    pub weight: u32,
    /// The rollout's own limit on this hub, a minute, if it has one below the hub's.
    pub limit: Option<f64>,
}

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

    /// How far ahead of the clock permits are reserved.
    #[must_use]
    pub fn ahead(&self, now: Timestamp) -> Duration {
        Duration::from_micros(self.next_us.saturating_sub(now.0 * 1_000))
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

/// What a hub's limiter does at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LimiterState {
    /// What of the quota is used: 1 when all is well, less for a while after the hub has refused sends.
    pub factor: f64,
    /// How far ahead of the clock permits are reserved.
    pub ahead: Duration,
    /// The rollouts that want permits, by name.
    pub asking: Vec<RolloutName>,
}

impl Default for LimiterState {
    /// That of a hub that nobody has used.
    fn default() -> Self {
        Self {
            factor: 1.0,
            ahead: Duration::ZERO,
            asking: Vec::new(),
        }
    }
}

impl LimiterState {
    /// For how long nothing is sent because the hub has refused sends, at a pace of `per_minute`; `None` when permits
    /// are given. Those alone reach no further ahead than to the horizon, and what was given last beyond it.
    #[must_use]
    pub fn shut_for(&self, per_minute: f64) -> Option<Duration> {
        let interval = Duration::try_from_secs_f64(60.0 / (per_minute * self.factor));
        let most = HORIZON.saturating_add(BLOCK.max(interval.unwrap_or_default()));
        (self.ahead > most).then_some(self.ahead)
    }
}

/// One hub's permits, for all rollouts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HubPermits {
    limiter: Limiter,
    shares: BTreeMap<RolloutName, Share>,
}

/// What a rollout has of a hub.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    /// Permits used, divided by the weight. Only differences between rollouts mean something.
    used: f64,
    /// It waits for permits, and is expected back by then.
    asking_until: Timestamp,
    /// Its own limit, if it has one.
    own: Ration,
}

/// A rollout's own limit. Other than a [`Limiter`] it gives nothing ahead of time (a place in the
/// hub's line that is used later than it was reserved for would come on top of the places
/// reserved for then), and makes up for [`MAKE_UP`] that it was asked late: the hub's line is in
/// the way of the next ask.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Ration {
    next_us: u64,
}

impl Ration {
    /// How many may be sent now; or how long to wait.
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

    /// What was taken still matters.
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
    /// Reserves permits for a rollout, within the hub's rate, its own, and its share.
    pub fn take(&mut self, now: Timestamp, request: &PermitRequest) -> Grant {
        let share = self.share(now, &request.rollout);
        let later = |wait: Duration| Grant { permits: 0, wait };
        let mut allowed = request.wanted;
        if let Some(limit) = request.limit {
            match share.own.allowed(now, limit) {
                Ok(permits) => allowed = allowed.min(permits),
                Err(wait) => {
                    // It has no use for the hub now, so it holds nobody up.
                    share.asking_until = now;
                    return later(wait);
                }
            }
        }
        let least = self.least_of_others(now, &request.rollout);
        let ahead = self.limiter.ahead(now);
        let unfair = least.is_some_and(|least| self.shares[&request.rollout].used > least);
        let grant = if unfair && ahead > DRY {
            later(ahead.checked_sub(DRY).unwrap_or_default())
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
            content = grant.permits == allowed && allowed < request.wanted;
        }
        if content {
            // It got all that it may have for now, so it holds nobody up.
            share.asking_until = now;
        } else {
            let back = now.plus(grant.wait).plus(BLOCK).plus(KEEP);
            share.asking_until = share.asking_until.max(back);
        }
        grant
    }

    /// The store came back from a crash in which it may have lost its writes of this time: what was reserved meanwhile is
    /// used without being known, so as much is passed over.
    pub fn lost(&mut self, now: Timestamp, time: Duration) {
        let next_us = self.limiter.next_us.max(now.0 * 1_000);
        self.limiter.next_us = next_us.saturating_add(time.as_micros() as u64);
    }

    /// What the limiter does at `now`.
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

    /// The hub refused a send for its quota, see [`Limiter::throttled`].
    pub fn throttled(&mut self, now: Timestamp, retry_after: Option<Duration>) {
        self.limiter.throttled(now, retry_after);
    }

    /// A rollout's share. One that is new here, or back, starts level with the one that has used
    /// the least: it gets no credit for the time that it was away.
    fn share(&mut self, now: Timestamp, rollout: &RolloutName) -> &mut Share {
        let least = self.least_of_others(now, rollout);
        self.shares.retain(|name, share| {
            name == rollout || share.asking_until > now || share.own.counts_at(now)
        });
        let share = self.shares.entry(rollout.clone()).or_insert(Share {
            used: 0.0,
            asking_until: Timestamp(0),
            own: Ration::default(),
        });
        if share.asking_until <= now {
            share.used = least.map_or(0.0, |least| share.used.max(least));
        }
        share
    }

    /// What the rollout that used the least has used, of those that wait for permits now.
    fn least_of_others(&self, now: Timestamp, rollout: &RolloutName) -> Option<f64> {
        let others = self
            .shares
            .iter()
            .filter(|(name, share)| *name != rollout && share.asking_until > now);
        others.map(|(_, share)| share.used).reduce(f64::min)
    }
}

/// The budget for opening links to a hub. The hub has one, too, that its documents give no number
/// for (`AmqpLinkOpen`); ours lets a few dozen workers start at once, and no more than two links a
/// second after that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Links {
    next: Timestamp,
}

impl Links {
    /// Links that may be opened at once after a quiet time.
    pub const BURST: u32 = 40;
    /// The time that one link stands for.
    pub const EACH: Duration = Duration::from_millis(500);

    /// Reserves the opening of one link, and says how long to wait before it.
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

    /// A hub that gives permits one by one gives each a long time ahead; that is no throttle.
    #[test]
    fn a_limiter_is_shut_by_throttles_only() {
        let now = Timestamp(1_000_000);
        for per_minute in [1.0, 100.0, 6_000.0, f64::INFINITY] {
            let mut permits = HubPermits::default();
            let request = PermitRequest {
                hub: HubName::new("h").unwrap(),
                wanted: 1_000,
                per_minute,
                rollout: rollout("r"),
                weight: 1,
                limit: None,
            };
            if per_minute.is_finite() {
                while permits.take(now, &request).permits > 0 {}
            }
            assert_eq!(permits.state(now).shut_for(per_minute), None);
            let pause = Duration::from_secs(100);
            permits.throttled(now, Some(pause));
            let shut = permits.state(now).shut_for(per_minute);
            assert_eq!(shut, Some(pause), "{per_minute}");
        }
    }

    fn rollout(name: &str) -> RolloutName {
        RolloutName::new(name).unwrap()
    }

    /// One worker's demand for one rollout, as a pacer makes it: it fetches a block when the one
    /// before begins.
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

    /// Lets the askers have their way; gives (microsecond, rollout) of every send.
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
                wanted: 10_000,
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
    fn rollouts_share_by_weight_and_leave_nothing() {
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
    fn what_one_does_not_use_the_others_get() {
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
        // From the moment on that the brief one is gone; a second for it to be missed.
        let rest = sent(&sends, "big", 61..90) + sent(&sends, "limited", 61..90);
        assert!(rest > 29.0 * 100.0 * 0.985, "{rest}");
        let urgent = sent(&sends, "urgent", 91..119);
        assert!(urgent > 28.0 * 90.0 * 10.0 / 11.0 * 0.95, "{urgent}");
    }

    #[test]
    fn what_is_not_used_any_more_is_forgotten() {
        let mut permits = HubPermits::default();
        for n in 0..100u64 {
            let request = PermitRequest {
                hub: HubName::new("h").unwrap(),
                wanted: 1,
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
