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
use twincast_core::batch::{BatchStatus, Report};
use twincast_core::error::in_words;
use twincast_core::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName, StageIndex};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome, Tally};
use twincast_core::plan::BatchHeader;
use twincast_core::ports::{Clock, Hub, Part, Store, StoreError};
use twincast_core::query::PropertyName;
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::spec::Rung;
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
#[derive(Default)]
struct Found {
    /// Stages whose hubs have all answered.
    stages: Vec<(StageIndex, Answered)>,
    errors: Errors,
    /// Of which stages and hubs all failures were read, and how many these were.
    read: Readings,
    /// Why not all was found: of the first hub that could not be asked.
    missing: Option<PlanError>,
}

/// How many failures of a stage on a hub were read, and when.
type Readings = BTreeMap<(StageIndex, HubName), (u64, Timestamp)>;

/// The errors that devices have told, and how many have told each: the first [`ERRORS`] different ones.
#[derive(Default)]
struct Errors(BTreeMap<DeviceError, u64>);

/// How many different errors are held at a time. A device may write anything.
const ERRORS: usize = 1_000;

impl Errors {
    fn add(&mut self, error: &DeviceError) {
        if let Some(devices) = self.0.get_mut(error) {
            *devices += 1;
        } else if self.0.len() < ERRORS {
            self.0.insert(error.clone(), 1);
        }
    }
}

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
        /// Why some hubs could not be asked, for people.
        missing: Option<String>,
    },
    /// What each device has answered is recorded.
    Recorded {
        /// The rollout with the words of devices in its notes.
        rollout: Box<Rollout>,
    },
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
    /// The failures that were read. They are read anew when their number is another one, and by each driver once.
    read: Readings,
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
                read: self.read.clone(),
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
        let found = match found {
            Ok(found) => found,
            Err(NotMeasured::Hub(error)) => Found {
                missing: Some(error),
                ..Found::default()
            },
            Err(NotMeasured::Store(error)) => return Err(error),
        };
        self.asks_now = false;
        self.rests_until = found.missing.as_ref().map(|_| Instant::now() + AGAIN);
        self.read.extend(found.read);
        let mut noted = rollout.clone();
        for (stage, answered) in found.stages {
            noted.notes.answers.note(stage, answered);
        }
        for (error, devices) in found.errors.0 {
            noted.notes.answers.keep(error, devices);
        }
        let changed = !noted.notes.answers.says_the_same(&rollout.notes.answers);
        if changed {
            self.quiet_since = Some(Instant::now());
        }
        let rollout = Box::new(noted);
        match found.missing {
            Some(error) if is_final(&error) && needs_answers(&rollout) => {
                let event = undecided(&rollout, "the devices' answers", &error);
                return Ok(AnswerNews::Undecided(event));
            }
            None if matches!(task, Task::Record) => return Ok(AnswerNews::Recorded { rollout }),
            _ => {}
        }
        // What was to be recorded still is.
        self.records |= matches!(task, Task::Record);
        Ok(AnswerNews::Noted {
            rollout,
            changed,
            missing: found.missing.map(|error| in_words(&error)),
        })
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

/// What a rollout does next depends on what devices answer.
fn needs_answers(rollout: &Rollout) -> bool {
    let open = rollout.stage_progress().filter(|it| it.passed_at.is_none());
    match open.map(|_| rollout.spec.gate_of(rollout.stage())) {
        Some(gate) => gate.is_some_and(|gate| gate.counts == Rung::Applied),
        None => true,
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

/// Records what the devices of a batch have answered, before some of them are sent to again: those that have done what the
/// message asks for are not to be. `false` if the hub cannot be asked at present.
pub(crate) async fn record_before_retry(
    rollout: &Rollout,
    (store, hubs): (&Arc<dyn Store>, &Hubs),
    batch: &BatchStatus,
    chosen: &[Outcome],
) -> Result<bool, StoreError> {
    let may_have_applied = |outcome: Outcome| chosen.contains(&outcome) && is_open(outcome);
    let Some(convention) = rollout.spec.convention() else {
        return Ok(true);
    };
    if batch.counts.sum_of(may_have_applied) == 0 {
        return Ok(true);
    }
    let questions = Questions {
        name: rollout.spec.name.clone(),
        id: rollout.id,
        property: convention.property,
        store: Arc::clone(store),
        hubs: hubs.clone(),
        now: Timestamp(0),
        read: Readings::default(),
        known: BTreeMap::new(),
    };
    let mut errors = Errors::default();
    match questions.record_batch(&batch.header, &mut errors).await {
        Ok(()) => Ok(true),
        Err(NotMeasured::Store(error)) => Err(error),
        // Nothing can be sent through such a hub, either.
        Err(NotMeasured::Hub(PlanError::UnknownHub { .. })) => Ok(true),
        Err(NotMeasured::Hub(error)) => {
            let error_in_words = in_words(&error);
            let name = &rollout.spec.name;
            tracing::warn!(rollout = %name, error = error_in_words, "answers cannot be read before a retry");
            Ok(is_final(&error))
        }
    }
}

/// Questions about one rollout.
struct Questions {
    name: RolloutName,
    id: RolloutId,
    property: PropertyName,
    store: Arc<dyn Store>,
    hubs: Hubs,
    now: Timestamp,
    /// The failures that were read before.
    read: Readings,
    /// What was known before.
    known: BTreeMap<StageIndex, Answered>,
}

impl Questions {
    /// Counts the answers of these stages, and reads those of devices that failed and are not known to. A hub that cannot be asked
    /// costs what it would say.
    async fn count(&self, stages: Vec<StageIndex>) -> Result<Found, NotMeasured> {
        let mut found = Found::default();
        for stage in stages {
            let tallies = self.tallies().await?;
            let tallies: Vec<_> = tallies
                .iter()
                .filter(|tally| tally.stage == stage)
                .collect();
            let answered = self.answered(stage, &tallies, &mut found).await?;
            if let Some(mut answered) = answered {
                answered.known_failed = of_stage(&self.tallies().await?, stage).failed();
                found.stages.push((stage, answered));
            }
        }
        Ok(found)
    }

    async fn tallies(&self) -> Result<Vec<Tally>, NotMeasured> {
        let tallies = self.store.tallies(&self.name).await;
        tallies.map_err(NotMeasured::Store)
    }

    /// How many devices of a stage have answered what; `None` if not all of its hubs could be asked.
    async fn answered(
        &self,
        stage: StageIndex,
        tallies: &[&Tally],
        found: &mut Found,
    ) -> Result<Option<Answered>, NotMeasured> {
        let counts = Tally::sum(tallies.iter().copied());
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
            return Ok(Some(Answered {
                as_of,
                asked_at,
                ..known
            }));
        }
        let (mut answered, mut is_whole) = (times, true);
        for tally in tallies
            .iter()
            .filter(|tally| tally.counts.sum_of(may_answer) > 0)
        {
            match self.answered_on(tally, found).await {
                Ok(on_hub) => {
                    answered.installing += on_hub.installing;
                    answered.applied += on_hub.applied;
                    answered.failed += on_hub.failed;
                }
                Err(NotMeasured::Hub(error)) => {
                    found.missing.get_or_insert(error);
                    is_whole = false;
                }
                Err(error) => return Err(error),
            }
        }
        // An answer is final, though another rollout's may have taken its place in the twin since.
        let recorded = counts.get(Outcome::Applied);
        answered.applied = answered.applied.max(known.applied).max(recorded);
        Ok(is_whole.then_some(answered))
    }

    /// The same on one hub. Its failures are read when there is another number of them than before, and now and then while there
    /// are more than are known: others may have taken the place of some.
    async fn answered_on(&self, tally: &Tally, found: &mut Found) -> Result<Answered, NotMeasured> {
        let Tally { stage, hub, counts } = tally;
        let stage = *stage;
        let prefix = MessageId::prefix(&self.name, self.id, stage);
        let condition = self.property.answers(&prefix);
        let states = self.hub(hub)?.count_states(&condition, &self.property);
        let mut answered = Answered::default();
        for (state, devices) in states.await.map_err(of_hub(hub))? {
            answered.count(&state, devices);
        }
        let place = (stage, hub.clone());
        let (read, at) = self.read.get(&place).copied().unwrap_or_default();
        let is_old = self.now.since(at) >= LATEST && answered.failed > counts.get(Outcome::Failed);
        if answered.failed != read || is_old {
            let condition = self.property.answers_in(&prefix, &FAILED);
            self.read_pages(hub, &condition, &mut found.errors).await?;
            found.read.insert(place, (answered.failed, self.now));
        }
        Ok(answered)
    }

    /// Records the answers that a condition means.
    async fn read_pages(
        &self,
        hub: &HubName,
        condition: &str,
        errors: &mut Errors,
    ) -> Result<(), NotMeasured> {
        let answers = self.hub(hub)?;
        let mut pages = answers.answers(condition, &self.property);
        while let Some(page) = pages.next().await {
            let page = page.map_err(of_hub(hub))?;
            self.merge(hub, &page, errors).await?;
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
                if batch.counts.sum_of(is_open) == 0 {
                    continue;
                }
                let stage = batch.header.stage;
                let counts = of_stage(&tallies, stage);
                let known = self.known.get(&stage).copied().unwrap_or_default();
                let all_applied = known.installing == 0 && unanswered(&counts, known.applied) == 0;
                // One that did not take the message, by the hub's word, may have applied it all the same.
                let recorded = match all_applied && counts.sum_of(did_not_take) == 0 {
                    true => self.record_applied(batch.header.id).await,
                    false => self.record_batch(&batch.header, &mut found.errors).await,
                };
                match recorded {
                    Err(NotMeasured::Hub(error)) => _ = found.missing.get_or_insert(error),
                    other => other?,
                }
            }
        }
    }

    /// Records the answers of a batch.
    async fn record_batch(
        &self,
        batch: &BatchHeader,
        errors: &mut Errors,
    ) -> Result<(), NotMeasured> {
        let of = (batch.stage, batch.id);
        let prefix = MessageId::batch_prefix(&self.name, self.id, of);
        let condition = self.property.answers(&prefix);
        self.read_pages(&batch.hub, &condition, errors).await
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
            .filter(|(outcome, _)| is_sent(*outcome));
        let applied = open.map(|(_, index)| Report {
            index,
            outcome: Outcome::Applied,
            code: 0,
        });
        let applied: Vec<_> = applied.collect();
        self.merge_reports(batch.header.id, batch.attempts.newest, &applied)
            .await
    }

    /// Merges answers from the twins of a hub into outcomes, and keeps the words of errors. A device may write anything into its
    /// twin: an answer counts only for the device itself, about a message that it may have been sent.
    async fn merge(
        &self,
        hub: &HubName,
        answers: &[Answer],
        errors: &mut Errors,
    ) -> Result<(), NotMeasured> {
        let mut by_batch = BTreeMap::<BatchId, Vec<(MessageId, &Answer)>>::new();
        for answer in answers {
            match answer.message_id.parse::<MessageId>() {
                Ok(id) if id.rollout == self.name && id.id == self.id => {
                    by_batch.entry(id.batch).or_default().push((id, answer));
                }
                _ => {}
            }
        }
        for (batch, answers) in by_batch {
            let work = match self.store.load(&self.name, batch).await {
                Ok(work) => work,
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(NotMeasured::Store(error)),
            };
            let header = work.header();
            let mut reports = BTreeMap::<Attempt, Vec<Report>>::new();
            for (id, answer) in answers {
                let at = id.index as usize;
                let is_there = at < work.batch.devices.len() && may_answer(work.outcomes.get(at));
                let is_its_own = is_there
                    && work.batch.devices.get(at).as_str() == answer.device
                    && (&header.hub, header.stage) == (hub, id.stage)
                    && id.attempt <= work.attempt;
                if !is_its_own {
                    continue;
                }
                let outcome = outcome_of(&answer.state);
                let mut code = 0;
                if outcome == Outcome::Failed {
                    code = answer.error.number();
                    errors.add(&answer.error);
                }
                reports.entry(id.attempt).or_default().push(Report {
                    index: id.index,
                    outcome,
                    code,
                });
            }
            for (attempt, reports) in reports {
                self.merge_reports(batch, attempt, &reports).await?;
            }
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
            // It is of an older plan.
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

/// The hub had the message, and says that the device did not take it. What it did take, and did not acknowledge, is among these.
fn did_not_take(outcome: Outcome) -> bool {
    outcome.was_enqueued() && outcome.is_failure() && outcome != Outcome::Failed
}

/// The device may have the message, and no final answer of it is recorded.
fn is_open(outcome: Outcome) -> bool {
    may_answer(outcome) && !outcome.is_answered()
}

/// It is known of the device that it has the message, or not known that it has not.
fn is_sent(outcome: Outcome) -> bool {
    is_open(outcome) && !did_not_take(outcome)
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
