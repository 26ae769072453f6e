//! Finds a rollout's devices and fills batches, in a stream.
//!
//! All hubs are planned concurrently, each hub on its own. Batches leave through a bounded channel
//! as soon as they are full, so memory does not grow with the fleet. The stage of some devices is
//! known only when every hub has listed all devices: [`HubStager`]s hold such devices, which are
//! batched in the end.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use futures::future::try_join_all;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use twincast_core::ids::{BatchId, DeviceId, HubHost, HubName, RolloutName, StageIndex, StageName};
use twincast_core::plan::{
    AssignedDevice, Batch, BatchHeader, BatchLimits, BatchSizes, Batcher, Checksum, ClosedBatch,
    CutMissed, Excluded, HubDigest, HubPlan, HubStager, MalformedRows, Packed, PlanDigest,
    PlanSummary, StagePlan, StageRules, TagGroup, UnknownZones, finish_stages, pack,
};
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, HubError, HubObstacle, HubTrouble, MalformedRow,
};
use twincast_core::query::{self, TagPath};
use twincast_core::rollout::Rollout;
use twincast_core::spec::{Exclusion, Rate, RolloutSpec, Stage};

use crate::device_set::{DeviceHash, DeviceSet};
use crate::lists::{self, ListError};
use crate::members::Members;
use crate::{HubHandle, Hubs};

/// The most devices listed by all exclusions together: the ids are held in memory.
pub const MAX_EXCLUDED_IDS: usize = 1_000_000;
/// The number of listed ids per query. A page holds no more.
const IDS_PER_QUERY: usize = 100;
/// The number of consecutive rows with known devices after which a list is abandoned as circular.
const MAX_REPEATS_IN_A_ROW: u64 = 1_000_000;

/// Why a rollout cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The spec names an unconfigured hub.
    #[error("hub {hub} is not configured; configured hubs: {configured}")]
    UnknownHub {
        /// The hub.
        hub: HubName,
        /// The configured hubs, as text.
        configured: String,
    },
    /// The configuration gives the hub's name to another hub than at planning.
    #[error(
        "hub {hub} at {planned}, for which rollout {rollout} was planned: the configuration has \
         {configured} under the name {hub}; configure {planned} as {hub} again, configure the \
         other hub under another name, and start a rollout with another name for the other hub's \
         devices"
    )]
    OtherHub {
        /// The rollout.
        rollout: RolloutName,
        /// The hub's alias.
        hub: HubName,
        /// The host name of the planned hub.
        planned: HubHost,
        /// The host name in the configuration.
        configured: HubHost,
    },
    /// No hub is configured.
    #[error("no hub is configured")]
    NoHubs,
    /// A query to a hub fails.
    #[error("cannot find the devices of hub {hub}")]
    Hub {
        /// The hub.
        hub: HubName,
        /// The hub's error.
        #[source]
        source: HubError,
    },
    /// A hub lists devices without end.
    #[error(
        "hub {hub} has repeated {MAX_REPEATS_IN_A_ROW} known devices in a row: its device list \
         does not end"
    )]
    Endless {
        /// The hub.
        hub: HubName,
    },
    /// A device list cannot be used.
    #[error("a device list of the rollout cannot be used")]
    List(#[source] ListError),
    /// Exclusions list too many devices.
    #[error("the exclusions list more than {MAX_EXCLUDED_IDS} devices; exclude them by a tag")]
    TooManyExcluded,
    /// The plan has more batches than there are numbers.
    #[error("the plan has more than {} batches; batch by fewer tags", u32::MAX)]
    TooManyBatches,
    /// A stage has a gate but no devices: nothing would be tested before the next stage starts.
    #[error(
        "stage {stage} has a gate but no devices, so the gate can never pass: widen the stage, \
         narrow the stages before, or remove the stage"
    )]
    EmptyStage {
        /// The stage.
        stage: StageName,
    },
    /// The devices of a stage by percentage cannot be determined exactly. Planning the same devices
    /// again gives the same result.
    #[error("the stages cannot be planned")]
    Cut(#[source] CutMissed),
    /// The receiver of the batches is gone.
    #[error("planning was interrupted")]
    Interrupted,
}

/// The progress of planning, readable while [`Planner::plan`] runs.
#[derive(Debug, Default)]
pub struct PlanProgress {
    /// The number of devices found so far, including excluded devices.
    pub devices: AtomicU64,
}

/// The inputs of a plan.
pub struct Planner<'a> {
    /// The rollout's spec.
    pub spec: &'a RolloutSpec,
    /// All configured hubs.
    pub hubs: &'a Hubs,
    /// The directory of the spec's files.
    pub base: &'a Path,
    /// The progress of planning.
    pub progress: &'a PlanProgress,
    /// Restricts the plan to late joiners.
    pub joiners: Option<LateJoiners<'a>>,
}

/// The late joiners of a target.
#[derive(Debug, Clone, Copy)]
pub struct LateJoiners<'a> {
    /// The known devices.
    pub members: &'a Members,
    /// The stage of the late joiners.
    pub stage: StageIndex,
    /// The number of the first batch of late joiners.
    pub first: BatchId,
}

/// Returns the hubs of a spec: the named hubs, or all.
///
/// # Errors
/// When the spec names an unconfigured hub, or no hub is configured.
pub fn hubs_of<'a>(
    spec: &RolloutSpec,
    hubs: &'a Hubs,
) -> Result<BTreeMap<&'a HubName, &'a HubHandle>, PlanError> {
    if hubs.is_empty() {
        return Err(PlanError::NoHubs);
    }
    if spec.target.hubs.is_empty() {
        return Ok(hubs.iter().collect());
    }
    let find = |hub: &HubName| {
        hubs.get_key_value(hub)
            .ok_or_else(|| unknown_hub(hub, hubs))
    };
    spec.target.hubs.iter().map(find).collect()
}

/// Refuses a rollout if the name of a planned hub refers to another hub in the configuration.
/// Ignores unconfigured hubs.
///
/// # Errors
/// [`PlanError::OtherHub`].
pub fn check_hosts(rollout: &Rollout, hubs: &Hubs) -> Result<(), PlanError> {
    let planned = rollout.plan.iter().flat_map(|plan| &plan.hubs);
    for plan in planned.filter(|plan| plan.devices > 0) {
        if let Some(handle) = hubs.get(&plan.hub).filter(|it| it.host != plan.host) {
            return Err(PlanError::OtherHub {
                rollout: rollout.spec.name.clone(),
                hub: plan.hub.clone(),
                planned: plan.host.clone(),
                configured: handle.host.clone(),
            });
        }
    }
    Ok(())
}

/// Returns the longest-lasting obstacle of queries among the hubs of a spec, if any.
#[must_use]
pub fn query_obstacle<'a>(
    spec: &RolloutSpec,
    hubs: &'a Hubs,
) -> Option<(&'a HubName, HubObstacle)> {
    let hubs = hubs_of(spec, hubs).ok()?;
    let silent = hubs
        .into_iter()
        .filter_map(|(name, handle)| Some((name, handle.hub.query_obstacle()?)));
    silent.max_by_key(|(_, obstacle)| obstacle.lasting)
}

/// Returns whether an error is permanent, so that planning again cannot help.
pub(crate) fn is_permanent(error: &PlanError) -> bool {
    match error {
        PlanError::Hub { source, .. } => source.trouble == HubTrouble::BadQuery,
        PlanError::UnknownHub { .. }
        | PlanError::OtherHub { .. }
        | PlanError::NoHubs
        | PlanError::Endless { .. }
        | PlanError::List(_)
        | PlanError::Interrupted => false,
        PlanError::TooManyExcluded
        | PlanError::TooManyBatches
        | PlanError::EmptyStage { .. }
        | PlanError::Cut(_) => true,
    }
}

/// Builds the error for an unconfigured hub.
pub(crate) fn unknown_hub(hub: &HubName, hubs: &Hubs) -> PlanError {
    let configured: Vec<_> = hubs.keys().map(HubName::as_str).collect();
    PlanError::UnknownHub {
        hub: hub.clone(),
        configured: configured.join(", "),
    }
}

impl Planner<'_> {
    /// Makes the plan. Sends every batch to `batches` once, numbered without gaps from 0, or from
    /// the first number of late joiners.
    ///
    /// Cancel safety: may be dropped at any time; the batches sent so far must be discarded.
    ///
    /// # Errors
    /// [`PlanError`]; the batches sent so far are then no plan.
    pub async fn plan(&self, batches: mpsc::Sender<Batch>) -> Result<PlanSummary, PlanError> {
        let hubs = hubs_of(self.spec, self.hubs)?;
        let excluded = ExcludedIds::read(&self.spec.target.exclude, self.base)?;
        let stages = self.spec.all_stages();
        let (rules, first) = match &self.joiners {
            Some(joiners) => (StageRules::only(joiners.stage), joiners.first),
            None => (StageRules::of(self.spec), BatchId(0)),
        };
        let context = PlanContext {
            planner: self,
            is_single_hub: hubs.len() == 1,
            tags: tags_of(self.spec, &rules),
            excluded: &excluded,
            next_id: AtomicU32::new(first.0),
            batches,
        };
        let parts = hubs.into_iter().enumerate().map(|(index, (name, handle))| {
            let part = HubPart::new(&context, name, handle, stages.len());
            part.find(HubStager::new(&rules, index))
        });
        let parts = try_join_all(parts).await?;
        let (stagers, parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let rest = finish_stages(stagers).map_err(PlanError::Cut)?;
        let mut all_planned = Vec::new();
        for (part, rest) in parts.into_iter().zip(rest) {
            all_planned.push(part.finish(rest).await?);
        }
        let summary = summarize(self.spec, &stages, &excluded, all_planned);
        if self.joiners.is_none() {
            let planned = stages.len() - usize::from(self.spec.continuous.is_some());
            refuse_empty_stages(&stages[..planned], &summary)?;
        }
        Ok(summary)
    }
}

/// Combines the parts of all hubs.
fn summarize(
    spec: &RolloutSpec,
    stages: &[Stage],
    excluded: &ExcludedIds,
    parts: Vec<Planned>,
) -> PlanSummary {
    let mut digest = PlanDigest::default();
    let stages = stages.iter().map(|stage| StagePlan {
        name: stage.name.clone(),
        devices: 0,
        batches: 0,
    });
    let mut summary = PlanSummary {
        devices: 0,
        batches: 0,
        digest: String::new(),
        checksum: Checksum::default(),
        hubs: Vec::new(),
        stages: stages.collect(),
        excluded: excluded.counts(&spec.target.exclude),
        repeated: parts.iter().map(|part| part.repeated).max().unwrap_or(0)
            + parts.iter().map(|part| part.relisted).sum::<u64>(),
        malformed_rows: MalformedRows::default(),
        unknown_zones: UnknownZones::default(),
    };
    let listed = parts.iter().map(|part| part.listed).max().unwrap_or(0);
    let found: u64 = parts.iter().map(|part| part.found).sum();
    for part in parts {
        summary.checksum.join(&part.checksum);
        summary.devices += part.plan.devices;
        summary.batches += part.plan.batches;
        for (stage, (devices, batches)) in summary.stages.iter_mut().zip(part.stages) {
            stage.devices += devices;
            stage.batches += batches;
        }
        for (excluded, devices) in summary.excluded.iter_mut().zip(part.excluded_by_tags) {
            excluded.devices += devices;
        }
        summary.malformed_rows.merge(part.malformed_rows);
        summary.unknown_zones.merge(part.unknown_zones);
        digest.add(part.plan.hub.clone(), part.digest);
        summary.hubs.push(part.plan);
    }
    // Every hub is queried for the whole list.
    if listed > found {
        let rule = "listed, but in none of the hubs".to_owned();
        summary.excluded.push(Excluded {
            rule,
            reason: None,
            devices: listed - found,
        });
    }
    summary
        .excluded
        .extend(without_zone(spec, &summary.unknown_zones));
    summary.digest = digest.finish();
    summary
}

/// Returns the devices left out for unknown time zones, if any.
fn without_zone(spec: &RolloutSpec, unknown: &UnknownZones) -> Option<Excluded> {
    let tag = spec.skips_unknown_zones()?;
    (!unknown.is_empty()).then(|| Excluded {
        rule: format!("tags.{tag} is not a time zone: {unknown}"),
        reason: None,
        devices: unknown.devices,
    })
}

/// Refuses a plan with an empty stage that has a gate. A target without devices is not an error
/// here.
fn refuse_empty_stages(stages: &[Stage], summary: &PlanSummary) -> Result<(), PlanError> {
    let mut gated = stages.iter().zip(&summary.stages);
    let empty = gated.find(|(stage, plan)| stage.gate.is_some() && plan.devices == 0);
    match empty {
        Some((stage, _)) if summary.devices > 0 => Err(PlanError::EmptyStage {
            stage: stage.name.clone(),
        }),
        _ => Ok(()),
    }
}

/// Returns the tags to query: first the tags for batching, then the tags of stages.
fn tags_of(spec: &RolloutSpec, rules: &StageRules) -> Vec<TagPath> {
    let mut tags = spec.batch_by.clone();
    let others = rules.tags().into_iter();
    tags.extend(others.filter(|tag| !spec.batch_by.contains(tag)));
    tags
}

/// Returns the lowest rate of all stages.
fn lowest_rate(spec: &RolloutSpec, stages: usize) -> Option<Rate> {
    let stages = (0..).map(StageIndex).take(stages);
    let rates = stages.filter_map(|stage| spec.rate_of(stage));
    rates.reduce(|a, b| if b < a { b } else { a })
}

/// Data shared by the parts of a plan.
struct PlanContext<'a> {
    planner: &'a Planner<'a>,
    /// Whether the plan has a single hub.
    is_single_hub: bool,
    /// The tags to query.
    tags: Vec<TagPath>,
    excluded: &'a ExcludedIds,
    next_id: AtomicU32,
    batches: mpsc::Sender<Batch>,
}

/// One hub's part of a plan, in the making.
struct HubPart<'a> {
    context: &'a PlanContext<'a>,
    handle: &'a HubHandle,
    batcher: Batcher,
    planned: Planned,
    /// The current number of consecutive rows with known devices.
    relisted_in_a_row: u64,
}

struct Planned {
    plan: HubPlan,
    /// Devices and batches by stage.
    stages: Vec<(u64, u32)>,
    digest: HubDigest,
    checksum: Checksum,
    /// The batch sizes permitted by the budgets.
    sizes: BatchSizes,
    /// The number of devices excluded by tags, by rule.
    excluded_by_tags: Vec<u64>,
    /// For a list: the number of its ids, of its ids known to this hub, and of duplicates.
    listed: u64,
    found: u64,
    repeated: u64,
    /// The number of rows with devices already listed by the hub.
    relisted: u64,
    malformed_rows: MalformedRows,
    unknown_zones: UnknownZones,
}

impl<'a> HubPart<'a> {
    fn new(
        context: &'a PlanContext<'a>,
        hub: &HubName,
        handle: &'a HubHandle,
        stages: usize,
    ) -> Self {
        let spec = context.planner.spec;
        let pace = handle.limits.pace(lowest_rate(spec, stages));
        Self {
            context,
            handle,
            batcher: Batcher::new(BatchLimits::for_rate(pace)),
            relisted_in_a_row: 0,
            planned: Planned {
                plan: HubPlan::empty(hub, &handle.host),
                stages: vec![(0, 0); stages],
                digest: HubDigest::default(),
                checksum: Checksum::default(),
                sizes: BatchSizes::default(),
                excluded_by_tags: vec![0; spec.target.exclude.len()],
                listed: 0,
                found: 0,
                repeated: 0,
                relisted: 0,
                malformed_rows: MalformedRows::default(),
                unknown_zones: UnknownZones::default(),
            },
        }
    }

    /// Finds the hub's devices, and batches the devices with a known stage. The stager holds the
    /// rest.
    async fn find<'r>(
        mut self,
        mut stager: HubStager<'r>,
    ) -> Result<(HubStager<'r>, Self), PlanError> {
        let spec = self.context.planner.spec;
        if spec.has_list() {
            self.find_listed(&mut stager).await?;
        } else {
            if self.context.planner.joiners.is_none() {
                self.count_exclusions("").await?;
            }
            self.take_rows(self.query(spec.condition()), &mut stager)
                .await?;
        }
        Ok((stager, self))
    }

    /// Batches the devices held by the stager.
    async fn finish(mut self, rest: Vec<AssignedDevice>) -> Result<Planned, PlanError> {
        self.batch(rest).await?;
        let closed = self.batcher.finish();
        self.emit(closed).await?;
        Ok(self.planned)
    }

    async fn emit(&mut self, closed: Vec<ClosedBatch>) -> Result<(), PlanError> {
        let spec = self.context.planner.spec;
        for packed in pack(spec, self.batcher.limits(), closed) {
            self.planned.emit(packed, self.context).await?;
        }
        Ok(())
    }

    /// Finds listed devices: without a query if nothing else is needed, else by querying the hub.
    async fn find_listed(&mut self, stager: &mut HubStager<'_>) -> Result<(), PlanError> {
        let spec = self.context.planner.spec;
        let by_tag = spec.target.exclude.iter().any(|rule| !rule.tags.is_empty());
        let as_listed = self.context.is_single_hub && self.context.tags.is_empty() && !by_tag;
        let (mut chunks, reader) = self.listed();
        while let Some(chunk) = chunks.recv().await {
            self.planned.listed += chunk.len() as u64;
            if as_listed {
                self.planned.found += chunk.len() as u64;
                let rows = chunk
                    .into_iter()
                    .map(|device| DeviceRow {
                        device,
                        tags: Vec::new(),
                    })
                    .collect();
                // The list has no duplicates.
                self.take_devices(rows, None, stager).await?;
                continue;
            }
            for part in queries_of(&chunk) {
                self.count_exclusions(&part).await?;
                self.planned.found += self.count(&part).await?;
                let rows = self.query(query::all_of([part.as_str(), spec.condition().as_str()]));
                self.take_rows(rows, stager).await?;
            }
        }
        self.planned.repeated = reader
            .await
            .map_err(|_| PlanError::Interrupted)?
            .map_err(PlanError::List)?;
        Ok(())
    }

    /// Reads the listed devices in the background: a file on a separate thread. Returns a channel of
    /// chunks without duplicates, and a task with the number of duplicates.
    fn listed(
        &self,
    ) -> (
        mpsc::Receiver<Vec<DeviceId>>,
        JoinHandle<Result<u64, ListError>>,
    ) {
        let planner = self.context.planner;
        let target = &planner.spec.target;
        let (sender, receiver) = mpsc::channel(2);
        let path = target
            .devices_file
            .as_ref()
            .map(|path| planner.base.join(path));
        // A closed channel means that planning was abandoned.
        let Some(path) = path else {
            let mut ids = target.devices.clone();
            let reader = tokio::spawn(async move {
                let repeats = lists::remove_duplicates(&mut ids);
                for chunk in ids.chunks(IDS_PER_QUERY) {
                    if sender.send(chunk.to_vec()).await.is_err() {
                        break;
                    }
                }
                Ok(repeats)
            });
            return (receiver, reader);
        };
        let reader = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::new();
            let repeats = lists::for_each_unique(&path, |id| {
                chunk.push(id);
                chunk.len() < IDS_PER_QUERY
                    || sender.blocking_send(std::mem::take(&mut chunk)).is_ok()
            })?;
            let _ = sender.blocking_send(chunk);
            Ok(repeats)
        });
        (receiver, reader)
    }

    fn query(&self, condition: String) -> BoxStream<'a, Result<DevicePage, HubError>> {
        let tags = self.context.tags.clone();
        self.handle.hub.devices(DeviceQuery { condition, tags })
    }

    async fn count(&self, condition: &str) -> Result<u64, PlanError> {
        let counted = self.handle.hub.count(condition).await;
        counted.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: HubError) -> PlanError {
        PlanError::Hub {
            hub: self.planned.plan.hub.clone(),
            source,
        }
    }

    /// Counts the devices excluded by tags. Devices excluded by id are counted as they arrive.
    async fn count_exclusions(&mut self, within: &str) -> Result<(), PlanError> {
        let spec = self.context.planner.spec;
        for (index, rule) in spec
            .target
            .exclude
            .iter()
            .enumerate()
            .filter(|(_, rule)| !rule.tags.is_empty())
        {
            let condition = query::all_of([
                within,
                spec.selected().as_str(),
                query::matching(&rule.tags).as_str(),
            ]);
            let devices = self.count(&condition).await?;
            self.planned.excluded_by_tags[index] += devices;
        }
        Ok(())
    }

    async fn take_rows(
        &mut self,
        mut rows: BoxStream<'a, Result<DevicePage, HubError>>,
        stager: &mut HubStager<'_>,
    ) -> Result<(), PlanError> {
        // For a list, each query selects different devices.
        let mut seen = DeviceSet::default();
        while let Some(page) = rows.next().await {
            let page = page.map_err(|source| self.failed(source))?;
            self.take_page(page, &mut seen, stager).await?;
        }
        Ok(())
    }

    async fn take_page(
        &mut self,
        page: DevicePage,
        seen: &mut DeviceSet,
        stager: &mut HubStager<'_>,
    ) -> Result<(), PlanError> {
        for malformed in page.malformed_rows {
            let hash = malformed.device.as_ref().map(DeviceHash::of);
            if hash.is_some_and(|hash| seen.has(hash)) {
                self.count_relisted()?;
            } else if !malformed
                .device
                .as_ref()
                .is_some_and(|it| self.is_left_out(it))
            {
                // Not added to `seen`, because another row of the device may be valid.
                self.leave_out(malformed);
            }
        }
        self.take_devices(page.rows, Some(seen), stager).await
    }

    /// Batches the devices not in `seen`. Without `seen`, all devices are known to be different.
    async fn take_devices(
        &mut self,
        rows: Vec<DeviceRow>,
        mut seen: Option<&mut DeviceSet>,
        stager: &mut HubStager<'_>,
    ) -> Result<(), PlanError> {
        let PlanContext { planner, tags, .. } = self.context;
        let mut assigned = Vec::with_capacity(rows.len());
        for row in rows {
            let hash = seen.is_some().then(|| DeviceHash::of(&row.device));
            let mut seen = seen.as_deref_mut().zip(hash);
            if seen.as_ref().is_some_and(|(seen, hash)| seen.has(*hash)) {
                self.count_relisted()?;
                continue;
            }
            self.relisted_in_a_row = 0;
            planner.progress.devices.fetch_add(1, Ordering::Relaxed);
            if self.is_member(&row.device) {
                continue;
            }
            let excluded = self.context.excluded.excludes(&row.device);
            let group = match group_of(planner.spec, &row) {
                _ if excluded => None,
                Ok(group) => Some(group),
                Err(reason) => {
                    self.leave_out(MalformedRow::of(row.device, reason));
                    continue;
                }
            };
            if let Some((seen, hash)) = &mut seen {
                seen.add(*hash);
            }
            let Some(group) = group else {
                continue;
            };
            if let Some(zone) = planner.spec.unknown_zone_in(&group) {
                self.planned.unknown_zones.add(zone);
                if planner.spec.skips_unknown_zones().is_some() {
                    continue;
                }
            }
            let value = |index: usize| row.tags.get(index)?.as_ref();
            let tag = |path: &TagPath| value(tags.iter().position(|tag| tag == path)?);
            stager.push(row.device, group, tag, &mut assigned);
        }
        self.batch(assigned).await
    }

    /// Returns whether a device is left out whatever its tags: a known device of the rollout, or an
    /// excluded device.
    fn is_left_out(&self, device: &DeviceId) -> bool {
        self.is_member(device) || self.context.excluded.excludes(device)
    }

    /// Returns whether a scan for late joiners knows the device already.
    fn is_member(&self, device: &DeviceId) -> bool {
        let joiners = self.context.planner.joiners.as_ref();
        joiners.is_some_and(|it| !it.members.is_new(&self.planned.plan.hub, device))
    }

    fn count_relisted(&mut self) -> Result<(), PlanError> {
        self.planned.relisted += 1;
        self.relisted_in_a_row += 1;
        if self.relisted_in_a_row > MAX_REPEATS_IN_A_ROW {
            let hub = self.planned.plan.hub.clone();
            return Err(PlanError::Endless { hub });
        }
        Ok(())
    }

    fn leave_out(&mut self, row: MalformedRow) {
        let planned = &mut self.planned;
        planned.malformed_rows.add(&planned.plan.hub, row);
    }

    async fn batch(&mut self, devices: Vec<AssignedDevice>) -> Result<(), PlanError> {
        for AssignedDevice {
            stage,
            group,
            device,
        } in devices
        {
            let spec = self.context.planner.spec;
            let max = self.planned.sizes.count_device(spec, &group);
            let closed = self.batcher.push(stage, group, &device, max);
            self.emit(closed).await?;
        }
        Ok(())
    }
}

impl Planned {
    /// Numbers a batch, counts the batch, and sends it on.
    async fn emit(&mut self, packed: Packed, context: &PlanContext<'_>) -> Result<(), PlanError> {
        let Packed {
            stage,
            sort_key,
            group,
            further_groups,
            devices,
        } = packed;
        let id = context.next_id.fetch_add(1, Ordering::Relaxed);
        if id == u32::MAX {
            return Err(PlanError::TooManyBatches);
        }
        let budgets = context.planner.spec.budget_groups(&group);
        let sort_key = if sort_key.is_none() {
            self.sizes.next_sort_key(&budgets)
        } else {
            sort_key
        };
        let header = BatchHeader {
            sort_key,
            budgets,
            id: BatchId(id),
            hub: self.plan.hub.clone(),
            host: self.plan.host.clone(),
            stage,
            group,
            further_groups,
            devices: u32::try_from(devices.len()).expect("batches are small"),
        };
        self.digest.add(&header, &devices);
        self.plan.devices += u64::from(header.devices);
        self.plan.batches += 1;
        let (in_stage, batches) = &mut self.stages[usize::from(stage.0)];
        *in_stage += u64::from(header.devices);
        *batches += 1;
        let batch = Batch { header, devices };
        self.checksum.add(&batch);
        let sent = context.batches.send(batch).await;
        sent.map_err(|_| PlanError::Interrupted)
    }
}

/// Returns the tag group of a device, or the problem with a tag.
fn group_of(spec: &RolloutSpec, row: &DeviceRow) -> Result<TagGroup, String> {
    let tags = spec.batch_by.iter().enumerate().map(|(index, tag)| {
        let value = row.tags.get(index).and_then(Option::as_ref);
        let value = value.map(as_text).transpose();
        let value = value.map_err(|kind| {
            format!("tags.{tag} is {kind}; batch_by allows text, numbers, true and false")
        })?;
        Ok((tag.to_string(), value))
    });
    Ok(TagGroup(tags.collect::<Result<_, String>>()?))
}

/// Returns a tag's value as text, or the kind of a value without a text form.
fn as_text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Object(_) => Err("an object"),
        Value::Array(_) => Err("a list"),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
    }
}

/// Builds the conditions that select these devices, each short enough to leave room for the rest of
/// a query.
pub(crate) fn queries_of(ids: &[DeviceId]) -> Vec<String> {
    let mut conditions = Vec::new();
    let mut condition = String::new();
    for id in ids {
        condition.push_str(if condition.is_empty() {
            "deviceId IN ["
        } else {
            ", "
        });
        query::write_text_literal(id.as_str(), &mut condition);
        if condition.len() > query::MAX_QUERY_CHARS / 4 {
            condition.push(']');
            conditions.push(std::mem::take(&mut condition));
        }
    }
    if !condition.is_empty() {
        condition.push(']');
        conditions.push(condition);
    }
    conditions
}

/// The devices listed by exclusions, with the rule of each device and the number of devices met per
/// rule.
struct ExcludedIds {
    rule_of: HashMap<DeviceId, usize>,
    met: Vec<AtomicU64>,
}

impl ExcludedIds {
    fn read(rules: &[Exclusion], base: &Path) -> Result<Self, PlanError> {
        let mut rule_of = HashMap::new();
        for (index, rule) in rules.iter().enumerate() {
            let path: Option<PathBuf> = rule.devices_file.as_ref().map(|path| base.join(path));
            for id in &rule.devices {
                rule_of.entry(id.clone()).or_insert(index);
            }
            if let Some(path) = path {
                let add = |id| {
                    rule_of.entry(id).or_insert(index);
                    rule_of.len() <= MAX_EXCLUDED_IDS
                };
                lists::for_each_unique(&path, add).map_err(PlanError::List)?;
            }
            if rule_of.len() > MAX_EXCLUDED_IDS {
                return Err(PlanError::TooManyExcluded);
            }
        }
        let met = rules.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self { rule_of, met })
    }

    fn excludes(&self, device: &DeviceId) -> bool {
        let rule = self.rule_of.get(device);
        if let Some(rule) = rule {
            self.met[*rule].fetch_add(1, Ordering::Relaxed);
        }
        rule.is_some()
    }

    fn counts(&self, rules: &[Exclusion]) -> Vec<Excluded> {
        rules
            .iter()
            .zip(&self.met)
            .map(|(rule, met)| Excluded {
                rule: describe(rule),
                reason: rule.reason.clone(),
                devices: met.load(Ordering::Relaxed),
            })
            .collect()
    }
}

fn describe(rule: &Exclusion) -> String {
    if !rule.tags.is_empty() {
        return query::matching(&rule.tags);
    }
    match &rule.devices_file {
        Some(path) => format!("devices of {}", path.display()),
        None => format!("{} listed devices", rule.devices.len()),
    }
}

/// Makes a plan without keeping the batches, as a preview.
///
/// # Errors
/// As [`Planner::plan`].
pub async fn dry_run(
    planner: &Planner<'_>,
    mut on_batch: impl FnMut(&BatchHeader),
) -> Result<PlanSummary, PlanError> {
    let (sender, receiver) = mpsc::channel(4);
    let drain = async {
        let mut receiver = receiver;
        let batches = stream::poll_fn(move |context| receiver.poll_recv(context));
        batches
            .for_each(|batch: Batch| {
                on_batch(&batch.header);
                futures::future::ready(())
            })
            .await;
    };
    let (summary, ()) = futures::join!(planner.plan(sender), drain);
    summary
}
