//! The stages of a rollout, and the rules of each stage.

use super::continuous::LATE_STAGE;
use super::order::Order;
use super::rollout_spec::RolloutSpec;
use super::stage::{Gate, Stage};
use crate::ids::{StageIndex, StageName};
use crate::query::{MAX_CONDITION_CHARS, all_of, matching, not_matching};

impl RolloutSpec {
    /// Returns all stages, at least 1. The stages of the spec come first, then the stage for all
    /// remaining devices. In a continuous rollout, the stage of late joiners is the last.
    #[must_use]
    pub fn all_stages(&self) -> Vec<Stage> {
        let mut stages = self.stages.clone();
        match stages.last() {
            None => stages.push(Stage::rest("all")),
            Some(last) if last.takes_every_device() => {}
            Some(_) => stages.push(Stage::rest("rest")),
        }
        stages.extend(self.stage_of_late_joiners());
        stages
    }

    /// Returns whether the spec has stages of its own, or a stage of late joiners.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        !self.stages.is_empty() || self.continuous.is_some()
    }

    /// Returns the stage of late joiners, if any. This stage is always the last.
    #[must_use]
    pub fn late_stage(&self) -> Option<StageIndex> {
        self.continuous.as_ref()?;
        let last = self.all_stages().len() - 1;
        Some(StageIndex(
            u16::try_from(last).expect("there are at most MAX_STAGES stages"),
        ))
    }

    /// Returns the gate whose failure rule holds for late joiners: the last gate with a failure
    /// rule.
    #[must_use]
    pub fn late_stage_gate(&self) -> Option<&Gate> {
        let mut gates = self.stages.iter().rev().filter_map(|it| it.gate.as_ref());
        gates.find(|gate| gate.failure_above.is_some())
    }

    fn stage_of_late_joiners(&self) -> Option<Stage> {
        self.continuous.as_ref()?;
        // All other conditions of a gate apply to the end of a stage, and the stage of late joiners
        // has no end.
        let gate = self.late_stage_gate().map(|gate| Gate {
            success_at_least: None,
            bake: None,
            applied_when: None,
            metrics: Vec::new(),
            approval: None,
            ..gate.clone()
        });
        Some(Stage {
            gate,
            ..Stage::rest(LATE_STAGE)
        })
    }

    /// Returns the gate of a stage, if any.
    #[must_use]
    pub fn gate_of(&self, stage: StageIndex) -> Option<&Gate> {
        self.stages.get(usize::from(stage.0))?.gate.as_ref()
    }

    /// Returns the order within a stage: the stage's own order, or the rollout's order.
    #[must_use]
    pub fn order_of(&self, stage: StageIndex) -> Option<&Order> {
        let own = self.stages.get(usize::from(stage.0));
        let own = own.and_then(|stage| stage.order.as_ref());
        own.or(self.order.as_ref())
    }

    /// Returns a condition that matches exactly the devices of a stage, if tags alone determine the
    /// stage. `None` in all other cases: if devices are listed or the rollout is continuous; if the
    /// target has a condition, because the result of a condition may change with the rollout; if
    /// this or an earlier stage takes a share or number of devices; or if the condition would be
    /// too long.
    #[must_use]
    pub fn condition_of(&self, stage: StageIndex) -> Option<String> {
        let target = &self.target;
        let is_listed = self.has_list() || target.exclude.iter().any(|rule| rule.tags.is_empty());
        if is_listed || target.condition.is_some() || self.continuous.is_some() {
            return None;
        }
        let stages = self.all_stages();
        let (own, before) = stages.get(..=usize::from(stage.0))?.split_last()?;
        let is_drawn = |stage: &Stage| stage.percent.is_some() || stage.max_devices.is_some();
        if is_drawn(own) || before.iter().any(is_drawn) {
            return None;
        }
        let before = before.iter().map(|stage| not_matching(&stage.tags));
        let parts = [self.condition(), matching(&own.tags)];
        let parts: Vec<_> = parts.into_iter().chain(before).collect();
        let condition = all_of(parts.iter().map(String::as_str));
        (condition.len() <= MAX_CONDITION_CHARS).then_some(condition)
    }

    /// Returns the first stage with a metric, which requires a Prometheus server; `None` without
    /// metrics.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_condition_exists_only_for_tag_selection() {
        let condition = |target: &str, stages: &str, stage| {
            let text =
                format!("{{name: r, target: {target}, message: {{body: {{text: x}}}}, {stages}}}");
            let spec = RolloutSpec::read("x", &text).unwrap();
            spec.condition_of(StageIndex(stage))
        };
        let by_tag = "stages: [{name: a, tags: {ring: 1}}, {name: b, tags: {ring: [2, 3]}}]";
        let all = "{all: true}";
        let first = Some("tags.ring = 1".to_owned());
        assert_eq!(condition(all, by_tag, 0), first);
        let rest = "(NOT IS_DEFINED(tags.ring) OR tags.ring != 1) AND (NOT IS_DEFINED(tags.ring) OR tags.ring NIN [2, 3])";
        assert_eq!(condition(all, by_tag, 2).as_deref(), Some(rest));
        let fridges = "{tags: {type: fridge}, exclude: [{tags: {old: true}}]}";
        let of_fridges = condition(fridges, by_tag, 0).unwrap();
        assert!(of_fridges.contains("tags.old != true"), "{of_fridges}");
        assert_eq!(condition(all, "weight: 1", 0).as_deref(), Some(""));
        assert_eq!(condition(all, by_tag, 3), None, "the stage does not exist");
        let drawn = "stages: [{name: a, percent: 5%}, {name: b, tags: {ring: 2}}]";
        let excluded = "{all: true, exclude: [{devices: [d]}]}";
        for (target, stages) in [
            ("{where: tags.a = 1}", by_tag),
            ("{devices: [d]}", by_tag),
            (excluded, by_tag),
            (all, "continuous: true"),
            (all, drawn),
            (all, "stages: [{name: a, tags: {ring: 1}, max_devices: 3}]"),
        ] {
            assert_eq!(condition(target, stages, 0), None, "{target} {stages}");
            assert_eq!(condition(target, stages, 1), None, "{target} {stages}");
        }
    }
}
