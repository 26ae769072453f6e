//! The engine in a simulated world: supervised processes, commands, and the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use twincast_core::error::describe;
use twincast_core::ports::{Clock, QueueError, RolloutRegistry as _, Rollouts as _};
use twincast_core::rollout::{Event, Phase, Rollout};
use twincast_core::trace::Tracer;
use twincast_orchestrator::command::{Answer, Cause};
use twincast_orchestrator::command_executor::{CommandError, CommandExecutor};
use twincast_orchestrator::events::Events;
use twincast_orchestrator::service::{Orchestrator, OrchestratorStatus};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_testkit::sim::{Broker, Process, Sim, SimStore};
use twincast_testkit::{MemoryStore, build};
use twincast_worker::{Worker, WorkerHub};

use crate::auditor::Auditor;
use crate::world::{Plan, PlannedCommand, RetrySelection};

/// The interval of comparing the auditor with the store, and of checking for the end. The value
/// coincides with no timer of a process, because simultaneous events have no fixed order.
const CHECK_INTERVAL: Duration = Duration::from_micros(5_000_700);
/// The time after the last fault during which requests of dead processes may still arrive.
const LATEST_REQUEST: Duration = Duration::from_secs(30);
/// The time limit for stopping, beyond the wait for the hub's answers: a few calls, each possibly
/// up to a time limit.
const STOPPING: Duration = Duration::from_secs(20);

/// The engine and its world.
pub(crate) struct Engine {
    pub(crate) plan: Plan,
    pub(crate) sim: Sim,
    pub(crate) auditor: Arc<Auditor>,
    pub(crate) broker: Broker,
    pub(crate) truth: MemoryStore,
    pub(crate) clock: Arc<dyn Clock>,
    /// Published events are lost now and then.
    pub(crate) loses_events: bool,
    /// Cancelled at the end of the world.
    pub(crate) end: CancellationToken,
    /// The stop signals of all live processes.
    pub(crate) stops: Mutex<BTreeMap<String, CancellationToken>>,
}

/// The kind of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Orchestrator,
    Worker,
}

impl Engine {
    /// Runs the world to the end.
    pub(crate) async fn run(self: Arc<Self>) {
        for of in &self.plan.hubs {
            of.hub
                .feedback_queue
                .add_foreign(&of.hub.feedback_faults.foreign);
        }
        let mut processes = JoinSet::new();
        for n in 0..self.plan.orchestrators {
            processes.spawn(Arc::clone(&self).supervise(Kind::Orchestrator, n));
        }
        for n in 0..self.plan.workers {
            processes.spawn(Arc::clone(&self).supervise(Kind::Worker, n));
        }
        let mut happenings = JoinSet::new();
        for (n, (at, planned)) in self.plan.commands.iter().enumerate() {
            happenings.spawn(Arc::clone(&self).command(n, *at, *planned));
        }
        happenings.spawn(Arc::clone(&self).stop_some());
        happenings.spawn(Arc::clone(&self).purge_some());
        happenings.spawn(Arc::clone(&self).lose_some_writes());
        self.until_ended(&mut happenings).await;
        self.end.cancel();
        while let Some(ended) = processes.join_next().await {
            if let Err(error) = ended {
                self.auditor
                    .add_violation(format!("a task panicked: {error}"));
            }
        }
        if self.auditor.violations().is_empty() {
            self.auditor.check_end(&self.truth, self.sim.age()).await;
        }
    }

    /// Watches until all work has ended or a violation was found.
    async fn until_ended(&self, happenings: &mut JoinSet<()>) {
        let calm = self.plan.faults.until + LATEST_REQUEST;
        let limit = calm + self.plan.time_limit();
        loop {
            sleep(CHECK_INTERVAL).await;
            self.auditor.check_now(&self.truth, self.sim.age()).await;
            if !self.auditor.violations().is_empty() {
                return;
            }
            while let Some(ended) = happenings.try_join_next() {
                if let Err(error) = ended {
                    self.auditor
                        .add_violation(format!("a task panicked: {error}"));
                }
            }
            if self.sim.age() < calm || !happenings.is_empty() {
                continue;
            }
            let open = self.act_as_operator().await;
            if open.is_empty() {
                return;
            }
            if self.sim.age() > limit {
                self.auditor
                    .add_violation(format!("not at an end: {open:?}"));
            }
        }
    }

    /// Acts as an operator in favour of finishing all rollouts. Returns a description of unfinished
    /// work.
    async fn act_as_operator(&self) -> Vec<String> {
        let operator = Process::start(&self.sim, "operator");
        let mut open = Vec::new();
        if let Ok(Some(_)) = self.truth.halted().await {
            let _ = self.ask(&operator, &json!({"command": "resume-all"})).await;
        }
        for of in &self.plan.rollouts {
            let rollout = self.truth.rollout(&of.name).await;
            let Ok(Some(rollout)) = rollout else { continue };
            if let Some(command) = self.operator_command(&rollout) {
                let _ = self.ask(&operator, &command).await;
            }
            if !rollout.phase.is_ended() {
                let at = rollout.stage_progress();
                open.push(format!("{} is {}, {at:?}", of.name, rollout.phase.as_str()));
            }
        }
        let active = self.truth.active().await.unwrap_or_default();
        open.extend(
            active
                .iter()
                .map(|name| format!("{name} is in the registry")),
        );
        let unanswered = self.broker.unanswered();
        if unanswered > 0 {
            open.push(format!("{unanswered} dispatches"));
        }
        open
    }

    /// Returns the command for a rollout waiting for an operator. A rollout paused by a gate is
    /// resumed at first, so the gate is judged again; after repeated failures the gate is
    /// overridden.
    fn operator_command(&self, rollout: &Rollout) -> Option<Value> {
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
            Phase::Running if stage.approval_awaited_at.is_some() && stage.approved.is_none() => {
                Some(json!({"command": "approve", "rollout": name, "by": "the operator"}))
            }
            _ => None,
        }
    }

    /// Keeps a process alive: starts a successor after a crash or a stop.
    async fn supervise(self: Arc<Self>, kind: Kind, n: u64) {
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
                () = process.crashed() => self.auditor.crashed(),
                () = self.run_process(kind, &process, &stop) => {
                    self.sim.note(format_args!("{process} ends"));
                }
            }
            let mut dice = self.sim.chance().at((&slot, run)).dice();
            let pause = match self.sim.has_faults_now() {
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

    /// Runs a process to the end. The end must follow soon after a request to stop.
    async fn run_process(&self, kind: Kind, process: &Process, stop: &CancellationToken) {
        let stalls = match self.plan.faults.stall > 0.0 {
            true => self.plan.faults.stall_for * 2,
            false => Duration::ZERO,
        };
        let limit = self.plan.worker.drain + STOPPING + self.plan.faults.slow_for * 2 + stalls;
        let overdue = async {
            stop.cancelled().await;
            self.auditor.stopping(process.name());
            sleep(limit).await;
        };
        let life = async {
            match kind {
                Kind::Orchestrator => self.orchestrate(process, stop).await,
                Kind::Worker => self.work(process, stop).await,
            }
        };
        // The auditor learns of a request to stop before the process can react.
        tokio::select! {
            biased;
            () = overdue => {
                let what = format!("{process} did not stop within {limit:?}");
                self.auditor.add_violation(what);
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
            registry: store,
            queue: self.broker.connect(process),
            events: Arc::new(Announcer {
                process: process.clone(),
                auditor: Arc::clone(&self.auditor),
                loses_events: self.loses_events,
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
                let words = describe(&error);
                self.auditor
                    .add_violation(format!("{process} gave up: {words}"));
            }
            _ => {}
        }
    }

    /// Sends a command until answered, like a redelivering queue.
    async fn command(self: Arc<Self>, n: usize, at: Duration, planned: PlannedCommand) {
        sleep(at).await;
        let body = self.body(planned);
        for time in 0.. {
            let process = Process::start(&self.sim, format!("executor{n}.{time}"));
            let requested_at = Instant::now();
            let answered = tokio::select! {
                biased;
                () = process.crashed() => None,
                answer = self.ask(&process, &body) => Some(answer),
            };
            match answered {
                Some(Ok(answer)) => return self.done(planned, &answer).await,
                Some(Err(CommandError::Refused(refusal))) => {
                    return self.refused(planned, refusal.cause, requested_at);
                }
                Some(Err(CommandError::Store(_))) | None => sleep(Duration::from_millis(700)).await,
            }
        }
    }

    async fn ask(&self, process: &Process, body: &Value) -> Result<Answer, CommandError> {
        let store = Arc::new(SimStore::of(process, &self.truth));
        let hubs = self.plan.hubs.iter().map(|of| of.hub.name.clone());
        let executor = CommandExecutor {
            store: store.clone(),
            registry: Some(store),
            hubs: hubs.collect(),
            has_metric_source: false,
            tracer: Tracer::default(),
            clock: Arc::clone(&self.clock),
        };
        executor.handle(body.to_string().as_bytes(), None).await
    }

    fn body(&self, planned: PlannedCommand) -> Value {
        let of = |n: usize| &self.plan.rollouts[n];
        match planned {
            PlannedCommand::Start(n) => json!({"command": "start", "spec": of(n).spec}),
            PlannedCommand::StartConflicting(n) => {
                json!({"command": "start", "spec": of(n).conflicting})
            }
            PlannedCommand::Pause(n) => json!({"command": "pause", "rollout": of(n).name}),
            PlannedCommand::Resume(n) => json!({"command": "resume", "rollout": of(n).name}),
            PlannedCommand::Abort(n) => json!({"command": "abort", "rollout": of(n).name}),
            PlannedCommand::Approve(n) => {
                json!({"command": "approve", "rollout": of(n).name, "by": "ann"})
            }
            PlannedCommand::Reject(n) => json!({"command": "reject", "rollout": of(n).name}),
            PlannedCommand::Promote(n, stage) => {
                let stages = &of(n).stages;
                let stage = stages[stage.min(stages.len() - 1)].name;
                json!({"command": "promote", "rollout": of(n).name, "stage": stage, "reason": "hurry"})
            }
            PlannedCommand::Retry(n, again) => {
                let mut body = json!({"command": "retry", "rollout": of(n).name, "by": "ann"});
                match again {
                    RetrySelection::Failed => {}
                    RetrySelection::Rejected => {
                        body["outcomes"] = json!(["rejected", "refused", "not_found"]);
                    }
                    RetrySelection::Silent => body["outcomes"] = json!(["enqueued", "expired"]),
                    RetrySelection::First => body["stage"] = json!(of(n).stages[0].name),
                }
                body
            }
            PlannedCommand::StopAll => json!({"command": "stop-all"}),
            PlannedCommand::ResumeAll => json!({"command": "resume-all"}),
        }
    }

    /// Checks the effects of an answered command.
    async fn done(&self, planned: PlannedCommand, answer: &Answer) {
        self.sim.note(format_args!(
            "{planned:?} is DONE, changed: {}",
            answer.changed
        ));
        self.is_kept(planned, answer).await;
        match planned {
            PlannedCommand::StopAll if matches!(self.truth.halted().await, Ok(Some(_))) => {
                self.auditor.halted();
            }
            PlannedCommand::Start(n) if !self.is_stored(n, false) => {
                self.auditor
                    .add_violation(format!("r{n} was started, and it is another one"));
            }
            PlannedCommand::StartConflicting(n) if !self.is_stored(n, true) => {
                self.auditor
                    .add_violation(format!("r{n} was started as two"));
            }
            _ => {}
        }
    }

    /// Checks that the history contains the event of an answered command.
    async fn is_kept(&self, planned: PlannedCommand, answer: &Answer) {
        let (n, event) = match planned {
            PlannedCommand::Pause(n) => (n, "pause_requested"),
            PlannedCommand::Abort(n) => (n, "abort_requested"),
            PlannedCommand::Approve(n) => (n, "approved"),
            PlannedCommand::Reject(n) => (n, "gate_failed"),
            PlannedCommand::Promote(n, _) => (n, "promoted"),
            PlannedCommand::Retry(n, _) => (n, "retry_requested"),
            _ => return,
        };
        // An answer of `halted` is not checked: a stop-all came at the same time.
        let halted = answer.rollouts.iter().any(|state| state.phase == "halted");
        if !answer.changed || halted {
            return;
        }
        let history = self.auditor.stored(&self.plan.rollouts[n].name);
        let history = history.map_or_else(Vec::new, |rollout| rollout.history);
        if !history.iter().any(|entry| entry.event.name() == event) {
            let what = format!("{planned:?} was answered and is not in the history");
            self.auditor.add_violation(what);
        }
    }

    fn refused(&self, planned: PlannedCommand, cause: Cause, requested_at: Instant) {
        self.sim
            .note(format_args!("{planned:?} is REFUSED: {cause:?}"));
        // The other rollout may have been lost since the refusal.
        let is_or_was = |n, conflicting| {
            self.is_stored(n, conflicting) || self.auditor.has_lost_writes_since(requested_at)
        };
        let is_expected = match (planned, cause) {
            (PlannedCommand::Start(n), Cause::Conflict) => is_or_was(n, true),
            (PlannedCommand::StartConflicting(n), Cause::Conflict) => is_or_was(n, false),
            (
                PlannedCommand::Pause(_)
                | PlannedCommand::Resume(_)
                | PlannedCommand::Abort(_)
                | PlannedCommand::Approve(_)
                | PlannedCommand::Reject(_)
                | PlannedCommand::Promote(..)
                | PlannedCommand::Retry(..),
                Cause::NotPossible | Cause::UnknownRollout,
            ) => true,
            _ => false,
        };
        if !is_expected {
            self.auditor
                .add_violation(format!("{planned:?} was refused: {cause:?}"));
        }
    }

    /// Returns true if the stored rollout is the conflicting variant, or the other variant, as
    /// given by `conflicting`. A rollout without devices leaves the name to any other rollout.
    fn is_stored(&self, n: usize, conflicting: bool) -> bool {
        let of = &self.plan.rollouts[n];
        let empty = of.target.values().all(BTreeSet::is_empty);
        let stored = self.auditor.stored(&of.name);
        let is_conflicting = stored.map(|rollout| rollout.spec.description.is_some());
        empty || is_conflicting == Some(conflicting)
    }

    /// Stops randomly chosen processes, as an update of the engine does.
    async fn stop_some(self: Arc<Self>) {
        let mut times = self.plan.stops.clone();
        times.sort();
        let mut dice = self.sim.chance().at("stops").dice();
        for at in times {
            sleep(at.saturating_sub(self.sim.age())).await;
            let slots: Vec<_> = self.stops().keys().cloned().collect();
            let slot = dice.pick(&slots);
            self.sim.note(format_args!("{slot} is ASKED TO STOP"));
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

    /// Makes the store lose the last writes.
    async fn lose_some_writes(self: Arc<Self>) {
        for (at, lost) in self.plan.faults.store_forgets.clone() {
            sleep((at - lost).saturating_sub(self.sim.age())).await;
            let before = self.truth.backup();
            sleep(lost).await;
            self.truth.restore(before);
            self.sim
                .note(format_args!("the store FORGETS its last {lost:?}"));
            self.auditor.lost_writes(&self.truth, lost).await;
        }
    }

    fn stops(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes events to the auditor.
struct Announcer {
    process: Process,
    auditor: Arc<Auditor>,
    loses_events: bool,
}

#[async_trait]
impl Events for Announcer {
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError> {
        let (auditor, by) = (Arc::clone(&self.auditor), self.process.clone());
        let (topic, event) = (topic.to_owned(), event.clone());
        let about = event["id"].as_str().unwrap_or_default().to_owned();
        let loses_events = self.loses_events;
        let effect = async move {
            let is_lost = loses_events && by.dice("forget", &topic).happens(0.2);
            if !is_lost {
                auditor.published(&by, &topic, &event);
            }
        };
        let published = self.process.publish_event(about, effect).await;
        published.map_err(|source| QueueError::Unavailable {
            doing: "publish an event",
            source: Box::new(source),
        })
    }
}
