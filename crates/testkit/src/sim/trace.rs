//! The trace of a simulation: the last lines, and a fingerprint of all lines.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use super::Chance;

/// A trace with the newest lines.
#[derive(Debug, Clone)]
pub struct Trace {
    keep: usize,
    lines: VecDeque<String>,
    count: u64,
    fingerprint: u64,
}

impl Trace {
    /// Creates an empty trace for `keep` lines.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        Self {
            keep,
            lines: VecDeque::new(),
            count: 0,
            fingerprint: 0,
        }
    }

    /// Adds a line.
    pub fn note(&mut self, at: Duration, what: std::fmt::Arguments<'_>) {
        let mut line = if self.lines.len() >= self.keep {
            self.lines.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        // Writing to a string cannot fail.
        let _ = write!(line, "{:>9.3}s {what}", at.as_secs_f64());
        self.count += 1;
        // A sum, because lines of the same millisecond have no order.
        let hash = Chance::of(0).at(&line).dice().number();
        self.fingerprint = self.fingerprint.wrapping_add(hash);
        self.lines.push_back(line);
    }

    /// Returns the newest lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// Returns the number of all lines so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the fingerprint. Equal traces have equal fingerprints.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}
