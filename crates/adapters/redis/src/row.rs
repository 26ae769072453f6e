//! What is stored of a batch beside its header and its manifest.
//!
//! A *row* has all that changes about it but the devices' outcomes: its words are the stamp of its last change, the lease's
//! epoch, strikes, the version that they were counted in, the lease's end, the holder, how many devices have each outcome,
//! whether its budgets count it as begun, when something of it was last recorded as sent, its newest attempt, the newest at
//! silent and at failed devices, and when it was added. A *state* has the outcomes, two devices a byte, and then the codes, each with its
//! device's position; it is missing until the first outcome.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use twincast_core::batch::{Attempts, Batch, Tenancy};
use twincast_core::budget::Begun;
use twincast_core::ids::{Attempt, BatchId, BatchVersion, Epoch, Holder, Version};
use twincast_core::outcome::{Counts, OUTCOMES, Outcome, OutcomeList};
use twincast_core::plan::BatchHeader;
use twincast_core::time::Timestamp;

use crate::error::Misfit;

/// The holder of a batch that nobody holds; no holder has such a name.
const NOBODY: &str = "-";

/// A batch's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) version: BatchVersion,
    pub(crate) tenancy: Tenancy,
    pub(crate) counts: Counts,
    pub(crate) begun: Begun,
    pub(crate) attempts: Attempts,
    pub(crate) added_at: Timestamp,
}

impl Row {
    pub(crate) fn read(text: &str) -> Result<Self, Misfit> {
        Self::parse(text).ok_or_else(|| Misfit(format!("{text:?} is no batch's row")))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next();
        let version = BatchVersion(word()?.parse().ok()?);
        let epoch = Epoch(word()?.parse().ok()?);
        let strikes = word()?.parse().ok()?;
        let counted_in = Version(word()?.parse().ok()?);
        let until = Timestamp(word()?.parse().ok()?);
        // Nobody's name is not a holder's.
        let current = Holder::new(word()?).ok().map(|by| (by, until));
        let mut counts = [0; OUTCOMES];
        for count in &mut counts {
            *count = word()?.parse().ok()?;
        }
        Some(Self {
            version,
            tenancy: Tenancy {
                epoch,
                current,
                strikes,
                counted_in,
            },
            counts: Counts::from(counts),
            begun: Begun {
                is_open: word()? == "1",
                sent_at: Timestamp(word()?.parse().ok()?),
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

/// The row of a batch without the first word, which the server writes, and without the last.
pub(crate) fn row_but_added_at(batch: &Batch) -> String {
    let Tenancy {
        epoch,
        current,
        strikes,
        counted_in,
    } = &batch.tenancy;
    let (holder, until) = match current {
        Some((by, until)) => (by.as_str(), until.0),
        None => (NOBODY, 0),
    };
    let mut row = format!("{epoch} {strikes} {counted_in} {until} {holder}");
    let counts = batch.counts();
    for outcome in Outcome::ALL {
        _ = write!(row, " {}", counts.get(outcome));
    }
    let (begun, attempts) = (batch.begun, batch.attempts);
    let (is_open, sent_at) = (u8::from(begun.is_open), begun.sent_at.0);
    _ = write!(
        row,
        " {is_open} {sent_at} {} {} {}",
        attempts.newest, attempts.silent, attempts.failed
    );
    row
}

/// The same with the last word.
pub(crate) fn row(batch: &Batch) -> String {
    format!("{} {}", row_but_added_at(batch), batch.added_at.0)
}

/// The state of a batch.
pub(crate) fn state(batch: &Batch) -> Vec<u8> {
    let mut state = batch.outcomes.as_bytes().to_vec();
    for (index, code) in &batch.codes {
        state.extend_from_slice(&index.to_le_bytes());
        state.extend_from_slice(&code.to_le_bytes());
    }
    state
}

/// A batch from what is stored of it.
pub(crate) fn batch(header: BatchHeader, row: Row, state: &[u8]) -> Result<Batch, Misfit> {
    let mut batch = Batch::new(header, row.added_at);
    if !state.is_empty() {
        let misfit = || Misfit("the state of a batch has another length".into());
        let devices = batch.header.devices as usize;
        let (outcomes, codes) = state
            .split_at_checked(devices.div_ceil(2))
            .ok_or_else(misfit)?;
        batch.outcomes = OutcomeList::from_bytes(outcomes, devices)
            .map_err(|error| Misfit(error.to_string()))?;
        batch.codes = self::codes(codes).ok_or_else(misfit)?;
    }
    if batch.counts() != row.counts {
        let what = "the counts of a batch are not the sum of its outcomes";
        return Err(Misfit(what.into()));
    }
    Ok(Batch {
        attempts: row.attempts,
        tenancy: row.tenancy,
        begun: row.begun,
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

/// The field of a tally. That of the pending ones is of all devices, whatever became of them: one write less for most
/// records.
pub(crate) fn tally(header: &BatchHeader, outcome: Outcome) -> String {
    format!("{}:{}:{}", header.stage.0, header.hub, outcome as u8)
}

/// The name of a batch among those on which something is left to do. All have the same score and so are in the order of their
/// names: by hub, then by stage, then by place, then by number. A place has digits only, which are above the dash: so a
/// shorter place is before one that begins with it.
pub(crate) fn open_name(header: &BatchHeader) -> String {
    let BatchHeader {
        hub,
        stage,
        place,
        id,
        ..
    } = header;
    format!("{hub}:{:05}:{}-{:010}", stage.0, place.as_str(), id.0)
}

/// The name of a batch among those that a group's budget counts.
pub(crate) fn begun_name(group: &str, batch: BatchId) -> String {
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
        batch.tenancy = Tenancy {
            epoch: Epoch(1_790_000_000_001),
            current: Some((holder.clone(), Timestamp(1_790_000_030_000))),
            strikes: 2,
            counted_in: Version(4),
        };
        batch.begun.is_open = true;
        batch.attempts.newest = Attempt(3);
        let lease = Lease {
            rollout: RolloutName::new("r").unwrap(),
            batch: BatchId(7),
            holder,
            epoch: batch.tenancy.epoch,
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
        for (id, stage, place) in [
            (10, 0, ""),
            (2, 0, "1"),
            (1, 0, "10"),
            (3, 1, ""),
            (11, 1, ""),
        ] {
            let mut header = build::batch(id, 1).header;
            header.stage.0 = stage;
            header.place = serde_json::from_value(place.into()).expect("a place");
            names.push(open_name(&header));
        }
        assert!(names.is_sorted(), "{names:?}");
    }
}
