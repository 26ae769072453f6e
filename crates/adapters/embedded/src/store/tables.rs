//! The tables of the file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | a number: `format`, `series`, `commits` |
//! | `rollouts` | name | the record, JSON |
//! | `notes` | name | the notes on the rollout, JSON |
//! | `commands` | name | the remembered commands, JSON; no row without commands |
//! | `heads` | name | the parts of the record needed by other operations, JSON: series, try, state |
//! | `batches` | series, batch | the header, JSON |
//! | `checksums` | series | the checksum of the batches: batches, devices, sum |
//! | `open` | series, stage, sort key, batch | empty; present while a send is due to any device |
//! | `outcomes` | series, batch | the outcomes, two devices per byte |
//! | `codes` | series, batch, index | the hub's code for a refused device |
//! | `attempts` | series, batch | the newest attempt, and the newest attempt at silent and at failed devices; only for a retried batch |
//! | `manifests` | series, batch, piece | the ids, compressed, cut to fill pages |
//! | `tallies` | series, stage, hub | the counts of outcomes: 8 bytes each |
//! | `group_queues` | group | the queue of a concurrency group, JSON |
//! | `hosts` | hub | the host name bound to the hub's alias |
//! | `listeners` | hub | the last listener to the hub's feedback, JSON |
//! | `budget_usage` | series, batch | for a batch with budgets that was leased to a worker: whether sends are still due, and when a worker last recorded outcomes |
//! | `members` | series, group, batch | empty; present while the group's budget counts the batch |
//! | `groups` | series, group | the number of devices of a budget group |
//! | `garbage` | series | empty; an abandoned plan that is being removed |
//!
//! A *series* numbers a try to plan a rollout. A new try gets a new series. So the old series is
//! out of reach at once, and the rows of the old series are removed later, a few at a time.

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
use twincast_core::rollout::{PlanId, Rollout, RolloutControl};
use twincast_core::time::Timestamp;

use super::error::Fault;

/// The number of the format. Raised when an older release could not read the new data.
pub(super) const FORMAT: u64 = 8;

/// The bytes of a manifest in a row: with key and overhead, a row fills a page of 4 KiB. A single
/// long value would take a power of two of pages, up to twice the needed space.
pub(super) const PIECE: usize = 4064;

/// The number of a try to plan a rollout.
pub(super) type Series = u32;
/// The key of tables with a row for each batch.
pub(super) type BatchKey = (u32, u32);
/// The key of a batch that is open.
pub(super) type OpenKey<'a> = (u32, u16, &'a str, u32);

/// The keys of `meta`.
pub(super) mod meta {
    /// The number of the format.
    pub(crate) const FORMAT: &str = "format";
    /// The newest series.
    pub(crate) const SERIES: &str = "series";
    /// The number of commits.
    pub(crate) const COMMITS: &str = "commits";
}

macro_rules! tables {
    ($($field:ident: $constant:ident $key:ty => $value:ty;)*) => {
        $(pub(super) const $constant: TableDefinition<'static, $key, $value> =
            TableDefinition::new(stringify!($field));)*

        /// All tables within a write transaction.
        pub(super) struct WriteTables<'t> {
            $(pub(super) $field: Table<'t, $key, $value>,)*
            /// Whether anything was written.
            pub(super) wrote: bool,
        }

        impl<'t> WriteTables<'t> {
            /// Opens all tables, and creates missing tables.
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
            /// Opens all tables.
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
    group_queues: GROUP_QUEUES &'static str => &'static [u8];
    hosts: HOSTS &'static str => &'static str;
    listeners: LISTENERS &'static str => &'static [u8];
    budget_usage: BUDGET_USAGE BatchKey => (bool, u64);
    members: MEMBERS (u32, &'static str, u32) => ();
    groups: GROUPS (u32, &'static str) => u64;
    garbage: GARBAGE u32 => ();
}

/// The last listener to a hub's feedback.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LastListener {
    /// The last reported state.
    pub(super) state: ListenerState,
    /// The end of the listener; `None` without a reported end.
    pub(super) ended: Option<Timestamp>,
}

/// The parts of a rollout's record needed by operations on batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) series: Series,
    pub(super) plan: PlanId,
    pub(super) control: RolloutControl,
}

impl Head {
    pub(super) fn of(rollout: &Rollout, series: Series) -> Self {
        Self {
            series,
            plan: rollout.plan_id,
            control: rollout.control(),
        }
    }
}

/// Returns the head of a rollout, or `None` if there is no such rollout.
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

/// Returns the head of a rollout.
///
/// # Errors
/// [`Fault::Refused`] if there is no such rollout.
pub(super) fn known_head(
    heads: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
) -> Result<Head, Fault> {
    head(heads, name)?.ok_or_else(|| Fault::not_found(format!("rollout {name}")))
}

/// Returns a batch's header, or `None` if there is no such batch.
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

/// Returns the checksum of a plan's batches.
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

/// Returns the attempts at a batch's devices.
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

/// Decodes the result of [`counts_to_bytes`].
pub(super) fn counts(stored: &[u8]) -> Result<Counts, Fault> {
    let (words, rest) = stored.as_chunks::<8>();
    if !rest.is_empty() || words.len() != OUTCOMES {
        return Err(Fault::damaged(format!(
            "{} bytes are not counts",
            stored.len()
        )));
    }
    let mut numbers = [0; OUTCOMES];
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u64::from_le_bytes(*word);
    }
    Ok(Counts::from(numbers))
}

/// Encodes counts for storage.
pub(super) fn counts_to_bytes(counts: &Counts) -> [u8; OUTCOMES * 8] {
    let mut bytes = [0; OUTCOMES * 8];
    let words = bytes.as_chunks_mut::<8>().0;
    for (word, outcome) in words.iter_mut().zip(Outcome::ALL) {
        *word = counts.get(outcome).to_le_bytes();
    }
    bytes
}

/// Returns the key of a batch.
pub(super) fn key(series: Series, batch: BatchId) -> BatchKey {
    (series, batch.0)
}

/// Returns the key of an open batch.
pub(super) fn open_key(series: Series, header: &BatchHeader) -> OpenKey<'_> {
    (
        series,
        header.stage.0,
        header.sort_key.as_str(),
        header.id.0,
    )
}

/// Describes a batch for messages.
pub(super) fn batch_of(batch: BatchId, name: &RolloutName) -> String {
    format!("batch {batch} of rollout {name}")
}
