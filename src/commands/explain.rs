//! `twincast explain`: a device's position in a rollout, with the reason and the awaited condition.

use twincast_core::ids::DeviceId;
use twincast_orchestrator::view::explain::{AttemptView, DevicePlace, Explanation, Times};

use crate::args::ExplainArgs;
use crate::client::Client;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, Style, escape_line, phase_predicate, thousands};

pub(crate) async fn explain(
    args: &ExplainArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let device = DeviceId::new(args.device.as_str());
    let device = device.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let client = Client::for_reading(settings).await?;
    let explained = client.explain(&args.rollout, &device).await;
    client.close().await;
    let explanation = explained?;
    output.result(&explanation, &text(&explanation, output));
    Ok(ExitCode::Success)
}

fn text(explanation: &Explanation, output: &Output) -> String {
    let mut phase = phase_predicate(&explanation.phase);
    if let Some(reason) = &explanation.reason {
        phase = format!("{phase}: {}", escape_line(reason));
    }
    let device = output.paint(Style::Bold, &explanation.device);
    let head = format!("{device} in {}, which {phase}", explanation.rollout);
    let mut lines = vec![head];
    for place in &explanation.places {
        lines.push(String::new());
        lines.extend(lines_of(place));
    }
    lines.join("\n")
}

fn lines_of(place: &DevicePlace) -> Vec<String> {
    let stage = &place.stage;
    let entry = match place.entries {
        1 => String::new(),
        entries => format!(", entry {} of {entries}", place.entry),
    };
    let mut lines = vec![
        line("hub", format_args!("{}{entry}", place.hub)),
        line(
            "stage",
            format_args!(
                "{} ({} of {}): {}",
                stage.name, stage.number, stage.of, stage.reason
            ),
        ),
    ];
    let passed = stage.passed_over.iter();
    lines.extend(passed.map(|it| line("", format_args!("not {}: {}", it.stage, it.reason))));
    lines.push(line(
        "batch",
        format_args!(
            "{}, device {} of {}; {}",
            place.batch,
            thousands(u64::from(place.index) + 1),
            thousands(place.batch_devices.into()),
            place.group
        ),
    ));
    lines.push(line(
        "outcome",
        format_args!("{}: {}", place.outcome, place.reason),
    ));
    lines.push(line("class", place.class.describe()));
    let attempts = place.attempts.iter();
    lines.extend(attempts.map(|it| line("attempt", describe(it))));
    let waits = place.waits_for.as_deref().unwrap_or("nothing");
    lines.push(line("waits for", waits));
    lines.extend(times(&place.times, &stage.name));
    lines
}

fn describe(tried: &AttemptView) -> String {
    let text = format!("{}, message id {}", tried.attempt, tried.message_id);
    let Some(request) = &tried.request else {
        return text;
    };
    let outcomes = request.outcomes.iter().map(|outcome| outcome.as_str());
    format!(
        "{text}, if the device was {} at {}; requested by {}",
        outcomes.collect::<Vec<_>>().join(" or "),
        request.requested_at,
        request.attribution
    )
}

fn times(known: &Times, stage: &str) -> Vec<String> {
    let times = [
        ("accepted".to_owned(), Some(known.accepted_at)),
        ("planned".to_owned(), known.planned_at),
        (format!("stage {stage} started"), known.stage_started_at),
        (format!("stage {stage} sent"), known.stage_sent_at),
        (format!("stage {stage} passed"), known.stage_passed_at),
    ];
    let times = times
        .into_iter()
        .filter_map(|(what, at)| Some(format!("{} {what}", at?)));
    let mut headings = ["times"].into_iter();
    times
        .map(|text| line(headings.next().unwrap_or(""), text))
        .collect()
}

fn line(heading: &str, text: impl std::fmt::Display) -> String {
    format!("  {heading:<10} {}", escape_line(&text.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn several_entries_of_a_hub_are_numbered() {
        let hub = |entry: usize, entries: usize| {
            let place = json!({
                "hub": "eu", "entry": entry, "entries": entries, "group": "all", "batch": 0, "index": 0,
                "batch_devices": 1, "outcome": "pending", "class": "pending", "reason": "not sent yet", "attempts": [],
                "stage": { "name": "late", "number": 2, "of": 2, "reason": "so", "passed_over": [] },
                "times": { "accepted_at": "2026-09-21T14:00:00Z" },
            });
            lines_of(&serde_json::from_value(place).expect("a place")).swap_remove(0)
        };
        assert_eq!(hub(1, 1), "  hub        eu");
        assert_eq!(hub(2, 3), "  hub        eu, entry 2 of 3");
    }
}
