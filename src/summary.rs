//! A rollout in full as text: the state, outcomes by tag group, and failures with reasons.

use std::time::Duration;

use serde::Serialize;
use twincast_core::budget::FullGroup;
use twincast_core::outcome::{Outcome, OutcomeClass};
use twincast_core::plan::PlanSummary;
use twincast_core::ports::{Clock as _, Store, StoreError};
use twincast_core::rollout::Rollout;
use twincast_core::time::friendly;
use twincast_embedded::SystemClock;
use twincast_orchestrator::command::RolloutState;
use twincast_orchestrator::view::outcomes::{self, BudgetView, Outcomes};
use twincast_orchestrator::view::{RampView, RolloutView};

use crate::omissions;
use crate::output::{Output, Style, escape_line, table, thousands, with_noun};
use crate::stages;
use crate::time_account;

/// A rollout in full, with the outcomes of the devices.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    #[serde(flatten)]
    pub(crate) rollout: RolloutView,
    #[serde(flatten)]
    pub(crate) outcomes: Outcomes,
}

/// Reads a summary from a store.
pub(crate) async fn read(store: &dyn Store, rollout: &Rollout) -> Result<Summary, StoreError> {
    let tallies = store.tallies(&rollout.spec.name).await?;
    let now = SystemClock::start().now();
    Ok(Summary {
        rollout: RolloutView::of(rollout, &tallies, now),
        outcomes: outcomes::read(store, rollout).await?,
    })
}

/// Describes the state of a rollout, and the devices by class.
pub(crate) fn headline(state: &RolloutState, output: &Output) -> String {
    let style = match &*state.phase {
        "succeeded" => Style::Good,
        "aborted" | "failed" => Style::Bad,
        _ => Style::Warn,
    };
    let mut word = state.phase.replace('_', " ");
    if let Some(reason) = &state.reason {
        // Before planning, the reason is the awaited condition.
        let mark = if word == "accepted" { "," } else { ":" };
        word.push_str(&format!("{mark} {reason}"));
    }
    let mut head = format!("{} {}", state.name, output.paint(style, &word));
    if state.by_class.total() > 0 {
        head.push_str(&format!(": {}", state.by_class.headline()));
    }
    head
}

impl Summary {
    /// Returns the summary as text. `took` is the working time of this process.
    pub(crate) fn text(&self, output: &Output, took: Option<Duration>) -> String {
        let mut lines = Vec::new();
        let state = &self.rollout.row.state;
        let took = took.map(|took| format!("; took {}", friendly(took)));
        let head = headline(state, output) + &took.unwrap_or_default();
        lines.push(head);
        if let Some(ramp) = &self.rollout.ramp {
            lines.push(format!("  {}", describe_ramp(ramp)));
        }
        if let Some(retry) = &self.rollout.retry {
            let when = match &*state.phase {
                "running" => "",
                _ => " when the rollout continues",
            };
            let retry = escape_line(&retry.to_string());
            lines.push(format!("  To be retried{when}: {retry}"));
        }
        if let Some(budgets) = &self.outcomes.budgets {
            lines.push(format!("  {}", describe_budgets(budgets)));
        }
        lines.extend(self.unknown_zones());
        let plan = self.plan();
        let omitted = plan.as_ref().map(omissions::lines).unwrap_or_default();
        if !omitted.is_empty() {
            lines.push("  Left out of the plan:".to_owned());
            lines.extend(omitted.iter().map(|line| format!("  {line}")));
        }
        // A spec without stages has a single, implicit stage.
        if let stages @ [_, _, ..] = &*self.rollout.stages {
            lines.push(String::new());
            lines.push(stages::as_table(stages));
        } else if let Some(waits) = &self.rollout.row.waits_for
            && state.reason.is_none()
        {
            lines.push(format!("  Waits for {}", escape_line(&waits.to_string())));
        }
        lines.extend(self.answers());
        if let Some(found) = self.rollout.devices_found.filter(|found| *found > 0) {
            lines.push(format!("  Devices found so far: {}", thousands(found)));
        }
        if !self.outcomes.groups.is_empty() {
            lines.push(String::new());
            lines.push(self.groups_table());
            if self.outcomes.other_groups > 0 {
                lines.push(format!(
                    "  and {} in further groups",
                    with_noun(self.outcomes.other_groups, "device", "devices")
                ));
            }
        }
        self.list_failures("Not sent:", OutcomeClass::NotSent, output, &mut lines);
        self.list_failures("Not taken:", OutcomeClass::NotTaken, output, &mut lines);
        self.list_failures("Not applied:", OutcomeClass::NotApplied, output, &mut lines);
        lines.extend(self.skipped());
        let times = time_account::as_table(&self.rollout.time_seconds);
        if !times.is_empty() {
            lines.extend([String::new(), times]);
        }
        lines.join("\n")
    }

    /// Describes the devices' answers so far. After the end of the rollout, the outcomes contain
    /// the answers.
    fn answers(&self) -> Option<String> {
        if self.rollout.row.state.is_ended() {
            return None;
        }
        stages::answers(&self.rollout.stages).map(|words| format!("  Answers so far: {words}"))
    }

    fn plan(&self) -> Option<PlanSummary> {
        plan_of(&self.rollout)
    }

    fn unknown_zones(&self) -> Option<String> {
        let unknown = self.plan()?.unknown_zones;
        let devices = with_noun(unknown.devices, "device", "devices");
        let skips = self.rollout.spec.to_value()["schedule"]["unknown_zone"] == "skip";
        let what = if skips {
            "left out"
        } else {
            "the schedule's own zone applies"
        };
        (!unknown.is_empty()).then(|| {
            format!(
                "  {devices} with an unknown zone ({}): {what}",
                escape_line(&unknown.to_string())
            )
        })
    }

    /// Lists the devices of a failed class, by reason.
    fn list_failures(
        &self,
        heading: &str,
        class: OutcomeClass,
        output: &Output,
        lines: &mut Vec<String>,
    ) {
        let failures = self.outcomes.failures.iter();
        let mut failures = failures.filter(|failure| failure.class == class).peekable();
        if failures.peek().is_some() {
            lines.extend([String::new(), format!("  {heading}")]);
        }
        lines.extend(failures.map(|failure| {
            let more = if failure.devices > failure.samples.len() as u64 {
                ", ..."
            } else {
                ""
            };
            let samples = format!("({}{more})", failure.samples.join(", "));
            format!(
                "  {:>9}  {}  {}",
                thousands(failure.devices),
                escape_line(&failure.reason),
                output.paint(Style::Dim, &samples)
            )
        }));
    }

    /// Describes the reason for skipped devices, if any.
    fn skipped(&self) -> Option<String> {
        let state = &self.rollout.row.state;
        let reason = state.reason.as_deref();
        let aborted = reason.filter(|_| matches!(&*state.phase, "aborting" | "aborted"));
        let why = outcomes::reason_in(aborted, Outcome::Skipped, 0);
        let devices = thousands(state.by_class.skipped);
        (state.by_class.skipped > 0)
            .then(|| format!("\n  Skipped:\n  {devices:>9}  {}", escape_line(&why)))
    }

    fn groups_table(&self) -> String {
        let groups = &self.outcomes.groups;
        let several_hubs = groups.iter().any(|group| group.hub != groups[0].hub);
        let classes = stages::classes(groups.iter().map(|group| &group.by_class));
        let mut headings = if several_hubs {
            vec!["hub", "group"]
        } else {
            vec!["group"]
        };
        headings.extend(stages::heads(&classes));
        let rows: Vec<_> = groups
            .iter()
            .map(|group| {
                let mut row = if several_hubs {
                    vec![group.hub.clone()]
                } else {
                    vec![]
                };
                row.push(group.group.clone());
                row.extend(stages::cells(&group.by_class, &classes));
                row
            })
            .collect();
        table(&headings, &rows)
    }
}

/// Returns the summary of a complete plan.
pub(crate) fn plan_of(rollout: &RolloutView) -> Option<PlanSummary> {
    serde_json::from_value(rollout.plan.clone()?).ok()
}

fn describe_ramp(ramp: &RampView) -> String {
    let (rate, counted, of) = (ramp.rate_per_minute, thousands(ramp.counted), ramp.of);
    let now = format!("ramp: {rate}/min per hub with {counted} {of}");
    match &ramp.next {
        Some(next) => {
            let (rate, counted) = (next.rate_per_minute, thousands(next.counted));
            format!("{now}, {rate}/min from {counted} on")
        }
        None => format!("{now}, the maximum"),
    }
}

fn describe_budgets(budgets: &BudgetView) -> String {
    if budgets.full.is_empty() {
        return "budgets: no batch is held back".to_owned();
    }
    let full = budgets.full.iter().map(|full| {
        let FullGroup {
            group,
            in_progress,
            at_most,
        } = full;
        let group = escape_line(&group.to_string());
        format!("{group} ({in_progress} of {at_most} in progress)")
    });
    let full = full.collect::<Vec<_>>().join(", ");
    let held_back = with_noun(budgets.held_back as u64, "batch waits", "batches wait");
    let more = match budgets.other_full {
        0 => String::new(),
        others => format!(" and {} more", thousands(others as u64)),
    };
    format!("budgets: {held_back} for {full}{more}")
}
