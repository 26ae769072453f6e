//! `twincast plan`: what would happen, nothing sent.

use std::time::Duration;

use twincast_core::plan::{Forecast, PlanSummary};
use twincast_core::spec::Continuous;
use twincast_core::time::{Timestamp, friendly};
use twincast_orchestrator::planner::{self, PlanProgress, Planner};
use twincast_orchestrator::view::plan::{self, PlanView, StagePlanView, Unplanned};

use crate::args::PlanArgs;
use crate::client::Client;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::left_out;
use crate::output::{Output, Style, counted, message, one_line, table, thousands};
use crate::overlaps;
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
            output.note("The server asks its hubs for all devices, which takes as long as their quota for queries says.");
            server.plan(&file.self_contained()?).await?
        }
        None => here(&file, settings, output).await?,
    };
    output.result(&view, &text(&view, output));
    Ok(ExitCode::Success)
}

/// Plans with the hubs that are configured here.
async fn here(file: &SpecFile, settings: &Settings, output: &Output) -> Result<PlanView, Failure> {
    let hubs = engine::hubs_of(&file.spec, settings)?;
    if let Some(what) = prometheus::missing(&file.spec, settings) {
        output.note(&format!("Note: {what}: it would be refused."));
    }
    engine::note_guesses(&hubs, settings, output);
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
    let view = show_while(planned, &planner, output).await;
    let mut view = view.map_err(unplanned)?;
    view.overlaps = overlaps::find(&file.spec, &view.hubs(), settings, output).await;
    Ok(view)
}

fn unplanned(error: Unplanned) -> Failure {
    let hint = error.hint();
    let failure = match error {
        Unplanned::Plan(error) => engine::plan_failure(error),
        error => Failure::new(ExitCode::Refused, error),
    };
    engine::with_hint(failure, hint)
}

async fn show_while<T>(
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
                let trouble = planner::hindrance(planner.spec, planner.hubs);
                let trouble = trouble.map(|(hub, it)| format!("hub {hub}: {}", it.reason));
                let found = planner.progress.devices.load(std::sync::atomic::Ordering::Relaxed);
                shown.planning(found, trouble.as_deref());
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
            counted(plan.devices, "device", "devices"),
            counted(plan.batches.into(), "batch", "batches")
        ),
        format!("  message: {}", message(&view.message)),
        String::new(),
    ];
    lines.push(hub_table(view));
    if !view.stages.is_empty() {
        lines.push(String::new());
        lines.push(stage_table(&view.stages));
    }
    lines.extend(limits(view));
    lines.extend(group_lines(view));
    lines.extend(left_out_lines(plan));
    lines.push(String::new());
    lines.push(times(view));
    for overlapping in &view.overlaps {
        lines.push(format!("  {}", overlapping.in_words()));
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

fn left_out_lines(plan: &PlanSummary) -> Vec<String> {
    let mut lines = Vec::new();
    let left_out = left_out::lines(plan);
    if !plan.excluded.is_empty() || !left_out.is_empty() {
        lines.push(String::new());
        lines.push("  Left out:".into());
        for excluded in &plan.excluded {
            let reason = excluded
                .reason
                .as_ref()
                .map(|reason| format!(": {}", one_line(reason)))
                .unwrap_or_default();
            lines.push(format!(
                "  {:>9}  {}{reason}",
                thousands(excluded.devices),
                one_line(&excluded.rule.to_string())
            ));
        }
        lines.extend(left_out.iter().map(|line| format!("  {line}")));
    }
    lines
}

/// How long it takes, and when it is over.
fn times(view: &PlanView) -> String {
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
            "sends its first message at {}, and is",
            to_the_second(starts_at)
        ),
        None => "is".to_owned(),
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
    let looks = looks(view);
    format!(
        "  {sending}Nothing was sent.\n  Begun now, it {first} over at {over}{latest}{approvals}.{looks}"
    )
}

/// How it goes on when all that is planned is over.
fn looks(view: &PlanView) -> String {
    let Some(Continuous { every, until }) = &view.continuous else {
        return String::new();
    };
    let until = match until {
        Some(until) => format!("until {until}"),
        None => "until it is aborted".to_owned(),
    };
    format!("\n  Then it goes on with devices that join: looked for every {every}, {until}.")
}

/// A line for each ramp and budget, after an empty one.
fn limits(view: &PlanView) -> Vec<String> {
    let whole = view.ramp.iter();
    let whole = whole.map(|ramp| format!("  Ramp: {ramp}"));
    let of_stage = |stage: &StagePlanView| {
        let ramp = stage.ramp.as_ref()?;
        Some(format!("  Ramp of stage {}: {ramp}", stage.forecast.name))
    };
    let budget = |budget: &String| format!("  Budget: {budget}; not part of the times");
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
            "stage", "devices", "batches", "takes", "starts", "over", "gate",
        ],
        &rows.collect::<Vec<_>>(),
    )
}

/// A time as people want it: the next whole second.
fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_ceil(1_000) * 1_000)
}
