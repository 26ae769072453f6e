//! The state of a device in a rollout, with the reasons and the current wait.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use twincast_core::batch::BatchStatus;
use twincast_core::budget::FullGroup;
use twincast_core::explain::{self, DeviceContext};
use twincast_core::ids::{DeviceId, HubName, StageName};
use twincast_core::link::LinkObstacle;
use twincast_core::outcome::{Outcome, OutcomeClass};
use twincast_core::plan::Cohort;
use twincast_core::ports::{BatchWork, Store, StoreError, Tally};
use twincast_core::rollout::{Attribution, Event, HistoryEntry, Phase, Rollout};
use twincast_core::time::Timestamp;
use utoipa::ToSchema;

use super::devices::message_id;
use super::outcomes::{ErrorView, reason_in};
use crate::release::keep_budgets;
use crate::rollout_text;

/// The known facts about a device in a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The rollout.
    pub rollout: String,
    /// The rollout's phase.
    pub phase: String,
    /// The reason for the phase, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The device.
    pub device: String,
    /// The device's position in the rollout, 0 to 1. Stages by percent are cut along this position.
    pub cohort: f64,
    /// The salt of the cohort.
    pub salt: String,
    /// The device's places by hub, oldest first. A hub has several places for a device that has
    /// left and rejoined the target of a continuous rollout.
    pub places: Vec<DevicePlace>,
}

/// A place of the device on one hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicePlace {
    /// The hub.
    pub hub: String,
    /// The number of the place among the device's places on the hub, from 1. The newest comes last.
    pub entry: usize,
    /// The number of the device's places on the hub.
    pub entries: usize,
    /// The stage of the device.
    pub stage: StageChoice,
    /// The device's tag group, as text.
    pub group: String,
    /// The number of the batch.
    pub batch: u32,
    /// The device's position in the batch, from 0, as in the message's id.
    pub index: u32,
    /// The number of devices in the batch.
    pub batch_devices: u32,
    /// The outcome.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The outcome's class: `applied`, `taken`, `sent`, `silent`, `pending`, `not_applied`,
    /// `not_taken`, `not_sent` or `skipped`.
    #[schema(value_type = String)]
    pub class: OutcomeClass,
    /// The hub's code for a refusal, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The device's error, if the device could not fulfil the message's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// The meaning of the outcome.
    pub reason: String,
    /// The attempts at sending the message, oldest first.
    pub attempts: Vec<AttemptView>,
    /// The reason for waiting now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The known times. The store keeps no times for a single device.
    pub times: Times,
}

/// The stage of a device, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageChoice {
    /// The stage's name.
    pub name: String,
    /// The stage's number, from 1.
    pub number: u16,
    /// The number of stages.
    pub of: usize,
    /// The reason why the stage has taken the device.
    pub reason: String,
    /// The earlier stages.
    pub passed_over: Vec<PassedOver>,
}

/// An earlier stage without the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassedOver {
    /// The stage's name.
    pub stage: String,
    /// The reason why the stage has not taken the device.
    pub reason: String,
}

/// An attempt at sending the message. A later attempt concerns chosen devices of the batch,
/// possibly without this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// The attempt's number, from 1.
    pub attempt: u16,
    /// The id of the message.
    pub message_id: String,
    /// The request for the attempt, if known: `requested_at`, `by`, `reason`, and the `outcomes` of
    /// the chosen devices.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub request: Option<Request>,
}

/// The request for an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The time of the request.
    pub requested_at: Timestamp,
    /// The attribution of the request.
    #[serde(flatten)]
    pub attribution: Attribution,
    /// The outcomes of the chosen devices.
    pub outcomes: Vec<Outcome>,
}

/// The known times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Times {
    /// The acceptance of the rollout.
    #[schema(value_type = String)]
    pub accepted_at: Timestamp,
    /// The completion of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub planned_at: Option<Timestamp>,
    /// The start of the device's stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_started_at: Option<Timestamp>,
    /// The time at which all of the stage was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_sent_at: Option<Timestamp>,
    /// The end of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_passed_at: Option<Timestamp>,
}

/// Why a device cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The device is not in the rollout's plan, or there is no plan.
    #[error("{}", .0.error)]
    Absent(Absence),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The description of a device without a place in a rollout's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// The absence, with the reason if certain.
    pub error: String,
    /// The possible reasons otherwise.
    pub possible: Vec<String>,
    /// A way to find out more.
    pub hint: Option<String>,
}

/// Searches a rollout for a device and describes the device's state at `now`. Reads batches one
/// after the other until all places of the device are found.
///
/// # Errors
/// [`ExplainError`].
pub async fn read(
    store: &dyn Store,
    rollout: &Rollout,
    device: &DeviceId,
    now: Timestamp,
) -> Result<Explanation, ExplainError> {
    if rollout.plan.is_none() {
        return Err(ExplainError::Absent(not_planned(rollout)));
    }
    let tallies = store.tallies(&rollout.spec.name).await?;
    let hubs = tallies.iter().map(|tally| tally.hub.clone()).collect();
    let mut found = find(store, rollout, device, hubs).await?;
    for place in &mut found {
        let batch = vec![place.batch.clone()];
        place.full = keep_budgets(store, &rollout.spec.name, batch).await?.full;
        place.obstacle = LinkObstacle::of(&store.links(place.hub()).await?);
    }
    if found.is_empty() {
        return Err(ExplainError::Absent(absent(rollout, device)));
    }
    let cohort = Cohort::of(device, rollout.spec.salt());
    let places = found.chunk_by(|one, other| one.hub() == other.hub());
    let places = places.flat_map(|entries| {
        (1..).zip(entries).map(|(entry, found)| DevicePlace {
            entry,
            entries: entries.len(),
            ..found.place(rollout, cohort, &tallies, now)
        })
    });
    Ok(Explanation {
        rollout: rollout.spec.name.to_string(),
        phase: rollout.phase.as_str().to_owned(),
        reason: rollout.phase.reason().map(str::to_owned),
        device: device.to_string(),
        cohort: cohort.fraction(),
        salt: rollout.spec.salt().to_owned(),
        places: places.collect(),
    })
}

/// A device in a batch.
struct Found {
    batch: BatchStatus,
    work: BatchWork,
    index: u32,
    outcome: Outcome,
    code: Option<u32>,
    /// The budget groups of the batch without room for the device.
    full: Vec<FullGroup>,
    /// The reason why nothing can be sent through the hub, if so.
    obstacle: Option<LinkObstacle>,
}

/// Reads the batches of the plan, one after the other, until the device is found on each of `hubs`
/// or the plan ends. Returns the places by hub, oldest first. An id exists once per hub, so further
/// batches of a hub with the device are skipped. A device that has left the target may have joined
/// again, with a later batch.
async fn find(
    store: &dyn Store,
    rollout: &Rollout,
    device: &DeviceId,
    mut hubs: BTreeSet<HubName>,
) -> Result<Vec<Found>, StoreError> {
    let name = &rollout.spec.name;
    let mut found: Vec<Found> = Vec::new();
    let mut after = None;
    loop {
        let page = store.batches(name, after, 256).await?;
        let Some(last) = page.last().filter(|_| !hubs.is_empty()) else {
            found.sort_by(|one, other| one.hub().cmp(other.hub()));
            return Ok(found);
        };
        after = Some(last.header.id);
        for batch in page {
            if !hubs.contains(&batch.header.hub) {
                continue;
            }
            let work = store.load(name, batch.header.id).await?;
            let device = work.devices().find(|known| known.id == device.as_str());
            let Some((index, outcome, code)) =
                device.map(|known| (known.index, known.outcome, known.code))
            else {
                continue;
            };
            if rollout.spec.continuous.is_none() || outcome != Outcome::Skipped {
                hubs.remove(&batch.header.hub);
            }
            found.push(Found {
                batch,
                work,
                index,
                outcome,
                code,
                full: Vec::new(),
                obstacle: None,
            });
        }
    }
}

impl Found {
    fn hub(&self) -> &HubName {
        &self.batch.header.hub
    }

    fn place(
        &self,
        rollout: &Rollout,
        cohort: Cohort,
        tallies: &[Tally],
        now: Timestamp,
    ) -> DevicePlace {
        let header = &self.batch.header;
        let context = DeviceContext {
            rollout,
            batch: &self.batch,
            outcome: self.outcome,
            full: &self.full,
            obstacle: self.obstacle.as_ref(),
        };
        let standstill = rollout_text::waits_for(rollout, tallies, now);
        let waits = explain::waits_for(context, standstill, now);
        let error = ErrorView::of(rollout, self.outcome, self.code);
        DevicePlace {
            hub: header.hub.to_string(),
            entry: 1,
            entries: 1,
            stage: self.stage(rollout, cohort),
            group: header.group_of(self.index).to_string(),
            batch: header.id.0,
            index: self.index,
            batch_devices: header.devices,
            outcome: self.outcome,
            class: OutcomeClass::of(self.outcome, rollout.spec.message.wants_feedback()),
            code: self.code.filter(|_| error.is_none()),
            reason: match &error {
                Some(error) => error.to_string(),
                None => reason_in(
                    rollout.phase.aborted(),
                    self.outcome,
                    self.code.unwrap_or(0),
                ),
            },
            error,
            attempts: self.attempts(rollout),
            waits_for: waits.map(|waits| waits.to_string()),
            times: self.times(rollout),
        }
    }

    fn stage(&self, rollout: &Rollout, cohort: Cohort) -> StageChoice {
        let index = self.batch.header.stage;
        let why = explain::why_stage(&rollout.spec, index, cohort);
        let why = why.expect("a plan has the stages of its spec");
        let passed_over = why.passed_over.into_iter();
        let passed_over = passed_over.map(|(stage, reason): (StageName, _)| PassedOver {
            stage: stage.to_string(),
            reason,
        });
        StageChoice {
            name: why.stage.to_string(),
            number: index.0 + 1,
            of: rollout.spec.all_stages().len(),
            reason: why.reason,
            passed_over: passed_over.collect(),
        }
    }

    fn attempts(&self, rollout: &Rollout) -> Vec<AttemptView> {
        let name = &rollout.spec.name;
        let stage = self.batch.header.stage;
        let tried = explain::attempts(rollout, stage, self.work.attempt).into_iter();
        let tried = tried.map(|tried| AttemptView {
            attempt: tried.attempt.0,
            message_id: message_id(name, &self.work, self.index, tried.attempt),
            request: tried.request.and_then(Request::of),
        });
        tried.collect()
    }

    fn times(&self, rollout: &Rollout) -> Times {
        let planned = rollout.history.iter();
        let mut planned =
            planned.filter(|entry| matches!(entry.event, Event::PlanCompleted { .. }));
        let stage = rollout.stages.get(usize::from(self.batch.header.stage.0));
        Times {
            accepted_at: rollout.created_at,
            planned_at: planned.next().map(|entry| entry.at),
            stage_started_at: stage.and_then(|stage| stage.started_at),
            stage_sent_at: stage.and_then(|stage| stage.sent_at),
            stage_passed_at: stage.and_then(|stage| stage.passed_at),
        }
    }
}

impl Request {
    fn of(entry: &HistoryEntry) -> Option<Self> {
        match &entry.event {
            Event::RetryRequested {
                outcomes,
                attribution,
                ..
            } => Some(Self {
                requested_at: entry.at,
                attribution: attribution.clone(),
                outcomes: outcomes.clone(),
            }),
            _ => None,
        }
    }
}

impl Absence {
    fn certain(error: String) -> Self {
        Self {
            error,
            possible: Vec::new(),
            hint: None,
        }
    }
}

fn not_planned(rollout: &Rollout) -> Absence {
    let name = &rollout.spec.name;
    Absence::certain(match &rollout.phase {
        Phase::Accepted | Phase::Planning => {
            let waits = rollout.waits_to_be_planned();
            let waits = waits.map(|waits| format!("; it waits for {waits}"));
            let waits = waits.unwrap_or_default();
            format!("rollout {name} is not planned yet, so its devices are not known{waits}")
        }
        phase => {
            let reason = phase.reason().unwrap_or("the rollout has no plan");
            format!("rollout {name} has no devices: {reason}")
        }
    })
}

fn absent(rollout: &Rollout, device: &DeviceId) -> Absence {
    let name = &rollout.spec.name;
    let mut absence = explain::why_absent(&rollout.spec, device);
    let malformed = rollout.plan.as_ref().map(|plan| &plan.malformed_rows);
    if let Some(malformed) = malformed.filter(|malformed| !malformed.is_empty()) {
        let named = malformed
            .examples
            .iter()
            .find(|it| it.found == device.as_str());
        if let Some(row) = named {
            absence.certain = Some(format!(
                "the row of hub {} is malformed: {}",
                row.hub, row.reason
            ));
        } else if malformed.without_example() > 0 {
            let rows = malformed.without_example();
            absence.possible.push(format!(
                "it is in one of {rows} malformed rows of the hubs that the plan does not list"
            ));
        }
    }
    let head = format!("device {device} is not in the plan of rollout {name}");
    if let Some(certain) = absence.certain {
        return Absence::certain(format!("{head}: {certain}"));
    }
    let change = match rollout.next_scan() {
        Some(at) => format!("the next scan for late joiners is at {at}"),
        None => "a plan does not follow later changes of devices".to_owned(),
    };
    Absence {
        error: format!("{head}; possible reasons"),
        possible: absence.possible,
        hint: Some(format!(
            "{change}; to check whether the target contains the device now, run this query on its \
             hub: {}",
            absence.query
        )),
    }
}
