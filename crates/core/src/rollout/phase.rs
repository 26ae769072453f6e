//! The phases of a rollout, and what each asks of others.

use serde::{Deserialize, Serialize};

/// Where a rollout is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// Accepted, nothing done yet.
    Accepted,
    /// Its devices are being found.
    Planning,
    /// Its batches are being worked on.
    Running,
    /// Nothing is sent until it is resumed.
    Paused {
        /// Why, for people.
        reason: String,
    },
    /// Nothing is sent by any rollout until all may go on.
    Halted {
        /// Why, for people.
        reason: String,
    },
    /// What is in flight is recorded, the rest will be skipped.
    Aborting {
        /// Why, for people.
        reason: String,
    },
    /// Ended by abort.
    Aborted {
        /// Why, for people.
        reason: String,
    },
    /// Every device was sent the message, but those that had left the target.
    Succeeded,
    /// Nothing more to do, but not every device was sent the message.
    FinishedWithFailures,
    /// It could not be planned.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What a phase owes the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Find the devices and store the batches.
    Plan,
    /// Make the devices pending that are to be sent to again.
    PrepareRetry,
    /// Keep batches on the queue until every device is settled.
    ReleaseBatches,
    /// Mark every device that was not sent anything as skipped.
    SkipRemaining,
    /// Nothing, until something happens.
    Nothing,
}

impl Phase {
    /// What this phase owes the world; see [`Rollout::owed`](super::Rollout::owed), too.
    #[must_use]
    pub fn owed(&self) -> Owed {
        match self {
            Self::Accepted | Self::Planning => Owed::Plan,
            Self::Running => Owed::ReleaseBatches,
            Self::Aborting { .. } => Owed::SkipRemaining,
            Self::Paused { .. }
            | Self::Halted { .. }
            | Self::Aborted { .. }
            | Self::Succeeded
            | Self::FinishedWithFailures
            | Self::Failed { .. } => Owed::Nothing,
        }
    }

    /// Nothing will happen to the rollout again, unless somebody wants a retry.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            self,
            Self::Aborted { .. }
                | Self::Succeeded
                | Self::FinishedWithFailures
                | Self::Failed { .. }
        )
    }

    /// What a worker that holds a batch is to do; see [`Rollout::wanted`](super::Rollout::wanted), too.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match self {
            Self::Running => Wanted::GoOn,
            _ => Wanted::Stop,
        }
    }

    /// Why it is in this phase, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Paused { reason }
            | Self::Halted { reason }
            | Self::Aborting { reason }
            | Self::Aborted { reason }
            | Self::Failed { reason } => Some(reason),
            Self::Accepted
            | Self::Planning
            | Self::Running
            | Self::Succeeded
            | Self::FinishedWithFailures => None,
        }
    }

    /// Why it is aborted, if it is.
    #[must_use]
    pub fn aborted(&self) -> Option<&str> {
        match self {
            Self::Aborting { reason } | Self::Aborted { reason } => Some(reason),
            _ => None,
        }
    }

    /// The phase's name as it is written in files and labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        self.into()
    }
}

/// What the rollout wants of a worker; every record of a window is answered with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Send on.
    GoOn,
    /// Record what is in flight, send nothing more, let go of the batch.
    Stop,
}
