//! The write operations. Each operation performs all checks before the first write, so a refused
//! operation leaves no trace in the transaction shared with other operations.

use redb::ReadableTable;
use twincast_core::batch::{Attempts, Batch};
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::ids::{ConcurrencyGroup, HubHost, HubName, Revision, RolloutName};
use twincast_core::outcome::{Counts, OutcomeList};
use twincast_core::plan::{self, BatchHeader, Checksum};
use twincast_core::ports::{Change, Committed, Created, Loaded};
use twincast_core::rollout::{Adding, Commands, Rollout, StorePrecondition};
use twincast_core::time::Timestamp;

use super::budgets;
use super::error::Fault;
use super::lease_states::LeaseStates;
use super::read_ops;
use super::tables::{
    BatchKey, Head, LastListener, PIECE, ReadTables, Series, WriteTables, checksum_of, counts,
    counts_to_bytes, head, key, known_head, meta, open_key,
};

/// A batch in stored form, created in the caller's task, so that compressing does not delay other
/// requests.
pub(super) struct PackedBatch {
    pub(super) header: BatchHeader,
    /// The ids, compressed.
    pub(super) manifest: Vec<u8>,
    checksum: Checksum,
}

impl PackedBatch {
    pub(super) fn new(batch: plan::Batch) -> Self {
        Self {
            checksum: std::iter::once(&batch).collect(),
            manifest: lz4_flex::compress_prepend_size(batch.devices.as_text().as_bytes()),
            header: batch.header,
        }
    }
}

pub(super) fn create(tables: &mut WriteTables<'_>, rollout: &Rollout) -> Result<Created, Fault> {
    let name = &rollout.spec.name;
    if let Some(existing) = read_ops::rollout_of(&tables.rollouts, &tables.notes, name)? {
        return Ok(Created::Existing(Box::new(existing)));
    }
    let series = next_series(tables)?;
    put_rollout(tables, rollout, series)?;
    Ok(Created::New)
}

pub(super) fn save(
    tables: &mut WriteTables<'_>,
    rollout: &Rollout,
    from: Revision,
    commands: Option<&Commands>,
) -> Result<(), Fault> {
    let name = &rollout.spec.name;
    let old = known_head(&tables.heads, name)?;
    if old.control.revision != from {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    let series = if old.plan == rollout.plan_id {
        old.series
    } else {
        tables.garbage.insert(old.series, ())?;
        next_series(tables)?
    };
    check_precondition(tables, series, rollout)?;
    if let Some(commands) = commands {
        let commands = serde_json::to_vec(commands).expect("commands are plain data");
        tables.commands.insert(name.as_str(), commands.as_slice())?;
    }
    put_rollout(tables, rollout, series)
}

pub(super) fn save_notes(tables: &mut WriteTables<'_>, rollout: &Rollout) -> Result<(), Fault> {
    let name = &rollout.spec.name;
    if known_head(&tables.heads, name)?.control.revision != rollout.revision() {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    put_notes(tables, rollout)
}

fn put_notes(tables: &mut WriteTables<'_>, rollout: &Rollout) -> Result<(), Fault> {
    let notes = serde_json::to_vec(&rollout.notes).expect("notes are plain data");
    let name = rollout.spec.name.as_str();
    tables.notes.insert(name, notes.as_slice())?;
    tables.wrote = true;
    Ok(())
}

pub(super) fn remove(
    tables: &mut WriteTables<'_>,
    name: &RolloutName,
    revision: Revision,
) -> Result<(), Fault> {
    let Some(head) = head(&tables.heads, name)? else {
        return Ok(());
    };
    if head.control.revision != revision {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    tables.rollouts.remove(name.as_str())?;
    tables.notes.remove(name.as_str())?;
    tables.commands.remove(name.as_str())?;
    tables.heads.remove(name.as_str())?;
    tables.garbage.insert(head.series, ())?;
    tables.wrote = true;
    Ok(())
}

/// Refuses a record if the tables do not hold the data that the record relies on.
fn check_precondition(
    tables: &WriteTables<'_>,
    series: Series,
    rollout: &Rollout,
) -> Result<(), Fault> {
    let what = match rollout.precondition {
        None => return Ok(()),
        Some(StorePrecondition::Batches(expected)) => {
            let found = checksum_of(&tables.checksums, series)?;
            (found != expected).then(|| format!("found {found}, expected {expected}"))
        }
        Some(StorePrecondition::Settled) => {
            let first = tables
                .open
                .range((series, 0, "", 0)..)?
                .next()
                .transpose()?;
            let open = first.map(|(key, _)| key.value().0);
            (open == Some(series)).then(|| "some devices are not settled".to_owned())
        }
    };
    match what {
        Some(what) => Err(Fault::regressed(format!(
            "rollout {}: {what}",
            rollout.spec.name
        ))),
        None => Ok(()),
    }
}

pub(super) fn save_group_queue(
    tables: &mut WriteTables<'_>,
    group: &ConcurrencyGroup,
    queue: &GroupQueue,
) -> Result<(), Fault> {
    let stored = read_ops::group_queue_of(&tables.group_queues, group)?;
    if stored.version.0 + 1 != queue.version.0 {
        return Err(Fault::superseded(format!(
            "the queue of concurrency group {group}"
        )));
    }
    let queue = serde_json::to_vec(queue).expect("a queue is plain data");
    tables
        .group_queues
        .insert(group.as_str(), queue.as_slice())?;
    tables.wrote = true;
    Ok(())
}

/// Binds a hub's alias to a host name, unless bound before. Returns the bound host name.
pub(super) fn bind_hub(
    tables: &mut WriteTables<'_>,
    hub: &HubName,
    host: &HubHost,
) -> Result<HubHost, Fault> {
    if let Some(bound) = read_ops::host_of(&tables.hosts, hub)? {
        return Ok(bound);
    }
    tables.hosts.insert(hub.as_str(), host.as_str())?;
    tables.wrote = true;
    Ok(host.clone())
}

/// Stores the last listener to a hub's feedback.
pub(super) fn note_listener(
    tables: &mut WriteTables<'_>,
    hub: &HubName,
    last: &LastListener,
) -> Result<(), Fault> {
    let last = serde_json::to_vec(last).expect("a listener is plain data");
    tables.listeners.insert(hub.as_str(), last.as_slice())?;
    tables.wrote = true;
    Ok(())
}

fn next_series(tables: &mut WriteTables<'_>) -> Result<Series, Fault> {
    let last = tables.meta.get(meta::SERIES)?.map_or(0, |n| n.value());
    let next = Series::try_from(last + 1).map_err(|_| Fault::damaged("plan numbers ran out"))?;
    tables.meta.insert(meta::SERIES, u64::from(next))?;
    tables.wrote = true;
    Ok(next)
}

fn put_rollout(
    tables: &mut WriteTables<'_>,
    rollout: &Rollout,
    series: Series,
) -> Result<(), Fault> {
    let name = rollout.spec.name.as_str();
    let record = serde_json::to_vec(rollout).expect("a rollout's record is plain data");
    tables.rollouts.insert(name, record.as_slice())?;
    let head = serde_json::to_vec(&Head::of(rollout, series)).expect("a head is plain data");
    tables.heads.insert(name, head.as_slice())?;
    put_notes(tables, rollout)
}

pub(super) fn add_batches(
    tables: &mut WriteTables<'_>,
    name: &RolloutName,
    by: Adding,
    batches: &[PackedBatch],
) -> Result<Checksum, Fault> {
    let head = known_head(&tables.heads, name)?;
    if head.control.adding != Some(by) {
        return Err(Fault::superseded(format!("{by} of rollout {name}")));
    }
    let mut checksum = checksum_of(&tables.checksums, head.series)?;
    for batch in batches {
        let key = key(head.series, batch.header.id);
        if tables.batches.get(key)?.is_none() {
            add_batch(tables, key, batch)?;
            checksum.join(&batch.checksum);
        }
    }
    let Checksum {
        batches,
        devices,
        sum,
    } = checksum;
    tables
        .checksums
        .insert(head.series, (batches, devices, sum))?;
    Ok(checksum)
}

fn add_batch(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    batch: &PackedBatch,
) -> Result<(), Fault> {
    budgets::add(tables, key, &batch.header)?;
    let pending = Counts::pending(u64::from(batch.header.devices));
    move_tally(tables, key.0, &batch.header, &Counts::default(), &pending)?;
    let header = serde_json::to_vec(&batch.header).expect("a batch's header is plain data");
    tables.batches.insert(key, header.as_slice())?;
    let outcomes = OutcomeList::pending(batch.header.devices as usize);
    tables.outcomes.insert(key, outcomes.as_bytes())?;
    for (piece, bytes) in batch.manifest.chunks(PIECE).enumerate() {
        let piece = u16::try_from(piece).expect("a manifest is far below 256 MiB");
        tables.manifests.insert((key.0, key.1, piece), bytes)?;
    }
    if batch.header.devices > 0 {
        tables.open.insert(open_key(key.0, &batch.header), ())?;
    }
    tables.wrote = true;
    Ok(())
}

/// Stores a change of a batch, unless batch or rollout have changed since the batch was read.
pub(super) fn commit(
    tables: &mut WriteTables<'_>,
    lease_states: &mut LeaseStates,
    name: &RolloutName,
    (from, change): (&Loaded, &Change),
    now: Timestamp,
) -> Result<Committed, Fault> {
    let found = unchanged_head(
        &tables.heads,
        &tables.batches,
        lease_states,
        name,
        (from, change),
    )?;
    let Some(head) = found else {
        return Ok(Committed::Overtaken(None));
    };
    let (old, new) = (&from.batch, &change.next);
    let key = key(head.series, new.header.id);
    if old.outcomes != new.outcomes {
        put_outcomes(tables, key, old, new)?;
    }
    for index in old
        .codes
        .keys()
        .filter(|index| !new.codes.contains_key(index))
    {
        tables.codes.remove((key.0, key.1, *index))?;
    }
    for (index, code) in new
        .codes
        .iter()
        .filter(|(index, code)| old.codes.get(index) != Some(code))
    {
        tables.codes.insert((key.0, key.1, *index), *code)?;
    }
    if old.attempts != new.attempts {
        let Attempts {
            newest,
            silent,
            failed,
        } = new.attempts;
        let stored = (newest.0, silent.0, failed.0);
        tables.attempts.insert(key, stored)?;
    }
    if old.budget_usage != new.budget_usage {
        tables.budget_usage.insert(
            key,
            (new.budget_usage.is_open, new.budget_usage.recorded_at.0),
        )?;
    }
    if let Some(entry) = &change.budget_entry {
        budgets::enter(tables, head.series, &new.header, entry)?;
    }
    tables.wrote = true;
    // If the transaction fails, the holder is fenced without a reason, or a lease exists unknown to
    // its holder.
    Ok(lease_state_after(&head, lease_states, change, now))
}

/// Like [`commit`], for a change of data in memory only.
pub(super) fn commit_lease_state(
    tables: &ReadTables,
    lease_states: &mut LeaseStates,
    name: &RolloutName,
    (from, change): (&Loaded, &Change),
    now: Timestamp,
) -> Result<Committed, Fault> {
    let found = unchanged_head(
        &tables.heads,
        &tables.batches,
        lease_states,
        name,
        (from, change),
    )?;
    Ok(found.map_or(Committed::Overtaken(None), |head| {
        lease_state_after(&head, lease_states, change, now)
    }))
}

/// Returns whether a change affects no data on disk.
pub(super) fn changes_only_lease_state(from: &Loaded, change: &Change) -> bool {
    let mut next = change.next.clone();
    next.lease_state.clone_from(&from.batch.lease_state);
    next == from.batch
}

/// Returns the rollout's head if neither batch nor rollout have changed since the batch was read.
fn unchanged_head(
    heads: &impl ReadableTable<&'static str, &'static [u8]>,
    batches: &impl ReadableTable<BatchKey, &'static [u8]>,
    lease_states: &LeaseStates,
    name: &RolloutName,
    (from, change): (&Loaded, &Change),
) -> Result<Option<Head>, Fault> {
    let Some(head) = head(heads, name)? else {
        return Ok(None);
    };
    let id = from.batch.header.id;
    let is_there = batches.get(key(head.series, id))?.is_some();
    let (_, version) = lease_states.of(head.series, id);
    let budget_stamp = lease_states.budget_stamp(head.series);
    let is_current = is_there
        && version == from.version
        && change
            .under
            .is_none_or(|under| under == head.control.revision)
        && change
            .budget_entry
            .as_ref()
            .is_none_or(|entry| entry.stamp == budget_stamp);
    Ok(is_current.then_some(head))
}

fn lease_state_after(
    head: &Head,
    lease_states: &mut LeaseStates,
    change: &Change,
    now: Timestamp,
) -> Committed {
    let (id, lease_state) = (change.next.header.id, change.next.lease_state.clone());
    Committed::Done {
        version: lease_states.put(head.series, id, lease_state, change.budget_entry.is_some()),
        directive: head.control.directive,
        now,
    }
}

/// Writes outcomes, with all derived data.
fn put_outcomes(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    old: &Batch,
    new: &Batch,
) -> Result<(), Fault> {
    let counts = new.counts();
    // The first write also performs the last check for damage, of the tally.
    move_tally(tables, key.0, &new.header, &old.counts(), &counts)?;
    tables.outcomes.insert(key, new.outcomes.as_bytes())?;
    let open = open_key(key.0, &new.header);
    match counts.unsettled() {
        0 => tables.open.remove(open)?,
        _ => tables.open.insert(open, ())?,
    };
    Ok(())
}

/// Moves the tally of a batch's stage and hub by the change of the batch's counts.
fn move_tally(
    tables: &mut WriteTables<'_>,
    series: Series,
    header: &BatchHeader,
    from: &Counts,
    to: &Counts,
) -> Result<(), Fault> {
    let key = (series, header.stage.0, header.hub.as_str());
    let tally = match tables.tallies.get(key)? {
        Some(stored) => counts(stored.value())?,
        None => Counts::default(),
    };
    let moved = tally.moved(from, to);
    let moved =
        moved.ok_or_else(|| Fault::damaged("the counts are not the sum of the outcomes"))?;
    tables
        .tallies
        .insert(key, counts_to_bytes(&moved).as_slice())?;
    tables.wrote = true;
    Ok(())
}

macro_rules! sweep_rows {
    ($table:expr, $from:expr, $to:expr, $left:ident) => {{
        let keys = $table
            .range($from..$to)?
            .take($left)
            .map(|row| row.map(|(key, _)| key.value()))
            .collect::<Result<Vec<_>, _>>()?;
        $left -= keys.len();
        for key in keys {
            $table.remove(key)?;
        }
    }};
}

/// Removes up to `limit` rows of abandoned plans, and returns the progress of the removal.
pub(super) fn sweep(tables: &mut WriteTables<'_>, limit: usize) -> Result<Swept, Fault> {
    let Some(series) = tables.garbage.first()?.map(|row| row.0.value()) else {
        return Ok(Swept::Clean);
    };
    tables.wrote = true;
    let mut left = limit;
    // The headers are removed last, after all rows found by way of a header.
    sweep_rows!(tables.manifests, (series, 0, 0), (series + 1, 0, 0), left);
    sweep_rows!(tables.codes, (series, 0, 0), (series + 1, 0, 0), left);
    sweep_rows!(tables.attempts, (series, 0), (series + 1, 0), left);
    sweep_rows!(tables.outcomes, (series, 0), (series + 1, 0), left);
    left -= sweep_open(tables, series, left)?;
    left -= budgets::sweep(tables, series, left)?;
    sweep_rows!(tables.budget_usage, (series, 0), (series + 1, 0), left);
    sweep_rows!(tables.batches, (series, 0), (series + 1, 0), left);
    sweep_tallies(tables, series)?;
    tables.checksums.remove(series)?;
    if left == 0 {
        return Ok(Swept::Partial);
    }
    tables.garbage.remove(series)?;
    Ok(Swept::Finished(series))
}

/// The progress of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    /// There was nothing to remove.
    Clean,
    /// A part of a series was removed.
    Partial,
    /// This series is removed completely.
    Finished(Series),
}

/// Removes up to `limit` marks of open batches, and returns the number removed.
fn sweep_open(tables: &mut WriteTables<'_>, series: Series, limit: usize) -> Result<usize, Fault> {
    let mut marks = Vec::new();
    for row in tables.open.range((series, 0, "", 0)..)?.take(limit) {
        let (key, _) = row?;
        let (of, stage, sort_key, id) = key.value();
        if of != series {
            break;
        }
        marks.push((stage, sort_key.to_owned(), id));
    }
    for (stage, sort_key, id) in &marks {
        tables
            .open
            .remove((series, *stage, sort_key.as_str(), *id))?;
    }
    Ok(marks.len())
}

fn sweep_tallies(tables: &mut WriteTables<'_>, series: Series) -> Result<(), Fault> {
    let keys = read_ops::tally_keys(&tables.tallies, series)?;
    for (stage, hub) in keys {
        tables.tallies.remove((series, stage.0, hub.as_str()))?;
    }
    Ok(())
}
