//! Warnings about gates that cannot work as intended, each a sentence for the author of the spec.

use std::time::Duration;

use super::judge::answered_within;
use crate::evidence::BATCHING;
use crate::ids::StageName;
use crate::message::TTL;
use crate::spec::{Gate, RolloutSpec, SmallSample, SuccessLevel, Unconfirmed};
use crate::time::friendly;

/// Warnings from the spec alone: deadlines too early for answers of devices, and deadlines later
/// than any answer.
#[must_use]
pub fn of_spec(spec: &RolloutSpec) -> Vec<String> {
    gates(spec)
        .filter_map(|(stage, gate)| deadline(spec, stage, gate))
        .collect()
}

/// Warnings from the number of devices per stage: samples that a single silent device makes too
/// small.
#[must_use]
pub fn of_plan(spec: &RolloutSpec, devices: impl Fn(&StageName) -> u64) -> Vec<String> {
    gates(spec)
        .filter_map(|(stage, gate)| sample(stage, gate, devices(stage)))
        .collect()
}

/// Gates whose verdict depends on answers of devices.
fn gates(spec: &RolloutSpec) -> impl Iterator<Item = (&StageName, &Gate)> {
    let gates = spec.stages.iter();
    let gates = gates.filter_map(|stage| Some((&stage.name, stage.gate.as_ref()?)));
    gates.filter(|(_, gate)| gate.counts != SuccessLevel::Enqueued && gate.has_share_rules())
}

/// Warns of deadlines too early or too late for the message's time to live. A message lives from
/// its own send on, and a gate's deadline begins at the last send. So only the last messages are
/// still in transit at the deadline.
fn deadline(spec: &RolloutSpec, stage: &StageName, gate: &Gate) -> Option<String> {
    let ttl = spec.message.ttl.map_or(TTL, |ttl| ttl.0);
    let answered = answered_within(Some(ttl), BATCHING);
    let deadline = gate.deadline?.0;
    let waits = deadline.max(gate.bake.map_or(Duration::ZERO, |bake| bake.0));
    let [known_after, lives, for_] = [answered, ttl, waits].map(friendly);
    let head =
        format!("stage {stage}: its gate waits {for_} for silent devices after the last send");
    if waits < ttl {
        Some(format!(
            "{head}, and the message lives for {lives}: devices that connect in between still \
             receive the message, and count as silent"
        ))
    } else if waits < answered {
        Some(format!(
            "{head}, the message lives for {lives}, and the hub reports the expiry a little later: \
             devices with an expired message count as silent, not as failed; omit deadline, or set \
             it to {known_after}"
        ))
    } else if gate.counts == SuccessLevel::Delivered && deadline > answered {
        Some(format!(
            "{head}, but after {known_after} every message is taken or known to have expired; omit \
             deadline"
        ))
    } else {
        // A device needs time to apply a change.
        None
    }
}

fn sample(stage: &StageName, gate: &Gate, devices: u64) -> Option<String> {
    let counts_silence = matches!(
        gate.unconfirmed,
        Unconfirmed::AsFailed | Unconfirmed::AsSucceeded
    );
    let needs_all = u64::from(gate.min_sample) >= devices;
    let is_strict = gate.too_little == SmallSample::Pause && !counts_silence;
    (needs_all && is_strict && devices > 0).then(|| {
        format!(
            "stage {stage} has {devices} devices, and min_sample is {}: a single device that is \
             silent at the deadline makes the sample too small, and pauses the rollout; lower \
             min_sample, or set too_little: pass",
            gate.min_sample
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(gate: &str, ttl: &str) -> RolloutSpec {
        let text = format!(
            "{{name: a, target: {{all: true}}, message: {{body: {{text: x}}, ack: full{ttl}}}, \
             stages: [{{name: s, gate: {{success_at_least: 90%, {gate}}}}}]}}"
        );
        RolloutSpec::read("x", &text).unwrap()
    }

    #[test]
    fn implausible_deadlines_are_reported() {
        let table = [
            (
                "counts: delivered, deadline: 1h",
                ", ttl: 6h",
                "count as silent",
            ),
            ("counts: delivered, deadline: 1h, bake: 7h", ", ttl: 6h", ""),
            (
                "counts: delivered, deadline: 6h",
                ", ttl: 6h",
                "omit deadline, or set it to 6h 00m",
            ),
            ("counts: delivered, deadline: 21630s", ", ttl: 6h", ""),
            (
                "counts: delivered, deadline: 7h",
                ", ttl: 6h",
                "every message is taken or known to have expired",
            ),
            ("counts: delivered", ", ttl: 6h", ""),
            // Without a `ttl`, the default of the hub applies.
            (
                "counts: delivered, deadline: 20m",
                "",
                "the message lives for 1h 00m",
            ),
            ("counts: delivered, deadline: 3630s", "", ""),
            (
                "counts: applied, applied_when: x, deadline: 1h",
                ", ttl: 6h",
                "count as silent",
            ),
            (
                "counts: applied, applied_when: x, deadline: 7h",
                ", ttl: 6h",
                "",
            ),
            ("deadline: 1h", ", ttl: 6h", ""),
        ];
        for (gate, ttl, part) in table {
            let found = of_spec(&spec(gate, ttl)).join("|");
            assert_eq!(found.is_empty(), part.is_empty(), "{gate}: {found}");
            assert!(found.contains(part), "{gate}: {found}");
        }
    }

    #[test]
    fn samples_requiring_every_device_are_reported() {
        let table = [
            ("counts: delivered", 10, true),
            ("counts: delivered", 20, true),
            ("counts: delivered", 21, false),
            ("counts: delivered, min_sample: 5", 10, false),
            ("counts: delivered, too_little: pass", 10, false),
            ("counts: delivered, unconfirmed: as_failed", 10, false),
            ("counts: enqueued", 10, false),
        ];
        for (gate, devices, is_named) in table {
            let found = of_plan(&spec(gate, ""), |_| devices);
            assert_eq!(!found.is_empty(), is_named, "{gate}, {devices}: {found:?}");
        }
    }
}
