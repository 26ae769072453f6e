//! Drives all rollouts, together with other orchestrators.
//!
//! Each looks at the roster now and then and claims what nobody drives. A claim lapses when it is
//! not renewed, so another one takes over from one that died. Two that drive the same rollout for
//! a moment do no harm: every change of a record is a comparison with its version.

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
use twincast_core::error::in_words;
use twincast_core::ids::{Holder, RolloutName, Version};
use twincast_core::ports::{Clock, MetricSource, Queue, Roster, RosterLook, Store, StoreError};
use twincast_core::rollout::{Event, Phase, Rollout, Word};
use twincast_core::trace::Tracer;
use twincast_retry::{Delays, Policy};

use crate::Hubs;
use crate::config::DriverConfig;
use crate::driver::{DriveError, Driver};
use crate::events::{self, Events, NotTold};
use crate::metrics::Metrics;
use crate::news::{Newest, News};
use crate::planner::PlanProgress;
use crate::reach::Reach;
use crate::traces;

/// How an orchestrator works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrchestratorConfig {
    /// How often it looks at the roster, and at rollouts that wait.
    pub look: Duration,
    /// For how long a claim holds when it is not renewed: so long, and one look, a rollout waits
    /// whose orchestrator died.
    pub claim: Duration,
    /// Rollouts that it claims at one look at the most while it does not know who else is there: the others get their share.
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
#[derive(Debug)]
pub struct OrchestratorStatus {
    /// What it tells Prometheus.
    pub metrics: Metrics,
    store: Reach,
    broker: Arc<Reach>,
}

impl Default for OrchestratorStatus {
    fn default() -> Self {
        Self {
            metrics: Metrics::default(),
            store: Reach::new("the store"),
            broker: Arc::default(),
        }
    }
}

impl OrchestratorStatus {
    /// Why the store could not be asked the last time, if that is so.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        self.store.trouble()
    }
}

/// The most rollouts that are claimed at one look, and so loaded at once.
const CLAIMS_AT_ONCE: usize = 64;
/// While nothing changes, the wait before the next look at a rollout's numbers grows by this part.
const PART: u32 = 4;
/// How often what Prometheus is told of the engine is read, and of a rollout that changes.
const MEASURED_EVERY: Duration = Duration::from_secs(2);
/// And of one that has not changed for long.
const MEASURED_AT_LEAST: Duration = Duration::from_secs(30);
/// For so long an orchestrator that was just started cannot know how many others there are, and leaves rollouts to them.
const NEW: Duration = Duration::from_secs(2);

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
    newest: watch::Sender<Newest>,
}

/// All that is driven here.
#[derive(Default)]
struct Fleet {
    driving: BTreeMap<RolloutName, Driving>,
    tasks: JoinSet<(RolloutName, Left)>,
    /// Those that are left to newer orchestrators.
    newer: BTreeSet<RolloutName>,
}

impl Fleet {
    /// Tells the drivers what a look has shown.
    fn tell(&self, look: &RosterLook) {
        let halted = look.halt.is_some();
        for (name, driving) in &self.driving {
            // One that is not listed any more has ended, and its driver was there.
            let Some(listed) = look.active.get(name) else {
                continue;
            };
            let version = listed.newest;
            let newest = Newest { version, halted };
            let is_news = |known: &mut Newest| std::mem::replace(known, newest) != newest;
            driving.newest.send_if_modified(is_news);
        }
    }

    /// Forgets the rollouts whose tasks have ended; a panic of one is a defect, and another look drives it again.
    fn forget(&mut self, ended: Result<(Id, (RolloutName, Left)), JoinError>) {
        let id = match ended {
            Ok((id, (name, left))) => {
                if left == Left::ToNewer {
                    self.newer.insert(name);
                }
                id
            }
            Err(error) => {
                tracing::error!(?error, "the driver of a rollout ended unexpectedly");
                error.id()
            }
        };
        self.driving.retain(|_, rollout| rollout.task != id);
    }
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
        let mut fleet = Fleet::default();
        let (begun, mut renewed_at) = (Instant::now(), Instant::now());
        while !stop.is_cancelled() {
            let is_new = begun.elapsed() < NEW;
            let looked = self.look(&stop, &mut fleet, &mut renewed_at, is_new).await;
            self.status.store.note(&looked);
            let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let metrics = &self.status.metrics;
            metrics.driven.set(gauge(fleet.driving.len()));
            metrics.newer.set(gauge(fleet.newer.len()));
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.config.look) => {}
            }
            while let Some(ended) = fleet.tasks.try_join_next_with_id() {
                fleet.forget(ended);
            }
        }
        while let Some(ended) = fleet.tasks.join_next_with_id().await {
            fleet.forget(ended);
        }
    }

    /// Renews what is driven here, tells the drivers what has changed, and claims what is driven by nobody.
    async fn look(
        self: &Arc<Self>,
        stop: &CancellationToken,
        fleet: &mut Fleet,
        renewed_at: &mut Instant,
        is_new: bool,
    ) -> Result<(), StoreError> {
        if renewed_at.elapsed() >= self.config.claim / 4 {
            let ours: Vec<_> = fleet.driving.keys().cloned().collect();
            let lost = self
                .roster
                .claim(&ours, &self.id, self.config.claim)
                .await?;
            for (name, held) in lost {
                tracing::warn!(rollout = %name, by = %held.by, "another orchestrator has taken over");
                if let Some(driving) = fleet.driving.get(&name) {
                    driving.stop.cancel();
                }
            }
            *renewed_at = Instant::now();
        }
        let look = self.roster.look().await?;
        fleet.tell(&look);
        fleet.newer.retain(|name| look.active.contains_key(name));
        let wanted = self.share(&look, fleet, is_new);
        let others = self.roster.claim(&wanted, &self.id, self.config.claim);
        let others = others.await?;
        for name in wanted.into_iter().filter(|name| !others.contains_key(name)) {
            let newest = Newest {
                version: look.active[&name].newest,
                halted: look.halt.is_some(),
            };
            tracing::info!(rollout = %name, "driving");
            let driving = self.begin(&name, newest, stop.child_token(), &mut fleet.tasks);
            fleet.driving.insert(name, driving);
        }
        Ok(())
    }

    /// This one's share of what nobody drives: equal ones for all orchestrators that drive something.
    fn share(&self, look: &RosterLook, fleet: &Fleet, is_new: bool) -> Vec<RolloutName> {
        let held = look.active.values().filter_map(|it| it.held.as_ref());
        let others: BTreeSet<_> = held
            .map(|held| &held.by)
            .filter(|by| **by != self.id)
            .collect();
        let free = look.active.iter().filter(|(name, listed)| {
            let is_known = fleet.driving.contains_key(*name) || fleet.newer.contains(*name);
            !is_known && listed.held.as_ref().is_none_or(|held| held.by == self.id)
        });
        let free: Vec<_> = free.map(|(name, _)| name.clone()).collect();
        let few = self.config.claims_a_look;
        let many = free.len().div_ceil(others.len() + 1);
        let most = if is_new {
            few
        } else {
            many.clamp(few, CLAIMS_AT_ONCE.max(few))
        };
        free.into_iter().take(most).collect()
    }

    fn begin(
        self: &Arc<Self>,
        name: &RolloutName,
        newest: Newest,
        stop: CancellationToken,
        tasks: &mut JoinSet<(RolloutName, Left)>,
    ) -> Driving {
        let (newest, told) = watch::channel(newest);
        let (this, of, token) = (Arc::clone(self), name.clone(), stop.clone());
        let work = async move {
            // A rollout that cannot be read is driven, too: that says why.
            let rollout = this.store.rollout(&of).await.ok().flatten();
            let log = traces::log_span(rollout.and_then(|rollout| rollout.trace));
            let left = this.drive(&of, told, &token).instrument(log).await;
            (of, left)
        };
        let task = tasks.spawn(work).id();
        Driving { stop, task, newest }
    }

    /// Drives one rollout until it has ended and all is told of it, or `stop`; or not at all, if it is of a newer
    /// release.
    async fn drive(
        &self,
        name: &RolloutName,
        newest: watch::Receiver<Newest>,
        stop: &CancellationToken,
    ) -> Left {
        let left = tokio::select! {
            biased;
            left = self.drive_to_the_end(name, &newest, stop) => left,
            never = self.keep_telling(name, newest.clone()) => match never {},
            never = self.keep_measuring(name, newest.clone()) => match never {},
        };
        if left == Left::ToNewer {
            self.give_back(name, self.roster.disclaim(name, &self.id).await);
            return left;
        }
        // What was just stored is told by whoever stored it. Until that is done the rollout is ours:
        // given back, it would be claimed again at once, before those that wait to be driven.
        let mut delays = Policy::reconnect().delays();
        let told = loop {
            let told = self.tell(name).await;
            if told.is_ok() || stop.is_cancelled() {
                break told;
            }
            pause(next_delay(&mut delays), stop).await;
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
        newest: &watch::Receiver<Newest>,
        stop: &CancellationToken,
    ) -> Left {
        let driver = self.driver(newest);
        let mut delays = Policy::reconnect().delays();
        let mut trouble = String::new();
        while !stop.is_cancelled() {
            let error = match driver.drive(name, stop).await {
                Ok(rollout) if rollout.phase.is_ended() => return Left::Ended,
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
                tracing::warn!(rollout = %name, error = in_words(error), "left to newer orchestrators");
                return Left::ToNewer;
            }
            let wait = next_delay(&mut delays);
            self.log(name, &error, &mut trouble);
            if let DriveError::Plan { source, .. } = &error {
                driver
                    .note_failed_try(name, &in_words(source), Some(wait))
                    .await;
            }
            pause(wait, stop).await;
        }
        Left::Stopped
    }

    /// Says why a rollout waits, once for each reason.
    fn log(&self, name: &RolloutName, error: &DriveError, before: &mut String) {
        match error {
            DriveError::Store {
                source: source @ StoreError::Unavailable { .. },
                ..
            } => self.status.store.is_lost(source),
            // It is being stored, or never will be.
            DriveError::Unknown(_) => {}
            error => {
                let words = in_words(error);
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
            news: News::Told {
                newest: newest.clone(),
                roster: Arc::clone(&self.roster),
            },
            repairs: self.status.metrics.repairs.clone(),
            broker: Arc::clone(&self.status.broker),
            tracer: self.tracer.clone(),
        }
    }

    /// Waits until somebody has changed a rollout that owes nothing, or `stop`. A halted one goes
    /// on by itself when all may: a driver that has seen the switch just before it was turned off
    /// halts what nobody would let go on.
    async fn until_changed(&self, driver: &Driver, rollout: &Rollout, stop: &CancellationToken) {
        let were_halted = driver.news.were_halted();
        if matches!(rollout.phase, Phase::Halted { .. })
            && let Ok(None) = self.roster.halted().await
        {
            let word = Word::default();
            match driver.apply(rollout, Event::HaltLifted { word }).await {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(rollout = %rollout.spec.name, ?error, "not let go on yet");
                }
            }
        }
        let every = self.config.look;
        let (halted, mut assured) = (Some(were_halted), None);
        let news = &driver.news;
        let changed = news.changed(&*self.store, rollout, halted, every, &mut assured);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            changed = changed => {
                if changed.is_err() {
                    pause(every, stop).await;
                }
            }
        }
    }

    /// Tells every transition soon after it happened, whoever made it happen, until dropped.
    async fn keep_telling(
        &self,
        name: &RolloutName,
        mut newest: watch::Receiver<Newest>,
    ) -> Infallible {
        let mut wait = self.config.look;
        loop {
            let listed = newest.borrow_and_update().version;
            match self.tell(name).await {
                Ok(told) if told >= listed => {
                    wait = self.config.look;
                    wait_for_more(&mut newest, told).await;
                    continue;
                }
                // It is about to be stored, or never will be.
                Ok(_) => {}
                Err(error) => self.log_untold(name, &error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.config.claim);
        }
    }

    fn log_untold(&self, name: &RolloutName, error: &NotTold) {
        match error {
            NotTold::Store(error @ StoreError::Unavailable { .. }) => {
                self.status.store.is_lost(error);
            }
            NotTold::Queue(error) => self.status.broker.is_lost(error),
            NotTold::Store(error) => {
                tracing::warn!(rollout = %name, error = in_words(error), "events wait");
            }
        }
    }

    /// Keeps what Prometheus is told of a rollout up to date, until dropped.
    async fn keep_measuring(
        &self,
        name: &RolloutName,
        mut newest: watch::Receiver<Newest>,
    ) -> Infallible {
        let mut metrics = self.status.metrics.rollout(name);
        let mut before = None;
        let mut wait = MEASURED_EVERY;
        loop {
            newest.borrow_and_update();
            let read = futures::try_join!(self.store.rollout(name), self.store.tallies(name));
            if let Ok((Some(rollout), tallies)) = read {
                metrics.set(&rollout, &tallies, self.clock.now());
                let seen = Some((rollout.version, tallies));
                wait = match seen == before {
                    true => (wait + wait / PART).min(MEASURED_AT_LEAST),
                    false => MEASURED_EVERY,
                };
                before = seen;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = newest.changed(), if wait > MEASURED_EVERY => {}
            }
        }
    }

    /// Keeps what Prometheus is told of the whole engine up to date, until dropped.
    async fn watch_engine(&self) {
        loop {
            if let Ok(halt) = self.roster.halted().await {
                self.status.metrics.stopped.set(halt.is_some().into());
            }
            for hub in self.hubs.keys() {
                let depth = self.queue.depth(hub).await;
                self.status.broker.note(&depth);
                if let Ok(depth) = depth {
                    self.status.metrics.queue(hub, depth);
                }
            }
            tokio::time::sleep(MEASURED_EVERY).await;
        }
    }

    async fn tell(&self, name: &RolloutName) -> Result<Version, events::NotTold> {
        let told = events::tell(name, &*self.store, &*self.roster, &*self.events).await;
        if told.is_ok() {
            self.status.broker.is_back();
        }
        told
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

/// Waits until a newer version than `told` is listed.
async fn wait_for_more(newest: &mut watch::Receiver<Newest>, told: Version) {
    if newest.wait_for(|it| it.version > told).await.is_err() {
        // Nobody looks any more.
        pending::<()>().await;
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
