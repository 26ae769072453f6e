//! A batch for those who look at its devices.

use crate::ids::{Attempt, RolloutId};
use crate::outcome::{Outcome, OutcomeList};
use crate::plan::{self, BatchHeader};

/// A batch with all that is known of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWork {
    /// The rollout.
    pub rollout: RolloutId,
    /// The manifest.
    pub batch: plan::Batch,
    /// Their outcomes, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The codes of devices whose outcome [has one](Outcome::has_code), by position, ascending.
    pub codes: Vec<(u32, u32)>,
    /// Which attempt is made at those that are pending.
    pub attempt: Attempt,
}

/// One device of a batch, with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDevice<'a> {
    /// Its position in the manifest.
    pub index: u32,
    /// Its id.
    pub id: &'a str,
    /// What became of it.
    pub outcome: Outcome,
    /// The outcome's code, if it has one.
    pub code: Option<u32>,
}

impl BatchWork {
    /// Its devices, in the manifest's order.
    pub fn devices(&self) -> impl Iterator<Item = KnownDevice<'_>> {
        let mut codes = self.codes.iter().peekable();
        let outcomes = (0u32..).zip(self.outcomes.iter());
        let devices = outcomes.zip(self.batch.devices.iter());
        devices.map(move |((index, outcome), id)| {
            let code = codes.next_if(|(at, _)| *at == index);
            KnownDevice {
                index,
                id,
                outcome,
                code: code.map(|(_, code)| *code),
            }
        })
    }

    /// The header, for brevity.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.batch.header
    }
}
