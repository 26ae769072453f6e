//! `twincast plan`: a preview of a rollout; sends nothing.

use std::time::Duration;

use twincast_core::plan::{Forecast, PlanSummary};
use twincast_core::spec::Continuous;
use twincast_core::time::{Timestamp, friendly};
use twincast_orchestrator::planner::{self, PlanProgress, Planner};
use twincast_orchestrator::view::plan::{self, PlanView, PreviewError, StagePlanView};

use crate::args::PlanArgs;
use crate::client::Client;
use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::omissions;
use crate::output::{Output, Style, escape_line, message, table, thousands, with_noun};
use crate::overlapping_rollouts;
use crate::progress::Progress;
use crate::prometheus;
use crate::specfile::{self, SpecFile};

pub(crate) async fn plan(
    args: &PlanArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let file = specfile::read(&args.spec)?;
    let view = match Client::of_server(settings)? {
        Some(server) => {
            output.note("The server queries its hubs for all devices. The duration depends on the hubs' query quota.");
            server.plan(&file.self_contained()?).await?
        }
        None => plan_in_process(&file, settings, output).await?,
    };
    output.result(&view, &text(&view, output));
    Ok(ExitCode::Success)
}

/// Plans with the hubs configured in this process.
async fn plan_in_process(
    file: &SpecFile,
    settings: &Settings,
    output: &Output,
) -> Result<PlanView, Failure> {
    let hubs = engine::hubs_of(&file.spec, settings)?;
    if let Some(what) = prometheus::missing(&file.spec, settings) {
        output.note(&format!("Note: {what}: the rollout would be refused."));
    }
    engine::note_assumed_limits(&hubs, settings, output);
    let progress = PlanProgress::default();
    let planner = Planner {
        spec: &file.spec,
        hubs: &hubs,
        base: &file.base,
        progress: &progress,
        joiners: None,
    };
    let clock = engine::clock();
    let planned = plan::read(&planner, &*clock);
    let view = show_progress_during(planned, &planner, output).await;
    let mut view = view.map_err(preview_failure)?;
    view.overlaps = overlapping_rollouts::find(&file.spec, &view.hubs(), settings, output).await;
    Ok(view)
}

fn preview_failure(error: PreviewError) -> Failure {
    let hint = error.hint();
    let failure = match error {
        PreviewError::Plan(error) => engine::plan_failure(error),
        error => Failure::new(ExitCode::Refused, error),
    };
    engine::with_hint(failure, hint)
}

async fn show_progress_during<T>(
    planning: impl Future<Output = T>,
    planner: &Planner<'_>,
    output: &Output,
) -> T {
    let mut shown = Progress::new(output.clone());
    let mut planning = std::pin::pin!(planning);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            result = &mut planning => {
                shown.finish();
                return result;
            }
            _ = ticks.tick() => {
                let obstacle = planner::query_obstacle(planner.spec, planner.hubs);
                let obstacle = obstacle.map(|(hub, it)| format!("hub {hub}: {}", it.reason));
                let found = planner.progress.devices.load(std::sync::atomic::Ordering::Relaxed);
                shown.planning(found, obstacle.as_deref());
            }
        }
    }
}

fn text(view: &PlanView, output: &Output) -> String {
    let plan = &view.plan;
    let mut lines = vec![
        format!(
            "{}: {} in {}",
            output.paint(Style::Bold, &view.rollout),
            with_noun(plan.devices, "device", "devices"),
            with_noun(plan.batches.into(), "batch", "batches")
        ),
        format!("  message: {}", message(&view.message)),
        String::new(),
    ];
    lines.push(hub_table(view));
    if !view.stages.is_empty() {
        lines.push(String::new());
        lines.push(stage_table(&view.stages));
    }
    lines.extend(limit_lines(view));
    lines.extend(group_lines(view));
    lines.extend(omission_lines(plan));
    lines.push(String::new());
    lines.push(time_text(view));
    for overlapping in &view.overlaps {
        lines.push(format!("  {}", overlapping.describe()));
    }
    for warning in &view.warnings {
        lines.push(output.paint(Style::Warn, &format!("  Warning: {warning}")));
    }
    lines.push(output.paint(Style::Dim, &format!("  plan digest {}", plan.digest)));
    lines.join("\n")
}

fn hub_table(view: &PlanView) -> String {
    let hubs = view.estimate.hubs.iter().map(|hub| {
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
    table(
        &[
            "hub",
            "devices",
            "batches",
            "pace",
            "takes",
            "of a day's quota",
        ],
        &hubs.collect::<Vec<_>>(),
    )
}

fn group_lines(view: &PlanView) -> Vec<String> {
    let mut lines = Vec::new();
    if view.groups.iter().any(|group| group.group != "all") {
        lines.push(String::new());
        let groups = view.groups.iter().map(|group| {
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
        if view.other_groups > 0 {
            lines.push(format!(
                "  and {} devices in further groups",
                thousands(view.other_groups)
            ));
        }
    }
    lines
}

fn omission_lines(plan: &PlanSummary) -> Vec<String> {
    let mut lines = Vec::new();
    let omitted = omissions::lines(plan);
    if !plan.excluded.is_empty() || !omitted.is_empty() {
        lines.push(String::new());
        lines.push("  Left out:".into());
        for excluded in &plan.excluded {
            let reason = excluded
                .reason
                .as_ref()
                .map(|reason| format!(": {}", escape_line(reason)))
                .unwrap_or_default();
            lines.push(format!(
                "  {:>9}  {}{reason}",
                thousands(excluded.devices),
                escape_line(&excluded.rule.to_string())
            ));
        }
        lines.extend(omitted.iter().map(|line| format!("  {line}")));
    }
    lines
}

/// Describes the duration and the end of a rollout.
fn time_text(view: &PlanView) -> String {
    let Forecast {
        from,
        stages,
        ends_at,
        ends_at_latest,
        approvals,
    } = &view.forecast;
    let sending = match view.estimate.sending {
        Some(sending) => format!("Sending takes {} at this pace. ", friendly(sending)),
        None => String::new(),
    };
    let starts_at = stages.iter().map(|stage| stage.starts_at).min();
    let first = match starts_at.filter(|starts_at| starts_at > from) {
        Some(starts_at) => format!(
            "sends its first message at {}, and ends",
            to_the_second(starts_at)
        ),
        None => "ends".to_owned(),
    };
    let over = to_the_second(*ends_at);
    let latest = if ends_at_latest > ends_at {
        let latest = to_the_second(*ends_at_latest);
        format!(", or at {latest} if devices are silent")
    } else {
        String::new()
    };
    let approvals = match approvals {
        0 => "",
        _ => ", plus the time for approvals",
    };
    let scan_text = scan_text(view);
    format!(
        "  {sending}Nothing was sent.\n  Started now, the rollout {first} at \
         {over}{latest}{approvals}.{scan_text}"
    )
}

/// Describes the scans of a continuous rollout after the planned part.
fn scan_text(view: &PlanView) -> String {
    let Some(Continuous { every, until }) = &view.continuous else {
        return String::new();
    };
    let until = match until {
        Some(until) => format!("until {until}"),
        None => "until the rollout is aborted".to_owned(),
    };
    format!("\n  Afterwards, the rollout scans for late joiners every {every}, {until}.")
}

/// Returns a line per ramp and budget, after an empty line.
fn limit_lines(view: &PlanView) -> Vec<String> {
    let whole = view.ramp.iter();
    let whole = whole.map(|ramp| format!("  Ramp: {ramp}"));
    let of_stage = |stage: &StagePlanView| {
        let ramp = stage.ramp.as_ref()?;
        Some(format!("  Ramp of stage {}: {ramp}", stage.forecast.name))
    };
    let budget = |budget: &String| format!("  Budget: {budget}; not included in the times");
    let mut lines: Vec<_> = whole
        .chain(view.stages.iter().filter_map(of_stage))
        .chain(view.budgets.iter().map(budget))
        .collect();
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

fn stage_table(stages: &[StagePlanView]) -> String {
    let rows = stages.iter().map(|stage| {
        let time = stage.sending_seconds.map(Duration::from_secs_f64);
        vec![
            stage.forecast.name.to_string(),
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
            "stage", "devices", "batches", "takes", "starts", "ends", "gate",
        ],
        &rows.collect::<Vec<_>>(),
    )
}

/// Rounds a time up to the next second.
fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_ceil(1_000) * 1_000)
}
