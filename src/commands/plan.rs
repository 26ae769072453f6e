//! `twincast plan`: what would happen, nothing sent.

use std::collections::BTreeMap;

use serde::Serialize;
use twincast_core::hub::HubLimits;
use twincast_core::plan::{Estimate, PlanSummary, estimate};
use twincast_core::time::friendly;
use twincast_orchestrator::planner::{PlanProgress, Planner, dry_run};

use crate::args::PlanArgs;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, table, thousands};
use crate::progress::Progress;
use crate::specfile;

/// How many tag groups are listed; the rest is one line.
const GROUPS: usize = 20;

#[derive(Debug, Serialize)]
struct PlanResult<'a> {
    rollout: &'a str,
    plan: &'a PlanSummary,
    groups: Vec<GroupPlan>,
    other_groups: u64,
    estimate: &'a Estimate,
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
    engine::note_guesses(&hubs, settings, output);
    let content = file.spec.message.content().map_err(anyhow::Error::new)?;
    let progress = PlanProgress::default();
    let planner = Planner {
        spec: &file.spec,
        hubs: &hubs,
        base: &file.base,
        progress: &progress,
    };
    let mut groups: BTreeMap<(String, String), (u64, u32)> = BTreeMap::new();
    let mut other_groups = 0u64;
    let planned = dry_run(&planner, |header| {
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
    let estimate = estimate(&summary.hubs, limits, file.spec.rate, content.size());
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
        groups,
        other_groups,
        estimate: &estimate,
    };
    output.result(&result, &result.text(output));
    Ok(ExitCode::Success)
}

async fn show_while<T>(
    planning: impl Future<Output = T>,
    progress: &PlanProgress,
    output: &Output,
) -> T {
    let mut shown = Progress::new(*output);
    let mut planning = std::pin::pin!(planning);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
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
        if let Some(sending) = self.estimate.sending {
            lines.push(String::new());
            lines.push(format!(
                "  Sending takes {} at this pace. Nothing was sent.",
                friendly(sending)
            ));
        }
        lines.push(output.paint(Style::Dim, &format!("  plan digest {}", plan.digest)));
        lines.join("\n")
    }
}
