//! The one operation that lowers outcomes: a batch's devices are made pending for a new attempt.

use twincast_core::batch::Reopened;
use twincast_core::ids::{Attempt, BatchId, RolloutName};
use twincast_core::outcome::Outcome;
use twincast_core::time::Timestamp;

use super::error::Fault;
use super::leases::Leases;
use super::tables::{WriteTables, attempts_of, batch_of, header, key, known_head};
use super::write_ops::{Change, apply, known_record};

/// What is to be reopened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) batch: BatchId,
    pub(super) attempt: Attempt,
    pub(super) outcomes: &'a [Outcome],
}

pub(super) fn reopen(
    tables: &mut WriteTables<'_>,
    leases: &mut Leases,
    name: &RolloutName,
    wanted: Wanted<'_>,
    now: Timestamp,
) -> Result<Reopened, Fault> {
    let Wanted {
        batch,
        attempt,
        outcomes,
    } = wanted;
    let head = known_head(&tables.heads, name)?;
    if !known_record(tables, name)?.prepares(attempt) {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    let key = key(head.series, batch);
    let header =
        header(&tables.batches, key)?.ok_or_else(|| Fault::not_found(batch_of(batch, name)))?;
    let mut attempts = attempts_of(&tables.attempts, key)?;
    if attempts.newest >= attempt {
        return Ok(Reopened::Devices(0));
    }
    if let Some(held) = leases.held(head.series, batch, now) {
        return Ok(Reopened::Held(held));
    }
    let mut change = Change::of(tables, key, &header)?;
    let mut reopened = Vec::new();
    for index in 0..header.devices {
        let outcome = change.list.get(index as usize);
        if outcome.can_be_retried() && outcomes.contains(&outcome) {
            change.reopen(index as usize);
            reopened.push(index);
        }
    }
    if change.is_empty() {
        return Ok(Reopened::Devices(0));
    }
    apply(tables, key, &header, &change)?;
    for index in &reopened {
        tables.codes.remove((key.0, key.1, *index))?;
    }
    attempts.reopen(attempt, outcomes);
    let stored = (attempts.newest.0, attempts.silent.0);
    tables.attempts.insert(key, stored)?;
    // Should the transaction fail, its holder is fenced for nothing, and loses a window.
    leases.vacate(head.series, batch);
    Ok(Reopened::Devices(reopened.len() as u32))
}
