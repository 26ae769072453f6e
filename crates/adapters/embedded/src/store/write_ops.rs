//! The operations that write. Each checks all that it has to check before it writes anything,
//! so that one which is refused leaves no trace in the transaction that it shares with others.

use std::time::Duration;

use redb::ReadableTable;
use twincast_core::batch::{Attempts, Held, Lease};
use twincast_core::group::Line;
use twincast_core::ids::{
    Attempt, BatchId, GroupName, HubHost, HubName, Revision, RolloutId, RolloutName,
};
use twincast_core::outcome::{OUTCOMES, Outcome, OutcomeList};
use twincast_core::plan::{Batch, BatchHeader, Checksum};
use twincast_core::ports::{Created, Report, Skip};
use twincast_core::rollout::{Adding, Reliance, Rollout, Wanted};
use twincast_core::time::Timestamp;

use super::budgets;
use super::error::Fault;
use super::leases::Leases;
use super::read_ops;
use super::tables::{
    BatchKey, Head, LastListener, Numbers, PIECE, Series, WriteTables, attempts_of, batch_counts,
    batch_of, checksum_of, head, header, key, known_head, lease_on, meta, numbers,
    numbers_to_bytes, open_key, unsettled,
};

/// A batch as it is stored; made by the caller's task, so that compressing does not hold up the
/// others.
pub(super) struct PackedBatch {
    pub(super) header: BatchHeader,
    /// The ids, compressed.
    pub(super) manifest: Vec<u8>,
    checksum: Checksum,
}

impl PackedBatch {
    pub(super) fn new(batch: Batch) -> Self {
        Self {
            checksum: std::iter::once(&batch).collect(),
            manifest: lz4_flex::compress_prepend_size(batch.devices.as_text().as_bytes()),
            header: batch.header,
        }
    }
}

/// What a call does to a batch's outcomes.
pub(super) struct Change {
    pub(super) list: OutcomeList,
    lost: Numbers,
    gained: Numbers,
}

pub(super) fn create(tables: &mut WriteTables<'_>, rollout: &Rollout) -> Result<Created, Fault> {
    let name = &rollout.spec.name;
    if let Some(existing) = read_ops::record_of(&tables.rollouts, name)? {
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
) -> Result<(), Fault> {
    let name = &rollout.spec.name;
    let old = known_head(&tables.heads, name)?;
    if old.revision != from {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    let series = if old.plan == rollout.plan_id {
        old.series
    } else {
        tables.garbage.insert(old.series, ())?;
        next_series(tables)?
    };
    holds(tables, series, rollout)?;
    put_rollout(tables, rollout, series)
}

pub(super) fn remove(
    tables: &mut WriteTables<'_>,
    name: &RolloutName,
    revision: Revision,
) -> Result<(), Fault> {
    let Some(head) = head(&tables.heads, name)? else {
        return Ok(());
    };
    if head.revision != revision {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    tables.rollouts.remove(name.as_str())?;
    tables.heads.remove(name.as_str())?;
    tables.garbage.insert(head.series, ())?;
    tables.wrote = true;
    Ok(())
}

/// Refuses a record if the tables do not hold what the record relies on.
fn holds(tables: &WriteTables<'_>, series: Series, rollout: &Rollout) -> Result<(), Fault> {
    let what = match rollout.relies_on {
        None => return Ok(()),
        Some(Reliance::Batches(wanted)) => {
            let found = checksum_of(&tables.checksums, series)?;
            (found != wanted).then(|| format!("there are {found}, not {wanted}"))
        }
        Some(Reliance::Settled) => {
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

pub(super) fn save_line(
    tables: &mut WriteTables<'_>,
    group: &GroupName,
    line: &Line,
) -> Result<(), Fault> {
    let stored = read_ops::line_of(&tables.lines, group)?;
    if stored.version.0 + 1 != line.version.0 {
        return Err(Fault::superseded(format!("the line of group {group}")));
    }
    let line = serde_json::to_vec(line).expect("a line is plain data");
    tables.lines.insert(group.as_str(), line.as_slice())?;
    tables.wrote = true;
    Ok(())
}

/// Binds a hub's alias to a host name, unless it is bound; gives the host name that it is bound to.
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

/// Notes the last listener to a hub's feedback.
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
    tables
        .heads
        .insert(name, Head::of(rollout, series).stored())?;
    tables.wrote = true;
    Ok(())
}

pub(super) fn add_batches(
    tables: &mut WriteTables<'_>,
    name: &RolloutName,
    by: Adding,
    batches: &[PackedBatch],
) -> Result<Checksum, Fault> {
    let head = known_head(&tables.heads, name)?;
    if known_record(tables, name)?.adding() != Some(by) {
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
    let mut pending = [0; OUTCOMES];
    pending[Outcome::Pending as usize] = u64::from(batch.header.devices);
    move_tally(tables, key.0, &batch.header, &[0; OUTCOMES], &pending)?;
    let header = serde_json::to_vec(&batch.header).expect("a batch's header is plain data");
    tables.batches.insert(key, header.as_slice())?;
    tables
        .counts
        .insert(key, numbers_to_bytes(&pending).as_slice())?;
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

pub(super) fn record(
    tables: &mut WriteTables<'_>,
    leases: &mut Leases,
    lease: &Lease,
    reports: &[Report],
    ttl: Duration,
    now: Timestamp,
) -> Result<Wanted, Fault> {
    let gone = || Fault::superseded(lease_on(lease));
    let head = head(&tables.heads, &lease.rollout)?.ok_or_else(gone)?;
    let key = key(head.series, lease.batch);
    let header = header(&tables.batches, key)?.ok_or_else(gone)?;
    if !leases.holds(head.series, lease) {
        return Err(gone());
    }
    // Whoever holds the batch sends its newest attempt.
    let newest = |_, _| true;
    merge_into(tables, key, &header, &lease.rollout, reports, newest)?;
    if !header.budgets.is_empty() && !reports.is_empty() {
        budgets::recorded(tables, key, now)?;
    }
    leases.renew(head.series, lease, !reports.is_empty(), now, ttl);
    Ok(head.wanted)
}

pub(super) fn merge(
    tables: &mut WriteTables<'_>,
    (name, id): (&RolloutName, RolloutId),
    batch: BatchId,
    attempt: Attempt,
    reports: &[Report],
) -> Result<(), Fault> {
    let head = known_head(&tables.heads, name)?;
    if head.id != id {
        return Err(Fault::not_found(format!("rollout {name} with the id {id}")));
    }
    let key = key(head.series, batch);
    let header =
        header(&tables.batches, key)?.ok_or_else(|| Fault::not_found(batch_of(batch, name)))?;
    let attempts: Attempts = attempts_of(&tables.attempts, key)?;
    let admitted = |known, report| attempts.admits(attempt, known, report);
    merge_into(tables, key, &header, name, reports, admitted)
}

fn merge_into(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    header: &BatchHeader,
    name: &RolloutName,
    reports: &[Report],
    admitted: impl Fn(Outcome, Outcome) -> bool,
) -> Result<(), Fault> {
    if let Some(bad) = reports.iter().find(|report| report.index >= header.devices) {
        let batch = batch_of(header.id, name);
        return Err(Fault::not_found(format!("device {} of {batch}", bad.index)));
    }
    let mut change = Change::of(tables, key, header)?;
    let mut codes = Vec::new();
    for report in reports {
        let known = change.list.get(report.index as usize);
        if !admitted(known, report.outcome) {
            continue;
        }
        let merged = change.merge(report.index as usize, report.outcome);
        let refused = merged == Outcome::Refused && report.outcome == Outcome::Refused;
        if refused && report.code != 0 {
            codes.push((report.index, report.code));
        }
    }
    apply(tables, key, header, &change)?;
    for (index, code) in codes {
        let place = (key.0, key.1, index);
        if tables.codes.get(place)?.is_none() {
            tables.codes.insert(place, code)?;
            tables.wrote = true;
        }
    }
    Ok(())
}

pub(super) fn skip(
    tables: &mut WriteTables<'_>,
    leases: &Leases,
    name: &RolloutName,
    (batch, which): (BatchId, &Skip),
    now: Timestamp,
) -> Result<Option<Held>, Fault> {
    let head = known_head(&tables.heads, name)?;
    if !which.is_allowed(&known_record(tables, name)?) {
        return Err(Fault::superseded(format!("rollout {name}")));
    }
    let key = key(head.series, batch);
    let header =
        header(&tables.batches, key)?.ok_or_else(|| Fault::not_found(batch_of(batch, name)))?;
    if let Some(held) = leases.held(head.series, batch, now) {
        return Ok(Some(held));
    }
    let mut change = Change::of(tables, key, &header)?;
    for index in 0..header.devices {
        let known = change.list.get(index as usize);
        if let Some(end) = which.end(index, known) {
            change.merge(index as usize, end);
        }
    }
    apply(tables, key, &header, &change)?;
    Ok(None)
}

/// A rollout's record, for what is too rare to be in its head.
pub(super) fn known_record(tables: &WriteTables<'_>, name: &RolloutName) -> Result<Rollout, Fault> {
    let record = read_ops::record_of(&tables.rollouts, name)?;
    record.ok_or_else(|| Fault::not_found(format!("rollout {name}")))
}

impl Change {
    pub(super) fn of(
        tables: &WriteTables<'_>,
        key: BatchKey,
        header: &BatchHeader,
    ) -> Result<Self, Fault> {
        Ok(Self {
            list: read_ops::outcomes_of(&tables.outcomes, key, header.devices)?,
            lost: [0; OUTCOMES],
            gained: [0; OUTCOMES],
        })
    }

    fn merge(&mut self, index: usize, report: Outcome) -> Outcome {
        let (old, new) = self.list.merge(index, report);
        if old != new {
            self.lost[old as usize] += 1;
            self.gained[new as usize] += 1;
        }
        new
    }

    /// Makes a device pending for a new attempt.
    pub(super) fn reopen(&mut self, index: usize) {
        let old = self.list.reopen(index);
        self.lost[old as usize] += 1;
        self.gained[Outcome::Pending as usize] += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lost == [0; OUTCOMES]
    }
}

/// Writes a change of outcomes, with everything that follows from it.
pub(super) fn apply(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    header: &BatchHeader,
    change: &Change,
) -> Result<(), Fault> {
    if change.is_empty() {
        return Ok(());
    }
    let counts = batch_counts(&tables.counts, key)?;
    let counts = moved(&counts, &change.lost, &change.gained)?;
    // The first write: it checks the tally, which is the last that can be found damaged.
    move_tally(tables, key.0, header, &change.lost, &change.gained)?;
    tables
        .counts
        .insert(key, numbers_to_bytes(&counts).as_slice())?;
    tables.outcomes.insert(key, change.list.as_bytes())?;
    if unsettled(&counts) == 0 {
        tables.open.remove(open_key(key.0, header))?;
    } else if change.gained[Outcome::Pending as usize] > 0 {
        tables.open.insert(open_key(key.0, header), ())?;
    }
    if !header.budgets.is_empty() {
        budgets::settled(tables, key)?;
    }
    Ok(())
}

fn move_tally(
    tables: &mut WriteTables<'_>,
    series: Series,
    header: &BatchHeader,
    lost: &Numbers,
    gained: &Numbers,
) -> Result<(), Fault> {
    let key = (series, header.stage.0, header.hub.as_str());
    let old = match tables.tallies.get(key)? {
        Some(stored) => numbers(stored.value())?,
        None => [0; OUTCOMES],
    };
    let new = moved(&old, lost, gained)?;
    tables
        .tallies
        .insert(key, numbers_to_bytes(&new).as_slice())?;
    tables.wrote = true;
    Ok(())
}

fn moved(from: &Numbers, lost: &Numbers, gained: &Numbers) -> Result<Numbers, Fault> {
    let mut to = *from;
    for (index, number) in to.iter_mut().enumerate() {
        *number = (*number + gained[index])
            .checked_sub(lost[index])
            .ok_or_else(|| Fault::damaged("the counts are not the sum of the outcomes"))?;
    }
    Ok(to)
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

/// Removes up to `limit` rows of plans that were given up, and says which series it finished.
pub(super) fn sweep(tables: &mut WriteTables<'_>, limit: usize) -> Result<Swept, Fault> {
    let Some(series) = tables.garbage.first()?.map(|row| row.0.value()) else {
        return Ok(Swept::Clean);
    };
    tables.wrote = true;
    let mut left = limit;
    // The headers go last: what they lead to is gone before them.
    sweep_rows!(tables.manifests, (series, 0, 0), (series + 1, 0, 0), left);
    sweep_rows!(tables.codes, (series, 0, 0), (series + 1, 0, 0), left);
    sweep_rows!(tables.attempts, (series, 0), (series + 1, 0), left);
    sweep_rows!(tables.outcomes, (series, 0), (series + 1, 0), left);
    left -= sweep_open(tables, series, left)?;
    left -= budgets::sweep(tables, series, left)?;
    sweep_rows!(tables.begun, (series, 0), (series + 1, 0), left);
    sweep_rows!(tables.counts, (series, 0), (series + 1, 0), left);
    sweep_rows!(tables.batches, (series, 0), (series + 1, 0), left);
    sweep_tallies(tables, series)?;
    tables.checksums.remove(series)?;
    if left == 0 {
        return Ok(Swept::Some);
    }
    tables.garbage.remove(series)?;
    Ok(Swept::Whole(series))
}

/// How far a sweep came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    /// There was nothing to remove.
    Clean,
    /// A part of a series was removed.
    Some,
    /// This series is gone.
    Whole(Series),
}

/// Removes up to `limit` marks of open batches, and says how many.
fn sweep_open(tables: &mut WriteTables<'_>, series: Series, limit: usize) -> Result<usize, Fault> {
    let mut marks = Vec::new();
    for row in tables.open.range((series, 0, "", 0)..)?.take(limit) {
        let (key, _) = row?;
        let (of, stage, place, id) = key.value();
        if of != series {
            break;
        }
        marks.push((stage, place.to_owned(), id));
    }
    for (stage, place, id) in &marks {
        tables.open.remove((series, *stage, place.as_str(), *id))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_do_not_fit_are_damage_and_no_panic() {
        let mut lost = [0; OUTCOMES];
        lost[Outcome::Pending as usize] = 1;
        assert!(matches!(
            moved(&[0; OUTCOMES], &lost, &[0; OUTCOMES]),
            Err(Fault::Damaged(_))
        ));
        let full = super::super::tables::to_numbers(&twincast_core::outcome::Counts::pending(2));
        assert_eq!(unsettled(&moved(&full, &lost, &[0; OUTCOMES]).unwrap()), 1);
    }
}
