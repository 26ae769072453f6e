//! The batches counted by budgets. Stored on disk, because a worker may have sent messages of a
//! batch before the process ended.

use redb::ReadableTable;
use twincast_core::budget::{BudgetGroup, BudgetUsage, GroupProgress};
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::plan::BatchHeader;
use twincast_core::ports::BudgetEntry;
use twincast_core::time::Timestamp;

use super::error::Fault;
use super::read_ops;
use super::tables::{BatchKey, ReadTables, Series, WriteTables, known_head};

/// Returns the budget usage of a batch.
pub(super) fn usage(
    table: &impl ReadableTable<BatchKey, (bool, u64)>,
    key: BatchKey,
) -> Result<BudgetUsage, Fault> {
    let stored = table.get(key)?.map(|stored| stored.value());
    let (is_open, recorded_at) = stored.unwrap_or_default();
    Ok(BudgetUsage {
        is_open,
        recorded_at: Timestamp(recorded_at),
    })
}

/// Returns the current progress of budget groups of a rollout.
pub(super) fn in_progress(
    tables: &ReadTables,
    now: Timestamp,
    name: &RolloutName,
    groups: &[BudgetGroup],
) -> Result<Vec<GroupProgress>, Fault> {
    let series = known_head(&tables.heads, name)?.series;
    let progress = groups.iter().map(|group| {
        let name = group.group.as_str();
        let devices = tables.groups.get((series, name))?;
        let devices = devices.map_or(0, |devices| devices.value());
        let members = (series, name, 0)..=(series, name, u32::MAX);
        let counted = tables.members.range(members)?.map(|row| {
            let (member, _) = row?;
            let (_, _, batch) = member.value();
            let key = (series, batch);
            let counts = read_ops::counts_of(tables, key)?;
            Ok((BatchId(batch), usage(&tables.budget_usage, key)?, counts))
        });
        let counted = counted.collect::<Result<Vec<_>, Fault>>()?;
        Ok(GroupProgress::of(devices, counted, group.silent_ms, now))
    });
    progress.collect()
}

/// Adds a new batch's devices to the batch's budget groups.
pub(super) fn add(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    header: &BatchHeader,
) -> Result<(), Fault> {
    for group in &header.budgets {
        let group = (key.0, group.group.as_str());
        let devices = tables.groups.get(group)?.map_or(0, |stored| stored.value());
        let devices = devices + u64::from(header.devices);
        tables.groups.insert(group, devices)?;
    }
    Ok(())
}

/// Makes the budgets of a batch count the batch from now on.
pub(super) fn enter(
    tables: &mut WriteTables<'_>,
    series: Series,
    header: &BatchHeader,
    entry: &BudgetEntry,
) -> Result<(), Fault> {
    for (group, batch) in &entry.finished {
        tables.members.remove((series, group.as_str(), batch.0))?;
    }
    for group in &header.budgets {
        let member = (series, group.group.as_str(), header.id.0);
        tables.members.insert(member, ())?;
    }
    Ok(())
}

/// Removes up to `limit` groups and members of an abandoned plan, and returns the number removed.
pub(super) fn sweep(
    tables: &mut WriteTables<'_>,
    series: Series,
    limit: usize,
) -> Result<usize, Fault> {
    let mut members = Vec::new();
    for row in tables.members.range((series, "", 0)..)?.take(limit) {
        let (member, _) = row?;
        let (of, group, batch) = member.value();
        if of != series {
            break;
        }
        members.push((group.to_owned(), batch));
    }
    for (group, batch) in &members {
        tables.members.remove((series, group.as_str(), *batch))?;
    }
    let mut groups = Vec::new();
    for row in tables
        .groups
        .range((series, "")..)?
        .take(limit - members.len())
    {
        let (group, _) = row?;
        let (of, group) = group.value();
        if of != series {
            break;
        }
        groups.push(group.to_owned());
    }
    for group in &groups {
        tables.groups.remove((series, group.as_str()))?;
    }
    Ok(members.len() + groups.len())
}
