//! Finds a rollout's devices and fills batches, in a stream.
//!
//! Each hub is planned on its own, all of them at once. Batches leave through a bounded channel
//! as soon as they are full, so memory does not grow with the fleet. Which stage some devices belong to is known only
//! when every hub has named its last one: those are held by [`HubStager`]s, and batched in the end.

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
    Assigned, Batch, BatchHeader, BatchLimits, BatchSizes, Batcher, Checksum, CutMissed, Excluded,
    Filled, Group, HubDigest, HubPlan, HubStager, NotUnderstood, Packed, PlanDigest, PlanSummary,
    StagePlan, StageRules, UnknownZones, finish_stages, pack,
};
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, Hindrance, HubError, HubTrouble, OddRow,
};
use twincast_core::query::{self, TagPath};
use twincast_core::rollout::Rollout;
use twincast_core::spec::{Exclusion, Rate, RolloutSpec, Stage};

use crate::lists::{self, ListError};
use crate::members::Members;
use crate::seen::{Print, Seen};
use crate::{HubHandle, Hubs};

/// How many devices exclusions may list, all rules together: they are held in memory.
pub const MAX_EXCLUDED_IDS: usize = 1_000_000;
/// How many listed ids one query asks for; a page holds no more.
const IDS_A_QUERY: usize = 100;
/// Rows in a row that name known devices only, after which a list is given up: it goes round in circles.
const MOST_REPEATS: u64 = 1_000_000;

/// Why a rollout cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The spec names a hub that is not configured.
    #[error("hub {hub} is not configured; configured are: {configured}")]
    UnknownHub {
        /// The hub.
        hub: HubName,
        /// Those that are, in words.
        configured: String,
    },
    /// The configuration gives the hub's name to another hub than the one that the rollout was planned for.
    #[error(
        "hub {hub} at {planned}, for which rollout {rollout} was planned: the configuration has {configured} under the \
         name {hub}; configure {planned} as {hub} again, give the other hub a name of its own, and start a rollout of \
         another name for its devices"
    )]
    OtherHub {
        /// The rollout.
        rollout: RolloutName,
        /// The hub's alias.
        hub: HubName,
        /// The host name of the hub that the plan was made for.
        planned: HubHost,
        /// The host name in the configuration.
        configured: HubHost,
    },
    /// There are no hubs.
    #[error("no hub is configured")]
    NoHubs,
    /// A hub does not answer as it should.
    #[error("cannot find the devices of hub {hub}")]
    Hub {
        /// The hub.
        hub: HubName,
        /// What the matter is.
        #[source]
        source: HubError,
    },
    /// A hub names its devices without end.
    #[error(
        "hub {hub} has named {MOST_REPEATS} devices again, one after the other: its list has no end"
    )]
    Endless {
        /// The hub.
        hub: HubName,
    },
    /// A device list is no good.
    #[error("a device list of the rollout cannot be used")]
    List(#[source] ListError),
    /// Exclusions list too many devices.
    #[error("the exclusions list more than {MAX_EXCLUDED_IDS} devices; exclude them by a tag")]
    TooManyExcluded,
    /// There are more batches than numbers.
    #[error("the plan has more than {} batches; batch by fewer tags", u32::MAX)]
    TooManyBatches,
    /// A stage has a gate and no devices: nothing would be tried before the next one starts.
    #[error(
        "stage {stage} takes no device, so its gate could never be passed: widen what it takes, or what the \
         stages before it leave to it, or remove the stage"
    )]
    EmptyStage {
        /// The stage.
        stage: StageName,
    },
    /// It cannot be told which devices a percent takes. Planning the same devices again cannot tell either.
    #[error("the stages cannot be planned")]
    Cut(#[source] CutMissed),
    /// Nobody takes the batches any more.
    #[error("planning was interrupted")]
    Interrupted,
}

/// How far planning is. Read it while [`Planner::plan`] runs.
#[derive(Debug, Default)]
pub struct PlanProgress {
    /// Devices found so far, excluded ones among them.
    pub devices: AtomicU64,
}

/// What a plan is made from.
pub struct Planner<'a> {
    /// The rollout.
    pub spec: &'a RolloutSpec,
    /// All configured hubs.
    pub hubs: &'a Hubs,
    /// Where the spec's files are.
    pub base: &'a Path,
    /// How far it is.
    pub progress: &'a PlanProgress,
    /// Only those that have joined the target since it was planned.
    pub joiners: Option<Joiners<'a>>,
}

/// What is new of a target.
#[derive(Debug, Clone, Copy)]
pub struct Joiners<'a> {
    /// All that is not new.
    pub members: &'a Members,
    /// The stage of those that are.
    pub stage: StageIndex,
    /// The number of their first batch.
    pub first: BatchId,
}

/// The hubs of a spec: those that it names, or all.
///
/// # Errors
/// When it names one that is not configured, or there are none.
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

/// Refuses a rollout whose plan is for a hub that is another hub in the configuration. Hubs that are not configured are not
/// its concern.
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

/// What keeps a hub of a spec from answering questions just now, for longest, if one does not answer.
#[must_use]
pub fn hindrance<'a>(spec: &RolloutSpec, hubs: &'a Hubs) -> Option<(&'a HubName, Hindrance)> {
    let hubs = hubs_of(spec, hubs).ok()?;
    let silent = hubs
        .into_iter()
        .filter_map(|(name, handle)| Some((name, handle.hub.asking_hindrance()?)));
    silent.max_by_key(|(_, hindrance)| hindrance.lasting)
}

/// Planning again cannot help.
pub(crate) fn is_final(error: &PlanError) -> bool {
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

/// A hub is not among those that are configured.
pub(crate) fn unknown_hub(hub: &HubName, hubs: &Hubs) -> PlanError {
    let configured: Vec<_> = hubs.keys().map(HubName::as_str).collect();
    PlanError::UnknownHub {
        hub: hub.clone(),
        configured: configured.join(", "),
    }
}

impl Planner<'_> {
    /// Makes the plan. Every batch goes to `batches` once, numbered from 0, or the first number of joiners, without gaps.
    ///
    /// Cancel safety: may be dropped at any time; the batches sent so far are to be discarded.
    ///
    /// # Errors
    /// [`PlanError`]; then the batches sent so far are no plan.
    pub async fn plan(&self, batches: mpsc::Sender<Batch>) -> Result<PlanSummary, PlanError> {
        let hubs = hubs_of(self.spec, self.hubs)?;
        let excluded = ExcludedIds::read(&self.spec.target.exclude, self.base)?;
        let stages = self.spec.all_stages();
        let (rules, first) = match &self.joiners {
            Some(joiners) => (StageRules::only(joiners.stage), joiners.first),
            None => (StageRules::of(self.spec), BatchId(0)),
        };
        let shared = Shared {
            planner: self,
            alone: hubs.len() == 1,
            tags: tags_of(self.spec, &rules),
            excluded: &excluded,
            next_id: AtomicU32::new(first.0),
            batches,
        };
        let parts = hubs.into_iter().enumerate().map(|(index, (name, handle))| {
            let part = HubPart::new(&shared, name, handle, stages.len());
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

/// Puts the hubs' parts together.
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
            + parts.iter().map(|part| part.again).sum::<u64>(),
        not_understood: NotUnderstood::default(),
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
        summary.not_understood.merge(part.not_understood);
        summary.unknown_zones.merge(part.unknown_zones);
        digest.add(part.plan.hub.clone(), part.digest);
        summary.hubs.push(part.plan);
    }
    // Every hub is asked for the whole list.
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

/// The devices that are left out for their unknown zones, if there are any.
fn without_zone(spec: &RolloutSpec, unknown: &UnknownZones) -> Option<Excluded> {
    let tag = spec.skips_unknown_zones()?;
    (!unknown.is_empty()).then(|| Excluded {
        rule: format!("tags.{tag} is no time zone: {unknown}"),
        reason: None,
        devices: unknown.devices,
    })
}

/// A target without any device is another matter, and is nobody's mistake here.
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

/// The tags that hubs are asked for: those to batch by first, then those of stages.
fn tags_of(spec: &RolloutSpec, rules: &StageRules) -> Vec<TagPath> {
    let mut tags = spec.batch_by.clone();
    let others = rules.tags().into_iter();
    tags.extend(others.filter(|tag| !spec.batch_by.contains(tag)));
    tags
}

/// The lowest rate at which any stage is sent to.
fn lowest_rate(spec: &RolloutSpec, stages: usize) -> Option<Rate> {
    let stages = (0..).map(StageIndex).take(stages);
    let rates = stages.filter_map(|stage| spec.rate_of(stage));
    rates.reduce(|a, b| if b < a { b } else { a })
}

/// What the parts of a plan share.
struct Shared<'a> {
    planner: &'a Planner<'a>,
    /// There is one hub.
    alone: bool,
    /// What hubs are asked for.
    tags: Vec<TagPath>,
    excluded: &'a ExcludedIds,
    next_id: AtomicU32,
    batches: mpsc::Sender<Batch>,
}

/// One hub's part of a plan, while it is made.
struct HubPart<'a> {
    shared: &'a Shared<'a>,
    handle: &'a HubHandle,
    batcher: Batcher,
    planned: Planned,
    /// Rows of known devices that came one after the other last.
    again_in_a_row: u64,
}

struct Planned {
    plan: HubPlan,
    /// By stage: devices and batches.
    stages: Vec<(u64, u32)>,
    digest: HubDigest,
    checksum: Checksum,
    /// How large batches may be, by the budgets.
    sizes: BatchSizes,
    /// By rule, what was left out by its tags.
    excluded_by_tags: Vec<u64>,
    /// Of a list: its ids, how many of them this hub knows, and how many were repeats.
    listed: u64,
    found: u64,
    repeated: u64,
    /// Rows of devices that the hub had named before.
    again: u64,
    not_understood: NotUnderstood,
    unknown_zones: UnknownZones,
}

impl<'a> HubPart<'a> {
    fn new(shared: &'a Shared<'a>, hub: &HubName, handle: &'a HubHandle, stages: usize) -> Self {
        let spec = shared.planner.spec;
        let pace = handle.limits.pace(lowest_rate(spec, stages));
        Self {
            shared,
            handle,
            batcher: Batcher::new(BatchLimits::for_rate(pace)),
            again_in_a_row: 0,
            planned: Planned {
                plan: HubPlan::none(hub, &handle.host),
                stages: vec![(0, 0); stages],
                digest: HubDigest::default(),
                checksum: Checksum::default(),
                sizes: BatchSizes::default(),
                excluded_by_tags: vec![0; spec.target.exclude.len()],
                listed: 0,
                found: 0,
                repeated: 0,
                again: 0,
                not_understood: NotUnderstood::default(),
                unknown_zones: UnknownZones::default(),
            },
        }
    }

    /// Finds the hub's devices, and batches those that have a stage. The stager has the others.
    async fn find<'r>(
        mut self,
        mut stager: HubStager<'r>,
    ) -> Result<(HubStager<'r>, Self), PlanError> {
        let spec = self.shared.planner.spec;
        if spec.has_list() {
            self.find_listed(&mut stager).await?;
        } else {
            if self.shared.planner.joiners.is_none() {
                self.count_exclusions("").await?;
            }
            self.take_rows(self.query(spec.condition()), &mut stager)
                .await?;
        }
        Ok((stager, self))
    }

    /// Batches the rest.
    async fn finish(mut self, rest: Vec<Assigned>) -> Result<Planned, PlanError> {
        self.batch(rest).await?;
        let filled = self.batcher.finish();
        self.emit(filled).await?;
        Ok(self.planned)
    }

    async fn emit(&mut self, filled: Vec<Filled>) -> Result<(), PlanError> {
        let spec = self.shared.planner.spec;
        for packed in pack(spec, self.batcher.limits(), filled) {
            self.planned.emit(packed, self.shared).await?;
        }
        Ok(())
    }

    /// Finds listed devices: as they are if nothing need be known of them, else by asking the hub
    /// for them.
    async fn find_listed(&mut self, stager: &mut HubStager<'_>) -> Result<(), PlanError> {
        let spec = self.shared.planner.spec;
        let by_tag = spec.target.exclude.iter().any(|rule| !rule.tags.is_empty());
        let as_listed = self.shared.alone && self.shared.tags.is_empty() && !by_tag;
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
                // The list has each once.
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

    /// The listed devices, each once, some at a time; and how many repeats there were.
    fn listed(
        &self,
    ) -> (
        mpsc::Receiver<Vec<DeviceId>>,
        JoinHandle<Result<u64, ListError>>,
    ) {
        let planner = self.shared.planner;
        let target = &planner.spec.target;
        let (sender, receiver) = mpsc::channel(2);
        let path = target
            .devices_file
            .as_ref()
            .map(|path| planner.base.join(path));
        let inline = target.devices.clone();
        let reader = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::new();
            // A closed channel means that planning was given up.
            let mut take = |id| {
                chunk.push(id);
                chunk.len() < IDS_A_QUERY
                    || sender.blocking_send(std::mem::take(&mut chunk)).is_ok()
            };
            let repeats = match path {
                Some(path) => lists::for_each_unique(&path, &mut take)?,
                None => lists::each_once(inline, &mut take),
            };
            let _ = sender.blocking_send(chunk);
            Ok(repeats)
        });
        (receiver, reader)
    }

    fn query(&self, condition: String) -> BoxStream<'a, Result<DevicePage, HubError>> {
        let tags = self.shared.tags.clone();
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

    /// Counts what the rules by tag leave out; rules by id are counted as the ids come by.
    async fn count_exclusions(&mut self, within: &str) -> Result<(), PlanError> {
        let spec = self.shared.planner.spec;
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
        // Of a list, each query asks for other devices.
        let mut seen = Seen::default();
        while let Some(page) = rows.next().await {
            let page = page.map_err(|source| self.failed(source))?;
            self.take_page(page, &mut seen, stager).await?;
        }
        Ok(())
    }

    async fn take_page(
        &mut self,
        page: DevicePage,
        seen: &mut Seen,
        stager: &mut HubStager<'_>,
    ) -> Result<(), PlanError> {
        for odd in page.odd {
            let print = odd.device.as_ref().map(Print::of);
            if print.is_some_and(|print| seen.has(print)) {
                self.count_again()?;
            } else if !odd.device.as_ref().is_some_and(|it| self.passes_over(it)) {
                // Not added: another row of the device may be understood.
                self.leave_out(odd);
            }
        }
        self.take_devices(page.rows, Some(seen), stager).await
    }

    /// Batches devices of which none was `seen`; without that, they are known to be different ones.
    async fn take_devices(
        &mut self,
        rows: Vec<DeviceRow>,
        mut seen: Option<&mut Seen>,
        stager: &mut HubStager<'_>,
    ) -> Result<(), PlanError> {
        let Shared { planner, tags, .. } = self.shared;
        let mut assigned = Vec::with_capacity(rows.len());
        for row in rows {
            let print = seen.is_some().then(|| Print::of(&row.device));
            let mut seen = seen.as_deref_mut().zip(print);
            if seen.as_ref().is_some_and(|(seen, print)| seen.has(*print)) {
                self.count_again()?;
                continue;
            }
            self.again_in_a_row = 0;
            planner.progress.devices.fetch_add(1, Ordering::Relaxed);
            if self.is_member(&row.device) {
                continue;
            }
            let excluded = self.shared.excluded.excludes(&row.device);
            let group = match group_of(planner.spec, &row) {
                _ if excluded => None,
                Ok(group) => Some(group),
                Err(reason) => {
                    self.leave_out(OddRow::of(row.device, reason));
                    continue;
                }
            };
            if let Some((seen, print)) = &mut seen {
                seen.add(*print);
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

    /// Whether a device is not to be planned, whatever its tags are: it is in the rollout already, or excluded.
    fn passes_over(&self, device: &DeviceId) -> bool {
        self.is_member(device) || self.shared.excluded.excludes(device)
    }

    /// In a look: whether the device is in the rollout already.
    fn is_member(&self, device: &DeviceId) -> bool {
        let joiners = self.shared.planner.joiners.as_ref();
        joiners.is_some_and(|it| !it.members.is_new(&self.planned.plan.hub, device))
    }

    fn count_again(&mut self) -> Result<(), PlanError> {
        self.planned.again += 1;
        self.again_in_a_row += 1;
        if self.again_in_a_row > MOST_REPEATS {
            let hub = self.planned.plan.hub.clone();
            return Err(PlanError::Endless { hub });
        }
        Ok(())
    }

    fn leave_out(&mut self, row: OddRow) {
        let planned = &mut self.planned;
        planned.not_understood.add(&planned.plan.hub, row);
    }

    async fn batch(&mut self, devices: Vec<Assigned>) -> Result<(), PlanError> {
        for Assigned {
            stage,
            group,
            device,
        } in devices
        {
            let spec = self.shared.planner.spec;
            let most = self.planned.sizes.with_one_more(spec, &group);
            let filled = self.batcher.push(stage, group, &device, most);
            self.emit(filled).await?;
        }
        Ok(())
    }
}

impl Planned {
    /// Numbers a batch, counts it, and hands it on.
    async fn emit(&mut self, packed: Packed, shared: &Shared<'_>) -> Result<(), PlanError> {
        let Packed {
            stage,
            place,
            group,
            further,
            devices,
        } = packed;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        if id == u32::MAX {
            return Err(PlanError::TooManyBatches);
        }
        let budgets = shared.planner.spec.budget_groups(&group);
        let place = if place.is_none() {
            self.sizes.next_place(&budgets)
        } else {
            place
        };
        let header = BatchHeader {
            place,
            budgets,
            id: BatchId(id),
            hub: self.plan.hub.clone(),
            host: self.plan.host.clone(),
            stage,
            group,
            further,
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
        let sent = shared.batches.send(batch).await;
        sent.map_err(|_| PlanError::Interrupted)
    }
}

/// The tag group of a device, or what is odd about its tags.
fn group_of(spec: &RolloutSpec, row: &DeviceRow) -> Result<Group, String> {
    let tags = spec.batch_by.iter().enumerate().map(|(index, tag)| {
        let value = row.tags.get(index).and_then(Option::as_ref);
        let value = value.map(as_text).transpose();
        let value = value.map_err(|kind| {
            format!("tags.{tag} is {kind}; batches are made by texts, numbers, true, and false")
        })?;
        Ok((tag.to_string(), value))
    });
    Ok(Group(tags.collect::<Result<_, String>>()?))
}

/// A tag's value as text, or the kind of a value that is none.
fn as_text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Object(_) => Err("an object"),
        Value::Array(_) => Err("a list"),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
    }
}

/// The conditions that ask for these devices, each short enough to leave room for the rest.
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

/// The devices that exclusions list, with the rule of each, and what came by of them.
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
                rule: in_words(rule),
                reason: rule.reason.clone(),
                devices: met.load(Ordering::Relaxed),
            })
            .collect()
    }
}

fn in_words(rule: &Exclusion) -> String {
    if !rule.tags.is_empty() {
        return query::matching(&rule.tags);
    }
    match &rule.devices_file {
        Some(path) => format!("devices of {}", path.display()),
        None => format!("{} listed devices", rule.devices.len()),
    }
}

/// Plans without keeping the batches: for showing what would be.
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
