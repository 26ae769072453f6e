//! The stages of a rollout, and the gates between them.

use std::time::Duration;

use serde_json::{Value, json};
use twincast_core::spec::{OnFailure, Rung, Unconfirmed};
use twincast_testkit::sim::Dice;

use super::seconds;

/// How long messages live.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// A stage, by our own reckoning.
#[derive(Debug, Clone)]
pub(crate) struct StagePlan {
    pub(crate) name: &'static str,
    pub(crate) devices: u64,
    pub(crate) gate: Option<GatePlan>,
}

/// A gate as the spec has it.
#[derive(Debug, Clone)]
pub(crate) struct GatePlan {
    pub(crate) counts: Rung,
    /// Per cent.
    pub(crate) success_at_least: Option<u64>,
    /// Per cent.
    pub(crate) failure_above: Option<u64>,
    pub(crate) min_sample: u64,
    pub(crate) too_little_passes: bool,
    pub(crate) deadline: Duration,
    /// The spec does not say it.
    pub(crate) is_default_deadline: bool,
    pub(crate) unconfirmed: Unconfirmed,
    pub(crate) bake: Duration,
    /// Whether somebody must approve, and within which time.
    pub(crate) approval: Option<Option<Duration>>,
    pub(crate) on_failure: OnFailure,
    /// More devices will come: a few are no sample, though they are all there are.
    pub(crate) is_open: bool,
}

/// Gives a spec stages, or not.
pub(super) fn of(
    dice: &mut Dice,
    spec: &mut Value,
    devices: u64,
    hangs_on_answers: bool,
) -> Vec<StagePlan> {
    if !dice.happens(if hangs_on_answers { 1.0 } else { 0.6 }) {
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
        let has_gate = devices > 0 && dice.happens(if hangs_on_answers { 1.0 } else { 0.6 });
        let gate = has_gate.then(|| gate(dice, hangs_on_answers));
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

/// The stage of devices that join later: of gates it has the last failure rule.
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

fn gate(dice: &mut Dice, hangs_on_answers: bool) -> GatePlan {
    let rungs = [
        Rung::Enqueued,
        Rung::Delivered,
        Rung::Delivered,
        Rung::Applied,
    ];
    let success_at_least = match hangs_on_answers {
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
            true if hangs_on_answers => Rung::Delivered,
            true => dice.pick(&rungs),
            false => Rung::Enqueued,
        },
        success_at_least,
        failure_above,
        min_sample: dice.pick(&[1, 5, 20]),
        too_little_passes: dice.happens(0.3),
        deadline: match is_default_deadline {
            // A message's life, and as long as the quickest hub takes to tell of its end.
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
        // A gate must ask for something.
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
        if self.counts == Rung::Applied {
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
