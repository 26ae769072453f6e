//! Where a ramp is.

use serde::{Deserialize, Serialize};
use twincast_core::ports::Tally;
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::spec::{RampOf, Rate};
use utoipa::ToSchema;

/// Where the ramp of the current stage is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RampView {
    /// The rate through each hub now, below the hub's quota.
    pub rate_per_minute: f64,
    /// What is counted.
    #[schema(value_type = String)]
    pub of: RampOf,
    /// How many devices are counted.
    pub counted: u64,
    /// When it rises next, and to what; none when it has reached the highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextStep>,
}

/// The next step of a ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextStep {
    /// From so many devices on.
    pub counted: u64,
    /// The rate through each hub then.
    pub rate_per_minute: f64,
}

impl RampView {
    /// The ramp of a rollout that runs, if it has one.
    pub(super) fn of(rollout: &Rollout, tallies: &[Tally]) -> Option<Self> {
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
