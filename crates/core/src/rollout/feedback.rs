//! The hubs and devices whose answers decide the next step of a rollout.

use std::collections::BTreeSet;

use super::record::Rollout;
use crate::evidence::{silent_devices, unanswered_devices};
use crate::ids::HubName;
use crate::message::Ack;
use crate::outcome::{Counts, Tally};
use crate::spec::{Gate, SuccessLevel};

impl Rollout {
    /// Returns the tallies of the current and earlier stages with sends still owed.
    pub fn unsettled<'a>(&self, tallies: &'a [Tally]) -> impl Iterator<Item = &'a Tally> + use<'a> {
        let stage = self.stage();
        let reached = tallies.iter().filter(move |tally| tally.stage <= stage);
        reached.filter(|tally| tally.counts.unsettled() > 0)
    }

    /// Returns whether the answers of devices, and not a condition of the current gate, show which
    /// devices have applied the change.
    #[must_use]
    pub fn counts_answers(&self) -> bool {
        let open = self.stage_progress().filter(|it| it.passed_at.is_none());
        let gate = open.and_then(|_| self.spec.gate_of(self.stage()));
        let has_condition = gate.is_some_and(|gate| gate.applied_when.is_some());
        !has_condition && self.spec.convention().is_some()
    }

    /// Returns whether the current gate counts the answers of devices.
    #[must_use]
    pub fn gate_counts_answers(&self) -> bool {
        let gate = self.spec.gate_of(self.stage()).or(self.late_joiner_gate());
        let counts_applied = gate.is_some_and(|gate| gate.counts == SuccessLevel::Applied);
        counts_applied && self.counts_answers()
    }

    /// Returns the gate with the failure rule of the current stage, if late joiners are sent to.
    fn late_joiner_gate(&self) -> Option<&Gate> {
        let gate = self.spec.late_stage_gate();
        gate.filter(|_| self.is_at_late_stage())
    }

    /// Returns the hubs whose feedback decides the next step of a running rollout: hubs with silent
    /// devices, if the current gate or the end of the rollout depends on their answers.
    #[must_use]
    pub fn hubs_needed<'a>(&self, tallies: &'a [Tally]) -> BTreeSet<&'a HubName> {
        if self.spec.message.ack == Ack::None || self.retry.is_some() {
            return BTreeSet::new();
        }
        let stage = self.stage();
        let is_open = self
            .stage_progress()
            .is_some_and(|progress| progress.passed_at.is_none());
        let gate = self.spec.gate_of(stage).filter(|_| is_open);
        let needs_feedback =
            |gate: &Gate| gate.counts != SuccessLevel::Enqueued && gate.has_share_rules();
        let counts: fn(&Counts) -> u64 = match gate {
            Some(gate) if needs_feedback(gate) => silent_devices,
            None if self.unsettled(tallies).next().is_none() => unanswered_devices,
            None if self.late_joiner_gate().is_some_and(needs_feedback) => silent_devices,
            _ => return BTreeSet::new(),
        };
        let of_stage = |tally: &&Tally| gate.is_none() || tally.stage == stage;
        let tallies = tallies.iter().filter(of_stage);
        let unanswered = tallies.filter(|tally| counts(&tally.counts) > 0);
        unanswered.map(|tally| &tally.hub).collect()
    }
}
