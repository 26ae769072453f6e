//! The roster: which rollouts there are to drive, who drives each, and what was told of it. Only
//! engines of several processes need one.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::batch::Held;
use crate::ids::{Holder, RolloutId, RolloutName, Version};
use crate::time::Timestamp;

use super::StoreError;

/// Nothing is to be sent by any rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Why, for people.
    pub reason: String,
    /// Who has said so, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// What there is to drive, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RosterLook {
    /// The active rollouts.
    pub active: BTreeMap<RolloutName, Listed>,
    /// Whether all rollouts are halted.
    pub halt: Option<Halt>,
}

/// An active rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The newest version of its record: stored, or about to be. Whoever has read this version, and no later one is listed,
    /// knows the record but for notes.
    pub newest: Version,
    /// Who has the right to drive it now.
    pub held: Option<Held>,
}

/// Shares rollouts out between orchestrators.
///
/// A claim only keeps two from doing the same work. What keeps them from doing *wrong* is the
/// record's version, which each of them compares when it saves.
///
/// Cancel safety: a dropped call may or may not have taken effect; every call may be repeated.
#[async_trait]
pub trait Roster: Send + Sync + 'static {
    /// The names of the rollouts that were stored and not retired since, ascending.
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError>;

    /// What there is to drive. As cheap for many rollouts as for one; a name may be listed whose record is not stored yet, or
    /// never will be.
    async fn look(&self) -> Result<RosterLook, StoreError>;

    /// Takes a rollout off the active ones if its record still has this version, in which it
    /// ended. Storing it anew makes it active again, also when that happens at the same time.
    async fn retire(&self, name: &RolloutName, version: Version) -> Result<(), StoreError>;

    /// Takes or renews the right to drive rollouts until `ttl` from now, in one step for all. Gives those that others have
    /// the right to. Needs no records of those names.
    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError>;

    /// Gives a claim back; does nothing if it is another one's.
    async fn disclaim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError>;

    /// Up to which version a rollout's transitions were announced; 0 if none was.
    async fn announced(&self, name: &RolloutName) -> Result<Version, StoreError>;

    /// Notes that those of the rollout `id` were, up to `version`. Never goes back. Does nothing when the rollout of that
    /// name is another one.
    async fn set_announced(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError>;

    /// Whether all rollouts are halted.
    async fn halted(&self) -> Result<Option<Halt>, StoreError>;

    /// Halts all rollouts, or lets them go on. It is for the drivers to see to it.
    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError>;
}
