//! Queries for the devices' answers in their twins, and their records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use twincast_core::answer::{Answer, Answered, DeviceError, outcome_of, unanswered};
use twincast_core::batch::{BatchStatus, Report};
use twincast_core::error::describe;
use twincast_core::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName, StageIndex};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome, Tally};
use twincast_core::plan::BatchHeader;
use twincast_core::ports::{Hub, HubError, Part, Store, StoreError};
use twincast_core::query::PropertyName;
use twincast_core::rollout::Rollout;
use twincast_core::time::Timestamp;

use crate::Hubs;
use crate::measure::{MeasureError, hub_of};
use crate::planner::{PlanError, is_permanent};

/// The longest interval between two queries about a stage.
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The number of batches read per page.
const PAGE: usize = 64;
/// The answer states that count as failures.
const FAILURE_STATES: [&str; 4] = ["failed", "refused", "rolled_back", "cancelled"];

/// The result of a task.
#[derive(Default)]
pub(super) struct Found {
    /// The stages with answers from all of their hubs.
    pub(super) stages: Vec<(StageIndex, Answered)>,
    pub(super) errors: Errors,
    /// The stages and hubs with all failures read, and the number of failures.
    pub(super) read: FailuresRead,
    /// The error of the first hub that could not be queried, if any.
    pub(super) missing: Option<PlanError>,
}

/// The number of failures read per stage and hub, and the time of the reading.
pub(super) type FailuresRead = BTreeMap<(StageIndex, HubName), (u64, Timestamp)>;

/// The errors reported by devices, with the number of devices per error: the first [`MAX_ERRORS`]
/// different errors.
#[derive(Default)]
pub(super) struct Errors(pub(super) BTreeMap<DeviceError, u64>);

/// The most different errors held at a time. Devices may write arbitrary errors.
const MAX_ERRORS: usize = 1_000;

impl Errors {
    fn add(&mut self, error: &DeviceError) {
        if let Some(devices) = self.0.get_mut(error) {
            *devices += 1;
        } else if self.0.len() < MAX_ERRORS {
            self.0.insert(error.clone(), 1);
        }
    }
}

/// Records the answers of a batch's devices before a retry, so that devices with the change applied
/// are not sent to again. Returns `false` if the hub cannot be queried at present; a permanent
/// error does not delay the retry.
pub(crate) async fn record_before_retry(
    rollout: &Rollout,
    (store, hubs): (&Arc<dyn Store>, &Hubs),
    batch: &BatchStatus,
    chosen: &[Outcome],
) -> Result<bool, StoreError> {
    let is_chosen = |outcome: Outcome| chosen.contains(&outcome) && is_unanswered(outcome);
    let Some(convention) = rollout.spec.convention() else {
        return Ok(true);
    };
    if batch.counts.sum_of(is_chosen) == 0 {
        return Ok(true);
    }
    let on = (store, hubs);
    let queries = AnswerQueries::about(
        rollout,
        convention.property,
        on,
        Timestamp(0),
        FailuresRead::default(),
    );
    let mut errors = Errors::default();
    match queries.record_batch(&batch.header, &mut errors).await {
        Ok(()) => Ok(true),
        Err(MeasureError::Store(error)) => Err(error),
        // Nothing can be sent through an unconfigured hub, either.
        Err(MeasureError::Hub(PlanError::UnknownHub { .. })) => Ok(true),
        Err(MeasureError::Hub(error)) => {
            let error_text = describe(&error);
            let name = &rollout.spec.name;
            tracing::warn!(rollout = %name, error = error_text, "cannot query answers before a retry");
            Ok(is_permanent(&error))
        }
    }
}

/// Queries about one rollout.
pub(super) struct AnswerQueries {
    name: RolloutName,
    id: RolloutId,
    property: PropertyName,
    store: Arc<dyn Store>,
    hubs: Hubs,
    now: Timestamp,
    /// The failures read before.
    read: FailuresRead,
    /// The counts known before.
    known: BTreeMap<StageIndex, Answered>,
}

impl AnswerQueries {
    /// Creates queries about a rollout at `now`, after the failures in `read`.
    pub(super) fn about(
        rollout: &Rollout,
        property: PropertyName,
        (store, hubs): (&Arc<dyn Store>, &Hubs),
        now: Timestamp,
        read: FailuresRead,
    ) -> Self {
        let known = rollout.notes.answers.stages();
        Self {
            name: rollout.spec.name.clone(),
            id: rollout.id,
            property,
            store: Arc::clone(store),
            hubs: hubs.clone(),
            now,
            read,
            known: known.map(|(stage, answered)| (stage, *answered)).collect(),
        }
    }

    /// Counts the answers of these stages, and reads the answers of failed devices not yet recorded
    /// as failed. A hub that cannot be queried leaves its stages uncounted.
    pub(super) async fn count(&self, stages: Vec<StageIndex>) -> Result<Found, MeasureError> {
        let mut found = Found::default();
        for stage in stages {
            let tallies = self.tallies().await?;
            let tallies: Vec<_> = tallies
                .iter()
                .filter(|tally| tally.stage == stage)
                .collect();
            let answered = self.answered(stage, &tallies, &mut found).await?;
            if let Some(mut answered) = answered {
                answered.known_failed = counts_of_stage(&self.tallies().await?, stage).failed();
                found.stages.push((stage, answered));
            }
        }
        Ok(found)
    }

    async fn tallies(&self) -> Result<Vec<Tally>, MeasureError> {
        let tallies = self.store.tallies(&self.name).await;
        tallies.map_err(MeasureError::Store)
    }

    /// Counts the answers of a stage by state. Returns `None` if some hubs of the stage could not
    /// be queried.
    async fn answered(
        &self,
        stage: StageIndex,
        tallies: &[&Tally],
        found: &mut Found,
    ) -> Result<Option<Answered>, MeasureError> {
        let counts = Tally::sum(tallies.iter().copied());
        let lag = self.hubs.values().map(|hub| hub.limits.query_lag).max();
        let times = Answered {
            as_of: self.now.minus(lag.unwrap_or_default()),
            asked_at: self.now,
            ..Answered::default()
        };
        let known = self.known.get(&stage).copied().unwrap_or_default();
        if known.installing == 0 && known.applied > 0 && unanswered(&counts, known.applied) == 0 {
            // All devices have answered, and answers are final.
            let Answered {
                as_of, asked_at, ..
            } = times;
            return Ok(Some(Answered {
                as_of,
                asked_at,
                ..known
            }));
        }
        let (mut answered, mut is_complete) = (times, true);
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
                Err(MeasureError::Hub(error)) => {
                    found.missing.get_or_insert(error);
                    is_complete = false;
                }
                Err(error) => return Err(error),
            }
        }
        // Answers are final, even if another rollout's answer has since replaced an answer in the
        // twin.
        let recorded = counts.get(Outcome::Applied);
        answered.applied = answered.applied.max(known.applied).max(recorded);
        Ok(is_complete.then_some(answered))
    }

    /// Counts the answers of a stage on one hub. The failures are read when their number has
    /// changed, and every [`MAX_INTERVAL`] while more failures are counted than recorded, because
    /// new failures may have replaced old failures.
    async fn answered_on(
        &self,
        tally: &Tally,
        found: &mut Found,
    ) -> Result<Answered, MeasureError> {
        let Tally { stage, hub, counts } = tally;
        let stage = *stage;
        let prefix = MessageId::prefix(&self.name, self.id, stage);
        let condition = self.property.answers(&prefix);
        let states = self.hub(hub)?.count_states(&condition, &self.property);
        let mut answered = Answered::default();
        for (state, devices) in states.await.map_err(of_hub(hub))? {
            answered.count(&state, devices);
        }
        let key = (stage, hub.clone());
        let (read, at) = self.read.get(&key).copied().unwrap_or_default();
        let is_old =
            self.now.since(at) >= MAX_INTERVAL && answered.failed > counts.get(Outcome::Failed);
        if answered.failed != read || is_old {
            let condition = self.property.answers_in(&prefix, &FAILURE_STATES);
            self.read_pages(hub, &condition, &mut found.errors).await?;
            found.read.insert(key, (answered.failed, self.now));
        }
        Ok(answered)
    }

    /// Records the answers selected by a condition.
    async fn read_pages(
        &self,
        hub: &HubName,
        condition: &str,
        errors: &mut Errors,
    ) -> Result<(), MeasureError> {
        let answers = self.hub(hub)?;
        let mut pages = answers.answers(condition, &self.property);
        while let Some(page) = pages.next().await {
            let page = page.map_err(of_hub(hub))?;
            self.merge(hub, &page, errors).await?;
        }
        Ok(())
    }

    /// Records the answer of each device.
    pub(super) async fn record(&self) -> Result<Found, MeasureError> {
        let tallies = self.tallies().await?;
        let mut found = Found::default();
        let mut after: Option<BatchId> = None;
        loop {
            let page = self.store.batches(&self.name, after, PAGE).await;
            let page = page.map_err(MeasureError::Store)?;
            let Some(last) = page.last() else {
                return Ok(found);
            };
            after = Some(last.header.id);
            for batch in &page {
                if batch.counts.sum_of(is_unanswered) == 0 {
                    continue;
                }
                let stage = batch.header.stage;
                let counts = counts_of_stage(&tallies, stage);
                let known = self.known.get(&stage).copied().unwrap_or_default();
                let all_applied = known.installing == 0 && unanswered(&counts, known.applied) == 0;
                // A device without the message, according to the hub, may have applied the change
                // anyway.
                let recorded = match all_applied && counts.sum_of(did_not_take) == 0 {
                    true => self.record_applied(batch.header.id).await,
                    false => self.record_batch(&batch.header, &mut found.errors).await,
                };
                match recorded {
                    Err(MeasureError::Hub(error)) => _ = found.missing.get_or_insert(error),
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
    ) -> Result<(), MeasureError> {
        let of = (batch.stage, batch.id);
        let prefix = MessageId::batch_prefix(&self.name, self.id, of);
        let condition = self.property.answers(&prefix);
        self.read_pages(&batch.hub, &condition, errors).await
    }

    /// Records `applied` for every device of a batch that was sent the message and has not failed.
    /// The caller knows from the counts that all such devices of the stage have applied the change.
    async fn record_applied(&self, batch: BatchId) -> Result<(), MeasureError> {
        let loaded = self
            .store
            .batch(&self.name, batch, Part::WithoutDevices)
            .await;
        let batch = loaded.map_err(MeasureError::Store)?.batch;
        let open = batch
            .outcomes
            .iter()
            .zip(0..)
            .filter(|(outcome, _)| may_have_applied(*outcome));
        let applied = open.map(|(_, index)| Report {
            index,
            outcome: Outcome::Applied,
            code: 0,
        });
        let applied: Vec<_> = applied.collect();
        self.merge_reports(batch.header.id, batch.attempts.newest, &applied)
            .await
    }

    /// Merges answers from the twins of a hub into outcomes, and keeps the error texts. A device
    /// may write anything into its twin, so an answer counts only for the device itself, and only
    /// about a message possibly sent to the device.
    async fn merge(
        &self,
        hub: &HubName,
        answers: &[Answer],
        errors: &mut Errors,
    ) -> Result<(), MeasureError> {
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
                Err(error) => return Err(MeasureError::Store(error)),
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
    ) -> Result<(), MeasureError> {
        let merged = self
            .store
            .merge(&self.name, self.id, batch, attempt, reports);
        match merged.await {
            // The batch belongs to an older plan.
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(MeasureError::Store(error)),
        }
    }

    fn hub(&self, name: &HubName) -> Result<&dyn Hub, MeasureError> {
        hub_of(name, &self.hubs).map_err(MeasureError::Hub)
    }
}

fn counts_of_stage(tallies: &[Tally], stage: StageIndex) -> Counts {
    Tally::sum(tallies.iter().filter(|tally| tally.stage == stage))
}

/// Returns whether the device may have the message.
fn may_answer(outcome: Outcome) -> bool {
    outcome.was_enqueued() || outcome == Outcome::Unknown
}

/// Returns whether the hub accepted the message and reports that the device did not take it. A
/// message taken but not acknowledged counts as not taken.
fn did_not_take(outcome: Outcome) -> bool {
    outcome.was_enqueued() && outcome.is_failure() && outcome != Outcome::Failed
}

/// Returns whether the device may have the message and no final answer is recorded.
fn is_unanswered(outcome: Outcome) -> bool {
    may_answer(outcome) && !outcome.is_answered()
}

/// Returns whether the device is known to have the message or not known to lack the message, and no
/// final answer is recorded.
fn may_have_applied(outcome: Outcome) -> bool {
    is_unanswered(outcome) && !did_not_take(outcome)
}

fn of_hub(hub: &HubName) -> impl Fn(HubError) -> MeasureError {
    let hub = hub.clone();
    move |source| {
        MeasureError::Hub(PlanError::Hub {
            hub: hub.clone(),
            source,
        })
    }
}
