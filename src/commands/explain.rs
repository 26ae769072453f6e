//! `twincast explain`: where a device is in a rollout, why, and what it waits for.

use std::collections::BTreeSet;

use serde::Serialize;
use twincast_core::batch::BatchStatus;
use twincast_core::explain::{self, Seat};
use twincast_core::ids::{DeviceId, HubName, StageName};
use twincast_core::message::MessageId;
use twincast_core::outcome::Outcome;
use twincast_core::plan::Cohort;
use twincast_core::ports::{BatchWork, Clock as _, Store, StoreError, Tally};
use twincast_core::rollout::{Event, HistoryEntry, Phase, Rollout, Word};
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;
use twincast_orchestrator::standing;

use crate::args::ExplainArgs;
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, thousands};
use crate::stores;
use crate::summary;

/// In more batches than this a device is not found at once, which is said.
const MANY_BATCHES: u32 = 1_000;

/// What is known of a device in a rollout.
#[derive(Debug, Serialize)]
struct Explanation {
    rollout: String,
    #[serde(flatten)]
    phase: Phase,
    device: DeviceId,
    cohort: f64,
    salt: String,
    /// One for each hub that has a device of that id.
    places: Vec<Place>,
}

/// Its place on one hub.
#[derive(Debug, Serialize)]
struct Place {
    hub: HubName,
    stage: Stage,
    group: String,
    batch: u32,
    /// In the batch, from 0, as in the message's id.
    position: u32,
    batch_devices: u32,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    reason: String,
    attempts: Vec<Try>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    times: Times,
}

#[derive(Debug, Serialize)]
struct Stage {
    name: StageName,
    /// From 1.
    number: u16,
    of: usize,
    because: String,
    passed_over: Vec<PassedOver>,
}

#[derive(Debug, Serialize)]
struct PassedOver {
    stage: StageName,
    because: String,
}

/// An attempt at sending it the message; of a later one than the first, at devices of its batch that it may have
/// been among.
#[derive(Debug, Serialize)]
struct Try {
    attempt: u16,
    message_id: String,
    #[serde(flatten)]
    request: Option<Request>,
}

/// How an attempt was asked for.
#[derive(Debug, Serialize)]
struct Request {
    requested_at: Timestamp,
    #[serde(flatten)]
    word: Word,
    /// The devices with these outcomes were chosen.
    outcomes: Vec<Outcome>,
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

/// What is known of times: the store keeps none for a single device.
#[derive(Debug, Serialize)]
struct Times {
    accepted_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    planned_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage_started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage_sent_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage_passed_at: Option<Timestamp>,
}

pub(crate) async fn explain(
    args: &ExplainArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let device = DeviceId::new(args.device.as_str());
    let device = device.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let store = stores::open(settings).await?;
    let rollout = stores::rollout(&store, &args.rollout).await?;
    let explained = look(&*store, &rollout, device, output).await;
    store.close().await;
    let explanation = explained?;
    output.result(&explanation, &explanation.text(output));
    Ok(ExitCode::Success)
}

async fn look(
    store: &dyn Store,
    rollout: &Rollout,
    device: DeviceId,
    output: &Output,
) -> Result<Explanation, Failure> {
    let Some(plan) = &rollout.plan else {
        return Err(not_planned(rollout));
    };
    if plan.batches > MANY_BATCHES {
        let batches = thousands(plan.batches.into());
        output.note(&format!("Looking for it in {batches} batches."));
    }
    let hubs = plan.hubs.iter().filter(|hub| hub.devices > 0);
    let hubs = hubs.map(|hub| hub.hub.clone()).collect();
    let name = &rollout.spec.name;
    let found = find(store, rollout, &device, hubs).await;
    let found = found.map_err(engine::store_failure)?;
    if found.is_empty() {
        return Err(absent(rollout, &device));
    }
    let tallies = store.tallies(name).await.map_err(engine::store_failure)?;
    let cohort = Cohort::of(&device, rollout.spec.salt());
    let places = found
        .iter()
        .map(|seat| seat.place(rollout, cohort, &tallies));
    Ok(Explanation {
        rollout: name.to_string(),
        phase: rollout.phase.clone(),
        places: places.collect(),
        cohort: cohort.fraction(),
        salt: rollout.spec.salt().to_owned(),
        device,
    })
}

/// A device in its batch.
struct Found {
    batch: BatchStatus,
    work: BatchWork,
    index: u32,
    outcome: Outcome,
}

/// Looks through the batches of the plan, one after the other, until the device is found on each of `hubs`, or
/// all were seen. A hub has an id once, so the rest of a hub on which it was found is passed over.
async fn find(
    store: &dyn Store,
    rollout: &Rollout,
    device: &DeviceId,
    mut hubs: BTreeSet<HubName>,
) -> Result<Vec<Found>, StoreError> {
    let name = &rollout.spec.name;
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = store.batches(name, after, 256).await?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = Some(last.header.id);
        for batch in page {
            if !hubs.contains(&batch.header.hub) {
                continue;
            }
            let work = store.load(name, batch.header.id).await?;
            let seats = (0u32..).zip(work.outcomes.iter());
            let mut seats = seats.zip(work.batch.devices.iter());
            let seat = seats.find(|(_, id)| *id == device.as_str());
            let Some(((index, outcome), _)) = seat else {
                continue;
            };
            drop(seats);
            hubs.remove(&batch.header.hub);
            found.push(Found {
                batch,
                work,
                index,
                outcome,
            });
            if hubs.is_empty() {
                return Ok(found);
            }
        }
    }
}

impl Found {
    fn place(&self, rollout: &Rollout, cohort: Cohort, tallies: &[Tally]) -> Place {
        let header = &self.batch.header;
        let now = SystemClock::start().now();
        let seat = Seat {
            rollout,
            batch: &self.batch,
            outcome: self.outcome,
        };
        let standstill = standing::waits_for(rollout, tallies, now);
        let codes = self.work.codes.iter();
        let mut codes = codes.filter(|(at, _)| *at == self.index);
        let code = codes.next().map(|(_, code)| *code);
        Place {
            hub: header.hub.clone(),
            stage: self.stage(rollout, cohort),
            group: header.group.to_string(),
            batch: header.id.0,
            position: self.index,
            batch_devices: header.devices,
            outcome: self.outcome,
            code,
            reason: summary::reason_in(&rollout.phase, self.outcome, code.unwrap_or(0)),
            attempts: self.attempts(rollout),
            waits_for: explain::waits_for(seat, standstill.as_deref(), now),
            times: self.times(rollout),
        }
    }

    fn stage(&self, rollout: &Rollout, cohort: Cohort) -> Stage {
        let index = self.batch.header.stage;
        let why = explain::why_stage(&rollout.spec, index, cohort);
        let why = why.expect("a plan has the stages of its spec");
        let passed_over = why.passed_over.into_iter();
        Stage {
            name: why.stage,
            number: index.0 + 1,
            of: rollout.spec.all_stages().len(),
            because: why.because,
            passed_over: passed_over
                .map(|(stage, because)| PassedOver { stage, because })
                .collect(),
        }
    }

    fn attempts(&self, rollout: &Rollout) -> Vec<Try> {
        let header = &self.batch.header;
        let tried = explain::attempts(rollout, header.stage, self.work.attempt).into_iter();
        let tried = tried.map(|tried| Try {
            attempt: tried.attempt.0,
            message_id: MessageId {
                rollout: rollout.spec.name.clone(),
                batch: header.id,
                index: self.index,
                attempt: tried.attempt,
            }
            .to_string(),
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

fn not_planned(rollout: &Rollout) -> Failure {
    let name = &rollout.spec.name;
    let message = match &rollout.phase {
        Phase::Accepted | Phase::Planning => {
            let waits = rollout.waits_in_line();
            let waits = waits
                .map(|waits| format!("; it {waits}"))
                .unwrap_or_default();
            format!("rollout {name} is not planned yet: which devices it has is not known{waits}")
        }
        phase => {
            let reason = phase.reason().unwrap_or("it has no plan");
            format!("rollout {name} has no devices: {reason}")
        }
    };
    Failure::message(ExitCode::Refused, message)
}

fn absent(rollout: &Rollout, device: &DeviceId) -> Failure {
    let name = &rollout.spec.name;
    let absence = explain::why_absent(&rollout.spec, device);
    let head = format!("device {device} is not in the plan of rollout {name}");
    if let Some(certain) = absence.certain {
        return Failure::message(ExitCode::Refused, format!("{head}: {certain}"));
    }
    let message = format!(
        "{head}; it may be that\n    {}",
        absence.possible.join("\n    ")
    );
    let hint = format!(
        "a plan does not change when devices do; whether the target has it now, this query tells on its hub: {}",
        absence.query
    );
    Failure::message(ExitCode::Refused, message).hint(hint)
}

impl Explanation {
    fn text(&self, output: &Output) -> String {
        let mut phase = self.phase.as_str().replace('_', " ");
        if let Some(reason) = self.phase.reason() {
            phase = format!("{phase}: {reason}");
        }
        let device = output.paint(Style::Bold, self.device.as_str());
        let mut lines = vec![format!("{device} in {}, which is {phase}", self.rollout)];
        for place in &self.places {
            lines.push(String::new());
            lines.extend(place.lines());
        }
        lines.join("\n")
    }
}

impl Place {
    fn lines(&self) -> Vec<String> {
        let stage = &self.stage;
        let mut lines = vec![
            line("hub", &self.hub),
            line(
                "stage",
                format_args!(
                    "{} ({} of {}): {}",
                    stage.name, stage.number, stage.of, stage.because
                ),
            ),
        ];
        let passed = stage.passed_over.iter();
        lines.extend(passed.map(|it| line("", format_args!("not {}: {}", it.stage, it.because))));
        lines.push(line(
            "batch",
            format_args!(
                "{}, as number {} of {} devices; {}",
                self.batch,
                thousands(u64::from(self.position) + 1),
                thousands(self.batch_devices.into()),
                self.group
            ),
        ));
        lines.push(line(
            "outcome",
            format_args!("{}: {}", self.outcome, self.reason),
        ));
        let attempts = self.attempts.iter();
        lines.extend(attempts.map(|it| line("attempt", it.in_words())));
        let waits = self.waits_for.as_deref().unwrap_or("nothing");
        lines.push(line("waits for", waits));
        lines.extend(self.times.lines(&stage.name));
        lines
    }
}

impl Try {
    fn in_words(&self) -> String {
        let text = format!("{}, message id {}", self.attempt, self.message_id);
        let Some(request) = &self.request else {
            return text;
        };
        let outcomes = request.outcomes.iter().map(|outcome| outcome.as_str());
        format!(
            "{text}, if it was {} at {}; asked for by {}",
            outcomes.collect::<Vec<_>>().join(" or "),
            request.requested_at,
            request.word
        )
    }
}

impl Times {
    fn lines(&self, stage: &StageName) -> Vec<String> {
        let times = [
            ("accepted".to_owned(), Some(self.accepted_at)),
            ("planned".to_owned(), self.planned_at),
            (format!("stage {stage} started"), self.stage_started_at),
            (format!("stage {stage} sent"), self.stage_sent_at),
            (format!("stage {stage} passed"), self.stage_passed_at),
        ];
        let times = times
            .into_iter()
            .filter_map(|(what, at)| Some(format!("{} {what}", at?)));
        let mut headings = ["times"].into_iter();
        times
            .map(|text| line(headings.next().unwrap_or(""), text))
            .collect()
    }
}

fn line(heading: &str, text: impl std::fmt::Display) -> String {
    format!("  {heading:<10} {text}")
}
