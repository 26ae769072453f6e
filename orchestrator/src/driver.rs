//! Drives one rollout to its end.
//!
//! Each turn reads the rollout, does what its phase owes, and reads again. Nothing is kept that
//! could not be read or done again, so a driver may die at any point and another one go on.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use twincast_core::account::Activity;
use twincast_core::error::in_words;
use twincast_core::ids::RolloutName;
use twincast_core::outcome::Counts;
use twincast_core::plan::{Checksum, PlanSummary};
use twincast_core::ports::{Clock, Disposition, MetricSource, Queue, Store, StoreError, Tally};
use twincast_core::rollout::{Adding, Event, IllegalTransition, Owed, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_core::waiting::Waiting;

use crate::Hubs;
use crate::adding::store_batches;
use crate::groups::{self, Turn};
use crate::news::News;
use crate::planner::{self, PlanError, PlanProgress, Planner, is_final};
use crate::reach::Reach;
use crate::running::{Ended, Memory, Running};
use crate::skipping::skip_rest;
use crate::{retry, traces};

pub use crate::config::DriverConfig;
pub use crate::metrics::Repairs;

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
    /// How it learns what others have changed.
    pub news: News,
    /// What it has repaired.
    pub repairs: Repairs,
    /// Whether the queue is within reach.
    pub broker: Arc<Reach>,
    /// Who is told what rollouts have done.
    pub tracer: Tracer,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turned {
    /// Something has happened, or may have, or it is to stop.
    LookAgain,
    /// The rollout is not to be driven for now.
    LeftAlone,
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
            match self.take_turn(&rollout, &mut memory, stop).await {
                Ok(Turned::LeftAlone) => return Ok(rollout),
                Ok(Turned::LookAgain) => {}
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
            self.repairs.add_one();
            tracing::warn!(rollout = %name, what, "the store has lost its last writes, they are made again");
        }
        pause(self.config.longest_pass, stop).await;
    }

    /// Does what a rollout owes the world, when it is its turn.
    async fn take_turn(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Turned, DriveError> {
        let turn = groups::turn(&*self.store, &*self.clock, rollout).await;
        match turn.map_err(of_store(&rollout.spec.name))? {
            Turn::Go => return self.do_owed(rollout, memory, stop).await,
            Turn::Happened(event) => {
                self.apply(rollout, event).await?;
            }
            Turn::Supersedes(rivals) => {
                for rival in &rivals {
                    self.supersede(rival, &rollout.spec.name).await?;
                }
            }
            // Nobody else drives those that are being aborted.
            Turn::Waits { aborting } if self.config.leave_at_approval => {
                for name in &aborting {
                    Box::pin(self.drive(name, stop)).await?;
                }
                if aborting.is_empty() {
                    return Ok(Turned::LeftAlone);
                }
            }
            Turn::Waits { .. } => pause(self.config.longest_pass, stop).await,
        }
        Ok(Turned::LookAgain)
    }

    async fn do_owed(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Turned, DriveError> {
        let of_store = of_store(&rollout.spec.name);
        match rollout.owed() {
            Owed::Plan => self.plan(rollout, stop).await?,
            Owed::PrepareRetry => {
                // Batches that were rung for and done are to be rung for again.
                *memory = Memory::default();
                let on = (&self.store, &self.hubs);
                let prepared = retry::prepare(on, rollout, self.config.pass, stop);
                if prepared.await.map_err(of_store)? {
                    self.apply(rollout, Event::RetryPrepared).await?;
                }
            }
            Owed::ReleaseBatches => return self.run(rollout, memory, stop).await,
            Owed::SkipRemaining => self.skip_remaining(rollout, stop).await?,
            Owed::Nothing => {}
        }
        Ok(Turned::LookAgain)
    }

    async fn read(&self, name: &RolloutName) -> Result<Rollout, DriveError> {
        let rollout = self.store.rollout(name).await.map_err(of_store(name))?;
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
        let saved = self.store.save(&next, rollout.revision()).await;
        saved.map_err(of_store(name))?;
        traces::moved_on(&self.tracer, rollout, &next);
        Ok(next)
    }

    async fn plan(&self, rollout: &Rollout, stop: &CancellationToken) -> Result<(), DriveError> {
        let mut rollout = self.apply(rollout, Event::PlanningStarted).await?;
        self.planning.devices.store(0, Ordering::Relaxed);
        let (spec, plan_id) = (rollout.spec.clone(), rollout.plan_id);
        let name = &spec.name;
        let planner = Planner {
            spec: &spec,
            hubs: &self.hubs,
            base: &self.base,
            progress: &self.planning,
            joiners: None,
        };
        let (sender, receiver) = mpsc::channel(4);
        let by = Adding::Plan(plan_id);
        let mut planning = pin!(async {
            futures::join!(
                planner.plan(sender),
                store_batches(&*self.store, name, by, Checksum::default(), receiver)
            )
        });
        // A half-made plan is discarded by the next try.
        let mut assured = None;
        let (planned, stored) = loop {
            let every = self.config.longest_pass;
            tokio::select! {
                biased;
                both = &mut planning => break both,
                () = stop.cancelled() => return Ok(()),
                changed = self.news.changed(&*self.store, &rollout, None, every, &mut assured) => {
                    changed.map_err(of_store(name))?;
                    // A word on what is to be done after it leaves the plan as it is.
                    rollout = self.read(name).await?;
                    if rollout.owed() != Owed::Plan || rollout.plan_id != plan_id {
                        return Ok(());
                    }
                }
                never = self.keep_noting_search(&rollout) => match never {},
            }
        };
        stored.map_err(of_store(name))?;
        self.planned(rollout, planned).await
    }

    /// Stores what planning came to.
    async fn planned(
        &self,
        mut rollout: Rollout,
        planned: Result<PlanSummary, PlanError>,
    ) -> Result<(), DriveError> {
        let (name, plan_id) = (rollout.spec.name.clone(), rollout.plan_id);
        let event = match planned {
            Ok(plan) => Event::PlanCompleted { plan },
            Err(error) if is_final(&error) => Event::PlanningFailed {
                reason: in_words(&error),
            },
            Err(source) => {
                let rollout = name.clone();
                return Err(DriveError::Plan { rollout, source });
            }
        };
        loop {
            match self.apply(&rollout, event.clone()).await {
                // By a word on what is to be done after it, perhaps. A plan of which the store has lost a part is made again.
                Err(DriveError::Store {
                    source: StoreError::Superseded { .. },
                    ..
                }) => rollout = self.read(&name).await?,
                applied => return applied.map(|_| ()),
            }
            if rollout.phase != Phase::Planning || rollout.plan_id != plan_id {
                return Ok(());
            }
        }
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
                && self.store.note(&noted).await.is_ok()
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
                Some(noted) => self.store.note(&noted).await,
                None => Ok(()),
            }
        };
        if let Err(error) = noted.await {
            tracing::debug!(rollout = %name, error = in_words(&error), "not noted why it is not planned");
        }
    }

    /// Keeps batches of the current stage on the hubs' queues until something happens to the
    /// rollout, or `stop`.
    async fn run(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Turned, DriveError> {
        let of_store = of_store(&rollout.spec.name);
        self.check_hosts(rollout).await?;
        memory.begin(&self.news);
        // What begins to run after all were halted finds the halt here.
        if let Some(halt) = self.news.halted().await.map_err(&of_store)? {
            let reason = halt.reason;
            self.apply(rollout, Event::HaltRequested { reason }).await?;
            return Ok(Turned::LookAgain);
        }
        let running = Running {
            store: &self.store,
            queue: &*self.queue,
            hubs: &self.hubs,
            metric_source: self.metric_source.as_ref(),
            clock: &*self.clock,
            config: &self.config,
            news: &self.news,
            repairs: &self.repairs,
            broker: &self.broker,
        };
        let mut rollout = rollout.clone();
        let ended = running.keep_going(&mut rollout, memory, stop).await;
        let event = match ended.map_err(of_store)? {
            Ended::LeftAlone => return Ok(Turned::LeftAlone),
            Ended::LookAgain => return Ok(Turned::LookAgain),
            Ended::Happened(event) => *event,
        };
        let begins_look = event == Event::LookStarted;
        let rollout = self.apply(&rollout, event).await?;
        if begins_look {
            memory.begin_look(&rollout, &self.store, &self.hubs, &self.base);
        }
        Ok(Turned::LookAgain)
    }

    /// Refuses to go on through a hub that is another one than was planned for, and notes that.
    async fn check_hosts(&self, rollout: &Rollout) -> Result<(), DriveError> {
        let name = &rollout.spec.name;
        let Err(source) = planner::check_hosts(rollout, &self.hubs) else {
            return Ok(());
        };
        let hold = Waiting::of_other_hub(&in_words(&source));
        if let Some(noted) = rollout.noting(Activity::Blocked, Some(hold), self.clock.now()) {
            let saved = self.store.note(&noted).await;
            saved.map_err(of_store(name))?;
        }
        let rollout = name.clone();
        Err(DriveError::Plan { rollout, source })
    }

    /// Marks what was not sent as skipped, once the workers have let go.
    async fn skip_remaining(
        &self,
        rollout: &Rollout,
        stop: &CancellationToken,
    ) -> Result<(), DriveError> {
        let name = &rollout.spec.name;
        let skipped = skip_rest(&*self.store, name, self.config.pass, stop).await;
        if !skipped.map_err(of_store(name))? {
            return Ok(());
        }
        let counts = match rollout.plan {
            Some(_) => Tally::sum(&self.store.tallies(name).await.map_err(of_store(name))?),
            None => Counts::default(),
        };
        self.apply(rollout, Event::AllSettled { counts }).await?;
        Ok(())
    }

    /// Aborts a rollout for a newer one. One that has ended meanwhile, or is changed by somebody else, is looked at again.
    async fn supersede(&self, rival: &RolloutName, by: &RolloutName) -> Result<(), DriveError> {
        let found = self.store.rollout(rival).await;
        let Some(older) = found.map_err(of_store(rival))? else {
            return Ok(());
        };
        let reason = format!("superseded by {by}");
        match self.apply(&older, Event::AbortRequested { reason }).await {
            Ok(_) | Err(DriveError::Illegal { .. }) => Ok(()),
            Err(error) if error.is_superseded() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl DriveError {
    /// The rollout has moved on: it is to be read again.
    fn is_superseded(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.disposition() == Disposition::Superseded)
    }
}

/// The error of a driver whose store fails.
fn of_store(rollout: &RolloutName) -> impl Fn(StoreError) -> DriveError {
    let rollout = rollout.clone();
    move |source| DriveError::Store {
        rollout: rollout.clone(),
        source,
    }
}

/// Waits for so long, or until `stop`.
async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}
