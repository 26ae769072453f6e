//! A queue of delayed actions, earliest first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

/// A heap ordered by time; entries of equal time keep the order of insertion.
#[derive(Debug)]
pub(crate) struct Timer<T> {
    heap: BinaryHeap<Entry<T>>,
    sequence: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Instant,
    sequence: u64,
    what: T,
}

impl<T> Timer<T> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
        }
    }

    pub(crate) fn push(&mut self, at: Instant, what: T) {
        self.sequence += 1;
        self.heap.push(Entry {
            at,
            sequence: self.sequence,
            what,
        });
    }

    /// Returns the time of the earliest entry.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// Removes and returns the earliest entry due by `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|entry| entry.what)
    }

    /// Removes and returns all entries, in no particular order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.heap.drain().map(|entry| entry.what)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed, since the heap returns the greatest entry first.
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn earliest_entry_is_due_first_and_equal_times_keep_order() {
        let start = Instant::now();
        let mut timer = Timer::new();
        for (ms, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b'), (90, 'e')] {
            timer.push(start + Duration::from_millis(ms), what);
        }
        let now = start + Duration::from_millis(5);
        let due: String = std::iter::from_fn(|| timer.pop_due(now)).collect();
        assert_eq!(due, "abcd");
        assert_eq!(timer.drain().count(), 1);
    }
}
