//! Repeats, and what accounts for them.
//!
//! A message that came twice is right only where somebody may have lost what he knew: a worker
//! that was killed, or whose batch somebody else took over, or a store that forgot. Who had which
//! batch is told by the workers' logs.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::{Engine, WINDOW, of_rollout};

/// How many messages of each batch came again, by the hubs' accounts. A message id names its
/// rollout, batch, device and attempt, so one that came again is the same message.
pub(crate) fn by_batch(engine: &Engine, rollout: &str) -> BTreeMap<u32, u64> {
    let mut repeats = BTreeMap::new();
    for (_, hub) in &engine.hubs {
        for ids in of_rollout(hub, rollout).values() {
            let again = ids.len() as u64 - 1;
            if again > 0 {
                *repeats.entry(batch_of(&ids[0])).or_default() += again;
            }
        }
    }
    repeats
}

/// The batch of `<rollout>.<batch>.<index>.<attempt>`, in base 36.
fn batch_of(id: &str) -> u32 {
    let batch = id.rsplit('.').nth(2);
    let batch = batch.and_then(|batch| u32::from_str_radix(batch, 36).ok());
    batch.unwrap_or_else(|| panic!("{id} is no message id of ours"))
}

/// What a worker's log says of batches.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    /// Those that it had in hand at the end of the log.
    pub(crate) held: BTreeSet<u32>,
    /// Those that somebody else took over, as often as that happened.
    pub(crate) taken_over: Vec<u32>,
    /// All that it ever had.
    pub(crate) touched: BTreeSet<u32>,
}

impl Batches {
    pub(crate) fn of(log: &str, rollout: &str) -> Self {
        let mut batches = Self::default();
        let about = format!("rollout={rollout} batch=");
        for line in log.lines() {
            let Some((happened, rest)) = line.split_once(&about) else {
                continue;
            };
            let Some(batch) = rest.split(' ').next().and_then(|batch| batch.parse().ok()) else {
                continue;
            };
            if happened.contains("batch taken up") {
                batches.held.insert(batch);
                batches.touched.insert(batch);
            } else if happened.contains("batch put down") {
                batches.held.remove(&batch);
                if rest.contains("ended=Fenced") {
                    batches.taken_over.push(batch);
                }
            }
        }
        batches
    }
}

/// What may have been sent twice, by what happened.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// How often a batch was held by somebody who lost what he knew.
    losses: BTreeMap<u32, u64>,
    /// Batches of which the store may have forgotten something, and how much it may have
    /// forgotten of all of them.
    forgotten: (BTreeSet<u32>, u64),
}

impl Budget {
    /// This is the log of a worker that was killed; or of one that lived until the rollout had ended:
    /// what it holds then was taken over, and it has not noticed yet.
    pub(crate) fn allow(&mut self, log: &str, rollout: &str) {
        let batches = Batches::of(log, rollout);
        for batch in batches.held.into_iter().chain(batches.taken_over) {
            *self.losses.entry(batch).or_default() += 1;
        }
    }

    /// The store forgot at most so many records, of these batches.
    pub(crate) fn forgot(&mut self, batches: BTreeSet<u32>, records: u64) {
        self.forgotten.0.extend(batches);
        self.forgotten.1 += records;
    }

    /// Every repeat must be accounted for.
    #[track_caller]
    pub(crate) fn covers(&self, repeats: &BTreeMap<u32, u64>) {
        let mut beyond = 0;
        for (batch, repeated) in repeats {
            let bound = WINDOW * self.losses.get(batch).copied().unwrap_or_default();
            if *repeated > bound {
                assert!(
                    self.forgotten.0.contains(batch),
                    "{repeated} repeats in batch {batch}, at most {bound} expected: {self:?}"
                );
                beyond += repeated - bound;
            }
        }
        assert!(
            beyond <= self.forgotten.1,
            "{beyond} repeats that only the store's forgetting explains: {self:?}"
        );
    }
}
