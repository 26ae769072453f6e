//! Drives all rollouts, together with other orchestrators.
//!
//! Each orchestrator regularly polls the rollout registry and claims rollouts without a driver. A
//! claim lapses unless renewed, so another orchestrator takes over after a crash. Two orchestrators
//! that drive the same rollout for a moment do no harm: every change of a record compares the
//! version.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use twincast_core::error::describe;
use twincast_core::ids::{Holder, RolloutName, Version};
use twincast_core::ports::{
    Clock, MetricSource, Queue, RegistrySnapshot, RolloutRegistry, Store, StoreError,
};
use twincast_core::rollout::{Attribution, Event, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_retry::{Delays, Policy};

use crate::Hubs;
use crate::changes::{ChangeSource, Newest};
use crate::config::DriverConfig;
use crate::driver::{DriveError, Driver};
use crate::events::{self, Events, PublishError};
use crate::metrics::Metrics;
use crate::paused;
use crate::planner::PlanProgress;
use crate::reachability::Reachability;
use crate::traces;

/// The configuration of an orchestrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrchestratorConfig {
    /// The interval between two polls of the registry, and of waiting rollouts.
    pub poll_interval: Duration,
    /// The time for which a claim holds without renewal. After a crash of its orchestrator, a
    /// rollout waits for this time plus one poll.
    pub claim: Duration,
    /// The most rollouts claimed per poll while the number of other orchestrators is unknown, so
    /// that other orchestrators get a share.
    pub claims_per_poll: usize,
    /// The configuration of the drivers.
    pub driver: DriverConfig,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(500),
            claim: Duration::from_secs(10),
            claims_per_poll: 4,
            driver: DriverConfig::default(),
        }
    }
}

/// An orchestrator.
pub struct Orchestrator {
    /// The store, the source of truth.
    pub store: Arc<dyn Store>,
    /// The rollout registry.
    pub registry: Arc<dyn RolloutRegistry>,
    /// The queue for dispatches.
    pub queue: Arc<dyn Queue>,
    /// The destination of events.
    pub events: Arc<dyn Events>,
    /// All configured hubs.
    pub hubs: Hubs,
    /// The source of gate metrics, if configured.
    pub metric_source: Option<Arc<dyn MetricSource>>,
    /// The clock for records.
    pub clock: Arc<dyn Clock>,
    /// The configuration.
    pub config: OrchestratorConfig,
    /// The identity of this run of the process.
    pub id: Holder,
    /// The live status.
    pub status: Arc<OrchestratorStatus>,
    /// The tracer for the spans of rollouts.
    pub tracer: Tracer,
}

/// The live status of an orchestrator.
#[derive(Debug)]
pub struct OrchestratorStatus {
    /// The Prometheus metrics.
    pub metrics: Metrics,
    store: Reachability,
    broker: Arc<Reachability>,
}

impl Default for OrchestratorStatus {
    fn default() -> Self {
        Self {
            metrics: Metrics::default(),
            store: Reachability::new("the store"),
            broker: Arc::default(),
        }
    }
}

impl OrchestratorStatus {
    /// Returns why the last call to the store failed, if so.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        self.store.trouble()
    }
}

/// The most rollouts claimed per poll, and so loaded at once.
const MAX_CLAIMS_PER_POLL: usize = 64;
/// While nothing changes, the interval between two readings of a rollout's numbers grows by one
/// part in this many.
const GROWTH_DIVISOR: u32 = 4;
/// The interval between two readings of the engine's metrics, and of the metrics of a changing
/// rollout.
const METRICS_INTERVAL: Duration = Duration::from_secs(2);
/// The longest interval between two readings of an unchanged rollout's metrics.
const MAX_METRICS_INTERVAL: Duration = Duration::from_secs(30);
/// The time after its start for which an orchestrator cannot know the number of other
/// orchestrators, and leaves rollouts to them.
const STARTUP_GRACE: Duration = Duration::from_secs(2);

/// Why this orchestrator no longer drives a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopReason {
    Ended,
    Stopped,
    /// The rollout is of a newer release. This never changes, so the rollout is not tried again.
    NewerRelease,
}

/// A rollout driven by this orchestrator.
struct DrivenRollout {
    stop: CancellationToken,
    task: Id,
    newest: watch::Sender<Newest>,
}

/// All rollouts driven by this orchestrator.
#[derive(Default)]
struct DrivenRollouts {
    rollouts: BTreeMap<RolloutName, DrivenRollout>,
    tasks: JoinSet<(RolloutName, StopReason)>,
    /// The rollouts left to newer orchestrators.
    newer: BTreeSet<RolloutName>,
}

impl DrivenRollouts {
    /// Notifies the drivers of the result of a poll.
    fn notify_drivers(&self, snapshot: &RegistrySnapshot) {
        let halted = snapshot.halt.is_some();
        for (name, rollout) in &self.rollouts {
            // An unlisted rollout has ended, and its driver knows.
            let Some(listed) = snapshot.active.get(name) else {
                continue;
            };
            let version = listed.newest;
            let newest = Newest { version, halted };
            let changes = |known: &mut Newest| std::mem::replace(known, newest) != newest;
            rollout.newest.send_if_modified(changes);
        }
    }

    /// Removes the rollouts of finished tasks. A panic of a task is a defect; the next poll drives
    /// the rollout again.
    fn remove_finished(&mut self, ended: Result<(Id, (RolloutName, StopReason)), JoinError>) {
        let id = match ended {
            Ok((id, (name, stop_reason))) => {
                if stop_reason == StopReason::NewerRelease {
                    self.newer.insert(name);
                }
                id
            }
            Err(error) => {
                tracing::error!(
                    error = describe(&error),
                    "the driver of a rollout ended unexpectedly"
                );
                error.id()
            }
        };
        self.rollouts.retain(|_, rollout| rollout.task != id);
    }
}

impl Orchestrator {
    /// Drives rollouts until `stop`, then releases them to other orchestrators. Failures are logged
    /// and retried.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = Arc::clone(&self).drive_all(stop) => {}
            () = self.watch_engine() => {}
        }
    }

    async fn drive_all(self: Arc<Self>, stop: CancellationToken) {
        let mut driven = DrivenRollouts::default();
        let (started, mut renewed_at) = (Instant::now(), Instant::now());
        while !stop.is_cancelled() {
            let is_new = started.elapsed() < STARTUP_GRACE;
            let polled = self.poll(&stop, &mut driven, &mut renewed_at, is_new).await;
            self.status.store.note(&polled);
            let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let metrics = &self.status.metrics;
            metrics.driven.set(gauge(driven.rollouts.len()));
            metrics.newer.set(gauge(driven.newer.len()));
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.config.poll_interval) => {}
            }
            while let Some(ended) = driven.tasks.try_join_next_with_id() {
                driven.remove_finished(ended);
            }
        }
        while let Some(ended) = driven.tasks.join_next_with_id().await {
            driven.remove_finished(ended);
        }
    }

    /// Renews the claims, notifies the drivers of changes, and claims rollouts without a driver.
    async fn poll(
        self: &Arc<Self>,
        stop: &CancellationToken,
        driven: &mut DrivenRollouts,
        renewed_at: &mut Instant,
        is_new: bool,
    ) -> Result<(), StoreError> {
        if renewed_at.elapsed() >= self.config.claim / 4 {
            let claimed: Vec<_> = driven.rollouts.keys().cloned().collect();
            let lost = self
                .registry
                .claim(&claimed, &self.id, self.config.claim)
                .await?;
            for (name, held) in lost {
                tracing::warn!(rollout = %name, by = %held.by, "another orchestrator has taken over");
                if let Some(rollout) = driven.rollouts.get(&name) {
                    rollout.stop.cancel();
                }
            }
            *renewed_at = Instant::now();
        }
        let snapshot = self.registry.snapshot().await?;
        driven.notify_drivers(&snapshot);
        driven
            .newer
            .retain(|name| snapshot.active.contains_key(name));
        let to_claim = self.share(&snapshot, driven, is_new);
        let others = self.registry.claim(&to_claim, &self.id, self.config.claim);
        let others = others.await?;
        for name in to_claim
            .into_iter()
            .filter(|name| !others.contains_key(name))
        {
            let newest = Newest {
                version: snapshot.active[&name].newest,
                halted: snapshot.halt.is_some(),
            };
            tracing::info!(rollout = %name, "driving");
            let rollout = self.start_driver(&name, newest, stop.child_token(), &mut driven.tasks);
            driven.rollouts.insert(name, rollout);
        }
        Ok(())
    }

    /// Returns this orchestrator's share of the rollouts without a driver. All orchestrators with a
    /// rollout have equal shares.
    fn share(
        &self,
        snapshot: &RegistrySnapshot,
        driven: &DrivenRollouts,
        is_new: bool,
    ) -> Vec<RolloutName> {
        let held = snapshot.active.values().filter_map(|it| it.held.as_ref());
        let others: BTreeSet<_> = held
            .map(|held| &held.by)
            .filter(|by| **by != self.id)
            .collect();
        let free = snapshot.active.iter().filter(|(name, listed)| {
            let is_known = driven.rollouts.contains_key(*name) || driven.newer.contains(*name);
            !is_known && listed.held.as_ref().is_none_or(|held| held.by == self.id)
        });
        let free: Vec<_> = free.map(|(name, _)| name.clone()).collect();
        let min = self.config.claims_per_poll;
        let share = free.len().div_ceil(others.len() + 1);
        let max = if is_new {
            min
        } else {
            share.clamp(min, MAX_CLAIMS_PER_POLL.max(min))
        };
        free.into_iter().take(max).collect()
    }

    fn start_driver(
        self: &Arc<Self>,
        name: &RolloutName,
        newest: Newest,
        stop: CancellationToken,
        tasks: &mut JoinSet<(RolloutName, StopReason)>,
    ) -> DrivenRollout {
        let (newest, receiver) = watch::channel(newest);
        let (this, of, token) = (Arc::clone(self), name.clone(), stop.clone());
        let work = async move {
            // A rollout that cannot be read is driven, too: the driver logs the reason.
            let rollout = this.store.rollout(&of).await.ok().flatten();
            let log = traces::log_span(rollout.and_then(|rollout| rollout.trace));
            let stop_reason = this.drive(&of, receiver, &token).instrument(log).await;
            (of, stop_reason)
        };
        let task = tasks.spawn(work).id();
        DrivenRollout { stop, task, newest }
    }

    /// Drives one rollout until its end and the publication of all events, or until `stop`. Does
    /// not drive a rollout of a newer release.
    async fn drive(
        &self,
        name: &RolloutName,
        newest: watch::Receiver<Newest>,
        stop: &CancellationToken,
    ) -> StopReason {
        let stop_reason = tokio::select! {
            biased;
            stop_reason = self.drive_to_end(name, &newest, stop) => stop_reason,
            never = self.keep_publishing(name, newest.clone()) => match never {},
            never = self.keep_metrics_current(name, newest.clone()) => match never {},
        };
        if stop_reason == StopReason::NewerRelease {
            self.log_unreleased(name, self.registry.release_claim(name, &self.id).await);
            return stop_reason;
        }
        // This orchestrator publishes the last transition before releasing the claim. Released
        // earlier, the rollout would be claimed again at once, ahead of rollouts waiting for a
        // driver.
        let mut delays = Policy::reconnect().delays();
        let published = loop {
            let published = self.publish_new(name).await;
            if published.is_ok() || stop.is_cancelled() {
                break published;
            }
            pause(next_delay(&mut delays), stop).await;
        };
        self.log_unreleased(name, self.deactivate_and_release(name, published).await);
        stop_reason
    }

    fn log_unreleased(&self, name: &RolloutName, released: Result<(), StoreError>) {
        if let Err(error) = released {
            tracing::debug!(rollout = %name, error = describe(&error), "claim not released, the claim will lapse");
        }
    }

    async fn drive_to_end(
        &self,
        name: &RolloutName,
        newest: &watch::Receiver<Newest>,
        stop: &CancellationToken,
    ) -> StopReason {
        let driver = self.driver(newest);
        let mut delays = Policy::reconnect().delays();
        let mut last_error = String::new();
        while !stop.is_cancelled() {
            let error = match driver.drive(name, stop).await {
                Ok(rollout) if rollout.phase.is_ended() => return StopReason::Ended,
                Ok(rollout) => {
                    delays.reset();
                    self.until_changed(&driver, &rollout, stop).await;
                    continue;
                }
                Err(error) => error,
            };
            if let DriveError::Store {
                source: error @ StoreError::Newer { .. },
                ..
            } = &error
            {
                tracing::warn!(rollout = %name, error = describe(error), "left to newer orchestrators");
                return StopReason::NewerRelease;
            }
            let wait = next_delay(&mut delays);
            self.log_wait(name, &error, &mut last_error);
            if let DriveError::Plan { source, .. } = &error {
                driver
                    .note_failed_try(name, &describe(source), Some(wait))
                    .await;
            }
            pause(wait, stop).await;
        }
        StopReason::Stopped
    }

    /// Logs why a rollout waits, once per reason.
    fn log_wait(&self, name: &RolloutName, error: &DriveError, before: &mut String) {
        match error {
            DriveError::Store {
                source: source @ StoreError::Unavailable { .. },
                ..
            } => self.status.store.note_failure(source),
            // The record is being stored, or never will be.
            DriveError::Unknown(_) => {}
            error => {
                let words = describe(error);
                if *before == words {
                    tracing::debug!(rollout = %name, error = words, "rollout waits");
                } else {
                    tracing::warn!(rollout = %name, error = words, "rollout waits");
                    *before = words;
                }
            }
        }
    }

    fn driver(&self, newest: &watch::Receiver<Newest>) -> Driver {
        Driver {
            store: Arc::clone(&self.store),
            queue: Arc::clone(&self.queue),
            hubs: self.hubs.clone(),
            metric_source: self.metric_source.clone(),
            clock: Arc::clone(&self.clock),
            config: self.config.driver,
            base: PathBuf::new(),
            planning: PlanProgress::default(),
            changes: ChangeSource::Notified {
                newest: newest.clone(),
                registry: Arc::clone(&self.registry),
            },
            repairs: self.status.metrics.repairs.clone(),
            broker: Arc::clone(&self.status.broker),
            tracer: self.tracer.clone(),
        }
    }

    /// Waits until another component has changed a rollout without pending work, or until `stop`.
    /// Receives the devices' results meanwhile. Lets a halted rollout continue when all rollouts
    /// may: a driver that read the switch just before its reset halts a rollout that no command
    /// would resume.
    async fn until_changed(&self, driver: &Driver, rollout: &Rollout, stop: &CancellationToken) {
        let were_halted = driver.changes.were_halted();
        if matches!(rollout.phase, Phase::Halted { .. })
            && let Ok(None) = self.registry.halted().await
        {
            let attribution = Attribution::default();
            match driver
                .apply(rollout, Event::HaltLifted { attribution })
                .await
            {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(rollout = %rollout.spec.name, error = describe(&error), "halt not lifted yet");
                }
            }
        }
        let every = self.config.poll_interval;
        let (halted, mut confirmed_at) = (Some(were_halted), None);
        let changes = &driver.changes;
        let changed = changes.changed(&*self.store, rollout, halted, every, &mut confirmed_at);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            changed = changed => {
                if changed.is_err() {
                    pause(every, stop).await;
                }
            }
            never = paused::keep_receiving(driver, rollout) => match never {},
        }
    }

    /// Publishes every transition soon after it happened, whatever component caused it, until
    /// dropped.
    async fn keep_publishing(
        &self,
        name: &RolloutName,
        mut newest: watch::Receiver<Newest>,
    ) -> Infallible {
        let mut wait = self.config.poll_interval;
        loop {
            let listed = newest.borrow_and_update().version;
            match self.publish_new(name).await {
                Ok(published) if published >= listed => {
                    wait = self.config.poll_interval;
                    wait_for_newer(&mut newest, published).await;
                    continue;
                }
                // The listed version is about to be stored, or never will be.
                Ok(_) => {}
                Err(error) => self.log_unpublished(name, &error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.config.claim);
        }
    }

    fn log_unpublished(&self, name: &RolloutName, error: &PublishError) {
        match error {
            PublishError::Store(error @ StoreError::Unavailable { .. }) => {
                self.status.store.note_failure(error);
            }
            PublishError::Queue(error) => self.status.broker.note_failure(error),
            PublishError::Store(error) => {
                tracing::warn!(rollout = %name, error = describe(error), "events not published yet");
            }
        }
    }

    /// Keeps the Prometheus metrics of a rollout up to date, until dropped.
    async fn keep_metrics_current(
        &self,
        name: &RolloutName,
        mut newest: watch::Receiver<Newest>,
    ) -> Infallible {
        let mut metrics = self.status.metrics.rollout(name);
        let mut before = None;
        let mut wait = METRICS_INTERVAL;
        loop {
            newest.borrow_and_update();
            let read = futures::try_join!(self.store.rollout(name), self.store.tallies(name));
            if let Ok((Some(rollout), tallies)) = read {
                metrics.set(&rollout, &tallies, self.clock.now());
                let seen = Some((rollout.version, tallies));
                wait = match seen == before {
                    true => (wait + wait / GROWTH_DIVISOR).min(MAX_METRICS_INTERVAL),
                    false => METRICS_INTERVAL,
                };
                before = seen;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = newest.changed(), if wait > METRICS_INTERVAL => {}
            }
        }
    }

    /// Keeps the Prometheus metrics of the whole engine up to date, until dropped.
    async fn watch_engine(&self) {
        loop {
            if let Ok(halt) = self.registry.halted().await {
                self.status.metrics.stopped.set(halt.is_some().into());
            }
            for hub in self.hubs.keys() {
                let depth = self.queue.depth(hub).await;
                self.status.broker.note(&depth);
                if let Ok(depth) = depth {
                    self.status.metrics.queue(hub, depth);
                }
            }
            tokio::time::sleep(METRICS_INTERVAL).await;
        }
    }

    async fn publish_new(&self, name: &RolloutName) -> Result<Version, events::PublishError> {
        let published =
            events::publish_new(name, &*self.store, &*self.registry, &*self.events).await;
        if published.is_ok() {
            self.status.broker.note_success();
        }
        published
    }

    /// Removes an ended rollout from the registry when all events are published, and releases the
    /// claim.
    async fn deactivate_and_release(
        &self,
        name: &RolloutName,
        published: Result<Version, events::PublishError>,
    ) -> Result<(), StoreError> {
        // Once the rollout is off the registry, no driver would notice that the store has lost the
        // end.
        tokio::time::sleep(self.store.durable_after()).await;
        if let Some(rollout) = self.store.rollout(name).await?
            && rollout.phase.is_ended()
            && published.is_ok_and(|published| published >= rollout.version)
        {
            self.registry.deactivate(name, rollout.version).await?;
            tracing::info!(rollout = %name, phase = rollout.phase.as_str(), "rollout ended");
        }
        self.registry.release_claim(name, &self.id).await
    }
}

/// Returns the next delay of a policy that never gives up.
fn next_delay(delays: &mut Delays) -> Duration {
    delays
        .next_delay()
        .unwrap_or_else(|| Policy::reconnect().max())
}

/// Waits until the registry lists a newer version than `published`.
async fn wait_for_newer(newest: &mut watch::Receiver<Newest>, published: Version) {
    if newest.wait_for(|it| it.version > published).await.is_err() {
        // The registry is not polled any more.
        pending::<()>().await;
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
