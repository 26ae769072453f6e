//! What there is to be seen of rollouts: the same, in the same words, for the command line and the HTTP API.
//!
//! * [`RolloutRow`] and [`RolloutView`] are made of a rollout's record and its tallies alone, so they may be looked at
//!   often; [`outcomes`] looks through its batches;
//! * [`devices`] has every device, in a stream; [`explain`] one of them;
//! * [`plan`] has what a spec would come to, and [`overlaps`] what else is under way;
//! * [`hubs`] has what the hubs have to give.
//!
//! Everything can be read back: a client shows what a server has said as if it had looked itself.

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
use twincast_core::outcome::{Counts, Ends};
use twincast_core::ports::{Halt, Store, StoreError, Tally};
use twincast_core::rollout::{Retry, Rollout, StageProgress, history};
use twincast_core::spec::Rate;
use twincast_core::time::Timestamp;
use utoipa::ToSchema;

use crate::command::State;
use crate::standing::{self, counted};

pub use ramp::{NextStep, RampView};

/// A rollout in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutRow {
    /// Where it is.
    #[serde(flatten)]
    pub state: State,
    /// When it was accepted, RFC 3339.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When its phase last changed.
    #[schema(value_type = String)]
    pub changed_at: Timestamp,
    /// What it waits for, if that is not that devices be sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// That nothing is sent by any rollout, from `stop-all` to `resume-all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stopped {
    /// Since when, by the last `stop-all`.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Who has stopped all, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, with who has said so.
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
            "All rollouts are stopped since {since}: {reason}. `twincast resume-all` lets them go on."
        )
    }
}

/// A rollout in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// As in a list.
    #[serde(flatten)]
    pub row: RolloutRow,
    /// What was asked for.
    #[schema(value_type = Object)]
    pub spec: Json,
    /// What the plan came to, once it is whole.
    #[serde(default)]
    pub plan: Option<Value>,
    /// How many devices were found so far, while they are looked for, as far as it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_found: Option<u64>,
    /// Devices by outcome, once the plan is whole.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by hub, once the plan is whole.
    pub hubs: BTreeMap<String, HubDevices>,
    /// Its own limit through each hub now, a minute, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<f64>,
    /// Where the ramp of the current stage is, if it has one and the rollout runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<RampView>,
    /// What is to be sent to again, and is not yet ready for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<Retry>,
    /// When every device had been sent the message, while answers are all that is waited for. RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub sent_at: Option<Timestamp>,
    /// Its stages in order, once the plan is whole.
    pub stages: Vec<StageView>,
    /// For how many seconds it did what, and in all.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub time_seconds: TimeSpent,
    /// What happened to it, and who wanted it, oldest first. What people did and how gates were judged is all there. Of tries at
    /// planning, measurements and looks there are the newest 200; those that repeat each other are one entry, the newest,
    /// with how many `times` and `since` when.
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
    pub ends: Ends,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageView {
    /// How far it is: `name`, `started_at`, `sent_at`, `ripe_at`, `approved`, `promoted`, `ignored`, `passed_at`, and
    /// what is known of its gate's `metrics`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub progress: StageProgress,
    /// What its gate asks, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// Where it stands, in words: over, under way, to come, or what it waits for.
    pub state: String,
    /// It is the one whose devices are sent to.
    pub current: bool,
    /// Devices by outcome.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: Counts,
    /// Devices by class.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub ends: Ends,
    /// What its devices have answered, where they answer in their twins and their hubs were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersView>,
}

/// How many devices of a stage have answered what, according to their hubs. What each device has answered is in its outcome
/// once all have, or no more answers are waited for; that one failed is there at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AnswersView {
    /// Devices that are at work on what the message asks for.
    pub installing: u64,
    /// Devices that have done it.
    pub applied: u64,
    /// Devices that could not do it.
    pub failed: u64,
    /// When the hubs were asked, RFC 3339.
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

/// A page of the batches that count of a rollout, as [`Batches::batches`](twincast_core::ports::Batches::batches).
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

/// How many devices were found so far, while the plan is made.
fn found_so_far(rollout: &Rollout) -> Option<u64> {
    let search = rollout.notes.search.as_ref();
    let search = search.filter(|_| rollout.plan.is_none());
    search.map(|search| search.found)
}

/// The name of a stage of a rollout with a whole plan.
pub(crate) fn stage_name(rollout: &Rollout, stage: StageIndex) -> String {
    let progress = rollout.stages.get(usize::from(stage.0));
    progress.map_or_else(String::new, |stage| stage.name.to_string())
}

impl RolloutRow {
    /// A rollout as it is at `now`.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        Self {
            state: State::of(rollout, tallies),
            created_at: rollout.created_at,
            changed_at: rollout.changed_at,
            waits_for: standing::waits_for(rollout, tallies, now).map(|waits| waits.to_string()),
        }
    }
}

impl RolloutView {
    /// A rollout as it is at `now`.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally], now: Timestamp) -> Self {
        let tallies = counted(rollout, tallies);
        let ends = |counts: &Counts| Ends::of(counts, rollout.spec.message.answers());
        let mut hubs: BTreeMap<String, Counts> = BTreeMap::new();
        for Tally { hub, counts, .. } in tallies {
            hubs.entry(hub.to_string()).or_default().add(counts);
        }
        let hubs = hubs.into_iter().map(|(hub, counts)| {
            let ends = ends(&counts);
            (hub, HubDevices { counts, ends })
        });
        let asked = rollout.spec.all_stages();
        let stages = (0..).map(StageIndex).zip(&rollout.stages);
        let stages = stages.map(|(index, progress)| {
            let asked = asked.get(usize::from(index.0));
            let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == index));
            StageView {
                progress: progress.clone(),
                gate: asked.and_then(|it| it.gate.as_ref()).map(gate::in_words),
                state: standing::of_stage(rollout, index.0, progress, tallies, now),
                current: rollout.stage() == index && !rollout.phase.is_ended(),
                counts,
                ends: ends(&counts),
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

    /// The stage whose devices are sent to.
    #[must_use]
    pub fn current_stage(&self) -> Option<&StageView> {
        self.stages.iter().find(|stage| stage.current)
    }
}

/// What is said of a name that no rollout has: which there are, 20 at the most.
///
/// # Errors
/// [`StoreError`].
pub async fn no_such_rollout(store: &dyn Store, name: &RolloutName) -> Result<String, StoreError> {
    let names = store.rollouts().await?;
    let some: Vec<_> = names.iter().take(20).map(RolloutName::as_str).collect();
    let there_are = match some.as_slice() {
        [] => "there are none".to_owned(),
        some if some.len() < names.len() => {
            format!("there are {}, among them: {}", names.len(), some.join(", "))
        }
        some => format!("there are: {}", some.join(", ")),
    };
    Ok(format!("there is no rollout {name}; {there_are}"))
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("records are plain data")
}
