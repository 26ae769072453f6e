//! The operations that only read, and leases, which are kept in memory.

use std::ops::Bound;

use redb::ReadableTable;
use twincast_core::batch::{BatchStatus, Lease};
use twincast_core::group::Line;
use twincast_core::ids::{
    Attempt, BatchId, GroupName, HubHost, HubName, RolloutId, RolloutName, StageIndex,
};
use twincast_core::outcome::{OUTCOMES, Outcome, OutcomeList};
use twincast_core::plan::{Batch, BatchHeader, Checksum, DeviceList};
use twincast_core::ports::{BatchWork, LeaseReply, LeaseRequest, Tally};
use twincast_core::rollout::{Rollout, Wanted};
use twincast_core::time::Timestamp;

use super::budgets;
use super::error::Fault;
use super::leases::Leases;
use super::tables::{
    BatchKey, Head, ReadTables, Series, attempts_of, batch_counts, batch_of, checksum_of, head,
    header, key, known_head, lease_on, numbers, open_key, to_counts, to_numbers, unsettled,
};

/// A batch as it is stored; unpacked by the caller's task.
pub(super) struct StoredWork {
    rollout: RolloutId,
    header: BatchHeader,
    manifest: Vec<u8>,
    outcomes: OutcomeList,
    codes: Vec<(u32, u32)>,
    attempt: Attempt,
}

/// Which batches are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) after: Option<BatchId>,
    pub(super) limit: usize,
}

pub(super) fn record_of(
    rollouts: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
) -> Result<Option<Rollout>, Fault> {
    let Some(stored) = rollouts.get(name.as_str())? else {
        return Ok(None);
    };
    serde_json::from_slice(stored.value())
        .map(Some)
        .map_err(|error| Fault::damaged(format!("the record of rollout {name}: {error}")))
}

pub(super) fn line_of(
    lines: &impl ReadableTable<&'static str, &'static [u8]>,
    group: &GroupName,
) -> Result<Line, Fault> {
    let Some(stored) = lines.get(group.as_str())? else {
        return Ok(Line::default());
    };
    serde_json::from_slice(stored.value())
        .map_err(|error| Fault::damaged(format!("the line of group {group}: {error}")))
}

/// The host name that a hub's alias is bound to, if it is bound.
pub(super) fn host_of(
    hosts: &impl ReadableTable<&'static str, &'static str>,
    hub: &HubName,
) -> Result<Option<HubHost>, Fault> {
    let Some(stored) = hosts.get(hub.as_str())? else {
        return Ok(None);
    };
    HubHost::new(stored.value())
        .map(Some)
        .map_err(|error| Fault::damaged(format!("the host name of hub {hub}: {error}")))
}

pub(super) fn rollouts(tables: &ReadTables) -> Result<Vec<RolloutName>, Fault> {
    let mut names = Vec::new();
    for row in tables.heads.iter()? {
        let (name, _) = row?;
        names.push(RolloutName::new(name.value()).map_err(Fault::damaged)?);
    }
    names.sort();
    Ok(names)
}

pub(super) fn batches(
    tables: &ReadTables,
    leases: &Leases,
    now: Timestamp,
    name: &RolloutName,
    page: Page,
) -> Result<Vec<BatchStatus>, Fault> {
    let head = known_head(&tables.heads, name)?;
    let start = match page.after {
        Some(after) => Bound::Excluded((head.series, after.0)),
        None => Bound::Included((head.series, 0)),
    };
    let range = (start, Bound::Included((head.series, u32::MAX)));
    let ids = keys(tables.batches.range::<BatchKey>(range)?, page.limit)?;
    ids.into_iter()
        .map(|id| status(tables, leases, now, &head, id))
        .collect()
}

/// Which open batches are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    pub(super) hub: &'a HubName,
    pub(super) through: StageIndex,
    pub(super) limit: usize,
}

/// A hub's batches on which something is left to do. Passes over those of other hubs, of which a
/// local engine has few.
pub(super) fn open_batches(
    tables: &ReadTables,
    leases: &Leases,
    now: Timestamp,
    name: &RolloutName,
    wanted: &Open<'_>,
) -> Result<Vec<BatchStatus>, Fault> {
    let head = known_head(&tables.heads, name)?;
    let mut found = Vec::new();
    for row in tables.open.range((head.series, 0, "", 0)..)? {
        let (mark, _) = row?;
        let (series, stage, _, id) = mark.value();
        let is_past = series != head.series || stage > wanted.through.0;
        if is_past || found.len() == wanted.limit {
            break;
        }
        let status = status(tables, leases, now, &head, BatchId(id))?;
        if status.header.hub == *wanted.hub {
            found.push(status);
        }
    }
    Ok(found)
}

fn status(
    tables: &ReadTables,
    leases: &Leases,
    now: Timestamp,
    head: &Head,
    id: BatchId,
) -> Result<BatchStatus, Fault> {
    let missing = || Fault::damaged(format!("batch {id} has no header"));
    let key = key(head.series, id);
    Ok(BatchStatus {
        header: header(&tables.batches, key)?.ok_or_else(missing)?,
        counts: to_counts(&batch_counts(&tables.counts, key)?),
        held: leases.held(head.series, id, now),
        lapsed: leases.has_lapsed(head.series, id, now),
        quarantined: leases.is_quarantined(head.series, id, head.revision.version),
        begun: budgets::begun(&tables.begun, key)?.is_open,
    })
}

fn keys<V: redb::Value + 'static>(
    rows: redb::Range<'_, BatchKey, V>,
    limit: usize,
) -> Result<Vec<BatchId>, Fault> {
    rows.take(limit)
        .map(|row| Ok(BatchId(row?.0.value().1)))
        .collect()
}

/// What became of a wish for a batch: an answer, or that it takes writing.
pub(super) enum Asked {
    Answered(LeaseReply),
    /// The batch has budgets, which are to count it from then on.
    HasBudgets,
}

pub(super) fn lease(
    tables: &ReadTables,
    leases: &mut Leases,
    now: Timestamp,
    request: &LeaseRequest,
) -> Result<Asked, Fault> {
    let (head, header) =
        match budgets::wanted(&tables.heads, &tables.batches, &tables.counts, request)? {
            Ok(found) => found,
            Err(reply) => return Ok(Asked::Answered(reply)),
        };
    if !header.budgets.is_empty() {
        return Ok(Asked::HasBudgets);
    }
    Ok(Asked::Answered(budgets::give(leases, &head, request, now)))
}

/// Renews a lease and says what the rollout wants: a record without reports.
pub(super) fn heartbeat(
    tables: &ReadTables,
    leases: &mut Leases,
    now: Timestamp,
    lease: &Lease,
    ttl: std::time::Duration,
) -> Result<Wanted, Fault> {
    match head(&tables.heads, &lease.rollout)? {
        Some(head) if leases.renew(head.series, lease, false, now, ttl) => Ok(head.wanted),
        _ => Err(Fault::superseded(lease_on(lease))),
    }
}

pub(super) fn release(
    tables: &ReadTables,
    leases: &mut Leases,
    lease: &Lease,
) -> Result<(), Fault> {
    if let Some(head) = head(&tables.heads, &lease.rollout)? {
        leases.release(head.series, lease);
    }
    Ok(())
}

pub(super) fn load(
    tables: &ReadTables,
    name: &RolloutName,
    batch: BatchId,
) -> Result<StoredWork, Fault> {
    let head = known_head(&tables.heads, name)?;
    let series = head.series;
    let key = key(series, batch);
    let header =
        header(&tables.batches, key)?.ok_or_else(|| Fault::not_found(batch_of(batch, name)))?;
    let mut manifest = Vec::new();
    for piece in tables
        .manifests
        .range((series, batch.0, 0)..=(series, batch.0, u16::MAX))?
    {
        manifest.extend_from_slice(piece?.1.value());
    }
    let outcomes = outcomes_of(&tables.outcomes, key, header.devices)?;
    let mut codes = Vec::new();
    for row in tables
        .codes
        .range((series, batch.0, 0)..(series, batch.0, header.devices))?
    {
        let (place, code) = row?;
        let index = place.value().2;
        // A device that was refused once and reached later is not refused.
        if outcomes.get(index as usize) == Outcome::Refused {
            codes.push((index, code.value()));
        }
    }
    Ok(StoredWork {
        rollout: head.id,
        header,
        manifest,
        outcomes,
        codes,
        attempt: attempts_of(&tables.attempts, key)?.newest,
    })
}

pub(super) fn outcomes_of(
    outcomes: &impl ReadableTable<BatchKey, &'static [u8]>,
    key: BatchKey,
    devices: u32,
) -> Result<OutcomeList, Fault> {
    let stored = outcomes
        .get(key)?
        .ok_or_else(|| Fault::damaged(format!("batch {} has no outcomes", key.1)))?;
    OutcomeList::from_bytes(stored.value(), devices as usize).map_err(Fault::damaged)
}

impl StoredWork {
    /// Unpacks the manifest. The error is in words.
    pub(super) fn unpack(self) -> Result<BatchWork, String> {
        let text = lz4_flex::decompress_size_prepended(&self.manifest)
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8(text).map_err(|error| error.to_string())?;
        let devices = DeviceList::from_text(&text).map_err(|error| error.to_string())?;
        if devices.len() != self.header.devices as usize {
            return Err(format!(
                "a manifest of {} devices in a batch of {}",
                devices.len(),
                self.header.devices
            ));
        }
        Ok(BatchWork {
            rollout: self.rollout,
            batch: Batch {
                header: self.header,
                devices,
            },
            outcomes: self.outcomes,
            codes: self.codes,
            attempt: self.attempt,
        })
    }
}

pub(super) fn tallies(tables: &ReadTables, name: &RolloutName) -> Result<Vec<Tally>, Fault> {
    let series = known_head(&tables.heads, name)?.series;
    tally_keys(&tables.tallies, series)?
        .into_iter()
        .map(|(stage, hub)| {
            let stored = tables.tallies.get((series, stage.0, hub.as_str()))?;
            let stored = stored.ok_or_else(|| Fault::damaged("a tally has no counts"))?;
            let counts = to_counts(&numbers(stored.value())?);
            Ok(Tally { stage, hub, counts })
        })
        .collect()
}

/// The stages and hubs of a series, ascending.
pub(super) fn tally_keys(
    tallies: &impl ReadableTable<(u32, u16, &'static str), &'static [u8]>,
    series: Series,
) -> Result<Vec<(StageIndex, HubName)>, Fault> {
    tallies
        .range((series, 0, "")..(series + 1, 0, ""))?
        .map(|row| {
            let (key, _) = row?;
            let (_, stage, hub) = key.value();
            let hub = HubName::new(hub).map_err(Fault::damaged)?;
            Ok((StageIndex(stage), hub))
        })
        .collect()
}

/// Recounts everything of a rollout that is kept as a sum.
pub(super) fn verify(tables: &ReadTables, name: &RolloutName) -> Result<(), Fault> {
    let head = known_head(&tables.heads, name)?;
    let record = record_of(&tables.rollouts, name)?
        .ok_or_else(|| Fault::damaged(format!("rollout {name} has no record")))?;
    if Head::of(&record, head.series) != head {
        return Err(Fault::damaged("a head is not that of its record"));
    }
    let mut sums = std::collections::BTreeMap::new();
    let mut checksum = Checksum::default();
    let range = (head.series, 0)..=(head.series, u32::MAX);
    for id in keys(tables.batches.range(range)?, usize::MAX)? {
        let key = key(head.series, id);
        let Some(header) = header(&tables.batches, key)? else {
            continue;
        };
        let work = load(tables, name, id)?;
        let recounted = to_numbers(&work.outcomes.counts());
        let work = work.unpack().map_err(Fault::damaged)?;
        checksum.add(&work.batch);
        if recounted != batch_counts(&tables.counts, key)? {
            return Err(Fault::damaged(format!("the counts of batch {id}")));
        }
        let is_open = tables.open.get(open_key(head.series, &header))?.is_some();
        if is_open != (unsettled(&recounted) > 0) {
            return Err(Fault::damaged(format!("the open mark of batch {id}")));
        }
        let sum = sums
            .entry((header.stage, header.hub))
            .or_insert([0; OUTCOMES]);
        for (sum, number) in sum.iter_mut().zip(recounted) {
            *sum += number;
        }
    }
    for row in tables.open.range((head.series, 0, "", 0)..)? {
        let (mark, _) = row?;
        let (series, _, _, id) = mark.value();
        if series != head.series {
            break;
        }
        let id = BatchId(id);
        if tables.batches.get(key(head.series, id))?.is_none() {
            return Err(Fault::damaged(format!("batch {id} is open but not there")));
        }
    }
    if checksum != checksum_of(&tables.checksums, head.series)? {
        return Err(Fault::damaged("the checksum of the batches"));
    }
    let stored = tallies(tables, name)?;
    let summed: Vec<_> = sums
        .into_iter()
        .map(|((stage, hub), sum)| Tally {
            stage,
            hub,
            counts: to_counts(&sum),
        })
        .collect();
    if stored == summed {
        Ok(())
    } else {
        Err(Fault::damaged(format!("tallies {stored:?} of {summed:?}")))
    }
}
