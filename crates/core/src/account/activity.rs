//! The activities of a rollout.

use serde::{Deserialize, Serialize};

/// The activity of a rollout. A rollout has exactly one activity at any time.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Activity {
    /// The rollout is accepted and waits for its turn to be planned.
    #[default]
    Queued,
    /// The devices of the rollout are being found.
    Planning,
    /// Sends are due, and none of the obstacles below applies.
    Sending,
    /// Sends are due, and every hub concerned has recently refused sends for its quota: its limiter
    /// has not climbed back to the quota yet.
    Throttled,
    /// Sends are due, and none is possible: nothing can be sent through any hub concerned, no
    /// worker is present, or the queue cannot be reached.
    Blocked,
    /// A stage is completely sent, and its gate waits for the feedback of devices. Waits of budgets
    /// and of the rollout's end for feedback count, too.
    Feedback,
    /// The next decision depends on the hub's feedback, and the feedback is not being received.
    Evidence,
    /// A stage is completely sent, and its gate waits for the end of the bake, or for its metrics.
    Baking,
    /// The gate of a stage waits for nothing but an approval.
    Approval,
    /// Sends are due, and the schedule is closed.
    OutsideWindow,
    /// Everything was sent, and devices may still join the target.
    LateJoiners,
    /// The rollout is paused.
    Paused,
    /// All rollouts are halted.
    Halted,
    /// The rollout is being aborted.
    Aborting,
    /// The rollout has ended. This time counts only if the rollout is continued later.
    Over,
}

impl Activity {
    /// All activities, in the order of a rollout's life.
    pub const ALL: [Self; 15] = [
        Self::Queued,
        Self::Planning,
        Self::Sending,
        Self::Throttled,
        Self::Blocked,
        Self::Feedback,
        Self::Evidence,
        Self::Baking,
        Self::Approval,
        Self::OutsideWindow,
        Self::LateJoiners,
        Self::Paused,
        Self::Halted,
        Self::Aborting,
        Self::Over,
    ];

    /// Returns the activity's name in files and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Returns the human-readable name.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Queued => "waiting to be planned",
            Self::Planning => "planning",
            Self::Sending => "sending",
            Self::Throttled => "throttled by the hub",
            Self::Blocked => "no hub available for sends",
            Self::Feedback => "waiting for feedback",
            Self::Evidence => "waiting for evidence",
            Self::Baking => "baking",
            Self::Approval => "waiting for an approval",
            Self::OutsideWindow => "outside its window",
            Self::LateJoiners => "waiting for devices to join",
            Self::Paused => "paused",
            Self::Halted => "stopped with all rollouts",
            Self::Aborting => "aborting",
            Self::Over => "ended, until it was continued",
        }
    }
}
