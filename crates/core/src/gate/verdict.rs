//! The verdicts of gates, and what is waited for.

use std::fmt;
use std::time::Duration;

use crate::ids::MetricName;
use crate::outcome::thousands;
use crate::time::{Timestamp, friendly};

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
    Waits(WaitsFor),
    /// Ask the hub how many devices have applied the change, and judge again.
    Measure,
}

/// What a gate or a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// Devices still to be sent to.
    Sends {
        /// How many.
        left: u64,
    },
    /// Devices without feedback so far.
    Silent {
        /// How many.
        devices: u64,
        /// The end of the wait.
        until: Timestamp,
    },
    /// Feedback of the hub, without which silence is meaningless.
    Evidence {
        /// How many devices are silent.
        devices: u64,
        /// The obstacles, for people; empty if none is known.
        in_the_way: String,
    },
    /// Answers of devices, after everything was sent and all gates have passed.
    Answers {
        /// How many devices have not answered.
        devices: u64,
        /// When every message has been answered or has expired.
        until: Timestamp,
    },
    /// The preparation of a retry.
    Retry,
    /// Devices joining the target.
    Joiners {
        /// The time of the next look for new devices; `None` during a look.
        look: Option<Timestamp>,
    },
    /// The end of the bake.
    Bake {
        /// The time of the end.
        until: Timestamp,
    },
    /// A metric that does not yet hold.
    Metric {
        /// The metric.
        metric: MetricName,
        /// Successful measurements still needed.
        left: u32,
    },
    /// An approval, the last missing condition, still to be noted.
    ApprovalToBeNoted,
    /// An approval.
    Approval {
        /// The end of the wait; `None` for an unlimited wait.
        until: Option<Timestamp>,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sends { left } => write!(f, "{} devices to be sent to", thousands(*left)),
            Self::Silent { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "{devices} silent devices to be heard of, until {until}")
            }
            Self::Evidence {
                devices,
                in_the_way,
            } => {
                let colon = if in_the_way.is_empty() { "" } else { ": " };
                let devices = thousands(*devices);
                write!(f, "evidence of {devices} silent devices{colon}{in_the_way}")
            }
            Self::Answers { devices, until } => {
                let devices = thousands(*devices);
                write!(f, "the answers of {devices} devices, until {until}")
            }
            Self::Retry => f.write_str("its retry to be prepared"),
            Self::Joiners { look: Some(at) } => {
                write!(f, "devices to join: the next look is at {at}")
            }
            Self::Joiners { look: None } => f.write_str("devices to join: a look is under way"),
            Self::Bake { until } => write!(f, "the end of its bake at {until}"),
            Self::Metric { metric, left } => {
                write!(f, "{left} more measurements of metric {metric} to succeed")
            }
            Self::ApprovalToBeNoted | Self::Approval { until: None } => f.write_str("an approval"),
            Self::Approval { until: Some(until) } => write!(f, "an approval, until {until}"),
        }
    }
}

/// The reason for an undecided gate, for people.
pub(super) fn not_measured(devices: u64, within: Duration, in_the_way: &str) -> String {
    let within = friendly(within);
    let colon = if in_the_way.is_empty() { "" } else { ": " };
    format!(
        "not measured: nothing was heard for {within} of {devices} silent devices{colon}{in_the_way}"
    )
}
