//! The read operations.

use std::collections::BTreeMap;
use std::ops::Bound;

use redb::ReadableTable;
use serde::de::DeserializeOwned;
use twincast_core::batch::{Batch, BatchStatus};
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::ids::{BatchId, ConcurrencyGroup, HubHost, HubName, RolloutName, StageIndex};
use twincast_core::outcome::{Counts, OutcomeList};
use twincast_core::plan::{self, Checksum, DeviceList};
use twincast_core::ports::{Loaded, Part, Tally};
use twincast_core::rollout::{Commands, Rollout};
use twincast_core::time::Timestamp;

use super::budgets;
use super::error::Fault;
use super::lease_states::LeaseStates;
use super::tables::{
    BatchKey, Head, ReadTables, Series, attempts_of, batch_of, checksum_of, counts, header, key,
    known_head, open_key,
};

/// A batch in stored form; the caller's task unpacks the manifest.
pub(super) struct StoredBatch {
    loaded: Loaded,
    manifest: Option<Vec<u8>>,
}

/// The requested batches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) after: Option<BatchId>,
    pub(super) limit: usize,
}

/// Returns a rollout, joined from the record and the notes.
pub(super) fn rollout_of(
    rollouts: &impl ReadableTable<&'static str, &'static [u8]>,
    notes: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
) -> Result<Option<Rollout>, Fault> {
    let Some(record) = json_of(rollouts, name, "record")? else {
        return Ok(None);
    };
    let missing = || Fault::damaged(format!("rollout {name} has no notes"));
    let notes = json_of(notes, name, "notes")?.ok_or_else(missing)?;
    Ok(Some(Rollout { notes, ..record }))
}

pub(super) fn commands_of(tables: &ReadTables, name: &RolloutName) -> Result<Commands, Fault> {
    Ok(json_of(&tables.commands, name, "commands")?.unwrap_or_default())
}

fn json_of<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &RolloutName,
    what: &str,
) -> Result<Option<T>, Fault> {
    let Some(stored) = table.get(name.as_str())? else {
        return Ok(None);
    };
    serde_json::from_slice(stored.value())
        .map(Some)
        .map_err(|error| Fault::damaged(format!("the {what} of rollout {name}: {error}")))
}

pub(super) fn group_queue_of(
    group_queues: &impl ReadableTable<&'static str, &'static [u8]>,
    group: &ConcurrencyGroup,
) -> Result<GroupQueue, Fault> {
    let Some(stored) = group_queues.get(group.as_str())? else {
        return Ok(GroupQueue::default());
    };
    serde_json::from_slice(stored.value())
        .map_err(|error| Fault::damaged(format!("the queue of concurrency group {group}: {error}")))
}

/// Returns the host name bound to a hub's alias, if bound.
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
    lease_states: &LeaseStates,
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
        .map(|id| status(tables, lease_states, now, &head, id))
        .collect()
}

/// The requested open batches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    pub(super) hub: &'a HubName,
    pub(super) through: StageIndex,
    pub(super) limit: usize,
}

/// Returns a hub's batches with work left. Skips batches of other hubs; a local engine has few
/// hubs.
pub(super) fn open_batches(
    tables: &ReadTables,
    lease_states: &LeaseStates,
    now: Timestamp,
    name: &RolloutName,
    filter: &Open<'_>,
) -> Result<Vec<BatchStatus>, Fault> {
    let head = known_head(&tables.heads, name)?;
    let mut found = Vec::new();
    for row in tables.open.range((head.series, 0, "", 0)..)? {
        let (mark, _) = row?;
        let (series, stage, _, id) = mark.value();
        let is_past = series != head.series || stage > filter.through.0;
        if is_past || found.len() == filter.limit {
            break;
        }
        let status = status(tables, lease_states, now, &head, BatchId(id))?;
        if status.header.hub == *filter.hub {
            found.push(status);
        }
    }
    Ok(found)
}

fn status(
    tables: &ReadTables,
    lease_states: &LeaseStates,
    now: Timestamp,
    head: &Head,
    id: BatchId,
) -> Result<BatchStatus, Fault> {
    let missing = || Fault::damaged(format!("batch {id} has no header"));
    let key = key(head.series, id);
    let header = header(&tables.batches, key)?.ok_or_else(missing)?;
    let counts = outcomes_of(&tables.outcomes, key, header.devices)?.counts();
    let (lease_state, _) = lease_states.of(head.series, id);
    let budget_usage = budgets::usage(&tables.budget_usage, key)?;
    let version = head.control.revision.version;
    Ok(BatchStatus::of(
        header,
        counts,
        &lease_state,
        budget_usage,
        version,
        now,
    ))
}

fn keys<V: redb::Value + 'static>(
    rows: redb::Range<'_, BatchKey, V>,
    limit: usize,
) -> Result<Vec<BatchId>, Fault> {
    rows.take(limit)
        .map(|row| Ok(BatchId(row?.0.value().1)))
        .collect()
}

pub(super) fn batch(
    tables: &ReadTables,
    lease_states: &LeaseStates,
    now: Timestamp,
    name: &RolloutName,
    (batch, part): (BatchId, Part),
) -> Result<StoredBatch, Fault> {
    let head = known_head(&tables.heads, name)?;
    let series = head.series;
    let key = key(series, batch);
    let header =
        header(&tables.batches, key)?.ok_or_else(|| Fault::not_found(batch_of(batch, name)))?;
    let mut codes = BTreeMap::new();
    let positions = (series, batch.0, 0)..(series, batch.0, header.devices);
    for row in tables.codes.range(positions)? {
        let (place, code) = row?;
        codes.insert(place.value().2, code.value());
    }
    let manifest = match part {
        Part::WithoutDevices => None,
        Part::WithDevices => Some(manifest(tables, key)?),
    };
    let (lease_state, version) = lease_states.of(series, batch);
    Ok(StoredBatch {
        manifest,
        loaded: Loaded {
            batch: Batch {
                outcomes: outcomes_of(&tables.outcomes, key, header.devices)?,
                header,
                added_at: Timestamp(0),
                codes,
                attempts: attempts_of(&tables.attempts, key)?,
                lease_state,
                budget_usage: budgets::usage(&tables.budget_usage, key)?,
            },
            version,
            devices: None,
            rollout: head.control,
            plan_completed_at: Timestamp(0),
            budget_stamp: lease_states.budget_stamp(series),
            now,
        },
    })
}

fn manifest(tables: &ReadTables, (series, batch): BatchKey) -> Result<Vec<u8>, Fault> {
    let pieces = (series, batch, 0)..=(series, batch, u16::MAX);
    let mut manifest = Vec::new();
    for piece in tables.manifests.range(pieces)? {
        manifest.extend_from_slice(piece?.1.value());
    }
    Ok(manifest)
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

/// Counts the outcomes of a batch.
pub(super) fn counts_of(tables: &ReadTables, key: BatchKey) -> Result<Counts, Fault> {
    let header = header(&tables.batches, key)?
        .ok_or_else(|| Fault::damaged(format!("batch {} has no header", key.1)))?;
    Ok(outcomes_of(&tables.outcomes, key, header.devices)?.counts())
}

impl StoredBatch {
    /// Unpacks the manifest. The error is a description.
    pub(super) fn unpack(self) -> Result<Loaded, String> {
        let Self {
            mut loaded,
            manifest,
        } = self;
        if let Some(manifest) = manifest {
            let text = lz4_flex::decompress_size_prepended(&manifest)
                .map_err(|error| error.to_string())?;
            let text = String::from_utf8(text).map_err(|error| error.to_string())?;
            let devices = DeviceList::from_text(&text).map_err(|error| error.to_string())?;
            let (found, meant) = (devices.len(), loaded.batch.header.devices);
            if found != meant as usize {
                return Err(format!("a manifest has {found} devices instead of {meant}"));
            }
            loaded.devices = Some(devices);
        }
        Ok(loaded)
    }
}

pub(super) fn tallies(tables: &ReadTables, name: &RolloutName) -> Result<Vec<Tally>, Fault> {
    let series = known_head(&tables.heads, name)?.series;
    tally_keys(&tables.tallies, series)?
        .into_iter()
        .map(|(stage, hub)| {
            let stored = tables.tallies.get((series, stage.0, hub.as_str()))?;
            let stored = stored.ok_or_else(|| Fault::damaged("a tally has no counts"))?;
            let counts = counts(stored.value())?;
            Ok(Tally { stage, hub, counts })
        })
        .collect()
}

/// Returns the stages and hubs of a series, ascending.
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

/// Recounts all stored sums of a rollout.
pub(super) fn verify(tables: &ReadTables, name: &RolloutName) -> Result<(), Fault> {
    let head = known_head(&tables.heads, name)?;
    let record = rollout_of(&tables.rollouts, &tables.notes, name)?
        .ok_or_else(|| Fault::damaged(format!("rollout {name} has no record")))?;
    if Head::of(&record, head.series) != head {
        return Err(Fault::damaged("a head does not match its record"));
    }
    let mut sums = BTreeMap::<_, Counts>::new();
    let mut checksum = Checksum::default();
    let range = (head.series, 0)..=(head.series, u32::MAX);
    let lease_states = LeaseStates::default();
    for id in keys(tables.batches.range(range)?, usize::MAX)? {
        let stored = batch(
            tables,
            &lease_states,
            Timestamp(0),
            name,
            (id, Part::WithDevices),
        )?;
        let Loaded { batch, devices, .. } = stored.unpack().map_err(Fault::damaged)?;
        let (header, recounted) = (batch.header.clone(), batch.counts());
        let is_open = tables.open.get(open_key(head.series, &header))?.is_some();
        if is_open != (recounted.unsettled() > 0) {
            return Err(Fault::damaged(format!(
                "the open mark of batch {id} is wrong"
            )));
        }
        let sum = sums.entry((header.stage, header.hub.clone()));
        sum.or_default().add(&recounted);
        let devices = devices.unwrap_or_default();
        checksum.add(&plan::Batch { header, devices });
    }
    for row in tables.open.range((head.series, 0, "", 0)..)? {
        let (mark, _) = row?;
        let (series, _, _, id) = mark.value();
        if series != head.series {
            break;
        }
        let id = BatchId(id);
        if tables.batches.get(key(head.series, id))?.is_none() {
            return Err(Fault::damaged(format!(
                "batch {id} is marked open, and does not exist"
            )));
        }
    }
    if checksum != checksum_of(&tables.checksums, head.series)? {
        return Err(Fault::damaged("the checksum of the batches is wrong"));
    }
    let stored = tallies(tables, name)?;
    let summed: Vec<_> = sums
        .into_iter()
        .map(|((stage, hub), counts)| Tally { stage, hub, counts })
        .collect();
    if stored == summed {
        Ok(())
    } else {
        Err(Fault::damaged(format!(
            "the tallies are {stored:?}, and the outcomes sum up to {summed:?}"
        )))
    }
}
