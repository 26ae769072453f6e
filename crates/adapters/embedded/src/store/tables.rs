//! What is in the file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | what | a number: `format`, `series`, `groups` |
//! | `rollouts` | name | the record, JSON |
//! | `notes` | name | the notes on the rollout, JSON |
//! | `commands` | name | the commands that it remembers, JSON; none if there are none |
//! | `heads` | name | what the other operations need of the record, JSON: series, try, how the rollout stands |
//! | `batches` | series, batch | the header, JSON |
//! | `checksums` | series | the checksum of the batches: batches, devices, sum |
//! | `open` | series, stage, place, batch | nothing; is there while a send is owed to any device |
//! | `outcomes` | series, batch | two devices a byte |
//! | `codes` | series, batch, index | the hub's code for a refused device |
//! | `attempts` | series, batch | the newest attempt, and the newest at silent and at failed devices; only of a batch that was retried |
//! | `manifests` | series, batch, piece | the ids, compressed, cut to fill pages |
//! | `tallies` | series, stage, hub | its outcomes, counted: 8 bytes each |
//! | `lines` | group | the group's line, JSON |
//! | `hosts` | hub | the host name that the hub's alias is bound to |
//! | `listeners` | hub | the last listener to the hub's feedback, JSON |
//! | `begun` | series, batch | of a batch with budgets that was given to a worker: whether something is still to be sent, and when something was last recorded as sent |
//! | `members` | series, group, batch | nothing; is there while the group's budget counts the batch |
//! | `groups` | series, group | how many devices a group has that a budget is for |
//! | `garbage` | series | nothing; a plan that was given up and is being removed |
//!
//! A *series* numbers one try at planning one rollout. A new try gets a new series, so all of
//! the old one is out of reach at once, and its rows are removed later, a few at a time.

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use twincast_core::batch::Attempts;
use twincast_core::evidence::ListenerState;
use twincast_core::ids::{Attempt, BatchId, RolloutName};
use twincast_core::outcome::{Counts, OUTCOMES, Outcome};
use twincast_core::plan::{BatchHeader, Checksum};
use twincast_core::rollout::{PlanId, Rollout, Stance};
use twincast_core::time::Timestamp;

use super::error::Fault;

/// The format's number. Raised when an older release could not read what is written.
pub(super) const FORMAT: u64 = 8;

/// Bytes of a manifest in one row: with its key and overhead it fills one 4 KiB page. One long
/// value would take a power of two of pages, up to twice what it needs.
pub(super) const PIECE: usize = 4064;

/// The number of one try at planning one rollout.
pub(super) type Series = u32;
/// The key of what there is one of for each batch.
pub(super) type BatchKey = (u32, u32);
/// The key of a batch that is open.
pub(super) type OpenKey<'a> = (u32, u16, &'a str, u32);

/// The keys of `meta`.
pub(super) mod meta {
    /// The format's number.
    pub(crate) const FORMAT: &str = "format";
    /// The newest series.
    pub(crate) const SERIES: &str = "series";
    /// How many groups of requests were committed.
    pub(crate) const GROUPS: &str = "groups";
}

macro_rules! tables {
    ($($field:ident: $constant:ident $key:ty => $value:ty;)*) => {
        $(pub(super) const $constant: TableDefinition<'static, $key, $value> =
            TableDefinition::new(stringify!($field));)*

        /// All tables within a write transaction.
        pub(super) struct WriteTables<'t> {
            $(pub(super) $field: Table<'t, $key, $value>,)*
            /// Anything was written.
            pub(super) wrote: bool,
        }

        impl<'t> WriteTables<'t> {
            /// Opens them all, and creates those that are not there.
            pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
                Ok(Self {
                    $($field: transaction.open_table($constant)?,)*
                    wrote: false,
                })
            }
        }

        /// All tables within a read transaction.
        pub(super) struct ReadTables {
            $(pub(super) $field: ReadOnlyTable<$key, $value>,)*
        }

        impl ReadTables {
            /// Opens them all.
            pub(super) fn open(transaction: &ReadTransaction) -> Result<Self, TableError> {
                Ok(Self {
                    $($field: transaction.open_table($constant)?,)*
                })
            }
        }
    };
}

tables! {
    meta: META &'static str => u64;
    rollouts: ROLLOUTS &'static str => &'static [u8];
    notes: NOTES &'static str => &'static [u8];
    commands: COMMANDS &'static str => &'static [u8];
    heads: HEADS &'static str => &'static [u8];
    batches: BATCHES BatchKey => &'static [u8];
    checksums: CHECKSUMS u32 => (u32, u64, u64);
    open: OPEN OpenKey<'static> => ();
    outcomes: OUTCOME_LISTS BatchKey => &'static [u8];
    codes: CODES (u32, u32, u32) => u32;
    attempts: ATTEMPTS BatchKey => (u16, u16, u16);
    manifests: MANIFESTS (u32, u32, u16) => &'static [u8];
    tallies: TALLIES (u32, u16, &'static str) => &'static [u8];
    lines: LINES &'static str => &'static [u8];
    hosts: HOSTS &'static str => &'static str;
    listeners: LISTENERS &'static str => &'static [u8];
    begun: BEGUN BatchKey => (bool, u64);
    members: MEMBERS (u32, &'static str, u32) => ();
    groups: GROUPS (u32, &'static str) => u64;
    garbage: GARBAGE u32 => ();
}

/// The last listener to a hub's feedback.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LastListener {
    /// How it was doing.
    pub(super) state: ListenerState,
    /// When it ended; `None` when it did not say so.
    pub(super) ended: Option<Timestamp>,
}

/// What the operations on batches need of a rollout's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) series: Series,
    pub(super) plan: PlanId,
    pub(super) stance: Stance,
}

impl Head {
    pub(super) fn of(rollout: &Rollout, series: Series) -> Self {
        Self {
            series,
            plan: rollout.plan_id,
            stance: rollout.stance(),
        }
    }
}

/// The head of a rollout, if there is one of that name.
pub(super) fn head(
    heads: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
) -> Result<Option<Head>, Fault> {
    let Some(stored) = heads.get(name.as_str())? else {
        return Ok(None);
    };
    serde_json::from_slice(stored.value())
        .map(Some)
        .map_err(|error| Fault::damaged(format!("the head of rollout {name}: {error}")))
}

/// The head of a rollout that must be there.
pub(super) fn known_head(
    heads: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
) -> Result<Head, Fault> {
    head(heads, name)?.ok_or_else(|| Fault::not_found(format!("rollout {name}")))
}

/// A batch's header, if there is such a batch.
pub(super) fn header(
    batches: &impl ReadableTable<BatchKey, &'static [u8]>,
    key: BatchKey,
) -> Result<Option<BatchHeader>, Fault> {
    let Some(stored) = batches.get(key)? else {
        return Ok(None);
    };
    serde_json::from_slice(stored.value())
        .map(Some)
        .map_err(|error| Fault::damaged(format!("the header of batch {}: {error}", key.1)))
}

/// The checksum of a plan's batches.
pub(super) fn checksum_of(
    checksums: &impl ReadableTable<u32, (u32, u64, u64)>,
    series: Series,
) -> Result<Checksum, Fault> {
    let stored = checksums.get(series)?.map(|stored| stored.value());
    let (batches, devices, sum) = stored.unwrap_or_default();
    Ok(Checksum {
        batches,
        devices,
        sum,
    })
}

/// The attempts at a batch's devices.
pub(super) fn attempts_of(
    attempts: &impl ReadableTable<BatchKey, (u16, u16, u16)>,
    key: BatchKey,
) -> Result<Attempts, Fault> {
    let Some(stored) = attempts.get(key)? else {
        return Ok(Attempts::default());
    };
    let (newest, silent, failed) = stored.value();
    Ok(Attempts {
        newest: Attempt(newest),
        silent: Attempt(silent),
        failed: Attempt(failed),
    })
}

/// Reads what [`counts_to_bytes`] gave.
pub(super) fn counts(stored: &[u8]) -> Result<Counts, Fault> {
    let (words, rest) = stored.as_chunks::<8>();
    if !rest.is_empty() || words.len() != OUTCOMES {
        return Err(Fault::damaged(format!(
            "{} bytes are no counts",
            stored.len()
        )));
    }
    let mut numbers = [0; OUTCOMES];
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u64::from_le_bytes(*word);
    }
    Ok(Counts::from(numbers))
}

/// Counts as they are stored.
pub(super) fn counts_to_bytes(counts: &Counts) -> [u8; OUTCOMES * 8] {
    let mut bytes = [0; OUTCOMES * 8];
    let words = bytes.as_chunks_mut::<8>().0;
    for (word, outcome) in words.iter_mut().zip(Outcome::ALL) {
        *word = counts.get(outcome).to_le_bytes();
    }
    bytes
}

/// The key of a batch.
pub(super) fn key(series: Series, batch: BatchId) -> BatchKey {
    (series, batch.0)
}

/// The key of an open batch.
pub(super) fn open_key(series: Series, header: &BatchHeader) -> OpenKey<'_> {
    (series, header.stage.0, header.place.as_str(), header.id.0)
}

/// A batch in words.
pub(super) fn batch_of(batch: BatchId, name: &RolloutName) -> String {
    format!("batch {batch} of rollout {name}")
}
