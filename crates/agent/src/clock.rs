//! What time it is, on a device whose clock may not be set.
//!
//! No time is right that is before the program was built. A system clock that says so is not believed: the time starts at the
//! build and the hub is asked, by the `Date` of its HTTPS answers. The same is done when the hub refuses a token, as it does
//! when the clock is wrong by more than the token's life. What was learnt holds for this process; the system's clock is not set.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Clocks that are less apart than this are taken for equal.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(2);

/// A clock that can be told the time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock(Arc<Mutex<Option<Known>>>);

/// A time that counts more than the system's.
#[derive(Debug, Clone, Copy)]
struct Known {
    time: Timestamp,
    at: Instant,
    /// It is the time of the build, for want of a better one.
    is_guess: bool,
}

/// When the program was built.
fn built() -> Timestamp {
    let seconds = env!("TWINCAST_BUILT").parse().unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Clock {
    /// What time it is.
    pub(crate) fn now(&self) -> Timestamp {
        let system = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
        self.now_beside(system)
    }

    fn now_beside(&self, system: Timestamp) -> Timestamp {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            // The system's clock was set in the meantime.
            Some(Known { is_guess: true, .. }) if system >= built() => *known = None,
            None if system < built() => {
                *known = Some(Known {
                    time: built(),
                    at: Instant::now(),
                    is_guess: true,
                });
            }
            _ => {}
        }
        known.map_or(system, |it| {
            it.time
                .checked_add(it.at.elapsed())
                .unwrap_or(Timestamp::MAX)
        })
    }

    /// Whether the time is a guess.
    pub(crate) fn is_unset(&self) -> bool {
        self.now();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|known| known.is_guess)
    }

    /// Takes a time over, if it is another one and can be right. Says by how much this clock was behind.
    pub(crate) fn learn(&self, time: Timestamp) -> Option<SignedDuration> {
        let behind = time.duration_since(self.now());
        if behind.abs() < TOLERANCE && !self.is_unset() || time < built() {
            return None;
        }
        let known = Known {
            time,
            at: Instant::now(),
            is_guess: false,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Some(behind)
    }
}

/// Certificates are judged by this clock, too.
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
    fn a_clock_that_is_not_set_learns_the_time() {
        let clock = Clock::default();
        assert!(clock.now_beside(Timestamp::UNIX_EPOCH) >= built());
        assert!(clock.0.lock().unwrap().unwrap().is_guess);
        let time = built().checked_add(Duration::from_secs(86_400)).unwrap();
        clock.learn(time).unwrap();
        assert!(clock.now_beside(Timestamp::UNIX_EPOCH) >= time);
        assert!(!clock.is_unset());
    }

    #[test]
    fn a_time_is_learnt_if_it_is_another_one_and_can_be_right() {
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
