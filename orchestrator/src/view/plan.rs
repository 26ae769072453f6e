//! The preview of a spec. Nothing is sent or stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use twincast_core::gate::{self, advice};
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, RolloutName, StageIndex, StageName};
use twincast_core::message::Content;
use twincast_core::plan::{
    BatchHeader, Estimate, Forecast, HubPlan, Impossible, PlanSummary, Share, StageForecast,
    StagePlan, StageShares, estimate, forecast, warnings,
};
use twincast_core::ports::Clock;
use twincast_core::spec::{Budget, Continuous, NoContent, Ramp, RolloutSpec, Stage, StagePace};
use utoipa::ToSchema;

use super::overlaps::Overlapping;
use crate::planner::{PlanError, Planner, dry_run};

/// The most tag groups listed. The rest is summed up.
const MAX_GROUPS: usize = 20;

/// The preview of a spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The rollout's name.
    pub rollout: String,
    /// The message to each device.
    pub message: MessageView,
    /// Devices by hub and stage, and left-out devices with the reasons.
    #[schema(value_type = Object)]
    pub plan: PlanSummary,
    /// The rollout's own ramp, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<String>,
    /// The budgets, as text. The times ignore budgets, because the speed of the devices'
    /// confirmations is unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
    /// The stages; empty if the spec has no stages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagePlanView>,
    /// The handling of late joiners, if the rollout is continuous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub continuous: Option<Continuous>,
    /// Devices by hub and tag group, at most 20 groups.
    pub groups: Vec<GroupPlan>,
    /// The number of devices in further groups.
    pub other_groups: u64,
    /// The time for sending through each hub, and the cost in daily quota.
    #[schema(value_type = Object)]
    pub estimate: Estimate,
    /// The times of the rollout, if begun now.
    #[schema(value_type = Object)]
    pub forecast: Forecast,
    /// Active rollouts that may send to the same devices.
    pub overlaps: Vec<Overlapping>,
    /// Notes on possibly unintended settings.
    pub warnings: Vec<String>,
}

/// A message as sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageView {
    /// The bytes of the body.
    pub body_bytes: u64,
    /// The bytes counted against the hub's limit of 64 KiB, with the longest device id.
    pub bytes: u64,
    /// The declared content type of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The body, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl MessageView {
    /// Describes the message of a rollout.
    #[must_use]
    pub fn of(rollout: &RolloutName, content: &Content) -> Self {
        let body = std::str::from_utf8(&content.body).ok();
        Self {
            body_bytes: content.body.len() as u64,
            bytes: content.largest(rollout) as u64,
            content_type: content.content_type.clone(),
            body: body.map(str::to_owned),
        }
    }
}

/// The preview of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StagePlanView {
    /// `stage`, the name; `starts_at`, `sent_at`, `ends_at`, `ends_at_latest`: the times of the
    /// stage, if the rollout begins now.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub forecast: StageForecast,
    /// The number of devices.
    pub devices: u64,
    /// The number of batches.
    pub batches: u32,
    /// The seconds for sending to the devices; none without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending_seconds: Option<f64>,
    /// The stage's own ramp, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<String>,
    /// The conditions of the gate, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
}

/// The devices of a tag group on one hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupPlan {
    /// The hub.
    pub hub: String,
    /// The tags shared by the devices, as text.
    pub group: String,
    /// The number of devices.
    pub devices: u64,
    /// The number of batches with devices of the group. Small groups share batches.
    pub batches: u32,
}

/// Why a spec has no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The devices cannot be found.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The spec can never be carried out.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// The message cannot be made.
    #[error(transparent)]
    Message(#[from] NoContent),
    /// The target has no devices.
    #[error("{0}")]
    Empty(String),
}

impl PreviewError {
    /// Returns a possible remedy, if known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, Self::Empty(_)).then_some(
            "check the tags and the condition; a new tag can take minutes to appear in queries",
        )
    }
}

/// Previews a rollout that would begin as soon as its devices are found. Queries the hubs for the
/// devices. The caller adds the overlaps.
///
/// # Errors
/// [`PreviewError`].
pub async fn read(planner: &Planner<'_>, clock: &dyn Clock) -> Result<PlanView, PreviewError> {
    let spec = planner.spec;
    let content = spec.message.content()?;
    let mut parts = StageParts::new();
    let mut groups: BTreeMap<(String, String), (u64, u32)> = BTreeMap::new();
    let mut other_groups = 0u64;
    let planned = dry_run(planner, |header| {
        add(&mut parts, spec, header);
        for (group, positions) in header.groups() {
            let key = (header.hub.to_string(), group.to_string());
            if groups.len() < MAX_GROUPS || groups.contains_key(&key) {
                let (devices, batches) = groups.entry(key).or_default();
                *devices += positions.len() as u64;
                *batches += 1;
            } else {
                other_groups += positions.len() as u64;
            }
        }
    });
    let plan = planned.await?;
    if plan.devices == 0 {
        return Err(PreviewError::Empty(plan.empty_plan_message()));
    }
    let limits = |hub: &_| {
        let handle = planner.hubs.get(hub);
        handle.map_or_else(HubLimits::unlimited, |handle| handle.limits)
    };
    let stages = estimates(spec, &plan, &parts, |hubs, pace, before| {
        estimate(hubs, limits, pace, before, content.largest(&spec.name))
    });
    let of_stages: Vec<_> = stages.iter().map(|stage| stage.estimate.clone()).collect();
    let estimate = Estimate::of_stages(&of_stages).expect("there is always a stage for the rest");
    let forecast = forecast(spec, &stages, clock.now())?;
    let mut warnings = warnings(spec, &estimate);
    let devices = |name: &StageName| {
        let stage = plan.stages.iter().find(|stage| stage.name == *name);
        stage.map_or(0, |stage| stage.devices)
    };
    warnings.extend(advice::of_plan(spec, devices));
    warnings.extend(unknown_zones(spec, &plan));
    let groups = groups
        .into_iter()
        .map(|((hub, group), (devices, batches))| GroupPlan {
            hub,
            group,
            devices,
            batches,
        });
    Ok(PlanView {
        rollout: spec.name.to_string(),
        message: MessageView::of(&spec.name, &content),
        ramp: spec.ramp.as_ref().map(Ramp::to_string),
        budgets: spec.budgets.iter().map(Budget::to_string).collect(),
        stages: stage_results(spec, &plan, &stages, &forecast),
        continuous: spec.continuous.clone(),
        groups: groups.collect(),
        other_groups,
        overlaps: Vec::new(),
        warnings,
        plan,
        estimate,
        forecast,
    })
}

/// Warns of devices sent to by the schedule's zone because their own zone is unknown.
fn unknown_zones(spec: &RolloutSpec, plan: &PlanSummary) -> Option<String> {
    let unknown = &plan.unknown_zones;
    let is_silent = unknown.is_empty() || spec.skips_unknown_zones().is_some();
    (!is_silent).then(|| {
        format!(
            "{} devices have an unknown zone, {unknown}, and use the schedule's own zone; correct \
             the tags, or leave the devices out with schedule.unknown_zone: skip",
            unknown.devices
        )
    })
}

impl PlanView {
    /// Returns the hubs of the plan.
    #[must_use]
    pub fn hubs(&self) -> Vec<HubName> {
        let hubs = self.plan.hubs.iter();
        hubs.map(|part| part.hub.clone()).collect()
    }
}

/// The share of each hub in each stage.
type StageParts = BTreeMap<(StageIndex, HubName), StagePart>;

struct StagePart {
    plan: HubPlan,
    /// Devices by zone. All unknown zones are one entry, so the map has no more entries than there
    /// are zones.
    zones: BTreeMap<Option<String>, u64>,
}

fn add(parts: &mut StageParts, spec: &RolloutSpec, header: &BatchHeader) {
    let key = (header.stage, header.hub.clone());
    let part = parts.entry(key).or_insert_with(|| StagePart {
        plan: HubPlan::empty(&header.hub, &header.host),
        zones: BTreeMap::new(),
    });
    part.plan.devices += u64::from(header.devices);
    part.plan.batches += 1;
    let zone = match spec.unknown_zone_in(&header.group) {
        Some(_) => None,
        None => spec.zone_in(&header.group).map(str::to_owned),
    };
    *part.zones.entry(zone).or_default() += u64::from(header.devices);
}

/// Estimates each stage, at the stage's own pace.
fn estimates(
    spec: &RolloutSpec,
    plan: &PlanSummary,
    parts: &StageParts,
    estimate: impl Fn(&[HubPlan], &StagePace, u64) -> Estimate,
) -> Vec<StageShares> {
    let mut sent = 0;
    let stages = (0..).map(StageIndex).zip(&plan.stages);
    let stages = stages.map(|(stage, StagePlan { devices, .. })| {
        let part = |hub: &HubName| parts.get(&(stage, hub.clone()));
        let hubs = plan.hubs.iter().map(|HubPlan { hub, host, .. }| {
            let part = part(hub).map(|part| part.plan.clone());
            part.unwrap_or_else(|| HubPlan::empty(hub, host))
        });
        let shares = plan.hubs.iter().flat_map(|HubPlan { hub, .. }| {
            let zones = part(hub).into_iter().flat_map(|part| &part.zones);
            zones.map(|(zone, devices)| Share {
                hub: hub.clone(),
                zone: zone.clone(),
                devices: *devices,
            })
        });
        let pace = spec.pace_of(stage);
        let before = if pace.is_of_stage() { 0 } else { sent };
        sent += devices;
        StageShares {
            shares: shares.collect(),
            estimate: estimate(&hubs.collect::<Vec<_>>(), &pace, before),
        }
    });
    stages.collect()
}

fn stage_results(
    spec: &RolloutSpec,
    plan: &PlanSummary,
    shares: &[StageShares],
    forecast: &Forecast,
) -> Vec<StagePlanView> {
    if !spec.is_staged() {
        return Vec::new();
    }
    let stages = spec.all_stages().into_iter().zip(&plan.stages);
    let stages = stages.zip(shares).zip(&forecast.stages);
    let stages = stages.map(|(((stage, plan), shares), forecast)| {
        let Stage { gate, ramp, .. } = stage;
        let sending = shares.estimate.sending;
        StagePlanView {
            devices: plan.devices,
            batches: plan.batches,
            sending_seconds: sending.map(|time| time.as_secs_f64()),
            forecast: forecast.clone(),
            ramp: ramp.as_ref().map(Ramp::to_string),
            gate: gate.as_ref().map(gate::describe),
        }
    });
    stages.collect()
}
