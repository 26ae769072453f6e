//! The stored parts of a batch, except for header and manifest.
//!
//! A *row* holds all mutable data of a batch except for the outcomes. The words of a row are: the
//! stamp of the last change, the epoch of the lease, the number of failed leases, the rollout
//! version in which failed leases were counted, the end of the lease, the holder, the number of
//! devices for each outcome, whether the budgets count the unsent devices, when a worker last
//! recorded outcomes, the newest attempt, the newest attempt at silent devices, the newest attempt
//! at failed devices, and when the batch was added. A *state* holds the outcomes, two devices per
//! byte, followed by the codes, each with the device's position. There is no state before the first
//! outcome.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use twincast_core::batch::{Attempts, Batch, LeaseState};
use twincast_core::budget::BudgetUsage;
use twincast_core::ids::{Attempt, BatchId, BatchVersion, Epoch, Holder, Version};
use twincast_core::outcome::{Counts, OUTCOMES, Outcome, OutcomeList};
use twincast_core::plan::BatchHeader;
use twincast_core::time::Timestamp;

use crate::error::InvalidData;

/// The holder in the row of a batch without a holder; not a valid holder name.
const NO_HOLDER: &str = "-";

/// The row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) version: BatchVersion,
    pub(crate) lease_state: LeaseState,
    pub(crate) counts: Counts,
    pub(crate) budget_usage: BudgetUsage,
    pub(crate) attempts: Attempts,
    pub(crate) added_at: Timestamp,
}

impl Row {
    pub(crate) fn read(text: &str) -> Result<Self, InvalidData> {
        Self::parse(text).ok_or_else(|| InvalidData(format!("{text:?} is not the row of a batch")))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next();
        let version = BatchVersion(word()?.parse().ok()?);
        let epoch = Epoch(word()?.parse().ok()?);
        let failed_leases = word()?.parse().ok()?;
        let failed_in_version = Version(word()?.parse().ok()?);
        let until = Timestamp(word()?.parse().ok()?);
        // The placeholder is not a valid holder name.
        let current = Holder::new(word()?).ok().map(|by| (by, until));
        let mut counts = [0; OUTCOMES];
        for count in &mut counts {
            *count = word()?.parse().ok()?;
        }
        Some(Self {
            version,
            lease_state: LeaseState {
                epoch,
                current,
                failed_leases,
                failed_in_version,
            },
            counts: Counts::from(counts),
            budget_usage: BudgetUsage {
                is_open: word()? == "1",
                recorded_at: Timestamp(word()?.parse().ok()?),
            },
            attempts: Attempts {
                newest: Attempt(word()?.parse().ok()?),
                silent: Attempt(word()?.parse().ok()?),
                failed: Attempt(word()?.parse().ok()?),
            },
            added_at: Timestamp(word()?.parse().ok()?),
        })
    }
}

/// Formats the row of a batch without the first word, written by the server, and without the last
/// word.
pub(crate) fn row_but_added_at(batch: &Batch) -> String {
    let LeaseState {
        epoch,
        current,
        failed_leases,
        failed_in_version,
    } = &batch.lease_state;
    let (holder, until) = match current {
        Some((by, until)) => (by.as_str(), until.0),
        None => (NO_HOLDER, 0),
    };
    let mut row = format!("{epoch} {failed_leases} {failed_in_version} {until} {holder}");
    let counts = batch.counts();
    for outcome in Outcome::ALL {
        _ = write!(row, " {}", counts.get(outcome));
    }
    let (usage, attempts) = (batch.budget_usage, batch.attempts);
    let (is_open, recorded_at) = (u8::from(usage.is_open), usage.recorded_at.0);
    _ = write!(
        row,
        " {is_open} {recorded_at} {} {} {}",
        attempts.newest, attempts.silent, attempts.failed
    );
    row
}

/// Formats the row of a batch without the first word.
pub(crate) fn row(batch: &Batch) -> String {
    format!("{} {}", row_but_added_at(batch), batch.added_at.0)
}

/// Encodes the state of a batch.
pub(crate) fn state(batch: &Batch) -> Vec<u8> {
    let mut state = batch.outcomes.as_bytes().to_vec();
    for (index, code) in &batch.codes {
        state.extend_from_slice(&index.to_le_bytes());
        state.extend_from_slice(&code.to_le_bytes());
    }
    state
}

/// Restores a batch from the stored parts.
pub(crate) fn batch(header: BatchHeader, row: Row, state: &[u8]) -> Result<Batch, InvalidData> {
    let mut batch = Batch::new(header, row.added_at);
    if !state.is_empty() {
        let invalid = || InvalidData("the state of a batch has another length".into());
        let devices = batch.header.devices as usize;
        let (outcomes, codes) = state
            .split_at_checked(devices.div_ceil(2))
            .ok_or_else(invalid)?;
        batch.outcomes = OutcomeList::from_bytes(outcomes, devices)
            .map_err(|error| InvalidData(error.to_string()))?;
        batch.codes = self::codes(codes).ok_or_else(invalid)?;
    }
    if batch.counts() != row.counts {
        let what = "the counts of a batch are not the sum of its outcomes";
        return Err(InvalidData(what.into()));
    }
    Ok(Batch {
        attempts: row.attempts,
        lease_state: row.lease_state,
        budget_usage: row.budget_usage,
        ..batch
    })
}

fn codes(stored: &[u8]) -> Option<BTreeMap<u32, u32>> {
    let (words, rest) = stored.as_chunks::<4>();
    let (pairs, odd) = words.as_chunks::<2>();
    let is_whole = rest.is_empty() && odd.is_empty();
    let pairs = pairs
        .iter()
        .map(|[index, code]| (u32::from_le_bytes(*index), u32::from_le_bytes(*code)));
    is_whole.then(|| pairs.collect())
}

/// Returns the field of a tally. The tally for pending counts all devices regardless of the
/// outcome, which saves most records a write.
pub(crate) fn tally(header: &BatchHeader, outcome: Outcome) -> String {
    format!("{}:{}:{}", header.stage.0, header.hub, outcome as u8)
}

/// Returns the name of a batch in the set of batches with work left. All names have the same score,
/// so the server orders by name: by hub, then by stage, then by sort key, then by number. A sort
/// key consists of digits only, which sort after the dash: so a shorter sort key sorts before a
/// longer sort key with the same beginning.
pub(crate) fn open_name(header: &BatchHeader) -> String {
    let BatchHeader {
        hub,
        stage,
        sort_key,
        id,
        ..
    } = header;
    format!("{hub}:{:05}:{}-{:010}", stage.0, sort_key.as_str(), id.0)
}

/// Returns the name of a batch in the set of batches counted by the budget of a group.
pub(crate) fn counted_name(group: &str, batch: BatchId) -> String {
    format!("{group}\0{:010}", batch.0)
}

#[cfg(test)]
mod tests {
    use twincast_core::batch::{Lease, Report};
    use twincast_core::ids::RolloutName;
    use twincast_testkit::build;

    use super::*;

    #[test]
    fn a_batch_reads_back() {
        let mut batch = Batch::new(build::batch(7, 5).header, Timestamp(1_790_000_000_000));
        let text = format!("1790000000000001 {}", row(&batch));
        let stored = Row::read(&text).unwrap();
        assert_eq!(stored.version, BatchVersion(1_790_000_000_000_001));
        assert_eq!(
            self::batch(batch.header.clone(), stored, &[]).unwrap(),
            batch
        );

        let holder = Holder::new("w-1").unwrap();
        batch.lease_state = LeaseState {
            epoch: Epoch(1_790_000_000_001),
            current: Some((holder.clone(), Timestamp(1_790_000_030_000))),
            failed_leases: 2,
            failed_in_version: Version(4),
        };
        batch.budget_usage.is_open = true;
        batch.attempts.newest = Attempt(3);
        let lease = Lease {
            rollout: RolloutName::new("r").unwrap(),
            batch: BatchId(7),
            holder,
            epoch: batch.lease_state.epoch,
        };
        let refused = Report {
            index: 4,
            outcome: Outcome::Refused,
            code: 400_004,
        };
        let reports = [refused, build::report(1, Outcome::Enqueued)];
        let now = Timestamp(1_790_000_000_500);
        batch.record(&lease, &reports, build::TTL, now).unwrap();
        let stored = Row::read(&format!("9 {}", row(&batch))).unwrap();
        let state = state(&batch);
        assert_eq!(
            self::batch(batch.header.clone(), stored.clone(), &state).unwrap(),
            batch
        );
        for damaged in [&state[..2], &state[..state.len() - 1], &[]] {
            let read = self::batch(batch.header.clone(), stored.clone(), damaged);
            assert!(read.is_err(), "{damaged:?}");
        }
        assert!(Row::read("0 3 1 eu").is_err());
    }

    #[test]
    fn open_names_are_in_the_order_of_release() {
        let mut names = Vec::new();
        for (id, stage, sort_key) in [
            (10, 0, ""),
            (2, 0, "1"),
            (1, 0, "10"),
            (3, 1, ""),
            (11, 1, ""),
        ] {
            let mut header = build::batch(id, 1).header;
            header.stage.0 = stage;
            header.sort_key = serde_json::from_value(sort_key.into()).expect("a sort key");
            names.push(open_name(&header));
        }
        assert!(names.is_sorted(), "{names:?}");
    }
}
