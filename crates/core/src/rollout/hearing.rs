//! Whose answers the next step of a rollout depends on.

use std::collections::BTreeSet;

use super::record::Rollout;
use crate::evidence::{silent, unanswered};
use crate::ids::HubName;
use crate::message::Ack;
use crate::outcome::{Counts, Tally};
use crate::spec::Rung;

impl Rollout {
    /// The tallies with sends that are still owed in the current or an earlier stage.
    pub fn owing<'a>(&self, tallies: &'a [Tally]) -> impl Iterator<Item = &'a Tally> + use<'a> {
        let stage = self.stage();
        let reached = tallies.iter().filter(move |tally| tally.stage <= stage);
        reached.filter(|tally| tally.counts.unsettled() > 0)
    }

    /// What its devices have done is known from their answers now, and not from a condition of the current gate.
    #[must_use]
    pub fn goes_by_answers(&self) -> bool {
        let open = self.stage_progress().filter(|it| it.passed_at.is_none());
        let gate = open.and_then(|_| self.spec.gate_of(self.stage()));
        let has_condition = gate.is_some_and(|gate| gate.applied_when.is_some());
        !has_condition && self.spec.convention().is_some()
    }

    /// The hubs whose feedback decides the next step of a running rollout: hubs with silent devices, if the current
    /// gate or the end of the rollout depends on their answers.
    #[must_use]
    pub fn hubs_to_hear<'a>(&self, tallies: &'a [Tally]) -> BTreeSet<&'a HubName> {
        if self.spec.message.ack == Ack::None || self.retry.is_some() {
            return BTreeSet::new();
        }
        let stage = self.stage();
        let is_open = self
            .stage_progress()
            .is_some_and(|progress| progress.passed_at.is_none());
        let gate = self.spec.gate_of(stage).filter(|_| is_open);
        let counts: fn(&Counts) -> u64 = match gate {
            Some(gate) if gate.counts != Rung::Enqueued && gate.measures() => silent,
            None if self.owing(tallies).next().is_none() => unanswered,
            _ => return BTreeSet::new(),
        };
        let of_stage = |tally: &&Tally| gate.is_none() || tally.stage == stage;
        let tallies = tallies.iter().filter(of_stage);
        let heard = tallies.filter(|tally| counts(&tally.counts) > 0);
        heard.map(|tally| &tally.hub).collect()
    }
}
