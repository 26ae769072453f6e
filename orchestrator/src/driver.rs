//! Drives one rollout to its end.
//!
//! Each turn reads the rollout, performs the pending work of the phase, and reads again. A driver
//! keeps only state that can be read or computed again, so a driver may die at any point and
//! another driver continues.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use twincast_core::account::Activity;
use twincast_core::error::describe;
use twincast_core::ids::RolloutName;
use twincast_core::outcome::Counts;
use twincast_core::plan::{Checksum, PlanSummary};
use twincast_core::ports::{Clock, Disposition, MetricSource, Queue, Store, StoreError, Tally};
use twincast_core::rollout::{Adding, Duty, Event, IllegalTransition, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_core::waiting::Waiting;

use crate::Hubs;
use crate::adding::store_batches;
use crate::changes::ChangeSource;
use crate::dispatching::Dispatcher;
use crate::groups::{self, Turn};
use crate::planner::{self, PlanError, PlanProgress, Planner, is_permanent};
use crate::reachability::Reachability;
use crate::running::{Ended, Memory, Running};
use crate::skipping::skip_rest;
use crate::{retry, traces};

pub use crate::config::DriverConfig;
pub use crate::metrics::Repairs;

/// Why driving a rollout fails.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The store fails.
    #[error("cannot drive rollout {rollout}")]
    Store {
        /// The rollout.
        rollout: RolloutName,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// A hub, the network or the configuration currently prevents planning the rollout or judging
    /// its gate. The rollout stays as it is.
    #[error("cannot query the hubs for rollout {rollout}")]
    Plan {
        /// The rollout.
        rollout: RolloutName,
        /// The cause.
        #[source]
        source: PlanError,
    },
    /// The rollout changed in a way unexpected by this driver.
    #[error("cannot drive rollout {rollout}")]
    Illegal {
        /// The rollout.
        rollout: RolloutName,
        /// The refused transition.
        #[source]
        source: IllegalTransition,
    },
    /// The rollout does not exist.
    #[error("rollout {0} does not exist")]
    Unknown(RolloutName),
}

/// Drives rollouts.
pub struct Driver {
    /// The store, the source of truth.
    pub store: Arc<dyn Store>,
    /// The queue for dispatches.
    pub queue: Arc<dyn Queue>,
    /// All configured hubs.
    pub hubs: Hubs,
    /// The source of gate metrics, if configured.
    pub metric_source: Option<Arc<dyn MetricSource>>,
    /// The clock for records.
    pub clock: Arc<dyn Clock>,
    /// The configuration.
    pub config: DriverConfig,
    /// The directory of the specs' files.
    pub base: PathBuf,
    /// The progress of planning.
    pub planning: PlanProgress,
    /// The source of notifications about changes by other processes.
    pub changes: ChangeSource,
    /// The counter of repairs.
    pub repairs: Repairs,
    /// The reachability of the queue.
    pub broker: Arc<Reachability>,
    /// The tracer for the spans of rollouts.
    pub tracer: Tracer,
}

/// The result of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TurnResult {
    /// The rollout has or may have changed, or the driver is to stop.
    Reread,
    /// The rollout is not to be driven for now.
    NotDriven,
}

impl Driver {
    /// Drives a rollout until no work is pending. The returned record is then ended, paused or
    /// halted. Also returns on `stop`, in any phase, and, if configured, when the rollout waits for
    /// an approval or for answers.
    ///
    /// # Errors
    /// [`DriveError`]; driving again later continues from there.
    pub async fn drive(
        &self,
        name: &RolloutName,
        stop: &CancellationToken,
    ) -> Result<Rollout, DriveError> {
        let mut memory = Memory::default();
        loop {
            let rollout = self.read(name).await?;
            if rollout.duty() == Duty::Nothing || stop.is_cancelled() {
                return Ok(rollout);
            }
            match self.take_turn(&rollout, &mut memory, stop).await {
                Ok(TurnResult::NotDriven) => return Ok(rollout),
                Ok(TurnResult::Reread) => {}
                // The record has changed: read again.
                Err(DriveError::Store { source, .. })
                    if source.disposition() == Disposition::Superseded =>
                {
                    self.note_superseded(name, &source, stop).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Counts lost writes of the store. Waits before the next read, unless another component has
    /// changed the rollout.
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
            tracing::warn!(rollout = %name, what, "the store lost recent writes, repeating the writes");
        }
        pause(self.config.longest_pass, stop).await;
    }

    /// Performs the pending work of a rollout when the concurrency group permits.
    async fn take_turn(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<TurnResult, DriveError> {
        let turn = groups::turn(&*self.store, &*self.clock, rollout).await;
        match turn.map_err(of_store(&rollout.spec.name))? {
            Turn::Go => return self.do_duty(rollout, memory, stop).await,
            Turn::Apply(event) => {
                self.apply(rollout, event).await?;
            }
            Turn::Supersedes(rivals) => {
                for rival in &rivals {
                    self.supersede(rival, &rollout.spec.name).await?;
                }
            }
            // No other driver drives the aborting rollouts.
            Turn::Waits { aborting } if self.config.stop_at_approval => {
                for name in &aborting {
                    Box::pin(self.drive(name, stop)).await?;
                }
                if aborting.is_empty() {
                    return Ok(TurnResult::NotDriven);
                }
            }
            Turn::Waits { .. } => pause(self.config.longest_pass, stop).await,
        }
        Ok(TurnResult::Reread)
    }

    /// Returns the dispatcher of this driver.
    pub(crate) fn dispatcher(&self) -> Dispatcher<'_> {
        Dispatcher {
            store: &*self.store,
            queue: &*self.queue,
            hubs: &self.hubs,
            clock: &*self.clock,
            config: &self.config,
            repairs: &self.repairs,
            broker: &self.broker,
        }
    }

    async fn do_duty(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<TurnResult, DriveError> {
        let of_store = of_store(&rollout.spec.name);
        match rollout.duty() {
            Duty::Plan => self.plan(rollout, stop).await?,
            Duty::PrepareRetry => {
                // Completed batches must be dispatched again, so forget all earlier dispatches.
                *memory = Memory::default();
                let on = (&self.store, &self.hubs);
                let prepared = retry::prepare(on, rollout, self.config.pass, stop);
                if prepared.await.map_err(of_store)? {
                    self.apply(rollout, Event::RetryPrepared).await?;
                }
            }
            Duty::ReleaseBatches => return self.run(rollout, memory, stop).await,
            Duty::SkipRemaining => self.skip_remaining(rollout, stop).await?,
            Duty::Nothing => {}
        }
        Ok(TurnResult::Reread)
    }

    async fn read(&self, name: &RolloutName) -> Result<Rollout, DriveError> {
        let rollout = self.store.rollout(name).await.map_err(of_store(name))?;
        rollout.ok_or_else(|| DriveError::Unknown(name.clone()))
    }

    /// Applies an event to a rollout, stores the result, and returns the new record.
    ///
    /// # Errors
    /// When the event is illegal in the current phase, the store fails, or the record has changed
    /// since the read ([`StoreError::Superseded`]).
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
        // The next try discards an incomplete plan.
        let mut confirmed_at = None;
        let (planned, stored) = loop {
            let every = self.config.longest_pass;
            tokio::select! {
                biased;
                both = &mut planning => break both,
                () = stop.cancelled() => return Ok(()),
                changed = self.changes.changed(&*self.store, &rollout, None, every, &mut confirmed_at) => {
                    changed.map_err(of_store(name))?;
                    // A command about the time after planning leaves the plan as it is.
                    rollout = self.read(name).await?;
                    if rollout.duty() != Duty::Plan || rollout.plan_id != plan_id {
                        return Ok(());
                    }
                }
                never = self.keep_noting_search(&rollout) => match never {},
            }
        };
        stored.map_err(of_store(name))?;
        self.planned(rollout, planned).await
    }

    /// Stores the result of planning.
    async fn planned(
        &self,
        mut rollout: Rollout,
        planned: Result<PlanSummary, PlanError>,
    ) -> Result<(), DriveError> {
        let (name, plan_id) = (rollout.spec.name.clone(), rollout.plan_id);
        let event = match planned {
            Ok(plan) => Event::PlanCompleted { plan },
            Err(error) if is_permanent(&error) => Event::PlanningFailed {
                reason: describe(&error),
            },
            Err(source) => {
                let rollout = name.clone();
                return Err(DriveError::Plan { rollout, source });
            }
        };
        loop {
            match self.apply(&rollout, event.clone()).await {
                // A command about the time after planning may have changed the record. A plan with
                // a part lost by the store is made again.
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

    /// Regularly notes the progress of a planning try and its obstacle in the record, until
    /// dropped. Ignores store errors: the concurrent writes of batches report them.
    async fn keep_noting_search(&self, rollout: &Rollout) -> Infallible {
        let mut rollout = rollout.clone();
        loop {
            tokio::time::sleep(self.config.longest_pass).await;
            let now = self.clock.now();
            let found = self.planning.devices.load(Ordering::Relaxed);
            let obstacle = planner::query_obstacle(&rollout.spec, &self.hubs);
            let standstill = obstacle.map(|(hub, it)| {
                let since = now.minus(it.lasting);
                (since, format!("hub {hub}: {}", it.reason))
            });
            let standstill = standstill.as_ref().map(|(since, why)| (*since, &**why));
            if let Some(noted) = rollout.with_search_note(found, standstill, now)
                && self.store.save_notes(&noted).await.is_ok()
            {
                rollout = noted;
            }
        }
    }

    /// Notes the reason for a failed planning try in the record, and the delay `again` until the
    /// next try, if any.
    pub async fn note_failed_try(&self, name: &RolloutName, why: &str, again: Option<Duration>) {
        let noted = async {
            let rollout = self.store.rollout(name).await?;
            let now = self.clock.now();
            let noted = rollout.and_then(|it| it.with_failed_search(why, again, now));
            match noted {
                Some(noted) => self.store.save_notes(&noted).await,
                None => Ok(()),
            }
        };
        if let Err(error) = noted.await {
            tracing::debug!(rollout = %name, error = describe(&error), "planning failure not recorded");
        }
    }

    /// Keeps batches of the current stage on the hubs' queues until an event happens to the
    /// rollout, or until `stop`.
    async fn run(
        &self,
        rollout: &Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<TurnResult, DriveError> {
        let of_store = of_store(&rollout.spec.name);
        self.check_hosts(rollout).await?;
        memory.begin(&self.changes);
        // A rollout that starts to run after a halt of all rollouts finds the halt here.
        if let Some(halt) = self.changes.halted().await.map_err(&of_store)? {
            let reason = halt.reason;
            self.apply(rollout, Event::HaltRequested { reason }).await?;
            return Ok(TurnResult::Reread);
        }
        let running = Running {
            store: &self.store,
            hubs: &self.hubs,
            metric_source: self.metric_source.as_ref(),
            clock: &*self.clock,
            config: &self.config,
            changes: &self.changes,
            dispatcher: self.dispatcher(),
        };
        let mut rollout = rollout.clone();
        let ended = running.run(&mut rollout, memory, stop).await;
        let event = match ended.map_err(of_store)? {
            Ended::NotDriven => return Ok(TurnResult::NotDriven),
            Ended::Reread => return Ok(TurnResult::Reread),
            Ended::Apply(event) => *event,
        };
        let begins_scan = event == Event::ScanStarted;
        let rollout = self.apply(&rollout, event).await?;
        if begins_scan {
            memory.begin_scan(&rollout, &self.store, &self.hubs, &self.base);
        }
        Ok(TurnResult::Reread)
    }

    /// Refuses to continue through a hub whose name now refers to another hub than at planning, and
    /// notes the refusal.
    async fn check_hosts(&self, rollout: &Rollout) -> Result<(), DriveError> {
        let name = &rollout.spec.name;
        let Err(source) = planner::check_hosts(rollout, &self.hubs) else {
            return Ok(());
        };
        let hold = Waiting::of_other_hub(&describe(&source));
        if let Some(noted) = rollout.with_activity(Activity::Blocked, Some(hold), self.clock.now())
        {
            let saved = self.store.save_notes(&noted).await;
            saved.map_err(of_store(name))?;
        }
        let rollout = name.clone();
        Err(DriveError::Plan { rollout, source })
    }

    /// Marks the devices not sent to as skipped, once the workers have released the batches.
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

    /// Aborts a rollout in favour of a newer rollout. A rollout that has ended or changed meanwhile
    /// is left for the next turn.
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
    /// Returns whether the rollout has changed and must be read again.
    fn is_superseded(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.disposition() == Disposition::Superseded)
    }
}

/// Wraps a store error with the rollout's name.
fn of_store(rollout: &RolloutName) -> impl Fn(StoreError) -> DriveError {
    let rollout = rollout.clone();
    move |source| DriveError::Store {
        rollout: rollout.clone(),
        source,
    }
}

/// Waits for `time`, or until `stop`.
async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}
