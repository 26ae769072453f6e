//! Which batches count in which budgets. That is on disk: what a worker had that died with its process may have been sent.

use redb::ReadableTable;
use twincast_core::budget::{Begun, BudgetGroup, GroupProgress};
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::plan::BatchHeader;
use twincast_core::ports::Begins;
use twincast_core::time::Timestamp;

use super::error::Fault;
use super::read_ops;
use super::tables::{BatchKey, ReadTables, Series, WriteTables, known_head};

/// A batch's part in its budgets.
pub(super) fn begun(
    table: &impl ReadableTable<BatchKey, (bool, u64)>,
    key: BatchKey,
) -> Result<Begun, Fault> {
    let stored = table.get(key)?.map(|stored| stored.value());
    let (is_open, sent_at) = stored.unwrap_or_default();
    Ok(Begun {
        is_open,
        sent_at: Timestamp(sent_at),
    })
}

/// Groups of a rollout as they are now.
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
            Ok((BatchId(batch), begun(&tables.begun, key)?, counts))
        });
        let counted = counted.collect::<Result<Vec<_>, Fault>>()?;
        Ok(GroupProgress::of(devices, counted, group.silent_ms, now))
    });
    progress.collect()
}

/// Counts a new batch's devices in its groups.
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

/// The budgets of a batch count it from now on.
pub(super) fn begin(
    tables: &mut WriteTables<'_>,
    series: Series,
    header: &BatchHeader,
    begins: &Begins,
) -> Result<(), Fault> {
    for (group, batch) in &begins.over {
        tables.members.remove((series, group.as_str(), batch.0))?;
    }
    for group in &header.budgets {
        let member = (series, group.group.as_str(), header.id.0);
        tables.members.insert(member, ())?;
    }
    Ok(())
}

/// Removes up to `limit` groups and members of a plan that was given up, and says how many.
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
