//! The engine in a simulated world: processes that are kept alive, commands, and the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use twincast_core::error::in_words;
use twincast_core::ports::{Clock, QueueError, Rollouts as _, Roster as _};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_orchestrator::command::{Answer, Cause};
use twincast_orchestrator::events::Events;
use twincast_orchestrator::intake::{Intake, NotDone};
use twincast_orchestrator::service::{Orchestrator, OrchestratorStatus};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::sim::{Broker, Process, Sim, SimStore};
use twincast_testkit::{MemoryStore, build};
use twincast_worker::{Worker, WorkerHub};

use crate::account::Account;
use crate::world::{Again, Ask, Plan};

/// How often the account is compared with the store, and when the world may end: at no moment at which a process does
/// something by its clock, for what happens at one moment has no fixed order.
const LOOK: Duration = Duration::from_micros(5_000_700);
/// Requests of processes that are gone may arrive for so long after the last fault.
const LATEST_REQUEST: Duration = Duration::from_secs(30);
/// What stopping may take besides waiting for the hub's answers: a few calls, each of which may
/// run into its time limit.
const STOPPING: Duration = Duration::from_secs(20);

/// The engine and its world.
pub(crate) struct Engine {
    pub(crate) plan: Plan,
    pub(crate) sim: Sim,
    pub(crate) account: Arc<Account>,
    pub(crate) broker: Broker,
    pub(crate) truth: MemoryStore,
    pub(crate) clock: Arc<dyn Clock>,
    /// What is published is forgotten, now and then.
    pub(crate) forgets_events: bool,
    /// The end of the world.
    pub(crate) end: CancellationToken,
    /// How to stop each process that lives.
    pub(crate) stops: Mutex<BTreeMap<String, CancellationToken>>,
}

/// What kind of process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Orchestrator,
    Worker,
}

impl Engine {
    /// Lets the world run to its end.
    pub(crate) async fn run(self: Arc<Self>) {
        for of in &self.plan.hubs {
            of.hub.post.add_foreign(&of.hub.telling.foreign);
        }
        let mut processes = JoinSet::new();
        for n in 0..self.plan.orchestrators {
            processes.spawn(Arc::clone(&self).keep(Kind::Orchestrator, n));
        }
        for n in 0..self.plan.workers {
            processes.spawn(Arc::clone(&self).keep(Kind::Worker, n));
        }
        let mut happenings = JoinSet::new();
        for (n, (at, ask)) in self.plan.commands.iter().enumerate() {
            happenings.spawn(Arc::clone(&self).command(n, *at, *ask));
        }
        happenings.spawn(Arc::clone(&self).stop_some());
        happenings.spawn(Arc::clone(&self).purge_some());
        happenings.spawn(Arc::clone(&self).forget_some());
        self.until_ended(&mut happenings).await;
        self.end.cancel();
        while let Some(ended) = processes.join_next().await {
            if let Err(error) = ended {
                self.account.accuse(format!("a task panicked: {error}"));
            }
        }
        if self.account.wrong().is_empty() {
            self.account.close(&self.truth, self.sim.age()).await;
        }
    }

    /// Watches until everything has come to an end, or something is wrong.
    async fn until_ended(&self, happenings: &mut JoinSet<()>) {
        let calm = self.plan.faults.until + LATEST_REQUEST;
        let limit = calm + self.plan.patience();
        loop {
            sleep(LOOK).await;
            self.account.look(&self.truth, self.sim.age()).await;
            if !self.account.wrong().is_empty() {
                return;
            }
            while let Some(ended) = happenings.try_join_next() {
                if let Err(error) = ended {
                    self.account.accuse(format!("a task panicked: {error}"));
                }
            }
            if self.sim.age() < calm || !happenings.is_empty() {
                continue;
            }
            let open = self.let_go_on().await;
            if open.is_empty() {
                return;
            }
            if self.sim.age() > limit {
                self.account.accuse(format!("not at an end: {open:?}"));
            }
        }
    }

    /// Does what an operator does who wants all rollouts to end. Gives what has not ended.
    async fn let_go_on(&self) -> Vec<String> {
        let operator = Process::start(&self.sim, "operator");
        let mut open = Vec::new();
        if let Ok(Some(_)) = self.truth.halted().await {
            let _ = self.ask(&operator, &json!({"command": "resume-all"})).await;
        }
        for of in &self.plan.rollouts {
            let rollout = self.truth.rollout(&of.name).await;
            let Ok(Some(rollout)) = rollout else { continue };
            if let Some(word) = self.word_to(&rollout) {
                let _ = self.ask(&operator, &word).await;
            }
            if !rollout.phase.is_ended() {
                let at = rollout.stage_progress();
                open.push(format!("{} is {}, {at:?}", of.name, rollout.phase.as_str()));
            }
        }
        let active = self.truth.active().await.unwrap_or_default();
        open.extend(active.iter().map(|name| format!("{name} is on the roster")));
        let unanswered = self.broker.unanswered();
        if unanswered > 0 {
            open.push(format!("{unanswered} dispatches"));
        }
        open
    }

    /// What is to be said to a rollout that says that it waits for a word. One that its gate has paused is
    /// resumed at first, and the gate asked again; then the gate is overridden.
    fn word_to(&self, rollout: &Rollout) -> Option<Value> {
        let name = &rollout.spec.name;
        let stage = rollout.stage_progress()?;
        match &rollout.phase {
            Phase::Paused { reason } => {
                let failed = rollout.history.iter().rev();
                let failed = failed.filter(|entry| {
                    let event = &entry.event;
                    matches!(
                        event,
                        Event::GateFailed { .. } | Event::GateUndecided { .. }
                    )
                });
                let is_hopeless = failed.count() > 2 && reason.starts_with("the gate of stage");
                Some(match is_hopeless {
                    true => {
                        json!({"command": "promote", "rollout": name, "stage": stage.name, "reason": "enough"})
                    }
                    false => json!({"command": "resume", "rollout": name}),
                })
            }
            Phase::Running if stage.ripe_at.is_some() && stage.approved.is_none() => {
                Some(json!({"command": "approve", "rollout": name, "by": "the operator"}))
            }
            _ => None,
        }
    }

    /// Keeps one process alive: starts another one when it has crashed or was stopped.
    async fn keep(self: Arc<Self>, kind: Kind, n: u64) {
        let slot = match kind {
            Kind::Orchestrator => format!("o{n}"),
            Kind::Worker => format!("w{n}"),
        };
        for run in 0.. {
            let process = Process::start(&self.sim, format!("{slot}.{run}"));
            let stop = self.end.child_token();
            self.stops().insert(slot.clone(), stop.clone());
            tokio::select! {
                biased;
                () = process.crashed() => self.account.crashed(),
                () = self.live(kind, &process, &stop) => {
                    self.sim.note(format_args!("{process} ends"));
                }
            }
            let mut dice = self.sim.chance().at((&slot, run)).dice();
            let pause = match self.sim.is_chaotic() {
                true => dice.time(Duration::ZERO..=self.plan.restart),
                false => Duration::ZERO,
            };
            tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// A process' life. It is to end soon after it is told to.
    async fn live(&self, kind: Kind, process: &Process, stop: &CancellationToken) {
        let stalls = match self.plan.faults.stall > 0.0 {
            true => self.plan.faults.stall_for * 2,
            false => Duration::ZERO,
        };
        let limit = self.plan.worker.drain + STOPPING + self.plan.faults.slow_for * 2 + stalls;
        let overdue = async {
            stop.cancelled().await;
            self.account.stopping(process.name());
            sleep(limit).await;
        };
        let life = async {
            match kind {
                Kind::Orchestrator => self.orchestrate(process, stop).await,
                Kind::Worker => self.work(process, stop).await,
            }
        };
        // Whoever is told to stop is known to be before it can do anything about it.
        tokio::select! {
            biased;
            () = overdue => {
                let what = format!("{process} did not stop within {limit:?}");
                self.account.accuse(what);
            }
            () = life => {}
        }
    }

    async fn orchestrate(&self, process: &Process, stop: &CancellationToken) {
        let store = Arc::new(SimStore::of(process, &self.truth));
        let hubs = self.plan.hubs.iter().map(|of| {
            let handle = HubHandle {
                host: build::host(of.hub.name.as_str()),
                hub: of.hub.connect(process),
                limits: of.limits,
            };
            (of.hub.name.clone(), handle)
        });
        let orchestrator = Orchestrator {
            store: store.clone(),
            roster: store,
            queue: self.broker.connect(process),
            events: Arc::new(Announcer {
                process: process.clone(),
                account: Arc::clone(&self.account),
                forgets: self.forgets_events,
            }),
            hubs: Hubs::from_iter(hubs),
            metric_source: None,
            clock: Arc::clone(&self.clock),
            config: self.plan.orchestrator,
            id: build::holder(process.name()),
            status: Arc::new(OrchestratorStatus::default()),
            tracer: Tracer::default(),
        };
        Arc::new(orchestrator).run(stop.clone()).await;
    }

    async fn work(&self, process: &Process, stop: &CancellationToken) {
        let store = Arc::new(SimStore::of(process, &self.truth));
        let hubs = self.plan.hubs.iter().map(|of| WorkerHub {
            name: of.hub.name.clone(),
            host: build::host(of.hub.name.as_str()),
            hub: of.hub.connect(process),
            limits: of.limits,
        });
        let queue = self.broker.connect(process);
        let clock = Arc::clone(&self.clock);
        let worker = Worker::new(self.plan.worker, store, queue, hubs.collect(), clock);
        let ended = worker.run(stop.clone()).await;
        match ended {
            Err(error) if self.plan.worker.give_up.is_none() => {
                let words = in_words(&error);
                self.account.accuse(format!("{process} gave up: {words}"));
            }
            _ => {}
        }
    }

    /// Sends one command until it is answered, as a queue does that redelivers it.
    async fn command(self: Arc<Self>, n: usize, at: Duration, ask: Ask) {
        sleep(at).await;
        let body = self.body(ask);
        for time in 0.. {
            let process = Process::start(&self.sim, format!("intake{n}.{time}"));
            let answered = tokio::select! {
                biased;
                () = process.crashed() => None,
                answer = self.ask(&process, &body) => Some(answer),
            };
            match answered {
                Some(Ok(answer)) => return self.done(ask, &answer).await,
                Some(Err(NotDone::Refused(refusal))) => return self.refused(ask, refusal.cause),
                Some(Err(NotDone::Store(_))) | None => sleep(Duration::from_millis(700)).await,
            }
        }
    }

    async fn ask(&self, process: &Process, body: &Value) -> Result<Answer, NotDone> {
        let store = Arc::new(SimStore::of(process, &self.truth));
        let hubs = self.plan.hubs.iter().map(|of| of.hub.name.clone());
        let intake = Intake {
            store: store.clone(),
            roster: Some(store),
            hubs: hubs.collect(),
            measures: false,
            tracer: Tracer::default(),
            clock: Arc::clone(&self.clock),
        };
        intake.handle(body.to_string().as_bytes(), None).await
    }

    fn body(&self, ask: Ask) -> Value {
        let of = |n: usize| &self.plan.rollouts[n];
        match ask {
            Ask::Start(n) => json!({"command": "start", "spec": of(n).spec}),
            Ask::StartConflicting(n) => json!({"command": "start", "spec": of(n).conflicting}),
            Ask::Pause(n) => json!({"command": "pause", "rollout": of(n).name}),
            Ask::Resume(n) => json!({"command": "resume", "rollout": of(n).name}),
            Ask::Abort(n) => json!({"command": "abort", "rollout": of(n).name}),
            Ask::Approve(n) => json!({"command": "approve", "rollout": of(n).name, "by": "ann"}),
            Ask::Reject(n) => json!({"command": "reject", "rollout": of(n).name}),
            Ask::Promote(n, stage) => {
                let stages = &of(n).stages;
                let stage = stages[stage.min(stages.len() - 1)].name;
                json!({"command": "promote", "rollout": of(n).name, "stage": stage, "reason": "hurry"})
            }
            Ask::Retry(n, again) => {
                let mut body = json!({"command": "retry", "rollout": of(n).name, "by": "ann"});
                match again {
                    Again::Failed => {}
                    Again::Rejected => {
                        body["outcomes"] = json!(["rejected", "refused", "not_found"]);
                    }
                    Again::Silent => body["outcomes"] = json!(["enqueued", "expired"]),
                    Again::First => body["stage"] = json!(of(n).stages[0].name),
                }
                body
            }
            Ask::StopAll => json!({"command": "stop-all"}),
            Ask::ResumeAll => json!({"command": "resume-all"}),
        }
    }

    /// A command was answered.
    async fn done(&self, ask: Ask, answer: &Answer) {
        self.sim
            .note(format_args!("{ask:?} is DONE, changed: {}", answer.changed));
        self.is_kept(ask, answer).await;
        match ask {
            Ask::StopAll if matches!(self.truth.halted().await, Ok(Some(_))) => {
                self.account.halted();
            }
            Ask::Start(n) if !self.is_stored(n, false) => {
                self.account
                    .accuse(format!("r{n} was started, and it is another one"));
            }
            Ask::StartConflicting(n) if !self.is_stored(n, true) => {
                self.account.accuse(format!("r{n} was started as two"));
            }
            _ => {}
        }
    }

    /// What was answered is in the rollout's history.
    async fn is_kept(&self, ask: Ask, answer: &Answer) {
        let (n, event) = match ask {
            Ask::Pause(n) => (n, "pause_requested"),
            Ask::Abort(n) => (n, "abort_requested"),
            Ask::Approve(n) => (n, "approved"),
            Ask::Reject(n) => (n, "gate_failed"),
            Ask::Promote(n, _) => (n, "promoted"),
            Ask::Retry(n, _) => (n, "retry_requested"),
            _ => return,
        };
        // A halt that came at the same time is answered for, too.
        let halted = answer.rollouts.iter().any(|state| state.phase == "halted");
        if !answer.changed || halted {
            return;
        }
        let history = self.account.stored(&self.plan.rollouts[n].name);
        let history = history.map_or_else(Vec::new, |rollout| rollout.history);
        if !history.iter().any(|entry| entry.event.name() == event) {
            let what = format!("{ask:?} was answered and is not in the history");
            self.account.accuse(what);
        }
    }

    fn refused(&self, ask: Ask, cause: Cause) {
        self.sim.note(format_args!("{ask:?} is REFUSED: {cause:?}"));
        let rightly = match (ask, cause) {
            (Ask::Start(n), Cause::Conflict) => self.is_stored(n, true),
            (Ask::StartConflicting(n), Cause::Conflict) => self.is_stored(n, false),
            (
                Ask::Pause(_)
                | Ask::Resume(_)
                | Ask::Abort(_)
                | Ask::Approve(_)
                | Ask::Reject(_)
                | Ask::Promote(..)
                | Ask::Retry(..),
                Cause::NotPossible | Cause::UnknownRollout,
            ) => true,
            _ => false,
        };
        if !rightly {
            self.account
                .accuse(format!("{ask:?} was refused: {cause:?}"));
        }
    }

    /// Whether the stored rollout is the conflicting one or not. One without devices gives its
    /// name to any other.
    fn is_stored(&self, n: usize, conflicting: bool) -> bool {
        let of = &self.plan.rollouts[n];
        let empty = of.target.values().all(BTreeSet::is_empty);
        let stored = self.account.stored(&of.name);
        let is_conflicting = stored.map(|rollout| rollout.spec.description.is_some());
        empty || is_conflicting == Some(conflicting)
    }

    /// Stops processes that were picked, as an update of the engine does.
    async fn stop_some(self: Arc<Self>) {
        let mut times = self.plan.stops.clone();
        times.sort();
        let mut dice = self.sim.chance().at("stops").dice();
        for at in times {
            sleep(at.saturating_sub(self.sim.age())).await;
            let slots: Vec<_> = self.stops().keys().cloned().collect();
            let slot = dice.pick(&slots);
            self.sim.note(format_args!("{slot} is TOLD TO STOP"));
            let stop = self.stops().get(&slot).cloned();
            stop.iter().for_each(CancellationToken::cancel);
        }
    }

    async fn purge_some(self: Arc<Self>) {
        let mut purges = self.plan.purges.clone();
        purges.sort();
        for (at, hub) in purges {
            sleep(at.saturating_sub(self.sim.age())).await;
            self.broker.purge(&hub);
        }
    }

    /// Lets the store lose its last writes.
    async fn forget_some(self: Arc<Self>) {
        for (at, lost) in self.plan.faults.store_forgets.clone() {
            sleep((at - lost).saturating_sub(self.sim.age())).await;
            let before = self.truth.as_it_is();
            sleep(lost).await;
            self.truth.go_back(before);
            self.sim
                .note(format_args!("the store FORGETS its last {lost:?}"));
            self.account.forgot(&self.truth, lost).await;
        }
    }

    fn stops(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes events into the account.
struct Announcer {
    process: Process,
    account: Arc<Account>,
    forgets: bool,
}

#[async_trait]
impl Events for Announcer {
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError> {
        let (account, by) = (Arc::clone(&self.account), self.process.clone());
        let (topic, event) = (topic.to_owned(), event.clone());
        let about = event["id"].as_str().unwrap_or_default().to_owned();
        let forgets = self.forgets;
        let effect = async move {
            let forgotten = forgets && by.dice("forget", &topic).happens(0.2);
            if !forgotten {
                account.told(&by, &topic, &event);
            }
        };
        let published = self.process.publish_event(about, effect).await;
        published.map_err(|source| QueueError::Unavailable {
            doing: "publish an event",
            source: Box::new(source),
        })
    }
}
