//! The stages of a rollout, and the rules of each.

use super::continuous::LATE;
use super::order::Order;
use super::rollout_spec::RolloutSpec;
use super::stage::{Gate, Stage};
use crate::ids::{StageIndex, StageName};

impl RolloutSpec {
    /// The stages with the one for the rest, which takes all that comes to it: at least one; and after it the one for devices that
    /// join later, if the rollout is continuous.
    #[must_use]
    pub fn all_stages(&self) -> Vec<Stage> {
        let mut stages = self.stages.clone();
        match stages.last() {
            None => stages.push(Stage::rest("all")),
            Some(last) if last.takes_all() => {}
            Some(_) => stages.push(Stage::rest("rest")),
        }
        stages.extend(self.late());
        stages
    }

    /// It has several stages, of its own or for devices that join later.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        !self.stages.is_empty() || self.continuous.is_some()
    }

    /// The stage of devices that join later, if there is one: the last.
    #[must_use]
    pub fn late_stage(&self) -> Option<StageIndex> {
        self.continuous.as_ref()?;
        let last = self.all_stages().len() - 1;
        Some(StageIndex(
            u16::try_from(last).expect("there are at most MAX_STAGES stages"),
        ))
    }

    /// The gate whose failure rule holds for devices that join later: the last that has one.
    #[must_use]
    pub fn late_gate(&self) -> Option<&Gate> {
        let mut gates = self.stages.iter().rev().filter_map(|it| it.gate.as_ref());
        gates.find(|gate| gate.failure_above.is_some())
    }

    fn late(&self) -> Option<Stage> {
        self.continuous.as_ref()?;
        // All else that a gate may ask is for the end of a stage, which this one does not have.
        let gate = self.late_gate().map(|gate| Gate {
            success_at_least: None,
            bake: None,
            applied_when: None,
            metrics: Vec::new(),
            approval: None,
            ..gate.clone()
        });
        Some(Stage {
            gate,
            ..Stage::rest(LATE)
        })
    }

    /// The gate of a stage, if it has one.
    #[must_use]
    pub fn gate_of(&self, stage: StageIndex) -> Option<&Gate> {
        self.stages.get(usize::from(stage.0))?.gate.as_ref()
    }

    /// The order within a stage: its own, or the rollout's.
    #[must_use]
    pub fn order_of(&self, stage: StageIndex) -> Option<&Order> {
        let own = self.stages.get(usize::from(stage.0));
        let own = own.and_then(|stage| stage.order.as_ref());
        own.or(self.order.as_ref())
    }

    /// Some gate asks a Prometheus server for a metric: the first such stage.
    #[must_use]
    pub fn asks_for_metrics(&self) -> Option<&StageName> {
        let mut stages = self.stages.iter();
        let asks = |stage: &&Stage| {
            let gate = stage.gate.as_ref();
            gate.is_some_and(|gate| !gate.metrics.is_empty())
        };
        stages.find(asks).map(|stage| &stage.name)
    }
}
