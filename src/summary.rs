//! What became of a rollout: outcomes by tag group, and failures with their reasons.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use twincast_core::account::TimeSpent;
use twincast_core::ids::RolloutName;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Clock as _, Store, StoreError};
use twincast_core::rollout::{Phase, Retry, Rollout};
use twincast_core::time::{Timestamp, friendly};
use twincast_embedded::SystemClock;

use crate::budgets::BudgetSummary;
use crate::output::{Output, Style, table, thousands};
use crate::ramp::RampSummary;
use crate::stages::{self, StageSummary};
use crate::times;

/// How many tag groups a summary lists; the rest is one line.
const GROUPS: usize = 20;
/// How many device ids a reason shows.
const SAMPLES: usize = 3;

/// A rollout's summary.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) rollout: RolloutName,
    #[serde(flatten)]
    pub(crate) phase: Phase,
    /// What it waits for before it is planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits_for: Option<String>,
    pub(crate) devices: u64,
    pub(crate) counts: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ramp: Option<RampSummary>,
    /// What is to be sent to again, and is not yet ready for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<Retry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budgets: Option<BudgetSummary>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stages: Vec<StageSummary>,
    pub(crate) groups: Vec<GroupSummary>,
    pub(crate) other_groups: u64,
    pub(crate) failures: Vec<FailureSummary>,
    pub(crate) plan_digest: Option<String>,
    /// For how many seconds it did what.
    pub(crate) time_seconds: TimeSpent,
}

#[derive(Debug, Serialize)]
pub(crate) struct GroupSummary {
    pub(crate) hub: String,
    pub(crate) group: String,
    pub(crate) counts: Counts,
}

#[derive(Debug, Serialize)]
pub(crate) struct FailureSummary {
    pub(crate) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<u32>,
    pub(crate) reason: String,
    pub(crate) devices: u64,
    pub(crate) samples: Vec<String>,
}

/// Reads a summary from the store: the counts of all batches, and the failed devices of those
/// that have some.
pub(crate) async fn read(store: &dyn Store, rollout: &Rollout) -> Result<Summary, StoreError> {
    let name = &rollout.spec.name;
    let mut counts = Counts::default();
    let mut groups: BTreeMap<(String, String), Counts> = BTreeMap::new();
    let mut other_groups = 0;
    let mut failures: BTreeMap<(Outcome, u32), (u64, Vec<String>)> = BTreeMap::new();
    let mut after = None;
    loop {
        let page = store.batches(name, after, 256).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.header.id);
        for batch in page {
            counts.add(&batch.counts);
            let key = (batch.header.hub.to_string(), batch.header.group.to_string());
            if groups.len() < GROUPS || groups.contains_key(&key) {
                groups.entry(key).or_default().add(&batch.counts);
            } else {
                other_groups += batch.counts.total();
            }
            if batch.counts.failed() > 0 {
                collect_failures(store, name, batch.header.id, &mut failures).await?;
            }
        }
    }
    let groups = groups
        .into_iter()
        .map(|((hub, group), counts)| GroupSummary { hub, group, counts })
        .collect();
    let failures = failures
        .into_iter()
        .map(|((outcome, code), (devices, samples))| FailureSummary {
            outcome,
            code: (code != 0).then_some(code),
            reason: reason(outcome, code),
            devices,
            samples,
        });
    let tallies = store.tallies(name).await?;
    let mut failures: Vec<_> = failures.collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.devices));
    Ok(Summary {
        rollout: name.clone(),
        phase: rollout.phase.clone(),
        waits_for: rollout.waits_in_line(),
        devices: counts.total(),
        counts,
        ramp: RampSummary::of(rollout, &tallies),
        retry: rollout.retry.clone(),
        budgets: BudgetSummary::read(store, rollout, &tallies).await?,
        stages: stages::of(rollout, &tallies),
        groups,
        other_groups,
        failures,
        plan_digest: rollout.plan.as_ref().map(|plan| plan.digest.clone()),
        time_seconds: rollout.time_spent(SystemClock::start().now()),
    })
}

async fn collect_failures(
    store: &dyn Store,
    name: &RolloutName,
    batch: twincast_core::ids::BatchId,
    failures: &mut BTreeMap<(Outcome, u32), (u64, Vec<String>)>,
) -> Result<(), StoreError> {
    let work = store.load(name, batch).await?;
    for device in work.devices() {
        if device.outcome.is_failure() {
            let of = (device.outcome, device.code.unwrap_or(0));
            let (devices, samples) = failures.entry(of).or_default();
            *devices += 1;
            if samples.len() < SAMPLES {
                samples.push(device.id.to_owned());
            }
        }
    }
    Ok(())
}

/// An outcome in words that say what to do about it.
pub(crate) fn reason(outcome: Outcome, code: u32) -> String {
    let text = match outcome {
        Outcome::Unknown => "no answer from the hub: the device may have the message or not",
        Outcome::NotFound => "the hub does not know the device, or has it disabled",
        Outcome::QueueFull => {
            "50 messages are waiting for the device already: it is away, or does not take them"
        }
        Outcome::Refused => match code {
            403_012 => "the device is disabled",
            413_001 => "the message is too large",
            _ => "the hub refused the message",
        },
        Outcome::Expired => "the device was away until the message's time was over",
        Outcome::Rejected => "the device rejected the message",
        Outcome::Undeliverable => "the device was handed the message too often without taking it",
        Outcome::Purged => "the device's queue was purged",
        Outcome::Skipped => "the rollout was aborted first",
        Outcome::Pending | Outcome::Attempting => "not sent yet",
        Outcome::Enqueued => "the hub has the message for the device",
        Outcome::Delivered => "the device took the message",
        Outcome::Applied => "the device reports the change",
    };
    if code == 0 {
        text.to_owned()
    } else {
        format!("{text} ({code})")
    }
}

/// The same of a device of one rollout: why it was skipped is why the rollout was aborted, say superseded.
pub(crate) fn reason_in(phase: &Phase, outcome: Outcome, code: u32) -> String {
    match phase.reason() {
        Some(why) if outcome == Outcome::Skipped => format!("the rollout was aborted: {why}"),
        _ => reason(outcome, code),
    }
}

/// A summary with the times of its rollout.
#[derive(Debug, Serialize)]
pub(crate) struct Dated {
    #[serde(flatten)]
    summary: Summary,
    created_at: Timestamp,
    changed_at: Timestamp,
}

impl Summary {
    /// The summary with the times of its rollout: when it was accepted, and when its phase last
    /// changed.
    pub(crate) fn dated(self, rollout: &Rollout) -> Dated {
        Dated {
            summary: self,
            created_at: rollout.created_at,
            changed_at: rollout.changed_at,
        }
    }

    /// The summary for people. `took`: since when this process worked on it.
    pub(crate) fn text(&self, output: &Output, took: Option<Duration>) -> String {
        let mut lines = Vec::new();
        let (style, word) = match &self.phase {
            Phase::Succeeded => (Style::Good, "succeeded".to_owned()),
            Phase::FinishedWithFailures => (Style::Warn, "finished with failures".to_owned()),
            Phase::Aborted { reason } => (Style::Bad, format!("aborted: {reason}")),
            Phase::Failed { reason } => (Style::Bad, format!("failed: {reason}")),
            Phase::Paused { reason } => (Style::Warn, format!("paused: {reason}")),
            phase if self.waits_for.is_some() => {
                let waits = self.waits_for.as_deref().unwrap_or_default();
                (Style::Warn, format!("{}, {waits}", phase.as_str()))
            }
            phase => (Style::Warn, phase.as_str().to_owned()),
        };
        let took = took
            .map(|took| format!(" in {}", friendly(took)))
            .unwrap_or_default();
        let sent = self.counts.sum_of(Outcome::was_enqueued);
        lines.push(format!(
            "{} {}: {} of {} devices sent{took}",
            self.rollout,
            output.paint(style, &word),
            thousands(sent),
            thousands(self.devices)
        ));
        if let Some(ramp) = &self.ramp {
            lines.push(format!("  {ramp}"));
        }
        if let Some(retry) = &self.retry {
            let when = match self.phase {
                Phase::Running => "",
                _ => " when it goes on",
            };
            lines.push(format!("  To be retried{when}: {retry}"));
        }
        if let Some(budgets) = &self.budgets {
            lines.push(format!("  {budgets}"));
        }
        if !self.stages.is_empty() {
            lines.push(String::new());
            lines.push(stages::as_table(&self.stages));
        }
        if !self.groups.is_empty() {
            lines.push(String::new());
            lines.push(self.groups_table());
            if self.other_groups > 0 {
                lines.push(format!(
                    "  and {} devices in further groups",
                    thousands(self.other_groups)
                ));
            }
        }
        self.list_failures("Not sent:", false, output, &mut lines);
        self.list_failures("Sent, and not taken:", true, output, &mut lines);
        let times = times::as_table(&self.time_seconds);
        if !times.is_empty() {
            lines.extend([String::new(), times]);
        }
        lines.join("\n")
    }

    /// The failures of devices that the hub has taken the message for, or of the others.
    fn list_failures(
        &self,
        heading: &str,
        was_sent: bool,
        output: &Output,
        lines: &mut Vec<String>,
    ) {
        let failures = self.failures.iter();
        let mut failures = failures
            .filter(|failure| failure.outcome.was_enqueued() == was_sent)
            .peekable();
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
                failure.reason,
                output.paint(Style::Dim, &samples)
            )
        }));
    }

    fn groups_table(&self) -> String {
        let several_hubs = self
            .groups
            .iter()
            .any(|group| group.hub != self.groups[0].hub);
        let outcomes: Vec<Outcome> = self.counts.iter().map(|(outcome, _)| outcome).collect();
        let mut headings = if several_hubs {
            vec!["hub", "group", "devices"]
        } else {
            vec!["group", "devices"]
        };
        headings.extend(outcomes.iter().map(|outcome| outcome.as_str()));
        let rows: Vec<_> = self
            .groups
            .iter()
            .map(|group| {
                let mut row = if several_hubs {
                    vec![group.hub.clone()]
                } else {
                    vec![]
                };
                row.push(group.group.clone());
                row.push(thousands(group.counts.total()));
                row.extend(
                    outcomes
                        .iter()
                        .map(|outcome| thousands(group.counts.get(*outcome))),
                );
                row
            })
            .collect();
        table(&headings, &rows)
    }
}
