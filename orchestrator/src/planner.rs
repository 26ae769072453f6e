//! Finds a rollout's devices and fills batches, in a stream.
//!
//! Each hub is planned on its own, all of them at once. Batches leave through a bounded channel
//! as soon as they are full, so memory does not grow with the fleet.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use futures::future::try_join_all;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use twincast_core::ids::{BatchId, DeviceId, HubName, InvalidName, StageIndex};
use twincast_core::plan::{
    Batch, BatchHeader, BatchLimits, Batcher, Excluded, Filled, Group, HubDigest, HubPlan,
    PlanDigest, PlanSummary,
};
use twincast_core::ports::{DeviceQuery, DeviceRow, HubError};
use twincast_core::query;
use twincast_core::spec::{Exclusion, RolloutSpec};

use crate::lists::{self, ListError};
use crate::{HubHandle, Hubs};

/// How many devices exclusions may list, all rules together: they are held in memory.
pub const MAX_EXCLUDED_IDS: usize = 1_000_000;
/// How many listed ids one query asks for; a page holds no more.
const IDS_A_QUERY: usize = 100;

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
    /// A hub gave an id that cannot be one.
    #[error("hub {hub} names a device that cannot be sent to")]
    Device {
        /// The hub.
        hub: HubName,
        /// What is wrong with the id.
        #[source]
        source: InvalidName,
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
            .ok_or_else(|| PlanError::UnknownHub {
                hub: hub.clone(),
                configured: hubs
                    .keys()
                    .map(HubName::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    };
    spec.target.hubs.iter().map(find).collect()
}

impl Planner<'_> {
    /// Makes the plan. Every batch goes to `batches` once, numbered from 0 without gaps.
    ///
    /// Cancel safety: may be dropped at any time; the batches sent so far are to be discarded.
    ///
    /// # Errors
    /// [`PlanError`]; then the batches sent so far are no plan.
    pub async fn plan(&self, batches: mpsc::Sender<Batch>) -> Result<PlanSummary, PlanError> {
        let hubs = hubs_of(self.spec, self.hubs)?;
        let excluded = ExcludedIds::read(&self.spec.target.exclude, self.base)?;
        let next_id = AtomicU32::new(0);
        let alone = hubs.len() == 1;
        let parts = hubs.into_iter().map(|(name, handle)| {
            let part = HubPart {
                planner: self,
                name,
                handle,
                excluded: &excluded,
                next_id: &next_id,
                batches: &batches,
            };
            part.plan(alone)
        });
        let parts = try_join_all(parts).await?;

        let mut digest = PlanDigest::default();
        let mut summary = PlanSummary {
            devices: 0,
            batches: 0,
            digest: String::new(),
            hubs: Vec::new(),
            excluded: excluded.counts(&self.spec.target.exclude),
            repeated: parts.iter().map(|part| part.repeated).max().unwrap_or(0),
        };
        let listed = parts.iter().map(|part| part.listed).max().unwrap_or(0);
        let found: u64 = parts.iter().map(|part| part.found).sum();
        for part in parts {
            summary.devices += part.plan.devices;
            summary.batches += part.plan.batches;
            for (excluded, devices) in summary.excluded.iter_mut().zip(part.excluded_by_tags) {
                excluded.devices += devices;
            }
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
        summary.digest = digest.finish();
        Ok(summary)
    }
}

/// One hub's part of a plan, while it is made.
struct HubPart<'a> {
    planner: &'a Planner<'a>,
    name: &'a HubName,
    handle: &'a HubHandle,
    excluded: &'a ExcludedIds,
    next_id: &'a AtomicU32,
    batches: &'a mpsc::Sender<Batch>,
}

struct Planned {
    plan: HubPlan,
    digest: HubDigest,
    /// By rule, what was left out by its tags.
    excluded_by_tags: Vec<u64>,
    /// Of a list: its ids, how many of them this hub knows, and how many were repeats.
    listed: u64,
    found: u64,
    repeated: u64,
}

impl HubPart<'_> {
    async fn plan(self, alone: bool) -> Result<Planned, PlanError> {
        let spec = self.planner.spec;
        let mut planned = Planned {
            plan: HubPlan {
                hub: self.name.clone(),
                devices: 0,
                batches: 0,
            },
            digest: HubDigest::default(),
            excluded_by_tags: vec![0; spec.target.exclude.len()],
            listed: 0,
            found: 0,
            repeated: 0,
        };
        let limits = BatchLimits::for_rate(self.handle.limits.pace(spec.rate));
        let mut batcher = Batcher::new(limits);
        if spec.has_list() {
            self.plan_list(alone, &mut batcher, &mut planned).await?;
        } else {
            self.count_exclusions("", &mut planned).await?;
            let rows = self.query(spec.condition());
            self.take_rows(rows, &mut batcher, &mut planned).await?;
        }
        for filled in batcher.finish() {
            self.emit(filled, &mut planned).await?;
        }
        Ok(planned)
    }

    /// Plans listed devices: as they are if nothing need be known of them, else by asking the hub
    /// for them.
    async fn plan_list(
        &self,
        alone: bool,
        batcher: &mut Batcher,
        planned: &mut Planned,
    ) -> Result<(), PlanError> {
        let spec = self.planner.spec;
        let by_tag = spec.target.exclude.iter().any(|rule| !rule.tags.is_empty());
        let as_listed = alone && spec.batch_by.is_empty() && !by_tag;
        let (mut chunks, reader) = self.listed();
        while let Some(chunk) = chunks.recv().await {
            planned.listed += chunk.len() as u64;
            if as_listed {
                planned.found += chunk.len() as u64;
                let rows = chunk
                    .into_iter()
                    .map(|device| DeviceRow {
                        device,
                        tags: Vec::new(),
                    })
                    .collect();
                self.take_page(rows, batcher, planned).await?;
                continue;
            }
            for part in queries_of(&chunk) {
                self.count_exclusions(&part, planned).await?;
                planned.found += self.count(&part).await?;
                let rows = self.query(query::all_of([part.as_str(), spec.condition().as_str()]));
                self.take_rows(rows, batcher, planned).await?;
            }
        }
        planned.repeated = reader
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
        let target = &self.planner.spec.target;
        let (sender, receiver) = mpsc::channel(2);
        let path = target
            .devices_file
            .as_ref()
            .map(|path| self.planner.base.join(path));
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

    fn query(
        &self,
        condition: String,
    ) -> impl Stream<Item = Result<Vec<DeviceRow>, HubError>> + '_ {
        self.handle.hub.devices(DeviceQuery {
            condition,
            tags: self.planner.spec.batch_by.clone(),
        })
    }

    async fn count(&self, condition: &str) -> Result<u64, PlanError> {
        self.handle
            .hub
            .count(condition)
            .await
            .map_err(|source| PlanError::Hub {
                hub: self.name.clone(),
                source,
            })
    }

    /// Counts what the rules by tag leave out; rules by id are counted as the ids come by.
    async fn count_exclusions(&self, within: &str, planned: &mut Planned) -> Result<(), PlanError> {
        let spec = self.planner.spec;
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
            planned.excluded_by_tags[index] += devices;
        }
        Ok(())
    }

    async fn take_rows(
        &self,
        rows: impl Stream<Item = Result<Vec<DeviceRow>, HubError>>,
        batcher: &mut Batcher,
        planned: &mut Planned,
    ) -> Result<(), PlanError> {
        let mut rows = std::pin::pin!(rows);
        while let Some(page) = rows.next().await {
            let page = page.map_err(|source| PlanError::Hub {
                hub: self.name.clone(),
                source,
            })?;
            self.take_page(page, batcher, planned).await?;
        }
        Ok(())
    }

    async fn take_page(
        &self,
        page: Vec<DeviceRow>,
        batcher: &mut Batcher,
        planned: &mut Planned,
    ) -> Result<(), PlanError> {
        let tags = &self.planner.spec.batch_by;
        self.planner
            .progress
            .devices
            .fetch_add(page.len() as u64, Ordering::Relaxed);
        for row in page {
            if self.excluded.excludes(&row.device) {
                continue;
            }
            let values = row.tags.into_iter().chain(std::iter::repeat(None));
            let group = Group(
                tags.iter()
                    .map(|tag| tag.as_str().to_owned())
                    .zip(values)
                    .collect(),
            );
            for filled in batcher.push(StageIndex(0), group, &row.device) {
                self.emit(filled, planned).await?;
            }
        }
        Ok(())
    }

    async fn emit(
        &self,
        (stage, group, devices): Filled,
        planned: &mut Planned,
    ) -> Result<(), PlanError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if id == u32::MAX {
            return Err(PlanError::TooManyBatches);
        }
        let header = BatchHeader {
            id: BatchId(id),
            hub: self.name.clone(),
            stage,
            group,
            devices: u32::try_from(devices.len()).expect("batches are small"),
        };
        planned.digest.add(&header, &devices);
        planned.plan.devices += u64::from(header.devices);
        planned.plan.batches += 1;
        self.batches
            .send(Batch { header, devices })
            .await
            .map_err(|_| PlanError::Interrupted)
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
