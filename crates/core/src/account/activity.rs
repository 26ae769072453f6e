//! What a rollout may be doing.

use serde::{Deserialize, Serialize};

/// What a rollout is doing. It does one of these at any time.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Activity {
    /// It is accepted, and waits for its turn to be planned.
    #[default]
    Queued,
    /// Its devices are being found.
    Planning,
    /// Something is to be sent, and nothing of what is below keeps it.
    Sending,
    /// Something is to be sent, and every hub that it is to be sent through has refused sends for its quota
    /// of late: its limiter has not climbed back to the quota yet.
    Throttled,
    /// Something is to be sent, and there is no way for it: nothing can be sent through any of its hubs, no worker is
    /// there, or the queue cannot be reached.
    Blocked,
    /// All of a stage was sent, and its gate waits for what the devices say, as its budgets and its end may do.
    Feedback,
    /// Nothing can be said before the hub is heard, and it is not.
    Evidence,
    /// All of a stage was sent, and its gate waits for the end of the bake, or for its metrics.
    Baking,
    /// An approval is all that a stage's gate waits for.
    Approval,
    /// Something is to be sent, and the schedule does not let it.
    OutsideWindow,
    /// All was sent, and devices may join.
    Joiners,
    /// It is paused.
    Paused,
    /// All rollouts are stopped.
    Halted,
    /// It is being aborted.
    Aborting,
    /// It is over. Counts only if it was taken up again later.
    Over,
}

impl Activity {
    /// All of them, in the order of a rollout's life.
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
        Self::Joiners,
        Self::Paused,
        Self::Halted,
        Self::Aborting,
        Self::Over,
    ];

    /// Its name as it is written in files and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The same for people.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Queued => "waiting to be planned",
            Self::Planning => "planning",
            Self::Sending => "sending",
            Self::Throttled => "throttled by the hub",
            Self::Blocked => "without a way to the hub",
            Self::Feedback => "waiting for feedback",
            Self::Evidence => "waiting to hear the hub",
            Self::Baking => "baking",
            Self::Approval => "waiting for an approval",
            Self::OutsideWindow => "outside its window",
            Self::Joiners => "waiting for devices to join",
            Self::Paused => "paused",
            Self::Halted => "stopped with all rollouts",
            Self::Aborting => "aborting",
            Self::Over => "over, until it was taken up again",
        }
    }
}
