//! Exponential backoff with full jitter: each wait is random below a ceiling, and the ceiling
//! doubles up to a limit. The jitter keeps a fleet from coming back at the same moment.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};

/// The backoff of a single operation.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self {
            first: first.min(max),
            max,
            failures: 0,
        }
    }

    /// Returns the next wait, and doubles the ceiling.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        at_random(ceiling)
    }

    fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }

    /// Resets the ceiling after progress of the operation.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns a random duration from 0 to `of`.
pub(crate) fn at_random(of: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without random numbers, wait for the full duration rather than not at all.
    let share = match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    };
    of.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for ceiling in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(backoff.ceiling(), Duration::from_secs(ceiling));
            assert!(backoff.next() <= Duration::from_secs(ceiling));
        }
        backoff.failures = u32::MAX;
        assert_eq!(backoff.ceiling(), Duration::from_secs(30));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_secs(1));
    }
}
