//! What budgets hold back, for people.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use twincast_core::budget::{FullGroup, groups_of, sort_out};
use twincast_core::ports::{Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};

use crate::output::thousands;

/// Open batches of a hub that are looked at.
const LOOKED_AT: usize = 1_024;
/// Full groups that are named; the rest is a number.
const NAMED: usize = 5;

/// What holds batches back now.
#[derive(Debug, Serialize)]
pub(crate) struct BudgetSummary {
    /// Batches that wait for one to have room, among the first that are to be sent.
    held_back: usize,
    /// The first of the groups that are full.
    full: Vec<FullGroup>,
    /// How many more are.
    other_full: usize,
}

impl BudgetSummary {
    /// Reads what the budgets of a rollout that runs hold back; `None` if it has none.
    pub(crate) async fn read(
        store: &dyn Store,
        rollout: &Rollout,
        tallies: &[Tally],
    ) -> Result<Option<Self>, StoreError> {
        if rollout.spec.budgets.is_empty() || rollout.phase != Phase::Running {
            return Ok(None);
        }
        let name = &rollout.spec.name;
        let hubs: BTreeSet<_> = tallies.iter().map(|tally| &tally.hub).collect();
        let mut open = Vec::new();
        for hub in hubs {
            let stage = rollout.stage();
            open.extend(store.open_batches(name, hub, stage, LOOKED_AT).await?);
        }
        let groups = groups_of(&open);
        let progress = store.in_progress(name, &groups).await?;
        let all = open.len();
        let (free, mut full) = sort_out(open, &groups, &progress);
        let other_full = full.len().saturating_sub(NAMED);
        full.truncate(NAMED);
        Ok(Some(Self {
            held_back: all - free.len(),
            full,
            other_full,
        }))
    }
}

impl fmt::Display for BudgetSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.full.is_empty() {
            return f.write_str("budgets: they hold nothing back");
        }
        let held_back = thousands(self.held_back as u64);
        write!(f, "budgets: {held_back} batches wait for")?;
        for (index, group) in self.full.iter().enumerate() {
            let FullGroup {
                group,
                in_progress,
                at_most,
            } = group;
            let comma = if index > 0 { "," } else { "" };
            write!(
                f,
                "{comma} {group} ({in_progress} of {at_most} in progress)"
            )?;
        }
        match self.other_full {
            0 => Ok(()),
            others => write!(f, " and {} more", thousands(others as u64)),
        }
    }
}
