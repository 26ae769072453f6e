//! Where a ramp is, for people.

use std::fmt;

use serde::Serialize;
use twincast_core::ports::Tally;
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::spec::{RampOf, Rate};

use crate::output::thousands;

/// Where the ramp of the current stage is.
#[derive(Debug, Serialize)]
pub(crate) struct RampSummary {
    /// The rate through each hub now, below the hub's quota.
    rate_per_minute: f64,
    /// What is counted.
    of: RampOf,
    /// How many devices are counted.
    counted: u64,
    /// When it rises next, and to what; none when it has reached the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<NextStep>,
}

#[derive(Debug, Serialize)]
struct NextStep {
    counted: u64,
    rate_per_minute: f64,
}

impl RampSummary {
    /// The ramp of a rollout that runs, if it has one.
    pub(crate) fn of(rollout: &Rollout, tallies: &[Tally]) -> Option<Self> {
        let pace = rollout.spec.pace_of(rollout.stage());
        let ramp = pace.ramp().filter(|_| rollout.phase == Phase::Running)?;
        let counted = pace.counted(tallies);
        let rate = |counted| pace.rate_at(counted).map(Rate::as_per_minute);
        let next = pace.next_step(counted);
        Some(Self {
            rate_per_minute: rate(counted)?,
            of: ramp.of,
            counted,
            next: next.and_then(|counted| {
                let rate_per_minute = rate(counted)?;
                Some(NextStep {
                    counted,
                    rate_per_minute,
                })
            }),
        })
    }
}

impl fmt::Display for RampSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, counted, of) = (self.rate_per_minute, thousands(self.counted), self.of);
        write!(f, "ramp: {rate}/min through each hub with {counted} {of}")?;
        match &self.next {
            Some(next) => {
                let (rate, counted) = (next.rate_per_minute, thousands(next.counted));
                write!(f, ", {rate}/min from {counted} on")
            }
            None => f.write_str(", the highest"),
        }
    }
}
