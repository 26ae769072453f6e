//! The phases of a rollout, with the duties of its driver and the directives to workers.

use serde::{Deserialize, Serialize};

/// The phase of a rollout's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// Accepted; nothing is done yet.
    Accepted,
    /// The devices are being found.
    Planning,
    /// Workers work on the batches.
    Running,
    /// Paused; nothing is sent until the rollout is resumed.
    Paused {
        /// The reason, human-readable.
        reason: String,
    },
    /// Halted, like all rollouts; nothing is sent until the halt is lifted.
    Halted {
        /// The reason, human-readable.
        reason: String,
    },
    /// Being aborted: sends in flight are recorded, and the remaining devices will be skipped.
    Aborting {
        /// The reason, human-readable.
        reason: String,
    },
    /// Aborted.
    Aborted {
        /// The reason, human-readable.
        reason: String,
    },
    /// Every device is settled and none failed. Devices that left the target do not count.
    Succeeded,
    /// Every device is settled, and some devices failed.
    FinishedWithFailures,
    /// Planning failed.
    Failed {
        /// The reason, human-readable.
        reason: String,
    },
}

/// The duty of the driver of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Find the devices and store the batches.
    Plan,
    /// Make the devices to retry pending again.
    PrepareRetry,
    /// Keep batches on the queue until every device is settled.
    ReleaseBatches,
    /// Mark every device without a send as skipped.
    SkipRemaining,
    /// Nothing, until the next event.
    Nothing,
}

impl Phase {
    /// Returns the driver's duty in this phase; see also [`Rollout::duty`](super::Rollout::duty).
    #[must_use]
    pub fn duty(&self) -> Duty {
        match self {
            Self::Accepted | Self::Planning => Duty::Plan,
            Self::Running => Duty::ReleaseBatches,
            Self::Aborting { .. } => Duty::SkipRemaining,
            Self::Paused { .. }
            | Self::Halted { .. }
            | Self::Aborted { .. }
            | Self::Succeeded
            | Self::FinishedWithFailures
            | Self::Failed { .. } => Duty::Nothing,
        }
    }

    /// Returns whether the rollout has ended. Only a retry can continue an ended rollout.
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

    /// Returns the directive to a worker with a batch; see also
    /// [`Rollout::directive`](super::Rollout::directive).
    #[must_use]
    pub fn directive(&self) -> Directive {
        match self {
            Self::Running => Directive::Continue,
            _ => Directive::Stop,
        }
    }

    /// Returns the reason for the phase, if the phase has one.
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

    /// Returns the reason for the abort, if the rollout is aborted.
    #[must_use]
    pub fn aborted(&self) -> Option<&str> {
        match self {
            Self::Aborting { reason } | Self::Aborted { reason } => Some(reason),
            _ => None,
        }
    }

    /// Returns the phase's name in files and labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        self.into()
    }
}

/// The directive of a rollout to its workers; the reply to every record of a window contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Continue to send.
    Continue,
    /// Stop: record the sends in flight, send nothing more, and release the batch.
    Stop,
}
