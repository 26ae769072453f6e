//! Repeated messages, and the permitted causes.
//!
//! A repeated message is permitted only after a possible loss of knowledge: by a killed worker, by
//! a worker whose batch was taken over, or by a store after lost writes. The workers' logs show the
//! holders of each batch.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::{Engine, WINDOW, of_rollout};

/// Returns the number of repeated messages per batch, from the hubs' accounts. A message id
/// contains rollout, batch, device and attempt, so equal ids mean the same message.
fn by_batch(engine: &Engine, rollout: &str) -> BTreeMap<u32, u64> {
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

/// Returns the batch of `<rollout>.<batch>.<index>.<attempt>`, in base 36.
fn batch_of(id: &str) -> u32 {
    let batch = id.rsplit('.').nth(2);
    let batch = batch.and_then(|batch| u32::from_str_radix(batch, 36).ok());
    batch.unwrap_or_else(|| panic!("{id} is no valid message id"))
}

/// The batches in a worker's log.
#[derive(Debug, Default)]
pub(crate) struct BatchLog {
    /// Batches held at the end of the log, and how many times: a lapsed batch may be leased again.
    held: BTreeMap<u32, u64>,
    /// Batches taken over by another worker, once per takeover.
    taken_over: Vec<u32>,
    /// All batches ever held.
    pub(crate) touched: BTreeSet<u32>,
}

impl BatchLog {
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
            if happened.contains("batch leased") {
                *batches.held.entry(batch).or_default() += 1;
                batches.touched.insert(batch);
            } else if happened.contains("work on batch ended") {
                let held = batches.held.entry(batch).or_default();
                *held = held.saturating_sub(1);
                if rest.contains("ended=Fenced") {
                    batches.taken_over.push(batch);
                }
            }
        }
        batches
    }
}

/// The permitted repeats, by cause.
#[derive(Debug, Default)]
pub(crate) struct RepeatBudget {
    /// The number of holders per batch that lost knowledge of their sends.
    losses: BTreeMap<u32, u64>,
    /// Batches with possibly lost records, and the largest number of lost records over all these
    /// batches.
    lost_records: (BTreeSet<u32>, u64),
}

impl RepeatBudget {
    /// Permits repeats from the log of a killed worker, or of a worker alive at the end of the
    /// rollout. A batch still held in the log was taken over without the worker noticing.
    pub(crate) fn permit_losses_in(&mut self, log: &str, rollout: &str) {
        let batches = BatchLog::of(log, rollout);
        let taken_over = batches.taken_over.into_iter().map(|batch| (batch, 1));
        for (batch, times) in batches.held.into_iter().chain(taken_over) {
            *self.losses.entry(batch).or_default() += times;
        }
    }

    /// Permits repeats after the store lost at most `records` records of these batches.
    pub(crate) fn permit_lost_records(&mut self, batches: BTreeSet<u32>, records: u64) {
        self.lost_records.0.extend(batches);
        self.lost_records.1 += records;
    }

    /// Asserts that every repeat in a rollout is permitted, at the end of the rollout. Also permits
    /// repeats from the logs of the living workers.
    #[track_caller]
    pub(crate) fn assert_covers(&mut self, engine: &Engine, rollout: &str) {
        for worker in &engine.workers {
            self.permit_losses_in(&worker.log(), rollout);
        }
        let repeats = by_batch(engine, rollout);
        println!("{} repeats: {repeats:?}; {self:?}", engine.repeats());
        let mut beyond = 0;
        for (batch, repeated) in &repeats {
            let bound = WINDOW * self.losses.get(batch).copied().unwrap_or_default();
            if *repeated > bound {
                assert!(
                    self.lost_records.0.contains(batch),
                    "{repeated} repeats in batch {batch}, at most {bound} expected: {self:?}"
                );
                beyond += repeated - bound;
            }
        }
        assert!(
            beyond <= self.lost_records.1,
            "{beyond} repeats are explained only by lost writes of the store: {self:?}"
        );
    }
}
