//! Drives one rollout to its end.
//!
//! Each turn reads the rollout, does what its phase owes, and reads again. Nothing is kept that
//! could not be read or done again, so a driver may die at any point and another one go on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::batch::BatchStatus;
use twincast_core::error::in_words;
use twincast_core::ids::{BatchId, HubName, RolloutName};
use twincast_core::outcome::Counts;
use twincast_core::plan::Batch;
use twincast_core::ports::{
    Clock, Dispatch, HubTrouble, Queue, QueueError, Store, StoreError, Tally,
};
use twincast_core::rollout::{Event, IllegalTransition, Owed, PlanId, Rollout};

use crate::Hubs;
use crate::planner::{PlanError, PlanProgress, Planner};

/// How a driver works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverConfig {
    /// Batches of a rollout that are on each hub's queue or being worked on, at the most.
    pub released: usize,
    /// How often it looks whether more can be released.
    pub pass: Duration,
    /// When a batch that was released and is worked on by nobody is released again: a lost
    /// dispatch costs this much.
    pub ring_again: Duration,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            released: 32,
            pass: Duration::from_millis(100),
            ring_again: Duration::from_secs(60),
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
    /// The hub or network does not let it be planned now. The rollout stays as it is.
    #[error("cannot plan rollout {rollout}")]
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
    /// The time for records.
    pub clock: Arc<dyn Clock>,
    /// How it works.
    pub config: DriverConfig,
    /// Where the specs' files are.
    pub base: PathBuf,
    /// How far planning is.
    pub planning: PlanProgress,
}

impl Driver {
    /// Drives a rollout until it owes nothing, which is what the result then shows: ended or
    /// paused; or until `stop`, in whatever phase it then is.
    ///
    /// # Errors
    /// [`DriveError`]; driving again later goes on where this left off.
    pub async fn drive(
        &self,
        name: &RolloutName,
        stop: &CancellationToken,
    ) -> Result<Rollout, DriveError> {
        let mut rung = Rung::default();
        loop {
            let rollout = self.read(name).await?;
            let result = match rollout.phase.owed() {
                Owed::Nothing => return Ok(rollout),
                _ if stop.is_cancelled() => return Ok(rollout),
                Owed::Plan => tokio::select! {
                    result = self.plan(&rollout) => result,
                    // A half-made plan is discarded by the next try.
                    () = stop.cancelled() => return self.read(name).await,
                },
                Owed::ReleaseBatches => self.release(&rollout, &mut rung, stop).await,
                Owed::SkipRemaining => self.skip_remaining(&rollout, stop).await,
            };
            match result {
                // Somebody else moved it on: read again.
                Ok(())
                | Err(DriveError::Store {
                    source: StoreError::Superseded { .. },
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
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
            .save(&next, rollout.version)
            .await
            .map_err(|source| DriveError::Store {
                rollout: name.clone(),
                source,
            })?;
        if next.phase.as_str() != rollout.phase.as_str() {
            tracing::info!(rollout = %name, from = rollout.phase.as_str(), to = next.phase.as_str(), "rollout moved on");
        }
        Ok(next)
    }

    async fn plan(&self, rollout: &Rollout) -> Result<(), DriveError> {
        let rollout = self.apply(rollout, Event::PlanningStarted).await?;
        let name = &rollout.spec.name;
        let planner = Planner {
            spec: &rollout.spec,
            hubs: &self.hubs,
            base: &self.base,
            progress: &self.planning,
        };
        let (sender, receiver) = mpsc::channel(4);
        let (planned, stored) = futures::join!(
            planner.plan(sender),
            self.store_batches(name, rollout.plan_id, receiver)
        );
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

    /// Stores batches as they come, several at a time when they come fast.
    async fn store_batches(
        &self,
        name: &RolloutName,
        plan: PlanId,
        mut batches: mpsc::Receiver<Batch>,
    ) -> Result<(), StoreError> {
        let mut group = Vec::new();
        while batches.recv_many(&mut group, 4).await > 0 {
            // On an error the receiver is dropped, which stops the planner.
            self.store
                .add_batches(name, plan, std::mem::take(&mut group))
                .await?;
        }
        Ok(())
    }

    /// Keeps batches on the hubs' queues until every device is settled, the rollout's phase
    /// changes, or `stop`.
    async fn release(
        &self,
        rollout: &Rollout,
        rung: &mut Rung,
        stop: &CancellationToken,
    ) -> Result<(), DriveError> {
        let name = &rollout.spec.name;
        let store_error = |source| DriveError::Store {
            rollout: name.clone(),
            source,
        };
        loop {
            if self
                .release_pass(rollout, rung)
                .await
                .map_err(store_error)?
                == Left::Nothing
            {
                let counts = self.counts(name).await.map_err(store_error)?;
                self.apply(rollout, Event::AllSettled { counts }).await?;
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.config.pass) => {}
            }
            if self.read(name).await?.version != rollout.version {
                return Ok(());
            }
        }
    }

    /// One look at the open batches: rings for those that should be moving and are not.
    async fn release_pass(&self, rollout: &Rollout, rung: &mut Rung) -> Result<Left, StoreError> {
        const PAGE: usize = 256;
        let name = &rollout.spec.name;
        let now = Instant::now();
        // Hubs with something left to do, and how many of their batches are released.
        let tallies = self.store.tallies(name).await?;
        let unsettled = tallies
            .into_iter()
            .filter(|tally| tally.counts.unsettled() > 0);
        let mut released: HashMap<HubName, usize> = unsettled.map(|tally| (tally.hub, 0)).collect();
        let left = if released.is_empty() {
            Left::Nothing
        } else {
            Left::Something
        };
        let mut at = HashMap::new();
        let mut after = None;
        while released.values().any(|count| *count < self.config.released) {
            let page = self.store.batches(name, after, PAGE, true).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.header.id);
            for batch in page {
                let (id, hub) = (batch.header.id, &batch.header.hub);
                let count = released.entry(hub.clone()).or_default();
                if *count >= self.config.released {
                    continue;
                }
                *count += 1;
                if batch.held.is_some() {
                    rung.worked_at.insert(hub.clone(), now);
                    at.insert(id, now);
                } else if let Some(rung_at) = rung.at.get(&id)
                    && now < self.again_at(*rung_at, rung.worked_at.get(hub))
                {
                    at.insert(id, *rung_at);
                } else if self.ring(name, &batch).await {
                    at.insert(id, now);
                }
            }
        }
        // What was not seen is done.
        rung.at = at;
        Ok(left)
    }

    /// When a batch that was rung for is rung for again. Not while its hub's other batches are
    /// worked on: it waits its turn.
    fn again_at(&self, rung_at: Instant, worked_at: Option<&Instant>) -> Instant {
        worked_at.map_or(rung_at, |at| rung_at.max(*at)) + self.config.ring_again
    }

    async fn ring(&self, name: &RolloutName, batch: &BatchStatus) -> bool {
        let dispatch = Dispatch {
            rollout: name.clone(),
            batch: batch.header.id,
            hub: batch.header.hub.clone(),
        };
        match self.queue.publish(&dispatch).await {
            Ok(()) => true,
            Err(QueueError::Full { .. }) => false,
            Err(error) => {
                tracing::warn!(rollout = %name, batch = %batch.header.id, ?error, "dispatch not published");
                false
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
            let mut after = None;
            loop {
                // A rollout that was never planned has no batches, and counts nothing.
                let page = self
                    .store
                    .batches(name, after, 256, true)
                    .await
                    .map_err(store_error)?;
                for batch in &page {
                    held |= self
                        .store
                        .skip_remaining(name, batch.header.id)
                        .await
                        .map_err(store_error)?
                        .is_some();
                }
                match page.last() {
                    Some(batch) => after = Some(batch.header.id),
                    None => break,
                }
            }
            if !held {
                let counts = self.counts(name).await.map_err(store_error)?;
                self.apply(rollout, Event::AllSettled { counts }).await?;
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.config.pass) => {}
            }
        }
    }

    async fn counts(&self, name: &RolloutName) -> Result<Counts, StoreError> {
        Ok(Tally::sum(&self.store.tallies(name).await?))
    }
}

/// When each released batch was last rung for, and when each hub was last seen at work. Only a
/// memory aid: losing it costs a few extra rings.
#[derive(Debug, Default)]
struct Rung {
    at: HashMap<BatchId, Instant>,
    worked_at: HashMap<HubName, Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Something,
    Nothing,
}

/// Planning again cannot help.
fn is_final(error: &PlanError) -> bool {
    match error {
        PlanError::Hub { source, .. } => source.trouble == HubTrouble::BadQuery,
        PlanError::UnknownHub { .. }
        | PlanError::NoHubs
        | PlanError::List(_)
        | PlanError::Interrupted => false,
        PlanError::Device { .. } | PlanError::TooManyExcluded | PlanError::TooManyBatches => true,
    }
}
