//! Cache of rollouts under work, with the parts shared by all batches of a rollout. These parts
//! never change, so a rollout is read once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use twincast_core::ids::{RolloutId, RolloutName, StageIndex};
use twincast_core::message::Content;
use twincast_core::ports::StoreError;
use twincast_core::rollout::Rollout;
use twincast_core::spec::{Delivery, RolloutSpec};
use twincast_core::trace::TraceContext;

use crate::pacer::Pacer;

/// The cache size above which rollouts without a batch run are evicted. An evicted rollout is read
/// again when needed.
pub(crate) const CACHE_SIZE: usize = 64;

/// The parts of a rollout shared by all batches.
pub(crate) struct CachedRollout {
    pub(crate) id: RolloutId,
    pub(crate) content: Arc<Content>,
    pub(crate) spec: RolloutSpec,
    /// The span of the command that started the rollout, if known, and the number of batches (for
    /// sampling).
    pub(crate) trace: Option<TraceContext>,
    pub(crate) batches: u32,
    /// Indexed by stage.
    pacers: Vec<Option<Arc<Pacer>>>,
    /// Whether unanswered sends are repeated.
    pub(crate) resend_unanswered: bool,
}

impl CachedRollout {
    /// Extracts the shared parts of a rollout, and creates a pacer for each stage with a limit.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the message of the rollout cannot be read.
    pub(crate) fn new(
        rollout: Rollout,
        pacer: impl Fn(&RolloutSpec, StageIndex) -> Option<Pacer>,
    ) -> Result<Self, StoreError> {
        let spec = rollout.spec;
        let content = spec
            .message
            .content()
            .map_err(|source| StoreError::Corrupt {
                doing: format!("read the message of rollout {}", spec.name),
                source: Box::new(source),
            })?;
        let stages = (0..).take(spec.all_stages().len()).map(StageIndex);
        let pacers = stages.map(|stage| pacer(&spec, stage).map(Arc::new));
        Ok(Self {
            id: rollout.id,
            content: Arc::new(content),
            pacers: pacers.collect(),
            trace: rollout.trace,
            batches: rollout.plan.map_or(0, |plan| plan.batches),
            resend_unanswered: spec.delivery == Delivery::AtLeastOnce,
            spec,
        })
    }

    /// Returns the pacer of a stage, or `None` if the stage has no limit.
    pub(crate) fn pacer(&self, stage: StageIndex) -> Option<Arc<Pacer>> {
        let pacer = self.pacers.get(usize::from(stage.0));
        pacer.cloned().flatten()
    }
}

/// Cached rollouts, by name.
#[derive(Default)]
pub(crate) struct RolloutCache(Mutex<BTreeMap<RolloutName, Arc<CachedRollout>>>);

impl RolloutCache {
    /// Returns the cached rollout of this name. `which` selects a rollout if several rollouts have
    /// had the name.
    pub(crate) fn get(
        &self,
        name: &RolloutName,
        which: Option<RolloutId>,
    ) -> Option<Arc<CachedRollout>> {
        let rollouts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = rollouts.get(name)?;
        which
            .is_none_or(|which| which == cached.id)
            .then(|| Arc::clone(cached))
    }

    /// Caches a freshly read rollout. Returns the cached entry, possibly read at the same time for
    /// another batch: all batches of a rollout must share the pacers.
    pub(crate) fn put(&self, new: CachedRollout) -> Arc<CachedRollout> {
        let mut rollouts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rollouts.len() >= CACHE_SIZE {
            rollouts.retain(|_, rollout| Arc::strong_count(rollout) > 1);
        }
        let name = new.spec.name.clone();
        match rollouts.get(&name) {
            Some(old) if old.id == new.id => Arc::clone(old),
            _ => {
                let new = Arc::new(new);
                rollouts.insert(name, Arc::clone(&new));
                new
            }
        }
    }
}
