//! What the operations on a rollout's batches depend on.

use serde::{Deserialize, Serialize};

use super::adding::Adding;
use super::phase::{Phase, Wanted};
use super::record::Rollout;
use crate::ids::{Attempt, Revision, RolloutId, StageIndex};

/// How a rollout stands: all of its record that a decision about one of its batches depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stance {
    /// Which rollout of its name it is.
    pub id: RolloutId,
    /// The record that this follows from.
    pub revision: Revision,
    /// What workers are to do.
    pub wanted: Wanted,
    /// The stage up to which batches may be worked on.
    pub stage: StageIndex,
    /// What is left is to be skipped.
    pub aborting: bool,
    /// What batches may be added by.
    pub adding: Option<Adding>,
    /// For which attempt devices are made pending.
    pub preparing: Option<Attempt>,
}

impl Rollout {
    /// How it stands.
    #[must_use]
    pub fn stance(&self) -> Stance {
        let retry = self.retry.as_ref().map(|retry| retry.attempt);
        Stance {
            id: self.id,
            revision: self.revision(),
            wanted: self.wanted(),
            stage: self.stage(),
            aborting: matches!(self.phase, Phase::Aborting { .. }),
            adding: self.adding(),
            preparing: retry.filter(|attempt| self.prepares(*attempt)),
        }
    }
}
