//! Views of rollouts, with the same texts for the command line and the HTTP API.
//!
//! * [`RolloutRow`] and [`RolloutView`] are made from a rollout's record and tallies alone, so
//!   frequent reads are cheap; [`outcomes`] reads the rollout's batches;
//! * [`devices`] has every device, in a stream; [`explain`] has one device in full;
//! * [`plan`] has the preview of a spec, and [`overlaps`] the other active rollouts;
//! * [`hubs`] has the state of the hubs.
//!
//! All views can be deserialized, so a client shows a server's view like a view of its own.

pub mod devices;
pub mod explain;
pub mod hubs;
pub mod outcomes;
pub mod overlaps;
pub mod plan;
mod ramp;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twincast_core::account::TimeSpent;
use twincast_core::answer::Answered;
use twincast_core::batch::BatchStatus;
use twincast_core::gate;
use twincast_core::ids::{BatchId, RolloutName, StageIndex};
use twincast_core::json::Json;
use twincast_core::outcome::{ClassCounts, Counts};
use twincast_core::ports::{Halt, Store, StoreError, Tally};
use twincast_core::rollout::{Retry, Rollout, StageProgress, history};
use twincast_core::spec::Rate;
use twincast_core::time::Timestamp;
use utoipa::ToSchema;

use crate::command::RolloutState;
use crate::rollout_text::{self, valid_tallies};

pub use ramp::{NextStep, RampView};

/// A rollout in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutRow {
    /// The rollout's state.
    #[serde(flatten)]
    pub state: RolloutState,
    /// The time of acceptance, RFC 3339.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// The time of the last change of the phase.
    #[schema(value_type = String)]
    pub changed_at: Timestamp,
    /// The reason for waiting, if any besides pending sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// The stop of all rollouts, from `stop-all` to `resume-all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stopped {
    /// The time of the last `stop-all`.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// The issuer of the `stop-all`, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The reason, with the issuer.
    pub reason: String,
}

impl From<Halt> for Stopped {
    fn from(halt: Halt) -> Self {
        Self {
            since: halt.since,
            by: halt.by,
            reason: halt.reason,
        }
    }
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { since, reason, .. } = self;
        write!(
            f,
            "All rollouts are stopped since {since}: {reason}. Continue with `twincast resume-all`."
        )
    }
}

/// A rollout in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// The row in a list.
    #[serde(flatten)]
    pub row: RolloutRow,
    /// The spec.
    #[schema(value_type = Object)]
    pub spec: Json,
    /// The plan, once complete.
    #[serde(default)]
    pub plan: Option<Value>,
    /// The noted number of devices found so far, during the search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_found: Option<u64>,
    /// Devices by outcome, once the plan is complete.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by hub, once the plan is complete.
    pub hubs: BTreeMap<String, HubDevices>,
    /// The rollout's own limit per minute through each hub at present, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<f64>,
    /// The state of the current stage's ramp, if the stage has a ramp and the rollout runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<RampView>,
    /// The retry in preparation, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<Retry>,
    /// The time at which every device had been sent the message, while only answers are missing.
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub sent_at: Option<Timestamp>,
    /// The stages in order, once the plan is complete.
    pub stages: Vec<StageView>,
    /// Seconds by activity, and in total.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub time_seconds: TimeSpent,
    /// The events of the rollout with their attribution, oldest first. Commands and decisions about
    /// gates are complete. Of planning tries, measurements and scans, the newest 200 are kept;
    /// repetitions are folded into the newest entry, with the number of `times` and the start in
    /// `since`.
    pub history: Vec<Value>,
}

/// The devices of a rollout on one hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HubDevices {
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub by_class: ClassCounts,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageView {
    /// The progress: `name`, `started_at`, `sent_at`, `approval_awaited_at`, `approved`,
    /// `promoted`, `ignored_failure`, `passed_at`, and the known state of the gate's `metrics`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub progress: StageProgress,
    /// The conditions of the gate, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// The state as text: passed, under way, not started, or the reason for waiting.
    pub state: String,
    /// Whether this is the current stage of an active rollout.
    pub current: bool,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub by_class: ClassCounts,
    /// The answers of the stage's devices, if devices answer in their twins and the hubs were
    /// queried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersView>,
}

/// The numbers of answers in a stage by state, according to the hubs. Each device's answer is
/// recorded in the device's outcome once all devices have answered or the wait for answers is over;
/// a failure is recorded at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AnswersView {
    /// Devices at work on the message's request.
    pub installing: u64,
    /// Devices that have fulfilled the request.
    pub applied: u64,
    /// Devices that could not fulfil the request.
    pub failed: u64,
    /// The time of the query, RFC 3339.
    #[schema(value_type = String)]
    pub asked_at: Timestamp,
}

impl From<&Answered> for AnswersView {
    fn from(answered: &Answered) -> Self {
        Self {
            installing: answered.installing,
            applied: answered.applied,
            failed: answered.failed,
            asked_at: answered.asked_at,
        }
    }
}

/// Returns a page of a rollout's batches, as
/// [`Batches::batches`](twincast_core::ports::Batches::batches), and nothing before the plan is
/// complete.
pub(crate) async fn batches(
    store: &dyn Store,
    rollout: &Rollout,
    after: Option<BatchId>,
    limit: usize,
) -> Result<Vec<BatchStatus>, StoreError> {
    match rollout.plan {
        Some(_) => store.batches(&rollout.spec.name, after, limit).await,
        None => Ok(Vec::new()),
    }
}

/// Returns the number of devices found so far, while the plan is being made.
fn found_so_far(rollout: &Rollout) -> Option<u64> {
    let search = rollout.notes.search.as_ref();
    let search = search.filter(|_| rollout.plan.is_none());
    search.map(|search| search.found)
}

/// Returns the name of a stage of a rollout with a complete plan.
pub(crate) fn stage_name(rollout: &Rollout, stage: StageIndex) -> String {
    let progress = rollout.stages.get(usize::from(stage.0));
    progress.map_or_else(String::new, |stage| stage.name.to_string())
}

impl RolloutRow {
    /// Builds the row of a rollout at `now`.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        Self {
            state: RolloutState::of(rollout, tallies),
            created_at: rollout.created_at,
            changed_at: rollout.changed_at,
            waits_for: rollout_text::waits_for(rollout, tallies, now)
                .map(|waits| waits.to_string()),
        }
    }
}

impl RolloutView {
    /// Builds the view of a rollout at `now`.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        let tallies = valid_tallies(rollout, tallies);
        let by_class =
            |counts: &Counts| ClassCounts::of(counts, rollout.spec.message.wants_feedback());
        let mut hubs: BTreeMap<String, Counts> = BTreeMap::new();
        for Tally { hub, counts, .. } in tallies {
            hubs.entry(hub.to_string()).or_default().add(counts);
        }
        let hubs = hubs.into_iter().map(|(hub, counts)| {
            let by_class = by_class(&counts);
            (hub, HubDevices { counts, by_class })
        });
        let spec_stages = rollout.spec.all_stages();
        let stages = (0..).map(StageIndex).zip(&rollout.stages);
        let stages = stages.map(|(index, progress)| {
            let spec_stage = spec_stages.get(usize::from(index.0));
            let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == index));
            StageView {
                progress: progress.clone(),
                gate: spec_stage
                    .and_then(|it| it.gate.as_ref())
                    .map(gate::describe),
                state: rollout_text::stage_state(rollout, index.0, progress, tallies, now),
                current: rollout.stage() == index && !rollout.phase.is_ended(),
                counts,
                by_class: by_class(&counts),
                answers: rollout.notes.answers.of(index).map(AnswersView::from),
            }
        });
        Self {
            row: RolloutRow::of(rollout, tallies, now),
            spec: Json::of(&rollout.spec).expect("records are plain data"),
            plan: rollout.plan.as_ref().map(plain),
            devices_found: found_so_far(rollout),
            counts: Tally::sum(tallies),
            hubs: hubs.collect(),
            rate_per_minute: rollout.rate_now(tallies).map(Rate::as_per_minute),
            ramp: RampView::of(rollout, tallies),
            retry: rollout.retry.clone(),
            sent_at: rollout.sent_at,
            stages: stages.collect(),
            time_seconds: rollout.time_spent(now),
            history: history::folded(&rollout.history)
                .iter()
                .map(plain)
                .collect(),
        }
    }

    /// Returns the current stage of an active rollout.
    #[must_use]
    pub fn current_stage(&self) -> Option<&StageView> {
        self.stages.iter().find(|stage| stage.current)
    }
}

/// Describes an unknown rollout name, with up to 20 existing names.
///
/// # Errors
/// [`StoreError`].
pub async fn no_such_rollout(store: &dyn Store, name: &RolloutName) -> Result<String, StoreError> {
    let names = store.rollouts().await?;
    let some: Vec<_> = names.iter().take(20).map(RolloutName::as_str).collect();
    let there_are = match some.as_slice() {
        [] => "no rollouts exist".to_owned(),
        some if some.len() < names.len() => {
            format!(
                "{} rollouts exist, including: {}",
                names.len(),
                some.join(", ")
            )
        }
        some => format!("existing rollouts: {}", some.join(", ")),
    };
    Ok(format!("there is no rollout {name}; {there_are}"))
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("records are plain data")
}
