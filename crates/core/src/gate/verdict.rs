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
        reason: String,
    },
    /// The gate does not hold.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// No verdict is possible, and people must decide.
    Undecided {
        /// Why, for people.
        reason: String,
    },
    /// The gate may still hold.
    Waiting(Waiting),
    /// Query the hub for how many devices have applied the change, and judge again.
    QueryTwins,
}

/// Returns the reason for an undecided gate, for people.
pub(super) fn missing_evidence(devices: u64, within: Duration, obstacles: &str) -> String {
    let within = friendly(within);
    let colon = if obstacles.is_empty() { "" } else { ": " };
    format!(
        "not measured: no feedback for {within} from {devices} silent devices{colon}{obstacles}"
    )
}
