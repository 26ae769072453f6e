//! A simulated world of processes, with slow calls, failing calls, and crashes.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use twincast_core::batch::Lease;
use twincast_core::ids::{Attempt, BatchId, HubName, RolloutId, RolloutName};
use twincast_core::message::Outbound;
use twincast_core::outcome::Outcome;
use twincast_core::plan::Batch;
use twincast_core::ports::{FeedbackRecord, LeaseRequest, Report, SendResult, Skip};
use twincast_core::rollout::Rollout;

use super::{Bug, Chance, Trace};

/// The longest time of an answer without a fault. A slower answer is a fault, and may excuse a
/// broken promise.
const SLOW: Duration = Duration::from_millis(100);

/// The settings of faults. Probabilities are per call.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// The age of the world at the end of all faults.
    pub until: Duration,
    /// The longest time of a call in each direction without faults.
    pub latency: Duration,
    /// The probability of a crash of the process, before or after the effect of the call.
    pub crash: f64,
    /// The probability of a stall: all calls of the process hang for `stall_for`, then continue.
    pub stall: f64,
    /// The duration of a stall.
    pub stall_for: Duration,
    /// The probability of a failing store call: before the effect, after the effect, or with the
    /// effect still to come.
    pub store_fails: f64,
    /// The probability of a slow store call, taking up to `slow_for`.
    pub store_slow: f64,
    /// The largest additional time of a slow store call.
    pub slow_for: Duration,
    /// The periods without a reachable store, from and to.
    pub store_away: Vec<(Duration, Duration)>,
    /// The crashes of the store with a loss of the last writes: the time, and the largest age of
    /// the lost writes.
    pub store_forgets: Vec<(Duration, Duration)>,
    /// The probability of a failing queue call, before or after the effect.
    pub queue_fails: f64,
    /// The probability of losing a confirmed dispatch.
    pub dispatch_lost: f64,
    /// The probability of doubling a dispatch.
    pub dispatch_doubled: f64,
    /// The probability of delaying a dispatch, by up to 30 s.
    pub dispatch_late: f64,
    /// The probability of losing a consumer's connection while taking or answering a dispatch.
    pub consumer_cut: f64,
    /// The probability of a failing publication of an event, with or without the effect.
    pub events_fail: f64,
}

impl Faults {
    /// Returns settings without faults.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until: Duration::ZERO,
            latency: Duration::ZERO,
            crash: 0.0,
            stall: 0.0,
            stall_for: Duration::ZERO,
            store_fails: 0.0,
            store_slow: 0.0,
            slow_for: Duration::ZERO,
            store_away: Vec::new(),
            store_forgets: Vec::new(),
            queue_fails: 0.0,
            dispatch_lost: 0.0,
            dispatch_doubled: 0.0,
            dispatch_late: 0.0,
            consumer_cut: 0.0,
            events_fail: 0.0,
        }
    }
}

/// An effect, as observed by an [`Observer`].
#[derive(Debug)]
pub enum Effect<'a> {
    /// A rollout was created, or its record replaced.
    Saved(&'a Rollout),
    /// Batches were stored for a plan in progress.
    Planned(&'a RolloutName, &'a [Batch]),
    /// A batch was leased.
    Leased(&'a LeaseRequest, &'a Lease),
    /// Reports were merged under a lease; no reports for a heartbeat.
    Recorded(&'a Lease, &'a [Report]),
    /// Reports were merged without a lease.
    Merged(&'a RolloutName, RolloutId, BatchId, Attempt, &'a [Report]),
    /// Devices of a batch with these outcomes were made pending for a new attempt. The last field
    /// is the number of devices.
    Reopened(&'a RolloutName, BatchId, Attempt, &'a [Outcome], u64),
    /// The rest of a batch was skipped.
    Skipped(&'a RolloutName, BatchId, &'a Skip),
    /// All rollouts were halted, or resumed.
    Halted(bool),
    /// A lease was released.
    Released(&'a Lease),
    /// A message leaves for a hub.
    Sending(&'a HubName, &'a Outbound),
    /// The hub accepted a message.
    Accepted(&'a HubName, &'a Outbound),
    /// The hub will hand out a feedback record, from this time on.
    FeedbackScheduled(&'a HubName, &'a FeedbackRecord, Instant),
    /// A process received feedback records from the hub.
    FeedbackHandedOut(&'a HubName, &'a [FeedbackRecord]),
    /// Feedback records were completed: the hub need not hand them out again.
    FeedbackCompleted(&'a HubName, &'a [FeedbackRecord]),
    /// The sender received the answer to a message.
    Answered(&'a HubName, &'a Outbound, &'a SendResult),
    /// The number of the process's sends waiting for the hub's answer.
    InFlight(&'a HubName, usize),
    /// The number of dispatches waiting in the hub's queue.
    Waiting(&'a HubName, usize),
}

/// An observer of effects, called at the moment of each effect.
pub trait Observer: Send + Sync + 'static {
    /// Observes an effect.
    fn observe(&self, by: &Process, what: &Effect<'_>);
}

/// Ignores all effects.
impl Observer for () {
    fn observe(&self, _: &Process, _: &Effect<'_>) {}
}

/// A simulated world.
#[derive(Clone)]
pub struct Sim(Arc<SimInner>);

struct SimInner {
    chance: Chance,
    faults: Faults,
    began: Instant,
    observer: Arc<dyn Observer>,
    trace: Mutex<Trace>,
    bug: Option<Bug>,
}

impl Sim {
    /// Creates a world beginning now. The doubles have the planted `bug`, if given.
    #[must_use]
    pub fn new(
        chance: Chance,
        faults: Faults,
        observer: Arc<dyn Observer>,
        trace: Trace,
        bug: Option<Bug>,
    ) -> Self {
        Self(Arc::new(SimInner {
            chance,
            faults,
            bug,
            began: Instant::now(),
            observer,
            trace: Mutex::new(trace),
        }))
    }

    /// Creates a world without faults.
    #[must_use]
    pub fn quiet() -> Self {
        let (chance, trace) = (Chance::of(0), Trace::new(0));
        Self::new(chance, Faults::none(), Arc::new(()), trace, None)
    }

    /// Returns the age of the world.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Returns whether faults occur now.
    #[must_use]
    pub fn has_faults_now(&self) -> bool {
        self.age() < self.0.faults.until
    }

    /// Returns the settings of faults.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Returns the world's chance.
    #[must_use]
    pub fn chance(&self) -> Chance {
        self.0.chance
    }

    /// Returns the planted defect of the doubles.
    pub(crate) fn bug(&self) -> Option<Bug> {
        self.0.bug
    }

    /// Returns whether the doubles have this defect.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.0.bug == Some(bug)
    }

    /// Adds a line to the trace.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        lock(&self.0.trace).note(self.age(), what);
    }

    /// Returns the current trace.
    #[must_use]
    pub fn trace(&self) -> Trace {
        lock(&self.0.trace).clone()
    }
}

/// A process. Clones share the process.
#[derive(Clone)]
pub struct Process(Arc<ProcessInner>);

struct ProcessInner {
    sim: Sim,
    name: String,
    started: Instant,
    chance: Chance,
    crashed: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of calls, by place.
    calls: HashMap<u64, u64>,
    /// Trouble with calls, by kind and subject.
    troubles: HashMap<(&'static str, String), Trouble>,
    stalled_until: Option<Instant>,
}

/// Trouble with a kind of call.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// The trouble began earlier, and may go on.
    Lasting,
    /// The trouble ended at this time.
    Ended(Instant),
}

/// The request or the answer of a call was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// The planned faults of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CallPlan {
    crash: Option<CrashPoint>,
    fate: CallFate,
    request: Duration,
    answer: Duration,
    stall: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CrashPoint {
    BeforeEffect,
    AfterEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallFate {
    Works,
    /// The call fails without an effect.
    Undone,
    /// The call fails after the effect.
    Done,
    /// The call fails, and the effect follows after this time.
    DoneLater(Duration),
}

/// The fault probabilities of calls to a kind of peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FaultRates {
    pub(crate) fails: f64,
    pub(crate) slow: f64,
    /// Whether the peer cannot be reached: every call fails.
    pub(crate) away: bool,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was lost")
    }
}

impl std::error::Error for Lost {}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.name)
    }
}

impl Process {
    /// Starts a new process. The name must be new, too.
    #[must_use]
    pub fn start(sim: &Sim, name: impl Into<String>) -> Self {
        let name = name.into();
        sim.note(format_args!("{name} starts"));
        Self(Arc::new(ProcessInner {
            sim: sim.clone(),
            chance: sim.chance().at(&name),
            name,
            started: Instant::now(),
            crashed: watch::Sender::new(false),
            state: Mutex::default(),
        }))
    }

    /// Returns the name of the process.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the start time of the process.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// Returns the world of the process.
    #[must_use]
    pub fn sim(&self) -> &Sim {
        &self.0.sim
    }

    /// Ends the process: no call of the process ever returns, and the task waiting for
    /// [`Self::crashed`] drops the process.
    pub fn crash(&self) {
        if !self.0.crashed.send_replace(true) {
            self.sim().note(format_args!("{self} CRASHES"));
        }
    }

    /// Stalls the calls of the process for some time: effects happen, and the answers wait.
    pub fn stall(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state();
        state.stalled_until = state.stalled_until.max(Some(until));
    }

    /// Returns whether the process has ended.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        *self.0.crashed.borrow()
    }

    /// Waits for the end of the process.
    pub async fn crashed(&self) {
        let mut crashed = self.0.crashed.subscribe();
        // The sender lives as long as this process.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    /// Returns the end of the last trouble with the process or with any of these calls (kind and
    /// subject). Returns `None` if there was no trouble, and the present if the trouble goes on.
    #[must_use]
    pub fn troubled_until(&self, calls: &[(&'static str, &str)]) -> Option<Instant> {
        let state = self.state();
        let now = Instant::now();
        let mut last = state.stalled_until.map(|until| until.min(now));
        for (op, about) in calls {
            let until = match state.troubles.get(&(*op, (*about).to_owned())) {
                None => None,
                Some(Trouble::Lasting) => Some(now),
                Some(Trouble::Ended(at)) => Some(*at),
            };
            last = last.max(until);
        }
        last
    }

    /// Publishes an event.
    ///
    /// # Errors
    /// [`Lost`], with or without the effect.
    pub async fn publish_event(
        &self,
        id: String,
        effect: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Lost> {
        let rates = FaultRates {
            fails: self.sim().faults().events_fail,
            ..FaultRates::default()
        };
        self.call(rates, "tell", id, effect).await
    }

    pub(crate) fn observe(&self, what: &Effect<'_>) {
        self.0.sim.0.observer.observe(self, what);
    }

    /// Makes a call with an effect elsewhere. A request on its way continues without this process.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        rates: FaultRates,
        op: &'static str,
        about: String,
        effect: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Lost> {
        let plan = self.begin_call(rates, op, &about).await;
        self.trouble_begins(op, &about, plan);
        let (answer, answered) = oneshot::channel();
        let this = self.clone();
        let run = async move {
            pause(plan.request).await;
            let result = match plan.fate {
                CallFate::Works => Ok(effect.await),
                CallFate::Done => {
                    effect.await;
                    Err(Lost)
                }
                CallFate::Undone => Err(Lost),
                CallFate::DoneLater(after) => {
                    let _ = answer.send(Err(Lost));
                    pause(after).await;
                    effect.await;
                    return;
                }
            };
            if plan.crash.is_some() {
                this.crash();
            }
            pause(plan.answer).await;
            let _ = answer.send(result);
        };
        tokio::spawn(run);
        let answered = answered.await;
        self.until_responsive().await;
        let result = match answered {
            Ok(result) => result,
            // The world is being torn down.
            Err(_) => pending().await,
        };
        self.trouble_ends(op, &about, plan);
        result
    }

    /// Begins a call and returns the planned faults. Never returns if the process ends here.
    pub(crate) async fn begin_call(
        &self,
        rates: FaultRates,
        op: &'static str,
        about: &str,
    ) -> CallPlan {
        if self.is_crashed() {
            return pending().await;
        }
        let plan = self.plan_call(rates, op, about);
        let fault = plan.describe();
        self.sim().note(format_args!("{self} {op} {about}{fault}"));
        if let Some(stall) = plan.stall {
            self.stall(stall);
        }
        if plan.crash == Some(CrashPoint::BeforeEffect) {
            self.crash();
            return pending().await;
        }
        plan
    }

    /// Ends a call [begun](Self::begin_call) here, with an immediate effect.
    pub(crate) async fn end_call(&self, plan: CallPlan, takes: Duration) {
        if plan.crash.is_some() {
            self.crash();
        }
        pause(takes).await;
        self.until_responsive().await;
    }

    /// Waits until calls may return: to the end of a stall, or forever after a crash.
    pub(crate) async fn until_responsive(&self) {
        loop {
            if self.is_crashed() {
                return pending().await;
            }
            let until = self.state().stalled_until;
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// Returns dice for the nth occurrence of an event in the process.
    #[must_use]
    pub fn dice(&self, op: &'static str, about: &str) -> super::Dice {
        let place = self.0.chance.at((op, about));
        let nth = {
            let mut state = self.state();
            let calls = state.calls.entry(place.dice().number()).or_default();
            *calls += 1;
            *calls
        };
        place.at(nth).dice()
    }

    fn plan_call(&self, rates: FaultRates, op: &'static str, about: &str) -> CallPlan {
        let mut dice = self.dice(op, about);
        let faults = self.sim().faults();
        let mut plan = CallPlan {
            crash: None,
            fate: CallFate::Works,
            request: dice.time(Duration::ZERO..=faults.latency),
            answer: dice.time(Duration::ZERO..=faults.latency),
            stall: None,
        };
        if !self.sim().has_faults_now() {
            return plan;
        }
        if dice.happens(faults.crash) {
            plan.crash = Some(dice.pick(&[CrashPoint::BeforeEffect, CrashPoint::AfterEffect]));
        }
        if dice.happens(faults.stall) {
            plan.stall = Some(faults.stall_for);
        }
        if dice.happens(rates.slow) {
            let takes = dice.time(Duration::ZERO..=faults.slow_for);
            match dice.happens(0.5) {
                true => plan.request += takes,
                false => plan.answer += takes,
            }
        }
        if rates.away {
            // The call is refused at once, or after a time limit.
            plan.fate = CallFate::Undone;
            plan.answer = dice.pick(&[Duration::ZERO, Duration::from_secs(5)]);
        } else if dice.happens(rates.fails) {
            let later = dice.time(Duration::ZERO..=Duration::from_secs(20));
            plan.fate = dice.pick(&[CallFate::Undone, CallFate::Done, CallFate::DoneLater(later)]);
        }
        plan
    }

    fn trouble_begins(&self, op: &'static str, about: &str, plan: CallPlan) {
        if plan.is_faulty() {
            let trouble = (op, about.to_owned());
            self.state().troubles.insert(trouble, Trouble::Lasting);
        }
    }

    /// Ends the trouble with a kind of call, after a successful call.
    fn trouble_ends(&self, op: &'static str, about: &str, plan: CallPlan) {
        if plan.fate != CallFate::Works {
            return;
        }
        let mut state = self.state();
        if state.troubles.is_empty() {
            return;
        }
        if let Some(trouble @ Trouble::Lasting) = state.troubles.get_mut(&(op, about.to_owned())) {
            *trouble = Trouble::Ended(Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl CallPlan {
    /// Returns whether the call fails, stalls, or has a late answer.
    fn is_faulty(self) -> bool {
        self.fate != CallFate::Works || self.request + self.answer > SLOW || self.stall.is_some()
    }

    /// Returns a description of the faults, for the trace.
    fn describe(self) -> String {
        let mut text = String::new();
        if self.fate != CallFate::Works {
            text.push_str(&format!(" FAILS {:?}", self.fate));
        }
        if self.request + self.answer > SLOW {
            text.push_str(&format!(" SLOW {:?}+{:?}", self.request, self.answer));
        }
        if let Some(stall) = self.stall {
            text.push_str(&format!(" STALLS {stall:?}"));
        }
        if let Some(crash_point) = self.crash {
            text.push_str(&format!(" CRASH {crash_point:?}"));
        }
        text
    }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Locks a mutex. No code panics while holding such a lock, so a poisoned lock is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
