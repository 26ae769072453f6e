//! Reads the devices' answers from their twins, concurrently with the driver's other work.
//!
//! ```text
//!                 one query per stage and hub               failures, page by page
//! query due? ──▶ count the answers by state ──▶ more failed than recorded? ──▶ merge into outcomes
//!                              │
//!                              ▼
//!               note with the rollout, for gates and people
//! ```
//!
//! Gates use the counts, so a million devices cost a few queries. The devices with the change
//! applied are recorded once, when all devices have answered or the wait for answers is over. The
//! recording needs no query if all devices have answered, and otherwise works batch by batch.

mod queries;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, pending};
use tokio::time::Instant;
use twincast_core::error::describe;
use twincast_core::ids::StageIndex;
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::spec::SuccessLevel;
use twincast_core::time::Timestamp;

use crate::Hubs;
use crate::measure::{MeasureError, undecided_event};
use crate::planner::is_permanent;
use queries::{AnswerQueries, FailuresRead, Found, MAX_INTERVAL};

pub(crate) use queries::record_before_retry;

/// The shortest interval between two queries about a stage.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// While nothing changes, the interval is the time since the last change, divided by this number.
const BACKOFF_DIVISOR: u32 = 8;
/// The reciprocal of the largest share of a hub's query quota in use: one query in four.
const QUOTA_DIVISOR: f64 = 4.0;
/// The interval for stages before the current stage is longer by this factor.
const PAST_STAGE_FACTOR: u32 = 10;
/// The delay before the next query after a failed query.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// The delay before the next query after a failed query, while the rollout is paused or halted.
const PAUSED_RETRY_DELAY: Duration = Duration::from_secs(60);
/// The longest interval between two queries about a stage, while the rollout is paused or halted.
const MAX_PAUSED_INTERVAL: Duration = Duration::from_secs(600);
/// The interval between two checks of the clock.
const CLOCK_INTERVAL: Duration = Duration::from_millis(500);

/// The purpose of a query.
enum Task {
    /// Count the answers.
    Count,
    /// Record the answer of each device.
    Record,
}

/// The result of a query for answers.
#[derive(Debug)]
pub(crate) enum AnswerUpdate {
    /// The counts are in the rollout's notes.
    Noted {
        /// The rollout with the new notes.
        rollout: Box<Rollout>,
        /// Whether the new notes differ from the previous notes.
        changed: bool,
        /// The reason why some hubs could not be queried, for people.
        missing: Option<String>,
    },
    /// The answer of each device is recorded.
    Recorded {
        /// The rollout with the devices' error texts in the notes.
        rollout: Box<Rollout>,
    },
    /// The hubs can never be queried.
    Undecided(Event),
}

/// A driver's memory of its queries. Losing the memory costs one early query.
#[derive(Default)]
pub(crate) struct AnswerMemory {
    under_way: Option<BoxFuture<'static, (Task, Result<Found, MeasureError>)>>,
    /// The time of the last change.
    quiet_since: Option<Instant>,
    paused_until: Option<Instant>,
    /// The failures read so far. Each driver reads the failures once, and again when their number
    /// changes.
    read: FailuresRead,
    queries_now: bool,
    records: bool,
}

impl std::fmt::Debug for AnswerMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerMemory")
            .field("under_way", &self.under_way.is_some())
            .field("quiet_since", &self.quiet_since)
            .finish_non_exhaustive()
    }
}

impl AnswerMemory {
    /// Requests a query now.
    pub(crate) fn query_now(&mut self) {
        self.queries_now = true;
    }

    /// Requests the recording of each device's answer.
    pub(crate) fn record(&mut self) {
        self.records = true;
    }

    /// Queries the hubs when due, and returns the first result. Waits forever if the rollout's
    /// devices do not answer.
    ///
    /// Cancel safety: the next call continues a running query.
    pub(crate) async fn next_update(
        &mut self,
        rollout: &Rollout,
        (store, hubs): (&Arc<dyn Store>, &Hubs),
        clock: &dyn Clock,
    ) -> Result<AnswerUpdate, StoreError> {
        let Some(convention) = rollout.spec.convention() else {
            return pending().await;
        };
        loop {
            if let Some(under_way) = self.under_way.as_mut() {
                let (task, found) = under_way.await;
                self.under_way = None;
                return self.finish_query(rollout, &task, found);
            }
            let is_paused = self
                .paused_until
                .is_some_and(|until| Instant::now() < until);
            let stages = match is_paused {
                true => Vec::new(),
                false => self.due(rollout, hubs, clock.now()),
            };
            if is_paused || (stages.is_empty() && !self.records) {
                tokio::time::sleep(CLOCK_INTERVAL).await;
                continue;
            }
            let property = convention.property.clone();
            let (on, read) = ((store, hubs), self.read.clone());
            let queries = AnswerQueries::about(rollout, property, on, clock.now(), read);
            let records = std::mem::take(&mut self.records);
            self.queries_now = false;
            self.under_way = Some(match records {
                true => async move { (Task::Record, queries.record().await) }.boxed(),
                false => async move { (Task::Count, queries.count(stages).await) }.boxed(),
            });
        }
    }

    fn finish_query(
        &mut self,
        rollout: &Rollout,
        task: &Task,
        found: Result<Found, MeasureError>,
    ) -> Result<AnswerUpdate, StoreError> {
        let found = match found {
            Ok(found) => found,
            Err(MeasureError::Hub(error)) => Found {
                missing: Some(error),
                ..Found::default()
            },
            Err(MeasureError::Store(error)) => return Err(error),
        };
        self.queries_now = false;
        let retry_delay = match rollout.phase {
            Phase::Running => RETRY_DELAY,
            _ => PAUSED_RETRY_DELAY,
        };
        self.paused_until = found.missing.as_ref().map(|_| Instant::now() + retry_delay);
        self.read.extend(found.read);
        let mut noted = rollout.clone();
        for (stage, answered) in found.stages {
            noted.notes.answers.note(stage, answered);
        }
        for (error, devices) in found.errors.0 {
            noted.notes.answers.store_error(error, devices);
        }
        let changed = !noted.notes.answers.has_same_content(&rollout.notes.answers);
        if changed {
            self.quiet_since = Some(Instant::now());
        }
        let rollout = Box::new(noted);
        match found.missing {
            Some(error) if is_permanent(&error) && needs_answers(&rollout) => {
                let event = undecided_event(&rollout, "the devices' answers", &error);
                return Ok(AnswerUpdate::Undecided(event));
            }
            None if matches!(task, Task::Record) => return Ok(AnswerUpdate::Recorded { rollout }),
            _ => {}
        }
        // Repeat an incomplete recording.
        self.records |= matches!(task, Task::Record);
        Ok(AnswerUpdate::Noted {
            rollout,
            changed,
            missing: found.missing.map(|error| describe(&error)),
        })
    }

    /// Returns the stages due for a query.
    fn due(&mut self, rollout: &Rollout, hubs: &Hubs, now: Timestamp) -> Vec<StageIndex> {
        let longest = match rollout.phase {
            Phase::Running => MAX_INTERVAL,
            Phase::Paused { .. } | Phase::Halted { .. } => MAX_PAUSED_INTERVAL,
            _ => return Vec::new(),
        };
        if rollout.retry.is_some() {
            return Vec::new();
        }
        let quiet = self.quiet_since.get_or_insert_with(Instant::now).elapsed();
        let every = (quiet / BACKOFF_DIVISOR).clamp(min_interval(hubs), longest);
        let current = rollout.stage();
        let passed = rollout
            .stage_progress()
            .is_some_and(|it| it.passed_at.is_some());
        let is_due = |stage: StageIndex| {
            let Some(answered) = rollout.notes.answers.of(stage) else {
                return true;
            };
            if self.queries_now {
                return true;
            }
            let factor = if passed || stage == current {
                1
            } else {
                PAST_STAGE_FACTOR
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

/// Notes whether the hubs could be queried for the state of devices, and if not, why. Logs only the
/// first failure.
pub(crate) fn note_query_result(rollout: &mut Rollout, failure: Option<&str>) {
    if let Some(why) = failure
        && rollout.notes.clock.query_failure().is_none()
    {
        let name = &rollout.spec.name;
        tracing::warn!(rollout = %name, error = why, "cannot query the hubs for applied devices");
    }
    rollout.notes.clock.note_query(failure);
}

/// Returns whether the rollout's next step depends on device answers.
fn needs_answers(rollout: &Rollout) -> bool {
    let open = rollout.stage_progress().filter(|it| it.passed_at.is_none());
    match open.map(|_| rollout.spec.gate_of(rollout.stage())) {
        Some(gate) => gate.is_some_and(|gate| gate.counts == SuccessLevel::Applied),
        None => true,
    }
}

/// Returns the shortest interval between two queries to these hubs.
fn min_interval(hubs: &Hubs) -> Duration {
    let quotas = hubs
        .values()
        .filter_map(|hub| hub.limits.queries_per_minute);
    let least = quotas.fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE);
    let every = (60.0 * QUOTA_DIVISOR / least).min(MAX_INTERVAL.as_secs_f64());
    Duration::from_secs_f64(every).max(MIN_INTERVAL)
}
