//! The rollout registry: the active rollouts, the driver of each, and the published transitions.
//! Only engines of several processes need a registry.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::batch::Held;
use crate::ids::{Holder, RolloutId, RolloutName, Version};
use crate::time::Timestamp;

use super::StoreError;

/// A halt: no rollout may send anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// The reason, human-readable.
    pub reason: String,
    /// The author of the halt, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The start of the halt.
    pub since: Timestamp,
}

/// The contents of the rollout registry at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySnapshot {
    /// The active rollouts.
    pub active: BTreeMap<RolloutName, RegistryEntry>,
    /// The halt of all rollouts, if there is one.
    pub halt: Option<Halt>,
}

/// An active rollout in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryEntry {
    /// The newest version of the rollout's record: stored, or about to be stored. A reader of this
    /// version knows the current record except for its notes, as long as no later version is
    /// listed.
    pub newest: Version,
    /// The current holder of the claim to drive the rollout.
    pub held: Option<Held>,
}

/// Assigns rollouts to orchestrators.
///
/// A claim only prevents duplicate work of two orchestrators. The version of the record prevents
/// *wrong* work: every orchestrator compares the version when saving.
///
/// # Cancel safety
/// A dropped call may or may not have taken effect; every call may be repeated.
#[async_trait]
pub trait RolloutRegistry: Send + Sync + 'static {
    /// Returns the names of all rollouts stored and not deactivated since, ascending.
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError>;

    /// Returns the contents of the registry. The cost is the same for many rollouts as for one. A
    /// listed name may belong to a record that is not stored yet, or never will be.
    async fn snapshot(&self) -> Result<RegistrySnapshot, StoreError>;

    /// Removes a rollout from the active rollouts if its record still has this version, in which
    /// the rollout ended. Storing the rollout again makes it active again, even at the same time.
    async fn deactivate(&self, name: &RolloutName, version: Version) -> Result<(), StoreError>;

    /// Claims rollouts, or renews claims, until `ttl` from now, in one step for all. Returns the
    /// rollouts claimed by other holders. The rollouts need no records.
    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError>;

    /// Releases a claim; does nothing if another holder has the claim.
    async fn release_claim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError>;

    /// Returns the version up to which a rollout's transitions were published; 0 before the first.
    async fn published(&self, name: &RolloutName) -> Result<Version, StoreError>;

    /// Notes that the transitions of the rollout `id` were published up to `version`. The noted
    /// version never decreases. Does nothing when the rollout with this name has another id.
    async fn set_published(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError>;

    /// Returns the halt of all rollouts, if there is one.
    async fn halted(&self) -> Result<Option<Halt>, StoreError>;

    /// Halts all rollouts, or lifts the halt. The drivers put the change into effect.
    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError>;
}
