//! The stages of a rollout, and the gates between them.

use std::time::Duration;

use serde_json::{Value, json};
use twincast_core::spec::{OnFailure, SuccessLevel, Unconfirmed};
use twincast_testkit::sim::Dice;

use super::seconds;

/// The lifetime of messages.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// A stage, computed independently of the engine.
#[derive(Debug, Clone)]
pub(crate) struct StagePlan {
    pub(crate) name: &'static str,
    pub(crate) devices: u64,
    pub(crate) gate: Option<GatePlan>,
}

/// A gate, as in the spec.
#[derive(Debug, Clone)]
pub(crate) struct GatePlan {
    pub(crate) counts: SuccessLevel,
    /// Per cent.
    pub(crate) success_at_least: Option<u64>,
    /// Per cent.
    pub(crate) failure_above: Option<u64>,
    pub(crate) min_sample: u64,
    pub(crate) too_little_passes: bool,
    pub(crate) deadline: Duration,
    /// The spec omits the deadline.
    pub(crate) is_default_deadline: bool,
    pub(crate) unconfirmed: Unconfirmed,
    pub(crate) bake: Duration,
    /// Present if an approval is required, with the optional time limit.
    pub(crate) approval: Option<Option<Duration>>,
    pub(crate) on_failure: OnFailure,
    /// More devices will join, so a few devices are no sample even if the stage has no others yet.
    pub(crate) is_open: bool,
}

/// Adds stages to a spec, or leaves the spec without stages.
pub(super) fn of(
    dice: &mut Dice,
    spec: &mut Value,
    devices: u64,
    depends_on_answers: bool,
) -> Vec<StagePlan> {
    if !dice.happens(if depends_on_answers { 1.0 } else { 0.6 }) {
        return vec![StagePlan {
            name: "all",
            devices,
            gate: None,
        }];
    }
    let second = dice.pick(&[11, 50]);
    let through = |percent: u64| (devices * percent).div_ceil(100);
    let few = (devices - through(second)).min(3);
    let stages = [
        ("first", json!({"percent": "10%"}), through(10)),
        (
            "some",
            json!({"percent": format!("{second}%")}),
            through(second) - through(10),
        ),
        ("few", json!({"max_devices": 3}), few),
        ("last", json!({}), devices - through(second) - few),
    ];
    let mut plans = Vec::new();
    let mut written = Vec::new();
    for (name, mut stage, devices) in stages {
        // A gate of a stage without devices is refused.
        let has_gate = devices > 0 && dice.happens(if depends_on_answers { 1.0 } else { 0.6 });
        let gate = has_gate.then(|| gate(dice, depends_on_answers));
        stage["name"] = json!(name);
        if let Some(gate) = &gate {
            stage["gate"] = gate.written();
        }
        written.push(stage);
        plans.push(StagePlan {
            name,
            devices,
            gate,
        });
    }
    spec["message"]["ack"] = json!("full");
    spec["message"]["ttl"] = json!(format!("{}s", TTL.as_secs()));
    spec["stages"] = json!(written);
    plans
}

/// Returns the stage of late joiners: the gate has the last failure rule of all gates.
pub(super) fn late(stages: &[StagePlan]) -> StagePlan {
    let mut gates = stages.iter().rev().filter_map(|stage| stage.gate.as_ref());
    let rule = gates.find(|gate| gate.failure_above.is_some());
    StagePlan {
        name: "late",
        devices: 0,
        gate: rule.map(|gate| GatePlan {
            success_at_least: None,
            bake: Duration::ZERO,
            approval: None,
            is_open: true,
            ..gate.clone()
        }),
    }
}

fn gate(dice: &mut Dice, depends_on_answers: bool) -> GatePlan {
    let levels = [
        SuccessLevel::Enqueued,
        SuccessLevel::Delivered,
        SuccessLevel::Delivered,
        SuccessLevel::Applied,
    ];
    let success_at_least = match depends_on_answers {
        true => Some(dice.pick(&[50, 60, 70])),
        false => dice.pick(&[None, Some(10), Some(80), Some(95), Some(100)]),
    };
    let failure_above = dice.pick(&[None, Some(0), Some(10), Some(50), Some(100)]);
    let measures = success_at_least.is_some() || failure_above.is_some();
    let approvals = [None, None, Some(None), Some(Some(seconds(4)))];
    let is_default_deadline = dice.happens(0.3);
    let bake = dice.pick(&[0, 0, 2, 20]);
    GatePlan {
        counts: match measures {
            true if depends_on_answers => SuccessLevel::Delivered,
            true => dice.pick(&levels),
            false => SuccessLevel::Enqueued,
        },
        success_at_least,
        failure_above,
        min_sample: dice.pick(&[1, 5, 20]),
        too_little_passes: dice.happens(0.3),
        deadline: match is_default_deadline {
            // The lifetime of a message. The model adds the batching time of the quickest hub.
            true => TTL,
            false => seconds(dice.pick(&[3, 15, 45])),
        },
        is_default_deadline,
        unconfirmed: dice.pick(&[
            Unconfirmed::Neither,
            Unconfirmed::LeftOut,
            Unconfirmed::AsFailed,
            Unconfirmed::AsSucceeded,
        ]),
        // A gate must have a rule.
        bake: seconds(if measures { bake } else { bake.max(2) }),
        approval: dice.pick(&approvals),
        on_failure: dice.pick(&[OnFailure::Pause, OnFailure::Continue, OnFailure::Abort]),
        is_open: false,
    }
}

impl GatePlan {
    fn written(&self) -> Value {
        let span = |time: Duration| json!(format!("{}s", time.as_secs()));
        let mut gate = json!({
            "counts": self.counts,
            "min_sample": self.min_sample,
            "too_little": if self.too_little_passes { "pass" } else { "pause" },
            "unconfirmed": self.unconfirmed,
            "bake": span(self.bake),
            "on_failure": self.on_failure,
        });
        let percent = |percent: u64| json!(format!("{percent}%"));
        if !self.is_default_deadline {
            gate["deadline"] = span(self.deadline);
        }
        if let Some(least) = self.success_at_least {
            gate["success_at_least"] = percent(least);
        }
        if let Some(above) = self.failure_above {
            gate["failure_above"] = percent(above);
        }
        if self.counts == SuccessLevel::Applied {
            gate["applied_when"] = json!("tags.site != '3'");
        }
        match self.approval {
            Some(None) => gate["approval"] = json!({}),
            Some(Some(within)) => gate["approval"] = json!({"within": span(within)}),
            None => {}
        }
        gate
    }
}
