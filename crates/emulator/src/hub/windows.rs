//! The largest number of events in any window of 60 s and of 1 s, exact to the millisecond.

const MINUTE_MS: u64 = 60_000;
const SECOND_MS: u64 = 1_000;

/// Counts events per millisecond over the last minute, and tracks the largest sums.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Events per millisecond; the slot of time `t` is `t` modulo the length.
    slots: Box<[u32]>,
    /// The latest time counted.
    now: u64,
    in_minute: u64,
    in_second: u64,
    max_minute: u64,
    max_second: u64,
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![0; MINUTE_MS as usize].into_boxed_slice(),
            now: 0,
            in_minute: 0,
            in_second: 0,
            max_minute: 0,
            max_second: 0,
        }
    }

    /// Counts an event at `at`, in milliseconds. `at` must not go back.
    #[inline]
    pub(crate) fn count(&mut self, at: u64) {
        if at > self.now {
            self.advance(at);
        }
        let slot = self.slot(self.now);
        self.slots[slot] += 1;
        self.in_minute += 1;
        self.in_second += 1;
        self.max_minute = self.max_minute.max(self.in_minute);
        self.max_second = self.max_second.max(self.in_second);
    }

    fn slot(&self, at: u64) -> usize {
        (at % MINUTE_MS) as usize
    }

    fn advance(&mut self, to: u64) {
        if to - self.now >= MINUTE_MS {
            self.slots.fill(0);
            (self.in_minute, self.in_second) = (0, 0);
            self.now = to;
            return;
        }
        while self.now < to {
            self.now += 1;
            // The window of a millisecond t is (t - 60 s, t]; the leaving count is in the slot
            // about to be reused.
            let leaving = self.slot(self.now);
            self.in_minute -= u64::from(self.slots[leaving]);
            self.slots[leaving] = 0;
            if self.now >= SECOND_MS {
                self.in_second -= u64::from(self.slots[self.slot(self.now - SECOND_MS)]);
            }
        }
    }

    /// Returns the most events in any 60 seconds.
    pub(crate) fn max_minute(&self) -> u64 {
        self.max_minute
    }

    /// Returns the most events in any second.
    pub(crate) fn max_second(&self) -> u64 {
        self.max_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by definition: the most events in any half-open window that ends at an event.
    fn slowly(events: &[u64], width: u64) -> u64 {
        let ending_at = |end: u64| {
            events
                .iter()
                .filter(|at| **at <= end && **at + width > end)
                .count()
        };
        events
            .iter()
            .map(|end| ending_at(*end) as u64)
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn the_largest_windows_are_exact() {
        let mut at = 1_000_000u64;
        let mut state = 1u64;
        let mut events = Vec::new();
        for _ in 0..3000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            at += match state >> 60 {
                0 => 5_000,
                1..=3 => 300,
                4..=9 => 40,
                _ => 0,
            };
            events.push(at);
        }
        let mut windows = Windows::new();
        events.iter().for_each(|at| windows.count(*at));
        assert_eq!(windows.max_minute(), slowly(&events, 60_000));
        assert_eq!(windows.max_second(), slowly(&events, 1_000));
    }

    #[test]
    fn a_long_silence_empties_the_windows() {
        let mut windows = Windows::new();
        windows.count(5);
        windows.count(5);
        windows.count(1_000_000);
        assert_eq!((windows.max_minute(), windows.max_second()), (2, 2));
    }
}
