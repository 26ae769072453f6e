//! A batch with its devices.

use crate::ids::{Attempt, RolloutId};
use crate::outcome::{Outcome, OutcomeList};
use crate::plan::{self, BatchHeader};

/// A batch with the known facts about its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWork {
    /// The rollout.
    pub rollout: RolloutId,
    /// The manifest.
    pub batch: plan::Batch,
    /// The outcomes of the devices, in the manifest's order.
    pub outcomes: OutcomeList,
    /// The codes of devices whose outcome [has a code](Outcome::has_code), by position, ascending.
    pub codes: Vec<(u32, u32)>,
    /// The attempt made at the pending devices.
    pub attempt: Attempt,
}

/// One device of a batch, with the known facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDevice<'a> {
    /// The device's position in the manifest.
    pub index: u32,
    /// The device's id.
    pub id: &'a str,
    /// The device's outcome.
    pub outcome: Outcome,
    /// The code, if the outcome has a code.
    pub code: Option<u32>,
}

impl BatchWork {
    /// Returns the devices, in the manifest's order.
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

    /// Returns the header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.batch.header
    }
}
