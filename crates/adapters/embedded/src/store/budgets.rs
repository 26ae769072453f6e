//! Leases, and the budgets that hold batches back.
//!
//! A lease is in memory. That a batch counts in its budgets is on disk, and is written before the lease is
//! answered: what a worker had that died with its process may have been sent.

use redb::ReadableTable;
use twincast_core::batch::{Lease, LeaseRefused};
use twincast_core::budget::{Begun, BudgetGroup, GroupProgress};
use twincast_core::ids::RolloutName;
use twincast_core::plan::BatchHeader;
use twincast_core::ports::{LeaseReply, LeaseRequest};
use twincast_core::rollout::Wanted;
use twincast_core::time::Timestamp;

use super::error::Fault;
use super::leases::Leases;
use super::tables::{
    BatchKey, Head, ReadTables, Series, StoredHead, WriteTables, batch_counts, batch_of, header,
    key, known_head, to_counts, unsettled,
};

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

/// The batch of a wish, unless it is answered already.
pub(super) fn wanted(
    heads: &impl ReadableTable<&'static str, StoredHead>,
    batches: &impl ReadableTable<BatchKey, &'static [u8]>,
    counts: &impl ReadableTable<BatchKey, &'static [u8]>,
    request: &LeaseRequest,
) -> Result<Result<(Head, BatchHeader), LeaseReply>, Fault> {
    let head = known_head(heads, &request.rollout)?;
    let key = key(head.series, request.batch);
    let header = header(batches, key)?
        .ok_or_else(|| Fault::not_found(batch_of(request.batch, &request.rollout)))?;
    if unsettled(&batch_counts(counts, key)?) == 0 {
        return Ok(Err(LeaseReply::Done));
    }
    if head.wanted == Wanted::Stop || header.stage > head.stage {
        return Ok(Err(LeaseReply::NotWanted));
    }
    Ok(Ok((head, header)))
}

/// Gives a batch that may be given, unless somebody has it.
pub(super) fn give(
    leases: &mut Leases,
    head: &Head,
    request: &LeaseRequest,
    now: Timestamp,
) -> LeaseReply {
    match leases.lease(head.series, head.revision.version, request, now) {
        Ok(epoch) => LeaseReply::Granted(Lease {
            rollout: request.rollout.clone(),
            batch: request.batch,
            holder: request.holder.clone(),
            epoch,
        }),
        Err(LeaseRefused::Held(held)) => LeaseReply::Held(held),
        Err(LeaseRefused::Quarantined) => LeaseReply::Quarantined,
    }
}

/// Gives a batch that has budgets if they have room for it, and lets them count it. Should the write fail, the lease
/// that nobody was told of lapses.
pub(super) fn lease(
    tables: &mut WriteTables<'_>,
    leases: &mut Leases,
    now: Timestamp,
    request: &LeaseRequest,
) -> Result<LeaseReply, Fault> {
    let (head, header) = match wanted(&tables.heads, &tables.batches, &tables.counts, request)? {
        Ok(found) => found,
        Err(reply) => return Ok(reply),
    };
    let series = head.series;
    let key = key(series, request.batch);
    let mut begun = begun(&tables.begun, key)?;
    if begun.is_open {
        return Ok(give(leases, &head, request, now));
    }
    let wanted = unsettled(&batch_counts(&tables.counts, key)?);
    let mut over = Vec::new();
    for group in &header.budgets {
        let (progress, mut done) = look(
            &tables.groups,
            &tables.members,
            &tables.counts,
            &tables.begun,
            series,
            group,
            now,
        )?;
        if progress.room(group.limit) < wanted {
            return Ok(LeaseReply::NotWanted);
        }
        over.append(&mut done);
    }
    let reply = give(leases, &head, request, now);
    if !matches!(reply, LeaseReply::Granted(_)) {
        return Ok(reply);
    }
    for (group, batch) in over {
        tables.members.remove((series, group.as_str(), batch))?;
    }
    for group in &header.budgets {
        let member = (series, group.group.as_str(), request.batch.0);
        tables.members.insert(member, ())?;
    }
    begun.given();
    put(tables, key, begun)?;
    Ok(reply)
}

/// A group as it is now, and the members of it that it does not count any more.
fn look(
    groups: &impl ReadableTable<(u32, &'static str), u64>,
    members: &impl ReadableTable<(u32, &'static str, u32), ()>,
    counts: &impl ReadableTable<BatchKey, &'static [u8]>,
    begun_batches: &impl ReadableTable<BatchKey, (bool, u64)>,
    series: Series,
    group: &BudgetGroup,
    now: Timestamp,
) -> Result<(GroupProgress, Vec<(String, u32)>), Fault> {
    let name = group.group.as_str();
    let devices = groups.get((series, name))?;
    let mut progress = GroupProgress {
        devices: devices.map_or(0, |devices| devices.value()),
        in_progress: 0,
    };
    let mut over = Vec::new();
    for row in members.range((series, name, 0)..=(series, name, u32::MAX))? {
        let (member, _) = row?;
        let (_, _, batch) = member.value();
        let key = (series, batch);
        let counts = to_counts(&batch_counts(counts, key)?);
        let own = begun(begun_batches, key)?.in_progress(&counts, group.silent_ms, now);
        progress.in_progress += own;
        if own == 0 {
            over.push((name.to_owned(), batch));
        }
    }
    Ok((progress, over))
}

/// Groups of a rollout as they are now.
pub(super) fn in_progress(
    tables: &ReadTables,
    now: Timestamp,
    name: &RolloutName,
    groups: &[BudgetGroup],
) -> Result<Vec<GroupProgress>, Fault> {
    let series = known_head(&tables.heads, name)?.series;
    let look = |group| {
        let (progress, _) = look(
            &tables.groups,
            &tables.members,
            &tables.counts,
            &tables.begun,
            series,
            group,
            now,
        )?;
        Ok(progress)
    };
    groups.iter().map(look).collect()
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

/// A worker has recorded something of a batch that has budgets.
pub(super) fn recorded(
    tables: &mut WriteTables<'_>,
    key: BatchKey,
    now: Timestamp,
) -> Result<(), Fault> {
    let mut begun = begun(&tables.begun, key)?;
    let counts = to_counts(&batch_counts(&tables.counts, key)?);
    begun.recorded(&counts, now);
    put(tables, key, begun)
}

/// The outcomes of a batch that has budgets have changed.
pub(super) fn settled(tables: &mut WriteTables<'_>, key: BatchKey) -> Result<(), Fault> {
    let before = begun(&tables.begun, key)?;
    let mut after = before;
    after.settled(&to_counts(&batch_counts(&tables.counts, key)?));
    if after == before {
        return Ok(());
    }
    put(tables, key, after)
}

fn put(tables: &mut WriteTables<'_>, key: BatchKey, begun: Begun) -> Result<(), Fault> {
    tables.begun.insert(key, (begun.is_open, begun.sent_at.0))?;
    tables.wrote = true;
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
