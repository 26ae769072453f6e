//! A world of processes that call each other, slowly, in vain, and for the last time.

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

/// An answer that takes longer than this is a fault that a promise may be excused by.
const SLOW: Duration = Duration::from_millis(100);

/// How likely what goes wrong is. Probabilities are per call.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Nothing goes wrong from here on.
    pub until: Duration,
    /// How long any call takes each way, at the most, when all is well.
    pub latency: Duration,
    /// The process ends, before or after the effect of the call.
    pub crash: f64,
    /// All calls of the process hang for `stall_for`, then they go on.
    pub stall: f64,
    /// For how long.
    pub stall_for: Duration,
    /// A call of the store fails: before its effect, after it, or with the effect still to come.
    pub store_fails: f64,
    /// A call of the store takes up to `slow_for`.
    pub store_slow: f64,
    /// See there.
    pub slow_for: Duration,
    /// When nobody reaches the store, from and to.
    pub store_away: Vec<(Duration, Duration)>,
    /// When the store crashes and comes back without its last writes, and how old the lost writes are at the most.
    pub store_forgets: Vec<(Duration, Duration)>,
    /// A call of the queue fails, before or after its effect.
    pub queue_fails: f64,
    /// A dispatch is lost, though the queue has confirmed it.
    pub dispatch_lost: f64,
    /// A dispatch is there twice.
    pub dispatch_doubled: f64,
    /// A dispatch comes later than others, by up to 30 s.
    pub dispatch_late: f64,
    /// A consumer's connection is lost when it takes or answers for a dispatch.
    pub consumer_cut: f64,
    /// An event is not published, or it is and nobody says so.
    pub events_fail: f64,
}

impl Faults {
    /// Nothing goes wrong.
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

/// What really happened.
#[derive(Debug)]
pub enum Witnessed<'a> {
    /// A rollout was created, or its record replaced.
    Saved(&'a Rollout),
    /// Batches were stored for a plan that is being made.
    Planned(&'a RolloutName, &'a [Batch]),
    /// A batch was leased.
    Leased(&'a LeaseRequest, &'a Lease),
    /// Reports were merged under a lease, or none, as a heartbeat.
    Recorded(&'a Lease, &'a [Report]),
    /// Reports were merged under no lease.
    Merged(&'a RolloutName, RolloutId, BatchId, Attempt, &'a [Report]),
    /// So many devices of a batch, which had one of these outcomes, were made pending for a new attempt.
    Reopened(&'a RolloutName, BatchId, Attempt, &'a [Outcome], u64),
    /// What was left of a batch was skipped.
    Skipped(&'a RolloutName, BatchId, &'a Skip),
    /// All rollouts are to halt, or may go on.
    Halted(bool),
    /// A lease was given back.
    Released(&'a Lease),
    /// A message leaves for a hub.
    Sending(&'a HubName, &'a Outbound),
    /// The hub has it.
    Accepted(&'a HubName, &'a Outbound),
    /// The hub will tell that, from then on.
    Posted(&'a HubName, &'a FeedbackRecord, Instant),
    /// A process is handed what the hub has to tell.
    Reported(&'a HubName, &'a [FeedbackRecord]),
    /// The hub was told that it need not tell that again.
    Completed(&'a HubName, &'a [FeedbackRecord]),
    /// What the sender is told about it.
    Answered(&'a HubName, &'a Outbound, &'a SendResult),
    /// So many sends of the process wait for the hub's answer.
    UnderWay(&'a HubName, usize),
    /// So many dispatches wait on the hub's queue.
    Waiting(&'a HubName, usize),
}

/// Sees what happens, at the moment in which it happens.
pub trait Watch: Send + Sync + 'static {
    /// It happened.
    fn witness(&self, by: &Process, what: &Witnessed<'_>);
}

/// Sees nothing.
impl Watch for () {
    fn witness(&self, _: &Process, _: &Witnessed<'_>) {}
}

/// One simulated world.
#[derive(Clone)]
pub struct Sim(Arc<World>);

struct World {
    chance: Chance,
    faults: Faults,
    began: Instant,
    watch: Arc<dyn Watch>,
    trace: Mutex<Trace>,
    bug: Option<Bug>,
}

impl Sim {
    /// A world that begins now. Its doubles have the `bug`, if there is one.
    #[must_use]
    pub fn new(
        chance: Chance,
        faults: Faults,
        watch: Arc<dyn Watch>,
        trace: Trace,
        bug: Option<Bug>,
    ) -> Self {
        Self(Arc::new(World {
            chance,
            faults,
            bug,
            began: Instant::now(),
            watch,
            trace: Mutex::new(trace),
        }))
    }

    /// A world in which nothing goes wrong by itself.
    #[must_use]
    pub fn quiet() -> Self {
        let (chance, trace) = (Chance::of(0), Trace::new(0));
        Self::new(chance, Faults::none(), Arc::new(()), trace, None)
    }

    /// How old the world is.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Whether things go wrong now.
    #[must_use]
    pub fn is_chaotic(&self) -> bool {
        self.age() < self.0.faults.until
    }

    /// How likely what goes wrong is.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// The world's chance.
    #[must_use]
    pub fn chance(&self) -> Chance {
        self.0.chance
    }

    /// The defect that its doubles have.
    pub(crate) fn bug(&self) -> Option<Bug> {
        self.0.bug
    }

    /// Whether its doubles have this defect.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.0.bug == Some(bug)
    }

    /// Adds a line to the trace.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        lock(&self.0.trace).note(self.age(), what);
    }

    /// The trace as it is now.
    #[must_use]
    pub fn trace(&self) -> Trace {
        lock(&self.0.trace).clone()
    }
}

/// One process. Clones are the same.
#[derive(Clone)]
pub struct Process(Arc<Life>);

struct Life {
    sim: Sim,
    name: String,
    started: Instant,
    chance: Chance,
    crashed: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each call was made.
    calls: HashMap<u64, u64>,
    /// Calls that are not answered as they should be, by kind and subject.
    ills: HashMap<(&'static str, String), Ill>,
    stalled_until: Option<Instant>,
}

/// Trouble with one kind of call.
#[derive(Debug, Clone, Copy)]
enum Ill {
    /// Since some time, and it may go on.
    Lasting,
    /// It ended then.
    Healed(Instant),
}

/// The answer to a call was lost, or the call was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Course {
    crash: Option<Moment>,
    fate: Fate,
    request: Duration,
    answer: Duration,
    stall: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeEffect,
    AfterEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    /// Fails, nothing was done.
    Undone,
    /// Fails, though it was done.
    Done,
    /// Fails, and is done some time after that.
    DoneLater(Duration),
}

/// How often calls of one kind of peer go wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Odds {
    pub(crate) fails: f64,
    pub(crate) slow: f64,
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
    /// A new process; its name must be, too.
    #[must_use]
    pub fn start(sim: &Sim, name: impl Into<String>) -> Self {
        let name = name.into();
        sim.note(format_args!("{name} starts"));
        Self(Arc::new(Life {
            sim: sim.clone(),
            chance: sim.chance().at(&name),
            name,
            started: Instant::now(),
            crashed: watch::Sender::new(false),
            state: Mutex::default(),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Since when it lives.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// Where it lives.
    #[must_use]
    pub fn sim(&self) -> &Sim {
        &self.0.sim
    }

    /// Ends it: none of its calls ever returns, and whoever waits for [`Self::crashed`] drops it.
    pub fn crash(&self) {
        if !self.0.crashed.send_replace(true) {
            self.sim().note(format_args!("{self} CRASHES"));
        }
    }

    /// Lets its calls hang for some time: what they ask for happens, and the answers wait.
    pub fn stall(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state();
        state.stalled_until = state.stalled_until.max(Some(until));
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        *self.0.crashed.borrow()
    }

    /// Waits until it has ended.
    pub async fn crashed(&self) {
        let mut crashed = self.0.crashed.subscribe();
        // The sender lives as long as this process does.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    /// Until when there was trouble with the process itself or with one of these calls (kind and
    /// subject), `None` if there never was; the present when it goes on.
    #[must_use]
    pub fn troubled_until(&self, calls: &[(&'static str, &str)]) -> Option<Instant> {
        let state = self.state();
        let now = Instant::now();
        let mut last = state.stalled_until.map(|until| until.min(now));
        for (op, about) in calls {
            let until = match state.ills.get(&(*op, (*about).to_owned())) {
                None => None,
                Some(Ill::Lasting) => Some(now),
                Some(Ill::Healed(at)) => Some(*at),
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
        let odds = Odds {
            fails: self.sim().faults().events_fail,
            ..Odds::default()
        };
        self.call(odds, "tell", id, effect).await
    }

    pub(crate) fn witness(&self, what: &Witnessed<'_>) {
        self.0.sim.0.watch.witness(self, what);
    }

    /// Makes a call whose effect takes place elsewhere: once it is on its way, it goes on
    /// without this process.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        odds: Odds,
        op: &'static str,
        about: String,
        effect: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Lost> {
        let course = self.enter(odds, op, &about).await;
        self.falls_ill(op, &about, course);
        let (answer, answered) = oneshot::channel();
        let this = self.clone();
        let run = async move {
            pause(course.request).await;
            let result = match course.fate {
                Fate::Works => Ok(effect.await),
                Fate::Done => {
                    effect.await;
                    Err(Lost)
                }
                Fate::Undone => Err(Lost),
                Fate::DoneLater(after) => {
                    let _ = answer.send(Err(Lost));
                    pause(after).await;
                    effect.await;
                    return;
                }
            };
            if course.crash.is_some() {
                this.crash();
            }
            pause(course.answer).await;
            let _ = answer.send(result);
        };
        tokio::spawn(run);
        let answered = answered.await;
        self.until_awake().await;
        let result = match answered {
            Ok(result) => result,
            // The world is being taken down.
            Err(_) => pending().await,
        };
        self.recovers(op, &about, course);
        result
    }

    /// Begins a call: says what will become of it. Never returns if the process ends here.
    pub(crate) async fn enter(&self, odds: Odds, op: &'static str, about: &str) -> Course {
        if self.is_crashed() {
            return pending().await;
        }
        let course = self.course(odds, op, about);
        let fault = course.in_words();
        self.sim().note(format_args!("{self} {op} {about}{fault}"));
        if let Some(stall) = course.stall {
            self.stall(stall);
        }
        if course.crash == Some(Moment::BeforeEffect) {
            self.crash();
            return pending().await;
        }
        course
    }

    /// Ends a call that was [entered](Self::enter) and had its effect on the spot.
    pub(crate) async fn leave(&self, course: Course, takes: Duration) {
        if course.crash.is_some() {
            self.crash();
        }
        pause(takes).await;
        self.until_awake().await;
    }

    /// Waits until calls return, which may be never.
    pub(crate) async fn until_awake(&self) {
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

    /// Dice for something that happens to the process for the nth time.
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

    fn course(&self, odds: Odds, op: &'static str, about: &str) -> Course {
        let mut dice = self.dice(op, about);
        let faults = self.sim().faults();
        let mut course = Course {
            crash: None,
            fate: Fate::Works,
            request: dice.time(Duration::ZERO..=faults.latency),
            answer: dice.time(Duration::ZERO..=faults.latency),
            stall: None,
        };
        if !self.sim().is_chaotic() {
            return course;
        }
        if dice.happens(faults.crash) {
            course.crash = Some(dice.pick(&[Moment::BeforeEffect, Moment::AfterEffect]));
        }
        if dice.happens(faults.stall) {
            course.stall = Some(faults.stall_for);
        }
        if dice.happens(odds.slow) {
            let takes = dice.time(Duration::ZERO..=faults.slow_for);
            match dice.happens(0.5) {
                true => course.request += takes,
                false => course.answer += takes,
            }
        }
        if odds.away {
            // Refused at once, or after a time limit.
            course.fate = Fate::Undone;
            course.answer = dice.pick(&[Duration::ZERO, Duration::from_secs(5)]);
        } else if dice.happens(odds.fails) {
            let later = dice.time(Duration::ZERO..=Duration::from_secs(20));
            course.fate = dice.pick(&[Fate::Undone, Fate::Done, Fate::DoneLater(later)]);
        }
        course
    }

    fn falls_ill(&self, op: &'static str, about: &str, course: Course) {
        if course.is_faulty() {
            let ill = (op, about.to_owned());
            self.state().ills.insert(ill, Ill::Lasting);
        }
    }

    /// A call that works ends the trouble with its kind.
    fn recovers(&self, op: &'static str, about: &str, course: Course) {
        if course.fate != Fate::Works {
            return;
        }
        let mut state = self.state();
        if state.ills.is_empty() {
            return;
        }
        if let Some(ill @ Ill::Lasting) = state.ills.get_mut(&(op, about.to_owned())) {
            *ill = Ill::Healed(Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl Course {
    /// It fails, or its answer comes late.
    fn is_faulty(self) -> bool {
        self.fate != Fate::Works || self.request + self.answer > SLOW || self.stall.is_some()
    }

    /// What goes wrong, for the trace.
    fn in_words(self) -> String {
        let mut words = String::new();
        if self.fate != Fate::Works {
            words.push_str(&format!(" FAILS {:?}", self.fate));
        }
        if self.request + self.answer > SLOW {
            words.push_str(&format!(" SLOW {:?}+{:?}", self.request, self.answer));
        }
        if let Some(stall) = self.stall {
            words.push_str(&format!(" STALLS {stall:?}"));
        }
        if let Some(moment) = self.crash {
            words.push_str(&format!(" CRASH {moment:?}"));
        }
        words
    }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
