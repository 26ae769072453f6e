//! What became of a rollout's devices: by tag group, and failures with their reasons.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use twincast_core::answer::{DeviceError, WORDS_NOT_KEPT};
use twincast_core::batch::{BatchStatus, groups_of, sort_out};
use twincast_core::budget::FullGroup;
use twincast_core::outcome::{Class, Counts, Ends, Outcome};
use twincast_core::plan::{BatchHeader, Group};
use twincast_core::ports::{BatchWork, Store, StoreError, Tally};
use twincast_core::rollout::{Phase, Rollout};
use utoipa::ToSchema;

/// How many tag groups are listed; the rest is a number.
const GROUPS: usize = 20;
/// How many device ids a reason has for example.
const SAMPLES: usize = 3;
/// Open batches of a hub that are looked at for what budgets hold back.
const LOOKED_AT: usize = 1_024;
/// Full groups that are named; the rest is a number.
const NAMED: usize = 5;

/// What became of a rollout's devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outcomes {
    /// What budgets hold back, if the rollout has some and runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<BudgetView>,
    /// Devices by hub and tag group, 20 at the most.
    pub groups: Vec<GroupView>,
    /// How many devices are in further groups.
    pub other_groups: u64,
    /// Why devices failed, the most frequent first.
    pub failures: Vec<FailureView>,
}

/// The devices of a tag group on one hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// The hub.
    pub hub: String,
    /// The tags that they share, in words.
    pub group: String,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub ends: Ends,
}

/// A way in which devices failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailureView {
    /// Their outcome.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// Its class: `not_sent`, `not_taken` or `not_applied`.
    #[schema(value_type = String)]
    pub class: Class,
    /// The hub's code, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The devices' own words, of those that could not do what the message asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// What that means.
    pub reason: String,
    /// How many they are.
    pub devices: u64,
    /// Some of them.
    pub samples: Vec<String>,
}

/// Why a device could not do what the message asks for, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// For programs. May be empty.
    pub code: String,
    /// For people. May be empty.
    pub text: String,
}

impl ErrorView {
    /// The words of a device with this outcome and code; `None` for other outcomes.
    pub(super) fn of(rollout: &Rollout, outcome: Outcome, code: Option<u32>) -> Option<Self> {
        let code = code.filter(|_| outcome == Outcome::Failed)?;
        let error = rollout.notes.answers.error(code);
        Some(match error.cloned() {
            Some(DeviceError { code, text }) => Self { code, text },
            None => Self {
                code: String::new(),
                text: WORDS_NOT_KEPT.to_owned(),
            },
        })
    }
}

impl std::fmt::Display for ErrorView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        DeviceError::new(&self.code, &self.text).fmt(f)
    }
}

/// What holds batches back now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetView {
    /// Batches that wait for one to have room, among the first that are to be sent.
    pub held_back: usize,
    /// The first of the groups that are full.
    #[schema(value_type = Vec<Object>)]
    pub full: Vec<FullGroup>,
    /// How many more are.
    pub other_full: usize,
}

/// Looks through a rollout's batches: at the counts of all, and at the devices of those in which some failed.
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
    let answers = rollout.spec.message.answers();
    let views = groups
        .listed
        .into_iter()
        .map(|((hub, group), counts)| GroupView {
            hub,
            group,
            counts,
            ends: Ends::of(&counts, answers),
        });
    let failures = failures
        .into_iter()
        .map(|((outcome, code), (devices, samples))| {
            let code = (code != 0).then_some(code);
            let error = ErrorView::of(rollout, outcome, code);
            FailureView {
                outcome,
                class: Class::of(outcome, answers),
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

/// By outcome and code: how many devices, and some of them.
type Failures = BTreeMap<(Outcome, u32), (u64, Vec<String>)>;

fn collect_failures(rollout: &Rollout, work: &BatchWork, failures: &mut Failures) {
    // Errors whose words are not kept are one.
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
            if samples.len() < SAMPLES {
                samples.push(device.id.to_owned());
            }
        }
    }
}

/// Tag groups, counted.
#[derive(Default)]
struct Groups {
    /// By hub and group.
    listed: BTreeMap<(String, String), Counts>,
    /// Devices of groups that are not listed.
    others: u64,
}

impl Groups {
    fn lists(&self, group: &(String, String)) -> bool {
        self.listed.len() < GROUPS || self.listed.contains_key(group)
    }

    /// Some of the batch's groups are listed, and its counts do not tell theirs.
    fn needs_devices(&self, header: &BatchHeader) -> bool {
        let mut groups = header.groups().map(|(group, _)| key(header, group));
        !header.further.is_empty() && groups.any(|group| self.lists(&group))
    }

    /// Counts a batch; `work` are its devices, where they are [needed](Self::needs_devices).
    fn add(&mut self, batch: &BatchStatus, work: Option<&BatchWork>) {
        for (group, positions) in batch.header.groups() {
            let group = key(&batch.header, group);
            if !self.lists(&group) {
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

fn key(header: &BatchHeader, group: &Group) -> (String, String) {
    (header.hub.to_string(), group.to_string())
}

/// What the budgets of a rollout that runs hold back; `None` if it has none.
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
        open.extend(store.open_batches(name, hub, stage, LOOKED_AT).await?);
    }
    let groups = groups_of(&open);
    let progress = store.in_progress(name, &groups).await?;
    let all = open.len();
    let (free, mut full) = sort_out(open, &groups, &progress);
    let other_full = full.len().saturating_sub(NAMED);
    full.truncate(NAMED);
    Ok(Some(BudgetView {
        held_back: all - free.len(),
        full,
        other_full,
    }))
}

/// An outcome in words that say what to do about it. `code` is the hub's, or 0.
#[must_use]
pub fn reason(outcome: Outcome, code: u32) -> String {
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
        Outcome::Skipped => {
            "not to be sent to: the rollout was aborted, or the device has left its target"
        }
        Outcome::Pending | Outcome::Attempting => "not sent yet",
        Outcome::Enqueued => "the hub has the message for the device",
        Outcome::Delivered => "the device took the message",
        Outcome::Installing => "the device is at work on what the message asks for",
        Outcome::Applied => "the device has done what the message asks for",
        Outcome::Failed => "the device could not do what the message asks for",
    };
    if code == 0 {
        text.to_owned()
    } else {
        format!("{text} ({code})")
    }
}

/// The same of a device of one rollout. Why it was skipped is `aborted`, which is why the rollout was aborted, say superseded;
/// if it was not, the device has left its target.
#[must_use]
pub fn reason_in(aborted: Option<&str>, outcome: Outcome, code: u32) -> String {
    match aborted {
        Some(why) if outcome == Outcome::Skipped => format!("the rollout was aborted: {why}"),
        None if outcome == Outcome::Skipped => "the device has left the target first".to_owned(),
        _ => reason(outcome, code),
    }
}
