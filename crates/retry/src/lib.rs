//! Retry policies: exponential backoff with *full jitter*, capped, bounded and named by situation.
//!
//! A [`Policy`] is a validated value; [`Policy::delays`] turns it into [`Delays`], which returns
//! the delay before the next try until the policy is exhausted. The crate neither sleeps nor
//! decides *what* to retry: one layer owns the retries of an operation, and retries never nest.
//!
//! The `k`-th ceiling is `min(max, initial × 2^k)`; the delay is drawn uniformly from `[floor,
//! ceiling]`. With the usual `floor` of zero this is "full jitter": clients failing together spread
//! over the whole interval instead of returning together. [`Policy::throttled`] has a floor above
//! zero, for peers that demand a minimum pause.
//!
//! # Why this crate wraps `backoff`
//!
//! The growth of the ceiling and the limit on elapsed time come from the `backoff` crate, which is
//! unmaintained (RUSTSEC-2025-0012). With a randomization factor of zero, `backoff` yields the
//! ceiling itself. The jitter is drawn here: `backoff` uses the thread's own random numbers and
//! cannot be seeded, this crate can ([`Policy::delays_seeded`]). No type of `backoff` appears in
//! this crate's interface, so `backoff` can be replaced without any change to callers.
//!
//! ```
//! use std::time::Duration;
//! use twincast_retry::Policy;
//!
//! let policy = Policy::new(Duration::from_millis(100), Duration::from_secs(10))?.with_max_attempts(3)?;
//! let mut delays = policy.delays();
//! assert!(delays.next_delay().unwrap() <= Duration::from_millis(100));
//! # Ok::<(), twincast_retry::PolicyError>(())
//! ```

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Upper bound of a policy's largest delay; a longer delay is a configuration mistake.
const MAX_DELAY_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// When to try again: a validated, immutable value.
///
/// Invariants: `0 < initial ≤ max ≤ 24 h`, `floor ≤ max`, limits above zero where given.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    initial: Duration,
    max: Duration,
    floor: Duration,
    max_elapsed: Option<Duration>,
    max_attempts: Option<u32>,
}

/// Why a [`Policy`] was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The first ceiling is zero: retries would spin.
    #[error("initial delay is zero")]
    ZeroInitial,
    /// The largest delay is smaller than the first one.
    #[error("largest delay {max:?} is below the initial delay {initial:?}")]
    MaxBelowInitial {
        /// The first ceiling.
        initial: Duration,
        /// The largest ceiling.
        max: Duration,
    },
    /// The largest delay is above 24 hours.
    #[error("largest delay {0:?} is above 24 hours")]
    MaxTooLong(Duration),
    /// The number of attempts is limited to zero.
    #[error("number of attempts is limited to zero")]
    ZeroAttempts,
    /// The elapsed time is limited to zero.
    #[error("elapsed time is limited to zero")]
    ZeroElapsed,
}

/// The delays of one operation under one [`Policy`]; an iterator that ends when the policy is
/// exhausted.
///
/// Use a new value per operation, and call [`reset`](Delays::reset) after a success that starts the
/// operation over.
#[derive(Debug)]
pub struct Delays {
    policy: Policy,
    ceilings: ExponentialBackoff,
    attempts: u32,
    rng: StdRng,
}

impl Policy {
    /// Creates a policy that doubles from `initial` to `max` for ever, with full jitter.
    ///
    /// # Errors
    ///
    /// When `initial` is zero, or above `max`, or `max` is above 24 hours.
    pub fn new(initial: Duration, max: Duration) -> Result<Self, PolicyError> {
        if initial.is_zero() {
            return Err(PolicyError::ZeroInitial);
        }
        if max < initial {
            return Err(PolicyError::MaxBelowInitial { initial, max });
        }
        if max > MAX_DELAY_LIMIT {
            return Err(PolicyError::MaxTooLong(max));
        }
        Ok(Self::from_constants(initial, max))
    }

    /// Ends the delays after `attempts` delays. Without this limit, their number is unlimited.
    ///
    /// # Errors
    ///
    /// When `attempts` is zero.
    pub fn with_max_attempts(mut self, attempts: u32) -> Result<Self, PolicyError> {
        if attempts == 0 {
            return Err(PolicyError::ZeroAttempts);
        }
        self.max_attempts = Some(attempts);
        Ok(self)
    }

    /// Ends the delays when `elapsed` of real time has passed since [`Policy::delays`] or
    /// [`Delays::reset`], or would pass during the next delay's ceiling.
    ///
    /// # Errors
    ///
    /// When `elapsed` is zero.
    pub fn with_max_elapsed(mut self, elapsed: Duration) -> Result<Self, PolicyError> {
        if elapsed.is_zero() {
            return Err(PolicyError::ZeroElapsed);
        }
        self.max_elapsed = Some(elapsed);
        Ok(self)
    }

    /// Reconnecting to a hub after the loss of a connection or link: 250 ms to 30 s, for ever.
    ///
    /// Hubs move their gateways about weekly and throttle link opens, so a fleet of workers must
    /// not return all at once.
    #[must_use]
    pub fn reconnect() -> Self {
        Self::from_constants(Duration::from_millis(250), Duration::from_secs(30))
    }

    /// An HTTP request that failed in transit or with a 5xx response: 200 ms to 10 s, at most five
    /// retries.
    #[must_use]
    pub fn http_transient() -> Self {
        Self {
            max_attempts: Some(5),
            ..Self::from_constants(Duration::from_millis(200), Duration::from_secs(10))
        }
    }

    /// A throttled request without `Retry-After` in the response: at least 10 s, at most 60 s, at
    /// most eight retries.
    #[must_use]
    pub fn throttled() -> Self {
        Self {
            floor: Duration::from_secs(10),
            max_attempts: Some(8),
            ..Self::from_constants(Duration::from_secs(15), Duration::from_secs(60))
        }
    }

    /// A cloud-to-device send refused for a transient reason: 100 ms to 10 s, at most ten retries.
    ///
    /// Short on purpose: a waiting message occupies a slot, so after these retries the caller gives
    /// the message back.
    #[must_use]
    pub fn send_retry() -> Self {
        Self {
            max_attempts: Some(10),
            ..Self::from_constants(Duration::from_millis(100), Duration::from_secs(10))
        }
    }

    /// An unresponsive store, asked by a process already holding, for example, a lease: 100 ms to 1
    /// s. Processes waiting to take over ask less often, so that the holder reaches the recovered
    /// store first.
    #[must_use]
    pub fn store_retry() -> Self {
        Self::from_constants(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// The largest delay.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Starts the delays of one operation, with jitter from the operating system's randomness.
    #[must_use]
    pub fn delays(&self) -> Delays {
        self.delays_from(randomness())
    }

    /// Starts the delays of one operation with jitter derived from `seed`: same seed, same delays.
    #[must_use]
    pub fn delays_seeded(&self, seed: u64) -> Delays {
        self.delays_from(StdRng::seed_from_u64(seed))
    }

    fn delays_from(&self, rng: StdRng) -> Delays {
        let mut ceilings = ExponentialBackoff {
            initial_interval: self.initial,
            current_interval: self.initial,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.max,
            max_elapsed_time: self.max_elapsed,
            ..ExponentialBackoff::default()
        };
        ceilings.reset();
        Delays {
            policy: self.clone(),
            ceilings,
            attempts: 0,
            rng,
        }
    }

    /// Creates a policy from constants of this module, known to satisfy [`Policy::new`] (tested
    /// below).
    fn from_constants(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            floor: Duration::ZERO,
            max_elapsed: None,
            max_attempts: None,
        }
    }
}

impl Delays {
    /// Returns the delay before the next try, or `None` when the policy is exhausted.
    pub fn next_delay(&mut self) -> Option<Duration> {
        if self
            .policy
            .max_attempts
            .is_some_and(|most| self.attempts >= most)
        {
            return None;
        }
        let ceiling = self
            .ceilings
            .next_backoff()?
            .clamp(self.policy.floor, self.policy.max);
        self.attempts = self.attempts.saturating_add(1);
        let spread = ceiling - self.policy.floor;
        let share: f64 = self.rng.random();
        Some((self.policy.floor + spread.mul_f64(share)).min(ceiling))
    }

    /// The number of delays since the start or the last reset.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over: the next ceiling is the initial one; count and elapsed time are zero. The
    /// jitter sequence continues.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.ceilings.reset();
    }
}

/// The operating system's randomness, or the thread's seeded generator if set.
fn randomness() -> StdRng {
    #[cfg(feature = "seeded")]
    if let Some(seeded) = SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(StdRng::from_rng)) {
        return seeded;
    }
    StdRng::from_rng(&mut rand::rng())
}

#[cfg(feature = "seeded")]
thread_local! {
    static SEEDED: std::cell::RefCell<Option<StdRng>> = const { std::cell::RefCell::new(None) };
}

/// Derives the jitter of all delays started later on this thread from `seed`: for replayable
/// simulations.
#[cfg(feature = "seeded")]
pub fn seed_thread(seed: u64) {
    SEEDED.set(Some(StdRng::seed_from_u64(seed)));
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.next_delay()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn named_policies_hold_the_invariants_of_the_constructor() {
        for policy in [
            Policy::reconnect(),
            Policy::http_transient(),
            Policy::throttled(),
            Policy::send_retry(),
            Policy::store_retry(),
        ] {
            assert!(
                Policy::new(policy.initial, policy.max).is_ok(),
                "{policy:?}"
            );
            assert!(policy.floor <= policy.max, "{policy:?}");
        }
    }

    #[test]
    fn throttled_waits_between_ten_and_sixty_seconds() {
        for seed in 0..50 {
            for delay in Policy::throttled().delays_seeded(seed) {
                assert!(
                    (Duration::from_secs(10)..=Duration::from_secs(60)).contains(&delay),
                    "{delay:?}"
                );
            }
        }
    }

    #[test]
    fn attempts_end_the_delays_and_reset_starts_over() {
        let policy = Policy::reconnect().with_max_attempts(2).unwrap();
        let mut delays = policy.delays();
        assert_eq!(delays.by_ref().count(), 2);
        assert_eq!(delays.next_delay(), None);
        delays.reset();
        assert_eq!(delays.count(), 2);
    }

    #[test]
    fn an_elapsed_limit_below_the_first_ceiling_ends_at_once() {
        let policy = Policy::new(Duration::from_secs(5), Duration::from_secs(5)).unwrap();
        let mut delays = policy
            .with_max_elapsed(Duration::from_secs(1))
            .unwrap()
            .delays();
        assert_eq!(delays.next_delay(), None);
    }

    #[test]
    fn bad_values_are_named() {
        let second = Duration::from_secs(1);
        assert_eq!(
            Policy::new(Duration::ZERO, second),
            Err(PolicyError::ZeroInitial)
        );
        assert!(matches!(
            Policy::new(second * 2, second),
            Err(PolicyError::MaxBelowInitial { .. })
        ));
        assert!(matches!(
            Policy::new(second, second * 90_000),
            Err(PolicyError::MaxTooLong(_))
        ));
        let policy = Policy::new(second, second).unwrap();
        assert_eq!(
            policy.clone().with_max_attempts(0),
            Err(PolicyError::ZeroAttempts)
        );
        assert_eq!(
            policy.with_max_elapsed(Duration::ZERO),
            Err(PolicyError::ZeroElapsed)
        );
    }

    proptest! {
        #[test]
        fn every_delay_is_between_the_floor_and_the_ceiling(
            initial_ms in 1_u64..5_000,
            times in 1_u64..100,
            floor_share in 0.0_f64..=1.0,
            seed: u64,
        ) {
            let initial = Duration::from_millis(initial_ms);
            let max = initial * u32::try_from(times).unwrap();
            let floor = max.mul_f64(floor_share).min(max);
            let policy = Policy { floor, ..Policy::new(initial, max).unwrap() };
            let mut ceiling = initial.as_secs_f64();
            for delay in policy.delays_seeded(seed).take(20) {
                let bound = ceiling.min(max.as_secs_f64()).max(policy.floor.as_secs_f64()) + 1e-6;
                prop_assert!(delay >= policy.floor);
                prop_assert!(delay.as_secs_f64() <= bound, "{delay:?} above {bound}");
                prop_assert!(delay <= max);
                ceiling *= 2.0;
            }
        }

        #[test]
        fn the_same_seed_gives_the_same_delays(seed: u64) {
            let first: Vec<_> = Policy::reconnect().delays_seeded(seed).take(10).collect();
            let second: Vec<_> = Policy::reconnect().delays_seeded(seed).take(10).collect();
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn jitter_is_full() {
        let policy = Policy::new(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
        let delays: Vec<_> = policy.delays_seeded(7).take(2_000).collect();
        assert!(delays.iter().any(|d| *d < Duration::from_millis(50)));
        assert!(delays.iter().any(|d| *d > Duration::from_millis(950)));
    }
}
