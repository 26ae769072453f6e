//! Where a device is in a rollout, why, and what it waits for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use twincast_core::batch::BatchStatus;
use twincast_core::budget::FullGroup;
use twincast_core::explain::{self, Seat};
use twincast_core::ids::{DeviceId, HubName, StageName};
use twincast_core::link::Impasse;
use twincast_core::outcome::{Class, Outcome};
use twincast_core::plan::Cohort;
use twincast_core::ports::{BatchWork, Store, StoreError, Tally};
use twincast_core::rollout::{Event, HistoryEntry, Phase, Rollout, Word};
use twincast_core::time::Timestamp;
use utoipa::ToSchema;

use super::devices::message_id;
use super::outcomes::{ErrorView, reason_in};
use crate::release::keep_budgets;
use crate::standing;

/// What is known of a device in a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The rollout.
    pub rollout: String,
    /// The rollout's phase.
    pub phase: String,
    /// Why it is in that phase, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The device.
    pub device: String,
    /// Its position in the rollout, 0 to 1, along which stages by percent are cut.
    pub cohort: f64,
    /// What the cohort is made with.
    pub salt: String,
    /// Its places by hub, oldest first. A hub has several of a device that has left a continuous rollout's target and joined
    /// again.
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
    /// The stage that has taken it.
    pub stage: StageChoice,
    /// The tags that its batch shares, in words.
    pub group: String,
    /// Its batch.
    pub batch: u32,
    /// In the batch, from 0, as in the message's id.
    pub position: u32,
    /// How many devices the batch has.
    pub batch_devices: u32,
    /// What became of it.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The outcome's class: `applied`, `taken`, `sent`, `silent`, `pending`, `not_applied`, `not_taken`, `not_sent` or
    /// `skipped`.
    #[schema(value_type = String)]
    pub class: Class,
    /// The hub's code, if it refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The device's own words, if it could not do what the message asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// What the outcome means.
    pub reason: String,
    /// Attempts at sending it the message, oldest first.
    pub attempts: Vec<Try>,
    /// What it waits for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// What is known of times: the store keeps none for a single device.
    pub times: Times,
}

/// A stage, and why it has taken a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageChoice {
    /// Its name.
    pub name: String,
    /// From 1.
    pub number: u16,
    /// Of so many.
    pub of: usize,
    /// Why it has taken the device.
    pub because: String,
    /// The stages before it.
    pub passed_over: Vec<PassedOver>,
}

/// A stage that has not taken a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PassedOver {
    /// Its name.
    pub stage: String,
    /// Why not.
    pub because: String,
}

/// An attempt at sending it the message; of a later one than the first, at devices of its batch that it may have
/// been among.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Try {
    /// From 1.
    pub attempt: u16,
    /// The id of the message.
    pub message_id: String,
    /// How it was asked for, if that is known: `requested_at`, `by`, `reason`, and the `outcomes` of the devices that
    /// were chosen.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub request: Option<Request>,
}

/// How an attempt was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// When.
    pub requested_at: Timestamp,
    /// By whom, and why.
    #[serde(flatten)]
    pub word: Word,
    /// The devices with these outcomes were chosen.
    pub outcomes: Vec<Outcome>,
}

/// What is known of times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Times {
    /// When the rollout was accepted.
    #[schema(value_type = String)]
    pub accepted_at: Timestamp,
    /// When its plan was whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub planned_at: Option<Timestamp>,
    /// When the device's stage started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_started_at: Option<Timestamp>,
    /// When all of the stage was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_sent_at: Option<Timestamp>,
    /// When the stage was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage_passed_at: Option<Timestamp>,
}

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum Unexplained {
    /// The device is not in the rollout's plan, or there is no plan.
    #[error("{}", .0.error)]
    Absent(Absence),
    /// The store did not say.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is to be said of a device that is not in a rollout's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// That it is not there, and why, if that is certain.
    pub error: String,
    /// What may be the reason otherwise.
    pub possible: Vec<String>,
    /// How to find out more.
    pub hint: Option<String>,
}

/// Looks for a device in a rollout as it is at `now`. It reads batches one after the other until all of the device's places
/// are found.
///
/// # Errors
/// [`Unexplained`].
pub async fn read(
    store: &dyn Store,
    rollout: &Rollout,
    device: &DeviceId,
    now: Timestamp,
) -> Result<Explanation, Unexplained> {
    if rollout.plan.is_none() {
        return Err(Unexplained::Absent(not_planned(rollout)));
    }
    let tallies = store.tallies(&rollout.spec.name).await?;
    let hubs = tallies.iter().map(|tally| tally.hub.clone()).collect();
    let mut found = find(store, rollout, device, hubs).await?;
    for place in &mut found {
        let batch = vec![place.batch.clone()];
        place.full = keep_budgets(store, &rollout.spec.name, batch).await?.full;
        place.impasse = Impasse::of(&store.links(place.hub()).await?);
    }
    if found.is_empty() {
        return Err(Unexplained::Absent(absent(rollout, device)));
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

/// A device in its batch.
struct Found {
    batch: BatchStatus,
    work: BatchWork,
    index: u32,
    outcome: Outcome,
    code: Option<u32>,
    /// Groups of its batch that have no room for it.
    full: Vec<FullGroup>,
    /// What keeps everything from being sent through its hub.
    impasse: Option<Impasse>,
}

/// Looks through the batches of the plan, one after the other, until the device is found on each of `hubs`, or all were seen:
/// by hub, oldest first. A hub has an id once, so the rest of a hub on which the device was found is passed over. A device
/// that has left a target may have joined again, with a later batch.
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
            let seat = work.devices().find(|known| known.id == device.as_str());
            let Some((index, outcome, code)) =
                seat.map(|known| (known.index, known.outcome, known.code))
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
                impasse: None,
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
        let seat = Seat {
            rollout,
            batch: &self.batch,
            outcome: self.outcome,
            full: &self.full,
            impasse: self.impasse.as_ref(),
        };
        let standstill = standing::waits_for(rollout, tallies, now);
        let waits = explain::waits_for(seat, standstill, now);
        let error = ErrorView::of(rollout, self.outcome, self.code);
        DevicePlace {
            hub: header.hub.to_string(),
            entry: 1,
            entries: 1,
            stage: self.stage(rollout, cohort),
            group: header.group_of(self.index).to_string(),
            batch: header.id.0,
            position: self.index,
            batch_devices: header.devices,
            outcome: self.outcome,
            class: Class::of(self.outcome, rollout.spec.message.answers()),
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
        let passed_over = passed_over.map(|(stage, because): (StageName, _)| PassedOver {
            stage: stage.to_string(),
            because,
        });
        StageChoice {
            name: why.stage.to_string(),
            number: index.0 + 1,
            of: rollout.spec.all_stages().len(),
            because: why.because,
            passed_over: passed_over.collect(),
        }
    }

    fn attempts(&self, rollout: &Rollout) -> Vec<Try> {
        let name = &rollout.spec.name;
        let stage = self.batch.header.stage;
        let tried = explain::attempts(rollout, stage, self.work.attempt).into_iter();
        let tried = tried.map(|tried| Try {
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
            Event::RetryRequested { outcomes, word, .. } => Some(Self {
                requested_at: entry.at,
                word: word.clone(),
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
            format!("rollout {name} is not planned yet: which devices it has is not known{waits}")
        }
        phase => {
            let reason = phase.reason().unwrap_or("it has no plan");
            format!("rollout {name} has no devices: {reason}")
        }
    })
}

fn absent(rollout: &Rollout, device: &DeviceId) -> Absence {
    let name = &rollout.spec.name;
    let mut absence = explain::why_absent(&rollout.spec, device);
    let odd = rollout.plan.as_ref().map(|plan| &plan.not_understood);
    if let Some(odd) = odd.filter(|odd| !odd.is_empty()) {
        let named = odd.examples.iter().find(|it| it.found == device.as_str());
        if let Some(row) = named {
            absence.certain = Some(format!(
                "what hub {} says of it is not understood: {}",
                row.hub, row.reason
            ));
        } else if odd.unnamed() > 0 {
            let rows = odd.unnamed();
            absence.possible.push(format!(
                "it is in one of {rows} rows of the hubs that are not understood, and not named in the plan"
            ));
        }
    }
    let head = format!("device {device} is not in the plan of rollout {name}");
    if let Some(certain) = absence.certain {
        return Absence::certain(format!("{head}: {certain}"));
    }
    let change = match rollout.next_look() {
        Some(at) => format!("the next look for devices that join is at {at}"),
        None => "a plan does not change when devices do".to_owned(),
    };
    Absence {
        error: format!("{head}; it may be that"),
        possible: absence.possible,
        hint: Some(format!(
            "{change}; whether the target has it now, this query tells on its hub: {}",
            absence.query
        )),
    }
}
