//! The current time on a device with a system clock that may not be set.
//!
//! A time before the build of the program is certainly wrong. With such a system clock, the agent's
//! clock starts at the build time, and the agent learns the time from the `Date` header of the
//! hub's HTTPS answers. The agent does the same after a refused token: the hub refuses tokens when
//! the clock is wrong by more than the token's life. A learnt time holds for this process; the
//! system clock is not set.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Clocks closer than this duration count as equal.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(2);

/// A clock with an adjustable time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock(Arc<Mutex<Option<ReferenceTime>>>);

/// A time with precedence over the system clock: `time` at the instant `at`.
#[derive(Debug, Clone, Copy)]
struct ReferenceTime {
    time: Timestamp,
    at: Instant,
    /// Whether `time` is only the build time, for lack of a learnt time.
    is_guess: bool,
}

/// Returns the build time of the program.
fn build_time() -> Timestamp {
    let seconds = env!("TWINCAST_BUILT").parse().unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Clock {
    /// Returns the current time.
    pub(crate) fn now(&self) -> Timestamp {
        let system = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
        self.now_given(system)
    }

    fn now_given(&self, system: Timestamp) -> Timestamp {
        let mut reference = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *reference {
            // The system clock was set in the meantime.
            Some(ReferenceTime { is_guess: true, .. }) if system >= build_time() => {
                *reference = None;
            }
            None if system < build_time() => {
                *reference = Some(ReferenceTime {
                    time: build_time(),
                    at: Instant::now(),
                    is_guess: true,
                });
            }
            _ => {}
        }
        reference.map_or(system, |it| {
            it.time
                .checked_add(it.at.elapsed())
                .unwrap_or(Timestamp::MAX)
        })
    }

    /// Returns whether the current time is a guess, counted from the build time.
    pub(crate) fn is_unset(&self) -> bool {
        self.now();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|reference| reference.is_guess)
    }

    /// Adopts a time not before the build, if the difference is at least [`TOLERANCE`] or the
    /// current time is a guess. Returns by how much this clock was behind (negative if ahead), or
    /// none if the time was not adopted.
    pub(crate) fn learn(&self, time: Timestamp) -> Option<SignedDuration> {
        let behind = time.duration_since(self.now());
        if behind.abs() < TOLERANCE && !self.is_unset() || time < build_time() {
            return None;
        }
        let reference = ReferenceTime {
            time,
            at: Instant::now(),
            is_guess: false,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reference);
        Some(behind)
    }
}

/// TLS checks the validity of certificates against this clock too.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_clock_learns_the_time() {
        let clock = Clock::default();
        assert!(clock.now_given(Timestamp::UNIX_EPOCH) >= build_time());
        assert!(clock.0.lock().unwrap().unwrap().is_guess);
        let time = build_time()
            .checked_add(Duration::from_secs(86_400))
            .unwrap();
        clock.learn(time).unwrap();
        assert!(clock.now_given(Timestamp::UNIX_EPOCH) >= time);
        assert!(!clock.is_unset());
    }

    #[test]
    fn only_a_different_and_plausible_time_is_learnt() {
        let clock = Clock::default();
        let near = clock.now().checked_add(Duration::from_secs(30)).unwrap();
        assert_eq!(clock.learn(near), None);
        assert_eq!(clock.learn(Timestamp::UNIX_EPOCH), None);
        assert!(!clock.is_unset());
        let ahead = clock
            .now()
            .checked_add(Duration::from_secs(86_400))
            .unwrap();
        assert!(clock.learn(ahead).is_some_and(|by| by.as_hours() >= 23));
        assert!(clock.now() >= ahead);
        let seen = clock.current_time().unwrap().as_secs();
        assert!(i64::try_from(seen).unwrap() >= ahead.as_second());
    }
}
