//! The state of a rollout, as needed by operations on its batches.

use serde::{Deserialize, Serialize};

use super::adding::Adding;
use super::phase::{Directive, Phase};
use super::record::Rollout;
use crate::ids::{Attempt, Revision, RolloutId, StageIndex};

/// The part of a rollout's record needed for decisions about the rollout's batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutControl {
    /// The id of the rollout.
    pub id: RolloutId,
    /// The revision of the underlying record.
    pub revision: Revision,
    /// The directive to workers.
    pub directive: Directive,
    /// The last stage whose batches may be worked on.
    pub stage: StageIndex,
    /// Whether the remaining devices are to be skipped.
    pub aborting: bool,
    /// The operation allowed to add batches.
    pub adding: Option<Adding>,
    /// The attempt for which devices may be made pending.
    pub preparing: Option<Attempt>,
}

impl Rollout {
    /// Returns the state for decisions about the rollout's batches.
    #[must_use]
    pub fn control(&self) -> RolloutControl {
        let retry = self.retry.as_ref().map(|retry| retry.attempt);
        RolloutControl {
            id: self.id,
            revision: self.revision(),
            directive: self.directive(),
            stage: self.stage(),
            aborting: matches!(self.phase, Phase::Aborting { .. }),
            adding: self.adding(),
            preparing: retry.filter(|attempt| self.prepares(*attempt)),
        }
    }
}
