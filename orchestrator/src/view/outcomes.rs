//! The outcomes of a rollout's devices: by tag group, and failures with their reasons.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twincast_core::answer::{DeviceError, ERROR_NOT_STORED};
use twincast_core::batch::{BatchStatus, budget_groups, with_room};
use twincast_core::budget::FullGroup;
use twincast_core::outcome::{ClassCounts, Counts, Outcome, OutcomeClass};
use twincast_core::plan::{BatchHeader, TagGroup};
use twincast_core::ports::{BatchWork, Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};
use utoipa::ToSchema;

/// The most tag groups listed. The rest is summed up.
const MAX_GROUPS: usize = 20;
/// The number of example device ids per reason.
const MAX_SAMPLES: usize = 3;
/// The most open batches per hub checked against the budgets.
const MAX_CHECKED_BATCHES: usize = 1_024;
/// The most full groups named. The rest is counted.
const MAX_NAMED_GROUPS: usize = 5;

/// The outcomes of a rollout's devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outcomes {
    /// The effect of the budgets, if the rollout has budgets and runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<BudgetView>,
    /// Devices by hub and tag group, at most 20 groups.
    pub groups: Vec<GroupView>,
    /// The number of devices in further groups.
    pub other_groups: u64,
    /// The reasons for failures, the most frequent first.
    pub failures: Vec<FailureView>,
}

/// The devices of a tag group on one hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// The hub.
    pub hub: String,
    /// The tags shared by the devices, as text.
    pub group: String,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub by_class: ClassCounts,
}

/// Devices that failed for the same reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailureView {
    /// The outcome of the devices.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The outcome's class: `not_sent`, `not_taken` or `not_applied`.
    #[schema(value_type = String)]
    pub class: OutcomeClass,
    /// The hub's code, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The devices' error, if the devices could not fulfil the message's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// The meaning of the outcome.
    pub reason: String,
    /// The number of devices.
    pub devices: u64,
    /// The ids of some devices.
    pub samples: Vec<String>,
}

/// The reason given by a device that could not fulfil the message's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// The code, for programs. May be empty.
    pub code: String,
    /// The text, for people. May be empty.
    pub text: String,
}

impl ErrorView {
    /// Returns the error of a device with this outcome and code; `None` for outcomes besides
    /// `failed`.
    pub(super) fn of(rollout: &Rollout, outcome: Outcome, code: Option<u32>) -> Option<Self> {
        let code = code.filter(|_| outcome == Outcome::Failed)?;
        let error = rollout.notes.answers.error(code);
        Some(match error.cloned() {
            Some(DeviceError { code, text }) => Self { code, text },
            None => Self {
                code: String::new(),
                text: ERROR_NOT_STORED.to_owned(),
            },
        })
    }
}

impl std::fmt::Display for ErrorView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        DeviceError::new(&self.code, &self.text).fmt(f)
    }
}

/// The present effect of the budgets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetView {
    /// The number of batches without room in a budget, among the first batches to be sent.
    pub held_back: usize,
    /// The first of the full groups.
    #[schema(value_type = Vec<Object>)]
    pub full: Vec<FullGroup>,
    /// The number of further full groups.
    pub other_full: usize,
}

/// Reads a rollout's batches: the counts of all batches, and the devices of batches with failures.
///
/// # Errors
/// [`StoreError`].
pub async fn read(store: &dyn Store, rollout: &Rollout) -> Result<Outcomes, StoreError> {
    let name = &rollout.spec.name;
    let mut groups = Groups::default();
    let mut failures = Failures::new();
    let mut after = None;
    loop {
        let page = super::batches(store, rollout, after, 256).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.header.id);
        for batch in page {
            let work = if batch.counts.failed() > 0 || groups.needs_devices(&batch.header) {
                Some(store.load(name, batch.header.id).await?)
            } else {
                None
            };
            groups.add(&batch, work.as_ref());
            if let Some(work) = &work {
                collect_failures(rollout, work, &mut failures);
            }
        }
    }
    let answers = rollout.spec.message.wants_feedback();
    let views = groups
        .listed
        .into_iter()
        .map(|((hub, group), counts)| GroupView {
            hub,
            group,
            counts,
            by_class: ClassCounts::of(&counts, answers),
        });
    let failures = failures
        .into_iter()
        .map(|((outcome, code), (devices, samples))| {
            let code = (code != 0).then_some(code);
            let error = ErrorView::of(rollout, outcome, code);
            FailureView {
                outcome,
                class: OutcomeClass::of(outcome, answers),
                code: code.filter(|_| error.is_none()),
                reason: match &error {
                    Some(error) => error.to_string(),
                    None => reason(outcome, code.unwrap_or(0)),
                },
                error,
                devices,
                samples,
            }
        });
    let mut failures: Vec<_> = failures.collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.devices));
    Ok(Outcomes {
        budgets: held_back(store, rollout).await?,
        groups: views.collect(),
        other_groups: groups.others,
        failures,
    })
}

/// By outcome and code: the number of devices, and some device ids.
type Failures = BTreeMap<(Outcome, u32), (u64, Vec<String>)>;

fn collect_failures(rollout: &Rollout, work: &BatchWork, failures: &mut Failures) {
    // Errors without a kept text count as one error.
    let is_kept = |code: u32| rollout.notes.answers.error(code).is_some();
    for device in work.devices() {
        if device.outcome.is_failure() {
            let code = device.code.unwrap_or(0);
            let code = match device.outcome == Outcome::Failed && !is_kept(code) {
                true => u32::MAX,
                false => code,
            };
            let of = (device.outcome, code);
            let (devices, samples) = failures.entry(of).or_default();
            *devices += 1;
            if samples.len() < MAX_SAMPLES {
                samples.push(device.id.to_owned());
            }
        }
    }
}

/// Counts of tag groups.
#[derive(Default)]
struct Groups {
    /// The counts by hub and group.
    listed: BTreeMap<(String, String), Counts>,
    /// The number of devices in unlisted groups.
    others: u64,
}

impl Groups {
    fn is_listed(&self, group: &(String, String)) -> bool {
        self.listed.len() < MAX_GROUPS || self.listed.contains_key(group)
    }

    /// Returns whether some of a batch's groups are listed and the batch's counts do not show the
    /// counts of each group.
    fn needs_devices(&self, header: &BatchHeader) -> bool {
        let mut groups = header.groups().map(|(group, _)| key(header, group));
        !header.further_groups.is_empty() && groups.any(|group| self.is_listed(&group))
    }

    /// Counts a batch. `work` has the devices, where [needed](Self::needs_devices).
    fn add(&mut self, batch: &BatchStatus, work: Option<&BatchWork>) {
        for (group, positions) in batch.header.groups() {
            let group = key(&batch.header, group);
            if !self.is_listed(&group) {
                self.others += positions.len() as u64;
                continue;
            }
            let counts = self.listed.entry(group).or_default();
            match work {
                Some(work) => positions.for_each(|at| counts.count(work.outcomes.get(at as usize))),
                None => counts.add(&batch.counts),
            }
        }
    }
}

fn key(header: &BatchHeader, group: &TagGroup) -> (String, String) {
    (header.hub.to_string(), group.to_string())
}

/// Returns the batches held back by the budgets of a running rollout; `None` without budgets.
async fn held_back(store: &dyn Store, rollout: &Rollout) -> Result<Option<BudgetView>, StoreError> {
    if rollout.spec.budgets.is_empty() || rollout.phase != Phase::Running {
        return Ok(None);
    }
    let name = &rollout.spec.name;
    let tallies = store.tallies(name).await?;
    let hubs: BTreeSet<_> = tallies.iter().map(|Tally { hub, .. }| hub).collect();
    let mut open = Vec::new();
    for hub in hubs {
        let stage = rollout.stage();
        open.extend(
            store
                .open_batches(name, hub, stage, MAX_CHECKED_BATCHES)
                .await?,
        );
    }
    let groups = budget_groups(&open);
    let progress = store.in_progress(name, &groups).await?;
    let all = open.len();
    let (free, mut full) = with_room(open, &groups, &progress);
    let other_full = full.len().saturating_sub(MAX_NAMED_GROUPS);
    full.truncate(MAX_NAMED_GROUPS);
    Ok(Some(BudgetView {
        held_back: all - free.len(),
        full,
        other_full,
    }))
}

/// Describes an outcome so that the remedy becomes clear. `code` is the hub's code, or 0.
#[must_use]
pub fn reason(outcome: Outcome, code: u32) -> String {
    let text = match outcome {
        Outcome::Unknown => "no answer from the hub: the device may have the message or not",
        Outcome::NotFound => "the device is unknown to the hub, or disabled",
        Outcome::QueueFull => {
            "50 messages are already waiting for the device: it is offline, or does not accept \
             messages"
        }
        Outcome::Refused => match code {
            403_012 => "the device is disabled",
            413_001 => "the message is too large",
            _ => "the hub refused the message",
        },
        Outcome::Expired => "the message expired before the device accepted it",
        Outcome::Rejected => "the device rejected the message",
        Outcome::Undeliverable => "the message was delivered too often without being accepted",
        Outcome::Purged => "the device's queue was purged",
        Outcome::Skipped => "not sent: the rollout was aborted, or the device has left the target",
        Outcome::Pending | Outcome::Attempting => "not sent yet",
        Outcome::Enqueued => "the hub holds the message for the device",
        Outcome::Delivered => "the device accepted the message",
        Outcome::Installing => "the device is processing the request",
        Outcome::Applied => "the device has fulfilled the request",
        Outcome::Failed => "the device could not fulfil the request",
    };
    if code == 0 {
        text.to_owned()
    } else {
        format!("{text} ({code})")
    }
}

/// Describes the outcome of a device in a rollout. `aborted` is the reason of the rollout's abort,
/// for example a superseding rollout, and explains skipped devices; without an abort, a skipped
/// device has left the target.
#[must_use]
pub fn reason_in(aborted: Option<&str>, outcome: Outcome, code: u32) -> String {
    match aborted {
        Some(why) if outcome == Outcome::Skipped => format!("the rollout was aborted: {why}"),
        None if outcome == Outcome::Skipped => "the device has left the target".to_owned(),
        _ => reason(outcome, code),
    }
}
