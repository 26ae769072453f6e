//! Reads what devices have answered in their twins, beside all else that a driver does.
//!
//! ```text
//!                   one query a stage and hub             the failed ones, page by page
//!  is it due? ──▶ how many have answered what? ──▶ more failed than is known? ──▶ merged into outcomes
//!                              │
//!                              ▼
//!               noted with the rollout: gates and people go by it
//! ```
//!
//! Counts decide, so a million devices cost a few queries. Which devices have applied the change is recorded once, when all
//! have answered or no more answers are waited for: without a query where all have, else batch by batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, pending};
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use twincast_core::answer::{Answer, Answered, DeviceError, outcome_of, unanswered};
use twincast_core::batch::Report;
use twincast_core::error::in_words;
use twincast_core::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName, StageIndex};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome, Tally};
use twincast_core::ports::{Clock, Hub, Part, Store, StoreError};
use twincast_core::query::PropertyName;
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::time::Timestamp;

use crate::Hubs;
use crate::measure::{NotMeasured, hub_of, undecided};
use crate::planner::{PlanError, is_final};

/// The shortest time between two questions about a stage.
const SOONEST: Duration = Duration::from_secs(2);
/// The longest.
const LATEST: Duration = Duration::from_secs(60);
/// While nothing changes, the next question is after this part of the time since something did.
const PART: u32 = 8;
/// Of a hub's queries, so many are used at the most: one in four.
const SHARE: f64 = 4.0;
/// Stages that are over are asked about less often by this factor.
const RARELY: u32 = 10;
/// Hubs that could not be asked are asked again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// The interval between two looks at the clock.
const DUE: Duration = Duration::from_millis(500);
/// Batches that are read at a time.
const PAGE: usize = 64;
/// States that stand for a failure.
const FAILED: [&str; 4] = ["failed", "refused", "rolled_back", "cancelled"];

/// What was read.
#[derive(Debug, Default)]
struct Found {
    stages: Vec<(StageIndex, Answered)>,
    errors: Errors,
}

/// The errors that devices have told, and how many have told each.
type Errors = BTreeMap<DeviceError, u64>;

/// What is done with the answers.
enum Task {
    /// They are counted.
    Count,
    /// Each device's is recorded.
    Record,
}

/// What has become of a question.
#[derive(Debug)]
pub(crate) enum AnswerNews {
    /// The rollout's notes have what was found. `changed`: it is not what was known.
    Noted {
        /// The rollout with these notes.
        rollout: Box<Rollout>,
        /// Whether anything is new.
        changed: bool,
    },
    /// What each device has answered is recorded.
    Recorded,
    /// The hubs cannot be asked at present, for this reason.
    Failed(String),
    /// The hubs can never be asked.
    Undecided(Event),
}

/// What a driver remembers of its questions. Losing it costs a question that is asked early.
#[derive(Default)]
pub(crate) struct Reading {
    under_way: Option<BoxFuture<'static, (Task, Result<Found, NotMeasured>)>>,
    /// When something last changed.
    quiet_since: Option<Instant>,
    rests_until: Option<Instant>,
    asks_now: bool,
    records: bool,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("under_way", &self.under_way.is_some())
            .field("quiet_since", &self.quiet_since)
            .finish_non_exhaustive()
    }
}

impl Reading {
    /// The hubs are to be asked now.
    pub(crate) fn ask_now(&mut self) {
        self.asks_now = true;
    }

    /// What each device has answered is to be recorded now.
    pub(crate) fn record(&mut self) {
        self.records = true;
    }

    /// Asks the hubs when it is due, until something is found. Waits for ever where devices do not answer.
    ///
    /// Cancel safety: a question that is under way is gone on with by the next call.
    pub(crate) async fn happened(
        &mut self,
        rollout: &Rollout,
        (store, hubs): (&Arc<dyn Store>, &Hubs),
        clock: &dyn Clock,
    ) -> Result<AnswerNews, StoreError> {
        let Some(convention) = rollout.spec.convention() else {
            return pending().await;
        };
        loop {
            if let Some(under_way) = self.under_way.as_mut() {
                let (task, found) = under_way.await;
                self.under_way = None;
                return self.ended(rollout, &task, found);
            }
            let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
            let stages = match rests {
                true => Vec::new(),
                false => self.due(rollout, hubs, clock.now()),
            };
            if rests || (stages.is_empty() && !self.records) {
                tokio::time::sleep(DUE).await;
                continue;
            }
            let questions = Questions {
                name: rollout.spec.name.clone(),
                id: rollout.id,
                property: convention.property.clone(),
                store: Arc::clone(store),
                hubs: hubs.clone(),
                now: clock.now(),
                known: rollout
                    .notes
                    .answers
                    .stages()
                    .map(|(at, it)| (at, *it))
                    .collect(),
            };
            let records = std::mem::take(&mut self.records);
            self.asks_now = false;
            self.under_way = Some(match records {
                true => async move { (Task::Record, questions.record().await) }.boxed(),
                false => async move { (Task::Count, questions.count(stages).await) }.boxed(),
            });
        }
    }

    fn ended(
        &mut self,
        rollout: &Rollout,
        task: &Task,
        found: Result<Found, NotMeasured>,
    ) -> Result<AnswerNews, StoreError> {
        match found {
            Ok(found) => {
                self.rests_until = None;
                if matches!(task, Task::Record) {
                    return Ok(AnswerNews::Recorded);
                }
                let mut noted = rollout.clone();
                for (stage, answered) in found.stages {
                    noted.notes.answers.note(stage, answered);
                }
                for (error, devices) in found.errors {
                    noted.notes.answers.keep(error, devices);
                }
                let changed = !noted.notes.answers.says_the_same(&rollout.notes.answers);
                if changed {
                    self.quiet_since = Some(Instant::now());
                }
                Ok(AnswerNews::Noted {
                    rollout: Box::new(noted),
                    changed,
                })
            }
            Err(NotMeasured::Hub(error)) if is_final(&error) => Ok(AnswerNews::Undecided(
                undecided(rollout, "the devices' answers", &error),
            )),
            Err(NotMeasured::Hub(error)) => {
                self.rests_until = Some(Instant::now() + AGAIN);
                // What was to be recorded still is.
                self.records = matches!(task, Task::Record);
                Ok(AnswerNews::Failed(in_words(&error)))
            }
            Err(NotMeasured::Store(error)) => Err(error),
        }
    }

    /// The stages that are to be asked about now.
    fn due(&mut self, rollout: &Rollout, hubs: &Hubs, now: Timestamp) -> Vec<StageIndex> {
        if rollout.phase != Phase::Running || rollout.retry.is_some() {
            return Vec::new();
        }
        let quiet = self.quiet_since.get_or_insert_with(Instant::now).elapsed();
        let every = (quiet / PART).clamp(soonest(hubs), LATEST);
        let current = rollout.stage();
        let passed = rollout
            .stage_progress()
            .is_some_and(|it| it.passed_at.is_some());
        let is_due = |stage: StageIndex| {
            let Some(answered) = rollout.notes.answers.of(stage) else {
                return true;
            };
            if self.asks_now {
                return true;
            }
            let factor = if passed || stage == current {
                1
            } else {
                RARELY
            };
            now.since(answered.asked_at) >= every * factor
        };
        let started = rollout
            .stages
            .iter()
            .zip(0..)
            .filter(|(stage, _)| stage.started_at.is_some());
        let started = started.map(|(_, index)| StageIndex(index));
        started.filter(|stage| is_due(*stage)).collect()
    }
}

/// The shortest time between two questions to these hubs.
fn soonest(hubs: &Hubs) -> Duration {
    let quotas = hubs
        .values()
        .filter_map(|hub| hub.limits.queries_per_minute);
    let least = quotas.fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE);
    let every = (60.0 * SHARE / least).min(LATEST.as_secs_f64());
    Duration::from_secs_f64(every).max(SOONEST)
}

/// Questions about one rollout.
struct Questions {
    name: RolloutName,
    id: RolloutId,
    property: PropertyName,
    store: Arc<dyn Store>,
    hubs: Hubs,
    now: Timestamp,
    /// What was known before.
    known: BTreeMap<StageIndex, Answered>,
}

impl Questions {
    /// Counts the answers of these stages, and reads those of devices that failed and are not known to.
    async fn count(&self, stages: Vec<StageIndex>) -> Result<Found, NotMeasured> {
        let mut found = Found::default();
        let mut tallies = self.tallies().await?;
        for stage in stages {
            let (mut answered, has_failed) = self.answered(stage, &tallies).await?;
            for hub in &has_failed {
                self.read_failures(stage, hub, &mut found.errors).await?;
            }
            if !has_failed.is_empty() {
                tallies = self.tallies().await?;
            }
            answered.known_failed = of_stage(&tallies, stage).failed();
            found.stages.push((stage, answered));
        }
        Ok(found)
    }

    async fn tallies(&self) -> Result<Vec<Tally>, NotMeasured> {
        let tallies = self.store.tallies(&self.name).await;
        tallies.map_err(NotMeasured::Store)
    }

    /// How many devices of a stage have answered what, and the hubs at which more have failed than is known.
    async fn answered(
        &self,
        stage: StageIndex,
        tallies: &[Tally],
    ) -> Result<(Answered, Vec<HubName>), NotMeasured> {
        let counts = of_stage(tallies, stage);
        let lag = self.hubs.values().map(|hub| hub.limits.query_lag).max();
        let times = Answered {
            as_of: self.now.minus(lag.unwrap_or_default()),
            asked_at: self.now,
            ..Answered::default()
        };
        let known = self.known.get(&stage).copied().unwrap_or_default();
        if known.installing == 0 && known.applied > 0 && unanswered(&counts, known.applied) == 0 {
            // All have answered, and an answer is final.
            let Answered {
                as_of, asked_at, ..
            } = times;
            return Ok((
                Answered {
                    as_of,
                    asked_at,
                    ..known
                },
                Vec::new(),
            ));
        }
        let mut answered = times;
        let mut has_failed = Vec::new();
        let prefix = MessageId::prefix(&self.name, self.id, stage);
        let condition = self.property.answers(&prefix);
        for tally in tallies.iter().filter(|tally| tally.stage == stage) {
            if tally.counts.sum_of(may_answer) == 0 {
                continue;
            }
            let hub = self.hub(&tally.hub)?;
            let states = hub.count_states(&condition, &self.property).await;
            let before = answered.failed;
            for (state, devices) in states.map_err(of_hub(&tally.hub))? {
                answered.count(&state, devices);
            }
            if answered.failed - before > tally.counts.get(Outcome::Failed) {
                has_failed.push(tally.hub.clone());
            }
        }
        Ok((answered, has_failed))
    }

    /// Records the devices of a stage that have answered that they failed, with their words.
    async fn read_failures(
        &self,
        stage: StageIndex,
        hub: &HubName,
        errors: &mut Errors,
    ) -> Result<(), NotMeasured> {
        let prefix = MessageId::prefix(&self.name, self.id, stage);
        let condition = self.property.answers_in(&prefix, &FAILED);
        let answers = self.hub(hub)?;
        let mut pages = answers.answers(&condition, &self.property);
        while let Some(page) = pages.next().await {
            let page = page.map_err(of_hub(hub))?;
            self.merge(&page, errors).await?;
        }
        Ok(())
    }

    /// Records what each device has answered.
    async fn record(&self) -> Result<Found, NotMeasured> {
        let tallies = self.tallies().await?;
        let mut found = Found::default();
        let mut after: Option<BatchId> = None;
        loop {
            let page = self.store.batches(&self.name, after, PAGE).await;
            let page = page.map_err(NotMeasured::Store)?;
            let Some(last) = page.last() else {
                return Ok(found);
            };
            after = Some(last.header.id);
            for batch in &page {
                let (stage, id) = (batch.header.stage, batch.header.id);
                if batch.counts.sum_of(is_open) == 0 {
                    continue;
                }
                let known = self.known.get(&stage).copied().unwrap_or_default();
                let all = of_stage(&tallies, stage).sum_of(is_open_or_applied);
                if known.installing == 0 && known.applied >= all {
                    self.record_applied(id).await?;
                } else {
                    let hub = &batch.header.hub;
                    self.record_batch((stage, id), hub, &mut found.errors)
                        .await?;
                }
            }
        }
    }

    /// Every device of a batch that was sent the message, and has not failed, has applied the change: as many have in its
    /// stage.
    async fn record_applied(&self, batch: BatchId) -> Result<(), NotMeasured> {
        let loaded = self.store.batch(&self.name, batch, Part::State).await;
        let batch = loaded.map_err(NotMeasured::Store)?.batch;
        let open = batch
            .outcomes
            .iter()
            .zip(0..)
            .filter(|(outcome, _)| is_open(*outcome));
        let applied = open.map(|(_, index)| Report {
            index,
            outcome: Outcome::Applied,
            code: 0,
        });
        let applied: Vec<_> = applied.collect();
        self.merge_reports(batch.header.id, batch.attempts.newest, &applied)
            .await
    }

    async fn record_batch(
        &self,
        batch: (StageIndex, BatchId),
        hub: &HubName,
        errors: &mut Errors,
    ) -> Result<(), NotMeasured> {
        let prefix = MessageId::batch_prefix(&self.name, self.id, batch);
        let condition = self.property.answers(&prefix);
        let answers = self.hub(hub)?;
        let mut pages = answers.answers(&condition, &self.property);
        while let Some(page) = pages.next().await {
            let page = page.map_err(of_hub(hub))?;
            self.merge(&page, errors).await?;
        }
        Ok(())
    }

    /// Merges answers into outcomes, and keeps the words of errors. Answers to other messages are passed over.
    async fn merge(&self, answers: &[Answer], errors: &mut Errors) -> Result<(), NotMeasured> {
        let mut reports = BTreeMap::<(BatchId, Attempt), Vec<Report>>::new();
        for answer in answers {
            let Ok(id) = answer.message_id.parse::<MessageId>() else {
                continue;
            };
            if id.rollout != self.name || id.id != self.id {
                continue;
            }
            let outcome = outcome_of(&answer.state);
            let mut code = 0;
            if outcome == Outcome::Failed {
                code = answer.error.number();
                *errors.entry(answer.error.clone()).or_default() += 1;
            }
            let report = Report {
                index: id.index,
                outcome,
                code,
            };
            reports
                .entry((id.batch, id.attempt))
                .or_default()
                .push(report);
        }
        for ((batch, attempt), reports) in reports {
            self.merge_reports(batch, attempt, &reports).await?;
        }
        Ok(())
    }

    async fn merge_reports(
        &self,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), NotMeasured> {
        let merged = self
            .store
            .merge(&self.name, self.id, batch, attempt, reports);
        match merged.await {
            // A device may write any id into its twin.
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(NotMeasured::Store(error)),
        }
    }

    fn hub(&self, name: &HubName) -> Result<&dyn Hub, NotMeasured> {
        hub_of(name, &self.hubs).map_err(NotMeasured::Hub)
    }
}

fn of_stage(tallies: &[Tally], stage: StageIndex) -> Counts {
    Tally::sum(tallies.iter().filter(|tally| tally.stage == stage))
}

/// The device may have the message.
fn may_answer(outcome: Outcome) -> bool {
    outcome.was_enqueued() || outcome == Outcome::Unknown
}

/// The device may have the message, and no final answer of it is recorded, nor that it did not take the message.
fn is_open(outcome: Outcome) -> bool {
    may_answer(outcome)
        && !outcome.is_answered()
        && (!outcome.is_failure() || outcome == Outcome::Unknown)
}

fn is_open_or_applied(outcome: Outcome) -> bool {
    is_open(outcome) || outcome == Outcome::Applied
}

fn of_hub(hub: &HubName) -> impl Fn(twincast_core::ports::HubError) -> NotMeasured {
    let hub = hub.clone();
    move |source| {
        NotMeasured::Hub(PlanError::Hub {
            hub: hub.clone(),
            source,
        })
    }
}
