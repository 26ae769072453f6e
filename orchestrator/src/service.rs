//! Drives all rollouts, together with other orchestrators.
//!
//! Each looks at the roster now and then and claims what nobody drives. A claim lapses when it is
//! not renewed, so another one takes over from one that died. Two that drive the same rollout for
//! a moment do no harm: every change of a record is a comparison with its version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::in_words;
use twincast_core::ids::{Holder, RolloutName, Version};
use twincast_core::ports::{Clock, Disposition, MetricSource, Queue, Roster, Store, StoreError};
use twincast_core::rollout::{Event, Phase, Rollout, Word};
use twincast_core::trace::Tracer;
use twincast_retry::{Delays, Policy};

use crate::Hubs;
use crate::driver::{DriveError, Driver, DriverConfig, Repairs};
use crate::events::{self, Events};
use crate::metrics::Metrics;
use crate::planner::PlanProgress;
use crate::traces;

/// How an orchestrator works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrchestratorConfig {
    /// How often it looks at the roster, and at rollouts that wait.
    pub look: Duration,
    /// For how long a claim holds when it is not renewed: so long, and one look, a rollout waits
    /// whose orchestrator died.
    pub claim: Duration,
    /// Rollouts that it claims at one look, at the most: the others get their share.
    pub claims_a_look: usize,
    /// How its drivers work.
    pub driver: DriverConfig,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(500),
            claim: Duration::from_secs(10),
            claims_a_look: 4,
            driver: DriverConfig::default(),
        }
    }
}

/// An orchestrator.
pub struct Orchestrator {
    /// Where the truth is.
    pub store: Arc<dyn Store>,
    /// Which rollouts there are.
    pub roster: Arc<dyn Roster>,
    /// Where dispatches go.
    pub queue: Arc<dyn Queue>,
    /// Where transitions are told.
    pub events: Arc<dyn Events>,
    /// All configured hubs.
    pub hubs: Hubs,
    /// Where gates' metrics are asked for, if that is configured.
    pub metric_source: Option<Arc<dyn MetricSource>>,
    /// The time for records.
    pub clock: Arc<dyn Clock>,
    /// How it works.
    pub config: OrchestratorConfig,
    /// This run of this process.
    pub id: Holder,
    /// What it is doing, live.
    pub status: Arc<OrchestratorStatus>,
    /// Who is told what rollouts have done.
    pub tracer: Tracer,
}

/// What an orchestrator is doing, live.
#[derive(Debug, Default)]
pub struct OrchestratorStatus {
    /// What it tells Prometheus.
    pub metrics: Metrics,
    store: watch::Sender<Option<String>>,
}

impl OrchestratorStatus {
    /// Why the store could not be asked the last time, if that is so.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        self.store.borrow().clone()
    }
}

/// How often what Prometheus is told is read.
const MEASURED_EVERY: Duration = Duration::from_secs(2);

/// Why a rollout is driven here no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Ended,
    Stopped,
    /// It is of a newer release. That never changes, so it is not looked at again.
    ToNewer,
}

/// One rollout that is driven here.
struct Driving {
    stop: CancellationToken,
    task: Id,
}

impl Orchestrator {
    /// Drives rollouts until `stop`, then lets go of them for others. What goes wrong is logged
    /// and tried again.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = Arc::clone(&self).drive_all(stop) => {}
            () = self.watch_engine() => {}
        }
    }

    async fn drive_all(self: Arc<Self>, stop: CancellationToken) {
        let mut driving: BTreeMap<RolloutName, Driving> = BTreeMap::new();
        let mut tasks: JoinSet<(RolloutName, Left)> = JoinSet::new();
        let mut newer: BTreeSet<RolloutName> = BTreeSet::new();
        let mut renewed_at = Instant::now();
        while !stop.is_cancelled() {
            if let Err(error) = self
                .look(&stop, &mut driving, &mut newer, &mut tasks, &mut renewed_at)
                .await
            {
                let was = self.status.store.send_replace(Some(error.to_string()));
                if was.is_none() {
                    tracing::warn!(
                        error = in_words(&error),
                        "the store does not answer, rollouts wait"
                    );
                }
            } else if self.status.store.send_replace(None).is_some() {
                tracing::info!("the store answers again");
            }
            let driven = i64::try_from(driving.len()).unwrap_or(i64::MAX);
            self.status.metrics.driven.set(driven);
            let left_alone = i64::try_from(newer.len()).unwrap_or(i64::MAX);
            self.status.metrics.newer.set(left_alone);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.config.look) => {}
            }
            while let Some(ended) = tasks.try_join_next_with_id() {
                newer.extend(forget(&mut driving, ended));
            }
        }
        while let Some(ended) = tasks.join_next_with_id().await {
            forget(&mut driving, ended);
        }
    }

    /// Renews what is driven here, and claims what is driven by nobody.
    async fn look(
        self: &Arc<Self>,
        stop: &CancellationToken,
        driving: &mut BTreeMap<RolloutName, Driving>,
        newer: &mut BTreeSet<RolloutName>,
        tasks: &mut JoinSet<(RolloutName, Left)>,
        renewed_at: &mut Instant,
    ) -> Result<(), StoreError> {
        if renewed_at.elapsed() >= self.config.claim / 4 {
            for (name, rollout) in &*driving {
                // One that cannot be renewed must not keep the others from it.
                match self.roster.claim(name, &self.id, self.config.claim).await {
                    Ok(None) => {}
                    Ok(Some(held)) => {
                        tracing::warn!(rollout = %name, by = %held.by, "another orchestrator has taken over");
                        rollout.stop.cancel();
                    }
                    Err(error) => {
                        tracing::debug!(rollout = %name, error = in_words(&error), "claim not renewed");
                    }
                }
            }
            *renewed_at = Instant::now();
        }
        let active = self.roster.active().await?;
        newer.retain(|name| active.contains(name));
        let mut claimed = 0;
        for name in active {
            let is_known = driving.contains_key(&name) || newer.contains(&name);
            if is_known || claimed == self.config.claims_a_look {
                continue;
            }
            match self.roster.claim(&name, &self.id, self.config.claim).await {
                Ok(None) => {}
                Ok(Some(_)) => continue,
                // One that cannot be claimed must not keep the others from it.
                Err(error) if error.disposition() == Disposition::Fatal => {
                    tracing::debug!(rollout = %name, error = in_words(&error), "not claimed");
                    continue;
                }
                Err(error) => return Err(error),
            }
            claimed += 1;
            tracing::info!(rollout = %name, "driving");
            let stop = stop.child_token();
            let (this, of, token) = (Arc::clone(self), name.clone(), stop.clone());
            let work = async move {
                // A rollout that cannot be read is driven, too: that says why.
                let rollout = this.store.rollout(&of).await.ok().flatten();
                let log = traces::log_span(rollout.and_then(|rollout| rollout.trace));
                let left = this.drive(&of, &token).instrument(log).await;
                (of, left)
            };
            let task = tasks.spawn(work);
            let task = task.id();
            driving.insert(name, Driving { stop, task });
        }
        Ok(())
    }

    /// Drives one rollout until it has ended and all is told of it, or `stop`; or not at all, if it is of a newer
    /// release.
    async fn drive(&self, name: &RolloutName, stop: &CancellationToken) -> Left {
        let mut delays = Policy::reconnect().delays();
        let left = tokio::select! {
            biased;
            left = self.drive_to_the_end(name, stop, &mut delays) => left,
            () = self.keep_telling(name) => unreachable!("it tells for ever"),
            () = self.keep_measuring(name) => unreachable!("it measures for ever"),
        };
        if left == Left::ToNewer {
            self.give_back(name, self.roster.disclaim(name, &self.id).await);
            return left;
        }
        // What was just stored is told by whoever stored it. Until that is done the rollout is ours:
        // given back, it would be claimed again at once, before those that wait to be driven.
        let told = loop {
            let told = self.tell(name).await;
            if told.is_ok() || stop.is_cancelled() {
                break told;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(next_delay(&mut delays)) => {}
            }
        };
        self.give_back(name, self.let_go(name, told).await);
        left
    }

    fn give_back(&self, name: &RolloutName, given: Result<(), StoreError>) {
        if let Err(error) = given {
            tracing::debug!(rollout = %name, error = in_words(&error), "claim not given back, it lapses");
        }
    }

    async fn drive_to_the_end(
        &self,
        name: &RolloutName,
        stop: &CancellationToken,
        delays: &mut Delays,
    ) -> Left {
        let driver = Driver {
            store: Arc::clone(&self.store),
            queue: Arc::clone(&self.queue),
            hubs: self.hubs.clone(),
            metric_source: self.metric_source.clone(),
            clock: Arc::clone(&self.clock),
            config: self.config.driver,
            base: PathBuf::new(),
            planning: PlanProgress::default(),
            roster: Some(Arc::clone(&self.roster)),
            repairs: Repairs(self.status.metrics.repairs.clone()),
            tracer: self.tracer.clone(),
        };
        while !stop.is_cancelled() {
            let wait = match driver.drive(name, stop).await {
                Ok(rollout) if rollout.phase.is_ended() => return Left::Ended,
                Ok(rollout) => {
                    delays.reset();
                    self.until_changed(&driver, &rollout, stop).await;
                    continue;
                }
                Err(DriveError::Store {
                    source: error @ StoreError::Newer { .. },
                    ..
                }) => {
                    tracing::warn!(rollout = %name, error = in_words(&error), "left to newer orchestrators");
                    return Left::ToNewer;
                }
                // A name without a record: it was being stored, or never will be.
                Err(DriveError::Unknown(_)) => self.config.claim,
                Err(error) => {
                    let wait = next_delay(delays);
                    tracing::warn!(rollout = %name, ?wait, error = in_words(&error), "rollout waits");
                    if let DriveError::Plan { source, .. } = &error {
                        driver
                            .note_failed_try(name, &in_words(source), Some(wait))
                            .await;
                    }
                    wait
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Left::Stopped
    }

    /// Waits until somebody has changed a rollout that owes nothing, or `stop`. A halted one goes
    /// on by itself when all may: a driver that has seen the switch just before it was turned off
    /// halts what nobody would let go on.
    async fn until_changed(&self, driver: &Driver, rollout: &Rollout, stop: &CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.config.look) => {}
            }
            match self.store.revision(&rollout.spec.name).await {
                Ok(revision) if revision == Some(rollout.revision()) => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(error = in_words(&error), "the store does not answer");
                }
            }
            if matches!(rollout.phase, Phase::Halted { .. })
                && let Ok(None) = self.roster.halted().await
                && let Err(error) = driver
                    .apply(
                        rollout,
                        Event::HaltLifted {
                            word: Word::default(),
                        },
                    )
                    .await
            {
                tracing::debug!(rollout = %rollout.spec.name, ?error, "not let go on yet");
            }
        }
    }

    /// Tells every transition soon after it happened, whoever made it happen.
    async fn keep_telling(&self, name: &RolloutName) {
        loop {
            if let Err(error) = self.tell(name).await {
                tracing::warn!(rollout = %name, error = in_words(&error), "events wait");
            }
            tokio::time::sleep(self.config.look).await;
        }
    }

    /// Keeps what Prometheus is told of a rollout up to date, until dropped.
    async fn keep_measuring(&self, name: &RolloutName) {
        let mut metrics = self.status.metrics.rollout(name);
        loop {
            let read = futures::try_join!(self.store.rollout(name), self.store.tallies(name));
            if let Ok((Some(rollout), tallies)) = read {
                metrics.set(&rollout, &tallies, self.clock.now());
            }
            tokio::time::sleep(MEASURED_EVERY).await;
        }
    }

    /// Keeps what Prometheus is told of the whole engine up to date, until dropped.
    async fn watch_engine(&self) {
        loop {
            if let Ok(halt) = self.roster.halted().await {
                self.status.metrics.stopped.set(halt.is_some().into());
            }
            for hub in self.hubs.keys() {
                if let Ok(depth) = self.queue.depth(hub).await {
                    self.status.metrics.queue(hub, depth);
                }
            }
            tokio::time::sleep(MEASURED_EVERY).await;
        }
    }

    async fn tell(&self, name: &RolloutName) -> Result<Version, events::NotTold> {
        events::tell(name, &*self.store, &*self.roster, &*self.events).await
    }

    /// Takes an ended rollout off the roster when all is told of it, and gives the claim back.
    async fn let_go(
        &self,
        name: &RolloutName,
        told: Result<Version, events::NotTold>,
    ) -> Result<(), StoreError> {
        // Once it is off the roster, nobody would notice that the store has lost its end.
        tokio::time::sleep(self.store.durable_after()).await;
        if let Some(rollout) = self.store.rollout(name).await?
            && rollout.phase.is_ended()
            && told.is_ok_and(|told| told >= rollout.version)
        {
            self.roster.retire(name, rollout.version).await?;
            tracing::info!(rollout = %name, phase = rollout.phase.as_str(), "rollout ended");
        }
        self.roster.disclaim(name, &self.id).await
    }
}

/// The next delay of a policy that never gives up.
fn next_delay(delays: &mut Delays) -> Duration {
    delays
        .next_delay()
        .unwrap_or_else(|| Policy::reconnect().max())
}

/// Forgets a rollout whose task has ended; a panic of it is a defect, and another look drives it
/// again. Gives one that is left to newer orchestrators.
fn forget(
    driving: &mut BTreeMap<RolloutName, Driving>,
    ended: Result<(Id, (RolloutName, Left)), tokio::task::JoinError>,
) -> Option<RolloutName> {
    let (id, newer) = match ended {
        Ok((id, (name, left))) => (id, (left == Left::ToNewer).then_some(name)),
        Err(error) => {
            tracing::error!(?error, "the driver of a rollout ended unexpectedly");
            (error.id(), None)
        }
    };
    driving.retain(|_, rollout| rollout.task != id);
    newer
}
