//! The rollouts that a worker works on, as far as all of their batches need them. A rollout never changes, so it is read
//! once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use twincast_core::ids::{RolloutId, RolloutName, StageIndex};
use twincast_core::message::Content;
use twincast_core::ports::StoreError;
use twincast_core::rollout::Rollout;
use twincast_core::spec::{Delivery, RolloutSpec};
use twincast_core::trace::TraceContext;

use crate::pacer::Pacer;

/// When there are more rollouts than this, those that are not worked on just now are forgotten,
/// and read again when they are back.
pub(crate) const KNOWN: usize = 64;

/// What all batches of a rollout need.
pub(crate) struct Known {
    pub(crate) id: RolloutId,
    pub(crate) content: Arc<Content>,
    pub(crate) spec: RolloutSpec,
    /// The span of the command that started it, if there is one, and how many batches it has.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) batches: u32,
    /// By stage.
    pacers: Vec<Option<Arc<Pacer>>>,
    /// Unanswered sends are made again.
    pub(crate) again: bool,
}

impl Known {
    /// What is to be known of a rollout, with a pacer for each of its stages, if they are paced.
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
            again: spec.delivery == Delivery::AtLeastOnce,
            spec,
        })
    }

    /// What paces a stage, if it is paced.
    pub(crate) fn pacer(&self, stage: StageIndex) -> Option<Arc<Pacer>> {
        let pacer = self.pacers.get(usize::from(stage.0));
        pacer.cloned().flatten()
    }
}

/// Known rollouts, by name.
#[derive(Default)]
pub(crate) struct Rollouts(Mutex<BTreeMap<RolloutName, Arc<Known>>>);

impl Rollouts {
    /// The rollout of a name: of `which` one, if several have had it.
    pub(crate) fn get(&self, name: &RolloutName, which: Option<RolloutId>) -> Option<Arc<Known>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(name)?;
        which
            .is_none_or(|which| which == known.id)
            .then(|| Arc::clone(known))
    }

    /// Remembers a rollout that was just read. Gives the one that is remembered: another batch may have read it at the same
    /// time, and all batches of a rollout share its pacers.
    pub(crate) fn put(&self, new: Known) -> Arc<Known> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN {
            known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let name = new.spec.name.clone();
        match known.get(&name) {
            Some(old) if old.id == new.id => Arc::clone(old),
            _ => {
                let new = Arc::new(new);
                known.insert(name, Arc::clone(&new));
                new
            }
        }
    }
}
