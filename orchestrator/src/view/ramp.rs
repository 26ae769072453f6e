//! The state of a ramp.

use serde::{Deserialize, Serialize};
use twincast_core::ports::Tally;
use twincast_core::rollout::{Phase, Rollout};
use twincast_core::spec::{RampOf, Rate};
use utoipa::ToSchema;

/// The state of the current stage's ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RampView {
    /// The current rate through each hub, below the hub's quota.
    pub rate_per_minute: f64,
    /// The kind of devices counted.
    #[schema(value_type = String)]
    pub of: RampOf,
    /// The number of devices counted.
    pub counted: u64,
    /// The next step; none at the highest rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextStep>,
}

/// The next step of a ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextStep {
    /// The number of counted devices from which the step applies.
    pub counted: u64,
    /// The rate through each hub from this step on.
    pub rate_per_minute: f64,
}

impl RampView {
    /// Returns the ramp of a running rollout, if any.
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
