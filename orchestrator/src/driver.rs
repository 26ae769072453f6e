//! Drives one rollout to its end.
//!
//! Each turn reads the rollout, does what its phase owes, and reads again. Nothing is kept that
//! could not be read or done again, so a driver may die at any point and another one go on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::account::{Activity, Hold};
use twincast_core::error::in_words;
use twincast_core::evidence::Evidence;
use twincast_core::gate::{self, Measured, Next, Seen, WaitsFor};
use twincast_core::ids::{HubName, RolloutName, StageIndex};
use twincast_core::outcome::Counts;
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{
    Clock, Disposition, HubTrouble, MetricSource, Queue, Roster, Skip, Store, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Event, IllegalTransition, Owed, Rollout};
use twincast_core::trace::Tracer;

use crate::Hubs;
use crate::groups::Floor;
use crate::hearing;
use crate::looks::{self, LookNews, Looking};
use crate::measure::{self, NotMeasured};
use crate::metric::Asking;
use crate::metrics;
use crate::planner::{self, PlanError, PlanProgress, Planner};
use crate::ringing::Rung;
use crate::traces;

/// How a driver works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverConfig {
    /// Batches of a rollout that are on each hub's queue or being worked on, at the most: so many
    /// for each consumer of the queue ...
    pub per_consumer: usize,
    /// ... and so many more. A rollout that came first must not fill the workers for those that
    /// come later, and yet no worker may wait for work.
    pub ahead: usize,
    /// How often it looks whether more can be released, while there is something to release.
    pub pass: Duration,
    /// How often it looks when there was nothing to do.
    pub longest_pass: Duration,
    /// When a batch is released again that was released, is worked on by nobody, and whose
    /// dispatch cannot be on the queue, because that is empty.
    pub lost_after: Duration,
    /// When a batch is released again that is worked on by nobody, whatever is on the queue.
    pub ring_again: Duration,
    /// Driving ends when a stage waits for an approval, or the rollout for another one of its group: while this process
    /// has the store, nobody can give the one or drive the other.
    pub leave_at_approval: bool,
    /// Driving ends when only answers of devices are missing.
    pub leave_when_sent: bool,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            per_consumer: 2,
            ahead: 4,
            pass: Duration::from_millis(100),
            longest_pass: Duration::from_secs(1),
            lost_after: Duration::from_secs(2),
            ring_again: Duration::from_secs(60),
            leave_at_approval: false,
            leave_when_sent: false,
        }
    }
}

/// Why a rollout cannot be driven on.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The store fails.
    #[error("cannot drive rollout {rollout}")]
    Store {
        /// The rollout.
        rollout: RolloutName,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// The hub or network does not let it be planned, or its gate be asked, now. The rollout stays as it is.
    #[error("cannot ask the hubs about rollout {rollout}")]
    Plan {
        /// The rollout.
        rollout: RolloutName,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// The rollout moved on in a way that this driver did not expect.
    #[error("cannot drive rollout {rollout}")]
    Illegal {
        /// The rollout.
        rollout: RolloutName,
        /// What happened.
        #[source]
        source: IllegalTransition,
    },
    /// There is no such rollout.
    #[error("rollout {0} does not exist")]
    Unknown(RolloutName),
}

/// Drives rollouts.
pub struct Driver {
    /// Where the truth is.
    pub store: Arc<dyn Store>,
    /// Where dispatches go.
    pub queue: Arc<dyn Queue>,
    /// All configured hubs.
    pub hubs: Hubs,
    /// Where gates' metrics are asked for, if that is configured.
    pub metric_source: Option<Arc<dyn MetricSource>>,
    /// The time for records.
    pub clock: Arc<dyn Clock>,
    /// How it works.
    pub config: DriverConfig,
    /// Where the specs' files are.
    pub base: PathBuf,
    /// How far planning is.
    pub planning: PlanProgress,
    /// Where a halt of all rollouts is found, in an engine that has one.
    pub roster: Option<Arc<dyn Roster>>,
    /// What it has repaired.
    pub repairs: Repairs,
    /// Who is told what rollouts have done.
    pub tracer: Tracer,
}

/// What drivers found out of order and put right: dispatches that were lost.
#[derive(Debug, Clone)]
pub struct Repairs(pub(crate) IntCounter);

impl Default for Repairs {
    fn default() -> Self {
        Self(metrics::repairs())
    }
}

impl Repairs {
    /// How many there were since the process started.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

impl Driver {
    /// Drives a rollout until it owes nothing, which is what the result then shows: ended or
    /// paused; or until `stop`, in whatever phase it then is; or until it waits for an approval, or for answers, if it
    /// is to be left then.
    ///
    /// # Errors
    /// [`DriveError`]; driving again later goes on where this left off.
    pub async fn drive(
        &self,
        name: &RolloutName,
        stop: &CancellationToken,
    ) -> Result<Rollout, DriveError> {
        let mut memory = Memory::default();
        loop {
            let rollout = self.read(name).await?;
            if rollout.owed() == Owed::Nothing || stop.is_cancelled() {
                return Ok(rollout);
            }
            let result = match self.floor(&rollout, stop).await {
                Ok(Floor::Ours) => self.do_owed(&rollout, &mut memory, stop).await,
                Ok(Floor::LookAgain) => Ok(Released::LookAgain),
                Ok(Floor::LeftAlone) => Ok(Released::LeftAlone),
                Err(error) => Err(error),
            };
            match result {
                Ok(Released::LeftAlone) => return Ok(rollout),
                Ok(Released::LookAgain) => {}
                // It is another one now: read again.
                Err(DriveError::Store { source, .. })
                    if source.disposition() == Disposition::Superseded =>
                {
                    self.note_superseded(name, &source, stop).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Counts writes that the store has lost. Waits before it is asked again, unless somebody else moved the rollout on.
    async fn note_superseded(
        &self,
        name: &RolloutName,
        error: &StoreError,
        stop: &CancellationToken,
    ) {
        if matches!(error, StoreError::Superseded { .. }) {
            return;
        }
        if let StoreError::Regressed { what } = error {
            self.repairs.0.inc();
            tracing::warn!(rollout = %name, what, "the store has lost its last writes, they are made again");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.config.longest_pass) => {}
        }
    }

    /// Does what a rollout owes the world.
    async fn do_owed(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Released, DriveError> {
        match rollout.owed() {
            Owed::Plan => self.plan(rollout, stop).await?,
            Owed::PrepareRetry => {
                // Batches that were rung for and done are to be rung for again.
                *memory = Memory::default();
                self.prepare_retry(rollout, stop).await?;
            }
            Owed::ReleaseBatches => return self.release(rollout, memory, stop).await,
            Owed::SkipRemaining => self.skip_remaining(rollout, stop).await?,
            Owed::Nothing => {}
        }
        Ok(Released::LookAgain)
    }

    async fn read(&self, name: &RolloutName) -> Result<Rollout, DriveError> {
        let rollout = self
            .store
            .rollout(name)
            .await
            .map_err(|source| DriveError::Store {
                rollout: name.clone(),
                source,
            })?;
        rollout.ok_or_else(|| DriveError::Unknown(name.clone()))
    }

    /// Applies an event to a rollout and stores what it leads to. Gives the record after it.
    ///
    /// # Errors
    /// When the event cannot happen now, the store fails, or the record was changed since it was
    /// read ([`StoreError::Superseded`]).
    pub async fn apply(&self, rollout: &Rollout, event: Event) -> Result<Rollout, DriveError> {
        let name = &rollout.spec.name;
        let next =
            rollout
                .after(event, self.clock.now())
                .map_err(|source| DriveError::Illegal {
                    rollout: name.clone(),
                    source,
                })?;
        let Some(next) = next else {
            return Ok(rollout.clone());
        };
        self.store
            .save(&next, rollout.revision())
            .await
            .map_err(|source| DriveError::Store {
                rollout: name.clone(),
                source,
            })?;
        traces::moved_on(&self.tracer, rollout, &next);
        Ok(next)
    }

    async fn plan(&self, rollout: &Rollout, stop: &CancellationToken) -> Result<(), DriveError> {
        let rollout = self.apply(rollout, Event::PlanningStarted).await?;
        self.planning.devices.store(0, Ordering::Relaxed);
        let name = &rollout.spec.name;
        let planner = Planner {
            spec: &rollout.spec,
            hubs: &self.hubs,
            base: &self.base,
            progress: &self.planning,
            joiners: None,
        };
        let (sender, receiver) = mpsc::channel(4);
        let by = Adding::Plan(rollout.plan_id);
        let planning = async {
            futures::join!(
                planner.plan(sender),
                store_batches(&*self.store, name, by, Checksum::default(), receiver)
            )
        };
        // A half-made plan is discarded by the next try.
        let (planned, stored) = tokio::select! {
            biased;
            both = planning => both,
            () = stop.cancelled() => return Ok(()),
            changed = self.changed(&rollout) => return changed,
            never = self.keep_noting_search(&rollout) => match never {},
        };
        stored.map_err(|source| DriveError::Store {
            rollout: name.clone(),
            source,
        })?;
        let event = match planned {
            Ok(plan) => Event::PlanCompleted { plan },
            Err(error) if is_final(&error) => Event::PlanningFailed {
                reason: in_words(&error),
            },
            Err(source) => {
                return Err(DriveError::Plan {
                    rollout: name.clone(),
                    source,
                });
            }
        };
        self.apply(&rollout, event).await?;
        Ok(())
    }

    /// Notes in the record how far a try at planning is and what keeps it, now and then, until dropped. A store that does not
    /// take it is met by those who store batches.
    async fn keep_noting_search(&self, rollout: &Rollout) -> Infallible {
        let mut rollout = rollout.clone();
        loop {
            tokio::time::sleep(self.config.longest_pass).await;
            let now = self.clock.now();
            let found = self.planning.devices.load(Ordering::Relaxed);
            let hindrance = planner::hindrance(&rollout.spec, &self.hubs);
            let standstill = hindrance.map(|(hub, it)| {
                let since = now.minus(it.lasting);
                (since, format!("hub {hub}: {}", it.reason))
            });
            let standstill = standstill.as_ref().map(|(since, why)| (*since, &**why));
            if let Some(noted) = rollout.noting_search(found, standstill, now)
                && self.store.save(&noted, noted.revision()).await.is_ok()
            {
                rollout = noted;
            }
        }
    }

    /// Notes in the record why a try at planning has failed, and that the next one begins `again` later, if it does.
    pub async fn note_failed_try(&self, name: &RolloutName, why: &str, again: Option<Duration>) {
        let noted = async {
            let rollout = self.store.rollout(name).await?;
            let now = self.clock.now();
            let noted = rollout.and_then(|it| it.noting_failed_search(why, again, now));
            match noted {
                Some(noted) => self.store.save(&noted, noted.revision()).await,
                None => Ok(()),
            }
        };
        if let Err(error) = noted.await {
            tracing::debug!(rollout = %name, error = in_words(&error), "not noted why it is not planned");
        }
    }

    /// Waits until somebody else has moved the rollout on.
    async fn changed(&self, rollout: &Rollout) -> Result<(), DriveError> {
        loop {
            tokio::time::sleep(self.config.longest_pass).await;
            if !self.is_current(rollout).await? {
                return Ok(());
            }
        }
    }

    async fn is_current(&self, rollout: &Rollout) -> Result<bool, DriveError> {
        let name = &rollout.spec.name;
        let revision = self.store.revision(name).await;
        let revision = revision.map_err(|source| DriveError::Store {
            rollout: name.clone(),
            source,
        })?;
        Ok(revision == Some(rollout.revision()))
    }

    /// Keeps batches of the current stage on the hubs' queues until something happens to the
    /// rollout, or `stop`.
    async fn release(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Released, DriveError> {
        let name = &rollout.spec.name;
        let store_error = |source| DriveError::Store {
            rollout: name.clone(),
            source,
        };
        if let Err(source) = planner::check_hosts(rollout, &self.hubs) {
            let waits_for = in_words(&source);
            let hold = Hold {
                waits_for,
                until: None,
            };
            if let Some(noted) = rollout.noting(Activity::Blocked, Some(hold), self.clock.now()) {
                let saved = self.store.save(&noted, noted.revision()).await;
                saved.map_err(store_error)?;
            }
            return Err(DriveError::Plan {
                rollout: name.clone(),
                source,
            });
        }
        // What it is doing is noted in the record meanwhile.
        let rollout = &mut rollout.clone();
        let mut pass = self.config.pass;
        loop {
            if let Some(roster) = &self.roster
                && let Some(halt) = roster.halted().await.map_err(store_error)?
            {
                let reason = halt.reason;
                self.apply(rollout, Event::HaltRequested { reason }).await?;
                return Ok(Released::LookAgain);
            }
            let looked = tokio::select! {
                biased;
                looked = self.release_pass(rollout, memory) => looked,
                // What was published meanwhile and is not remembered is rung for once more.
                () = stop.cancelled() => return Ok(Released::LookAgain),
            };
            match looked.map_err(store_error)? {
                Pass::Happened(event) => {
                    self.apply(rollout, *event).await?;
                    return Ok(Released::LookAgain);
                }
                Pass::AwaitsApproval if self.config.leave_at_approval => {
                    return Ok(Released::LeftAlone);
                }
                Pass::Waited if self.config.leave_when_sent && rollout.sent_at.is_some() => {
                    return Ok(Released::LeftAlone);
                }
                Pass::Measure => {
                    let measured = tokio::select! {
                        biased;
                        measured = self.measure(rollout, memory) => measured?,
                        () = stop.cancelled() => return Ok(Released::LookAgain),
                    };
                    match measured {
                        Measuring::Measured => continue,
                        Measuring::Paused => return Ok(Released::LookAgain),
                        Measuring::Failed => pass = self.config.longest_pass,
                    }
                }
                Pass::Rang => pass = self.config.pass,
                Pass::Waited | Pass::AwaitsApproval => {
                    pass = (pass * 2).min(self.config.longest_pass);
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Released::LookAgain),
                event = memory.asking.measured(rollout, self.metric_source.as_ref(), &*self.clock) => {
                    self.apply(rollout, event).await?;
                    return Ok(Released::LookAgain);
                }
                news = memory.looking.happened(rollout, &*self.clock) => {
                    let event = match news {
                        LookNews::Happened(event) => event,
                        LookNews::Failed(why) => {
                            let now = self.clock.now();
                            if let Some(noted) = rollout.noting_failed_search(&why, Some(looks::AGAIN), now) {
                                self.store.save(&noted, noted.revision()).await.map_err(store_error)?;
                                *rollout = noted;
                            }
                            continue;
                        }
                    };
                    let begins = event == Event::LookStarted;
                    let rollout = self.apply(rollout, event).await?;
                    if begins {
                        memory.looking.begin(self, &rollout);
                    }
                    return Ok(Released::LookAgain);
                }
                () = tokio::time::sleep(pass) => {}
            }
            if !self.is_current(rollout).await? {
                return Ok(Released::LookAgain);
            }
        }
    }

    /// One look at the current stage: what its gate says, and whether batches are to be rung for.
    async fn release_pass(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Pass, StoreError> {
        let stage = rollout.stage();
        // Read before the outcomes: what was heard by then is among these.
        let tallies = self.store.tallies(&rollout.spec.name).await?;
        let evidence = hearing::evidence(&*self.store, rollout, &tallies, self.clock.now()).await?;
        let tallies = match evidence == Evidence::complete() {
            true => tallies,
            false => self.store.tallies(&rollout.spec.name).await?,
        };
        let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
        let owing = rollout.owing(&tallies);
        let hubs: BTreeSet<&HubName> = owing.map(|tally| &tally.hub).collect();
        let now = self.clock.now();
        let seen = Seen {
            stage: &counts,
            all: &Tally::sum(&tallies),
            left: !hubs.is_empty(),
            measured: memory
                .measured
                .filter(|(of, _)| *of == stage)
                .map(|(_, it)| it),
            evidence: &evidence,
        };
        rollout.advance_clock(&evidence, now);
        let next = gate::next(rollout, seen, now);
        self.note(rollout, &next, &hubs, &mut memory.rung.way)
            .await?;
        let rung = &mut memory.rung;
        self.wake_listeners(rollout, &tallies, rung).await?;
        match next {
            Next::Send => {
                let rate = rollout.rate_now(&tallies);
                self.ring_for(rollout, hubs, rate, rung).await
            }
            Next::Happened(event) => Ok(Pass::Happened(Box::new(event))),
            Next::Measure
                if memory
                    .asked_in_vain
                    .is_some_and(|at| at.elapsed() < ASK_AGAIN) =>
            {
                Ok(Pass::Waited)
            }
            Next::Measure => Ok(Pass::Measure),
            Next::Wait(WaitsFor::Approval { .. }) => Ok(Pass::AwaitsApproval),
            Next::Wait(_) => Ok(Pass::Waited),
            Next::Over => {
                let counts = Tally::sum(&tallies);
                Ok(Pass::Happened(Box::new(Event::AllSettled { counts })))
            }
        }
    }

    /// Marks what was not sent as skipped, once the workers have let go.
    async fn skip_remaining(
        &self,
        rollout: &Rollout,
        stop: &CancellationToken,
    ) -> Result<(), DriveError> {
        let name = &rollout.spec.name;
        let store_error = |source| DriveError::Store {
            rollout: name.clone(),
            source,
        };
        loop {
            let mut held = false;
            // A rollout without a whole plan may have batches, of a try at planning.
            let tallies = self.store.tallies(name).await.map_err(store_error)?;
            for hub in tallies
                .into_iter()
                .map(|tally| tally.hub)
                .collect::<BTreeSet<_>>()
            {
                held |= self.skip_on(name, &hub).await.map_err(store_error)?;
            }
            if !held {
                let counts = match rollout.plan {
                    Some(_) => self.counts(name).await.map_err(store_error)?,
                    None => Counts::default(),
                };
                self.apply(rollout, Event::AllSettled { counts }).await?;
                return Ok(());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.config.pass) => {}
            }
        }
    }

    /// Skips what is left on one hub; says whether workers still hold some of it.
    async fn skip_on(&self, name: &RolloutName, hub: &HubName) -> Result<bool, StoreError> {
        loop {
            let all = StageIndex(u16::MAX);
            let open = self.store.open_batches(name, hub, all, 256).await?;
            let mut held = 0;
            for batch in &open {
                let skipped = self.store.skip(name, batch.header.id, &Skip::Rest).await?;
                held += usize::from(skipped.is_some());
            }
            if held == open.len() {
                return Ok(held > 0);
            }
        }
    }

    /// Asks the hubs how many devices of the current stage fulfil the gate's `applied_when`. If a hub does not
    /// understand the condition, nothing can be measured, and the rollout is paused: the devices have not failed. A hub
    /// that cannot be asked at present is asked again.
    async fn measure(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Measuring, DriveError> {
        let at = self.clock.now();
        let name = &rollout.spec.name;
        match measure::applied(rollout, &*self.store, &self.hubs, at).await {
            Ok(measured) => {
                memory.measured = Some((rollout.stage(), measured));
                memory.asked_in_vain = None;
                rollout.clock.asked(None);
                Ok(Measuring::Measured)
            }
            Err(NotMeasured::Hub(error)) if is_final(&error) => {
                let stage = rollout.stage_progress().map(|stage| stage.name.clone());
                let reason = format!("applied_when cannot be asked: {}", in_words(&error));
                let event = match stage {
                    Some(stage) => Event::GateUndecided { stage, reason },
                    None => Event::NotHeard { reason },
                };
                self.apply(rollout, event).await?;
                Ok(Measuring::Paused)
            }
            Err(NotMeasured::Hub(error)) => {
                let why = in_words(&error);
                tracing::warn!(rollout = %name, error = why, "applied_when cannot be asked now");
                memory.asked_in_vain = Some(Instant::now());
                rollout.clock.asked(Some(&why));
                Ok(Measuring::Failed)
            }
            Err(NotMeasured::Store(source)) => Err(DriveError::Store {
                rollout: name.clone(),
                source,
            }),
        }
    }

    async fn counts(&self, name: &RolloutName) -> Result<Counts, StoreError> {
        Ok(Tally::sum(&self.store.tallies(name).await?))
    }
}

/// Stores batches as they come, several at a time when they come fast. The rollout has those of `checksum` already; gives
/// the checksum of all.
///
/// # Errors
/// When the store fails; [`StoreError::Regressed`] when it has other batches than it acknowledged.
pub(crate) async fn store_batches(
    store: &dyn Store,
    name: &RolloutName,
    by: Adding,
    mut checksum: Checksum,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<Checksum, StoreError> {
    let mut group = Vec::new();
    while batches.recv_many(&mut group, 4).await > 0 {
        checksum.join(&group.iter().collect());
        // On an error the receiver is dropped, which stops the planner.
        let found = store
            .add_batches(name, by, std::mem::take(&mut group))
            .await?;
        if found != checksum {
            return Err(StoreError::Regressed {
                what: format!("{by} of rollout {name} has {found}, not {checksum}"),
            });
        }
    }
    Ok(checksum)
}

/// What a driver remembers between its turns. Nothing of it need be known to go on.
#[derive(Debug, Default)]
struct Memory {
    rung: Rung,
    /// The newest count of a stage's devices, as told by the twins.
    measured: Option<(StageIndex, Measured)>,
    /// When the hubs last could not be asked.
    asked_in_vain: Option<Instant>,
    asking: Asking,
    looking: Looking,
}

/// Hubs that could not be asked are asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The result of asking the hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measuring {
    /// The hubs have answered.
    Measured,
    /// The hubs cannot be asked at present.
    Failed,
    /// The hubs can never be asked, and the rollout is paused.
    Paused,
}

/// How releasing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Released {
    /// Something has happened, or it is to stop.
    LookAgain,
    /// The rollout waits for an approval or for answers, and is not to be driven meanwhile.
    LeftAlone,
}

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    /// This has happened to the rollout.
    Happened(Box<Event>),
    /// The devices that have applied the change must be counted.
    Measure,
    /// All that is missing is an approval.
    AwaitsApproval,
    /// Batches were released.
    Rang,
    /// There was nothing to release.
    Waited,
}

/// Planning again cannot help.
pub(crate) fn is_final(error: &PlanError) -> bool {
    match error {
        PlanError::Hub { source, .. } => source.trouble == HubTrouble::BadQuery,
        PlanError::UnknownHub { .. }
        | PlanError::OtherHub { .. }
        | PlanError::NoHubs
        | PlanError::Endless { .. }
        | PlanError::List(_)
        | PlanError::Interrupted => false,
        PlanError::TooManyExcluded
        | PlanError::TooManyBatches
        | PlanError::EmptyStage { .. }
        | PlanError::Cut(_) => true,
    }
}
