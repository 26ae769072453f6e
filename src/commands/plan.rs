//! `twincast plan`: what would happen, nothing sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use twincast_core::gate;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, StageIndex, StageName};
use twincast_core::plan::{
    BatchHeader, Estimate, Forecast, HubPlan, PlanSummary, Share, StageForecast, StagePlan,
    StageShares, estimate, forecast, warnings,
};
use twincast_core::spec::{Budget, Ramp, RolloutSpec, Stage, StagePace, ZoneName};
use twincast_core::time::{Timestamp, friendly};
use twincast_orchestrator::planner::{PlanProgress, Planner, dry_run};

use crate::args::PlanArgs;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, table, thousands};
use crate::overlaps::{self, Overlapping};
use crate::progress::Progress;
use crate::prometheus;
use crate::specfile;

/// How many tag groups are listed; the rest is one line.
const GROUPS: usize = 20;

#[derive(Debug, Serialize)]
struct PlanResult<'a> {
    rollout: &'a str,
    plan: &'a PlanSummary,
    /// The rollout's own, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    ramp: Option<String>,
    /// In words. The times do not know of them: nobody knows how fast devices confirm.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    budgets: Vec<String>,
    /// None if the spec has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stages: Vec<StageResult>,
    groups: Vec<GroupPlan>,
    other_groups: u64,
    estimate: &'a Estimate,
    forecast: &'a Forecast,
    /// Active rollouts that may send to the same devices.
    overlaps: Vec<Overlapping>,
    /// What may not be what was meant.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StageResult {
    stage: StageName,
    devices: u64,
    batches: u32,
    /// To send to its devices, `None` without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    sending_seconds: Option<f64>,
    #[serde(flatten)]
    forecast: StageTimes,
    /// Its own ramp, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    ramp: Option<String>,
    /// What its gate asks, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<String>,
}

/// When it is sent, from now on.
#[derive(Debug, Serialize)]
struct StageTimes {
    starts_at: Timestamp,
    sent_at: Timestamp,
    ends_at: Timestamp,
    ends_at_latest: Timestamp,
}

impl StageTimes {
    fn of(forecast: &StageForecast) -> Self {
        Self {
            starts_at: forecast.starts_at,
            sent_at: forecast.sent_at,
            ends_at: forecast.ends_at,
            ends_at_latest: forecast.ends_at_latest,
        }
    }
}

#[derive(Debug, Serialize)]
struct GroupPlan {
    hub: String,
    group: String,
    devices: u64,
    batches: u32,
}

pub(crate) async fn plan(
    args: &PlanArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let file = specfile::read(&args.spec)?;
    let hubs = engine::hubs_of(&file.spec, settings)?;
    if let Some(what) = prometheus::missing(&file.spec, settings) {
        output.note(&format!("Note: {what}: it would be refused."));
    }
    engine::note_guesses(&hubs, settings, output);
    let content = file.spec.message.content().map_err(anyhow::Error::new)?;
    let progress = PlanProgress::default();
    let planner = Planner {
        spec: &file.spec,
        hubs: &hubs,
        base: &file.base,
        progress: &progress,
    };
    let mut parts = Parts::new();
    let mut groups: BTreeMap<(String, String), (u64, u32)> = BTreeMap::new();
    let mut other_groups = 0u64;
    let planned = dry_run(&planner, |header| {
        add(&mut parts, &file.spec, header);
        let key = (header.hub.to_string(), header.group.to_string());
        if groups.len() < GROUPS || groups.contains_key(&key) {
            let (devices, batches) = groups.entry(key).or_default();
            *devices += u64::from(header.devices);
            *batches += 1;
        } else {
            other_groups += u64::from(header.devices);
        }
    });
    let summary = show_while(planned, &progress, output)
        .await
        .map_err(engine::plan_failure)?;

    if summary.devices == 0 {
        return Err(Failure::message(ExitCode::Refused, "the target matches no device").hint(
            "check the tags and the condition; a tag that was set just now can take minutes to be found",
        ));
    }

    let limits = |hub: &_| {
        hubs.get(hub)
            .map_or_else(HubLimits::unlimited, |handle| handle.limits)
    };
    let stages = estimates(&file.spec, &summary, &parts, |hubs, pace, before| {
        estimate(hubs, limits, pace, before, content.size())
    });
    let whole = stages.iter().map(|stage| stage.estimate.clone());
    let whole = whole.reduce(Estimate::then);
    let estimate = whole.expect("there is always a stage for the rest");
    let forecast = forecast(&file.spec, &stages, engine::clock().now())
        .map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let on: Vec<_> = summary.hubs.iter().map(|part| part.hub.clone()).collect();
    let overlaps = overlaps::find(&file.spec, &on, settings, output).await;
    let groups = groups
        .into_iter()
        .map(|((hub, group), (devices, batches))| GroupPlan {
            hub,
            group,
            devices,
            batches,
        })
        .collect();
    let result = PlanResult {
        rollout: file.spec.name.as_str(),
        plan: &summary,
        ramp: file.spec.ramp.as_ref().map(Ramp::to_string),
        budgets: file.spec.budgets.iter().map(Budget::to_string).collect(),
        stages: stage_results(&file.spec, &summary, &stages, &forecast),
        groups,
        other_groups,
        estimate: &estimate,
        forecast: &forecast,
        overlaps,
        warnings: warnings(&file.spec, &estimate, &forecast),
    };
    output.result(&result, &result.text(output));
    Ok(ExitCode::Success)
}

/// What each hub has of each stage.
type Parts = BTreeMap<(StageIndex, HubName), Part>;

struct Part {
    plan: HubPlan,
    /// Devices by their zone. As many as there are zones: what is none counts as none.
    zones: BTreeMap<Option<String>, u64>,
}

fn add(parts: &mut Parts, spec: &RolloutSpec, header: &BatchHeader) {
    let key = (header.stage, header.hub.clone());
    let part = parts.entry(key).or_insert_with(|| Part {
        plan: nothing_of(&header.hub),
        zones: BTreeMap::new(),
    });
    part.plan.devices += u64::from(header.devices);
    part.plan.batches += 1;
    let zone = spec.zone_in(&header.group).map(str::to_owned);
    let zone = zone.filter(|zone| zone.parse::<ZoneName>().is_ok());
    *part.zones.entry(zone).or_default() += u64::from(header.devices);
}

fn nothing_of(hub: &HubName) -> HubPlan {
    HubPlan {
        hub: hub.clone(),
        devices: 0,
        batches: 0,
    }
}

/// What each stage takes, at its own pace.
fn estimates(
    spec: &RolloutSpec,
    plan: &PlanSummary,
    parts: &Parts,
    estimate: impl Fn(&[HubPlan], &StagePace, u64) -> Estimate,
) -> Vec<StageShares> {
    let mut sent = 0;
    let stages = (0..).map(StageIndex).zip(&plan.stages);
    let stages = stages.map(|(stage, StagePlan { devices, .. })| {
        let part = |hub: &HubName| parts.get(&(stage, hub.clone()));
        let hubs = plan.hubs.iter().map(|HubPlan { hub, .. }| {
            let part = part(hub).map(|part| part.plan.clone());
            part.unwrap_or_else(|| nothing_of(hub))
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
) -> Vec<StageResult> {
    if spec.stages.is_empty() {
        return Vec::new();
    }
    let stages = spec.all_stages().into_iter().zip(&plan.stages);
    let stages = stages.zip(shares).zip(&forecast.stages);
    let stages = stages.map(|(((stage, plan), shares), forecast)| {
        let Stage {
            name, gate, ramp, ..
        } = stage;
        let sending = shares.estimate.sending;
        StageResult {
            stage: name,
            devices: plan.devices,
            batches: plan.batches,
            sending_seconds: sending.map(|time| time.as_secs_f64()),
            forecast: StageTimes::of(forecast),
            ramp: ramp.as_ref().map(Ramp::to_string),
            gate: gate.as_ref().map(gate::in_words),
        }
    });
    stages.collect()
}

async fn show_while<T>(
    planning: impl Future<Output = T>,
    progress: &PlanProgress,
    output: &Output,
) -> T {
    let mut shown = Progress::new(*output);
    let mut planning = std::pin::pin!(planning);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            result = &mut planning => {
                shown.finish();
                return result;
            }
            _ = ticks.tick() => shown.planning(progress.devices.load(std::sync::atomic::Ordering::Relaxed)),
        }
    }
}

impl PlanResult<'_> {
    fn text(&self, output: &Output) -> String {
        let plan = self.plan;
        let mut lines = vec![
            format!(
                "{}: {} devices in {} batches",
                output.paint(Style::Bold, self.rollout),
                thousands(plan.devices),
                thousands(u64::from(plan.batches))
            ),
            String::new(),
        ];
        let hubs = self.estimate.hubs.iter().map(|hub| {
            vec![
                hub.plan.hub.to_string(),
                thousands(hub.plan.devices),
                thousands(u64::from(hub.plan.batches)),
                hub.sends_per_minute.map_or("unlimited".into(), |rate| {
                    format!("{}/min", thousands(rate.round() as u64))
                }),
                hub.sending.map_or("-".into(), friendly),
                hub.days_of_quota()
                    .map_or("-".into(), |days| format!("{:.1}%", days * 100.0)),
            ]
        });
        lines.push(table(
            &[
                "hub",
                "devices",
                "batches",
                "pace",
                "takes",
                "of a day's quota",
            ],
            &hubs.collect::<Vec<_>>(),
        ));
        if !self.stages.is_empty() {
            lines.push(String::new());
            lines.push(self.stage_table());
        }
        lines.extend(self.limits());
        if self.groups.iter().any(|group| group.group != "all") {
            lines.push(String::new());
            let groups = self.groups.iter().map(|group| {
                vec![
                    group.hub.clone(),
                    group.group.clone(),
                    thousands(group.devices),
                    thousands(u64::from(group.batches)),
                ]
            });
            lines.push(table(
                &["hub", "group", "devices", "batches"],
                &groups.collect::<Vec<_>>(),
            ));
            if self.other_groups > 0 {
                lines.push(format!(
                    "  and {} devices in further groups",
                    thousands(self.other_groups)
                ));
            }
        }
        if !plan.excluded.is_empty() || plan.repeated > 0 {
            lines.push(String::new());
            lines.push("  Left out:".into());
            for excluded in &plan.excluded {
                let reason = excluded
                    .reason
                    .as_ref()
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default();
                lines.push(format!(
                    "  {:>9}  {}{reason}",
                    thousands(excluded.devices),
                    excluded.rule
                ));
            }
            if plan.repeated > 0 {
                lines.push(format!(
                    "  {:>9}  listed more than once",
                    thousands(plan.repeated)
                ));
            }
        }
        lines.push(String::new());
        lines.push(self.times());
        for overlapping in &self.overlaps {
            lines.push(format!("  {}", overlapping.in_words()));
        }
        for warning in &self.warnings {
            lines.push(output.paint(Style::Warn, &format!("  Warning: {warning}")));
        }
        lines.push(output.paint(Style::Dim, &format!("  plan digest {}", plan.digest)));
        lines.join("\n")
    }

    /// How long it takes, and when it is over.
    fn times(&self) -> String {
        let Forecast {
            ends_at,
            ends_at_latest,
            approvals,
            ..
        } = self.forecast;
        let sending = match self.estimate.sending {
            Some(sending) => format!("Sending takes {} at this pace. ", friendly(sending)),
            None => String::new(),
        };
        let over = to_the_second(*ends_at);
        let latest = if ends_at_latest > ends_at {
            let latest = to_the_second(*ends_at_latest);
            format!(", at {latest} when devices are silent")
        } else {
            String::new()
        };
        let approvals = match approvals {
            0 => "",
            _ => ", and later by what approvals take",
        };
        format!(
            "  {sending}Nothing was sent.\n  Begun now, it is over at {over}{latest}{approvals}."
        )
    }

    /// A line for each ramp and budget, after an empty one.
    fn limits(&self) -> Vec<String> {
        let whole = self.ramp.iter();
        let whole = whole.map(|ramp| format!("  Ramp: {ramp}"));
        let of_stage = |stage: &StageResult| {
            let ramp = stage.ramp.as_ref()?;
            Some(format!("  Ramp of stage {}: {ramp}", stage.stage))
        };
        let budget = |budget: &String| format!("  Budget: {budget}; not part of the times");
        let mut lines: Vec<_> = whole
            .chain(self.stages.iter().filter_map(of_stage))
            .chain(self.budgets.iter().map(budget))
            .collect();
        if !lines.is_empty() {
            lines.insert(0, String::new());
        }
        lines
    }

    fn stage_table(&self) -> String {
        let rows = self.stages.iter().map(|stage| {
            let time = stage.sending_seconds.map(Duration::from_secs_f64);
            vec![
                stage.stage.to_string(),
                thousands(stage.devices),
                thousands(u64::from(stage.batches)),
                time.map_or("-".into(), friendly),
                to_the_second(stage.forecast.starts_at).to_string(),
                to_the_second(stage.forecast.ends_at).to_string(),
                stage.gate.clone().unwrap_or_else(|| "-".into()),
            ]
        });
        table(
            &[
                "stage", "devices", "batches", "takes", "starts", "over", "gate",
            ],
            &rows.collect::<Vec<_>>(),
        )
    }
}

/// A time as people want it: the next whole second.
fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_ceil(1_000) * 1_000)
}
