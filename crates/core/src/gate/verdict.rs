//! The verdicts of gates.

use std::time::Duration;

use crate::time::friendly;
use crate::waiting::Waiting;

/// The verdict of a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The next stage may start.
    Passed {
        /// Why, for people.
        because: String,
    },
    /// The gate does not hold.
    Failed {
        /// Why, for people.
        because: String,
    },
    /// No verdict is possible, and people must look.
    Undecided {
        /// Why, for people.
        because: String,
    },
    /// The gate may still hold.
    Waits(Waiting),
    /// Ask the hub how many devices have applied the change, and judge again.
    Measure,
}

/// The reason for an undecided gate, for people.
pub(super) fn not_measured(devices: u64, within: Duration, in_the_way: &str) -> String {
    let within = friendly(within);
    let colon = if in_the_way.is_empty() { "" } else { ": " };
    format!(
        "not measured: nothing was heard for {within} of {devices} silent devices{colon}{in_the_way}"
    )
}
