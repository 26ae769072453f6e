//! One batch, worked on under a lease.
//!
//! A device of the batch goes `pending → sent → answered → recorded`. At most
//! [`window`](crate::WorkerConfig::window) devices are between the first and the last of these
//! at any time; that bounds what a crash can repeat. Records are made while later sends are
//! under way, so the connection never waits for the store.
//!
//! With `at_most_once` there is one step more: once there is a permit, `attempting` is recorded,
//! and only then the message is sent. What is found in that state later becomes `unknown`: that
//! includes messages which the hub had turned away for a passing reason when their batch was put
//! down, because an outcome never falls back to `pending`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::batch::Lease;
use twincast_core::ids::{Attempt, RolloutId};
use twincast_core::message::{Content, MessageId, Outbound};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::DeviceList;
use twincast_core::ports::{BatchWork, NotSent, Report, SendResult, StoreError};
use twincast_core::rollout::Wanted;
use twincast_retry::{Delays, Policy};

use crate::hub_loop::{Inner, Known};
use crate::metrics::OneMore;
use crate::pacer::{LATE, Pacer};

/// How a batch run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ended {
    /// Every device is settled.
    Done,
    /// The rollout wants nothing more to be sent, or somebody else works on the batch.
    Unwanted,
    /// This worker is stopping.
    Stopped,
    /// The hub takes nothing for now.
    HubShut,
    /// Somebody else took the batch over.
    Fenced,
    /// Its rollout is of a newer release.
    Newer,
    /// It was planned for another hub than the one that this worker has under the hub's name.
    OtherHub,
}

impl Ended {
    pub(crate) const ALL: [Self; 7] = [
        Self::Done,
        Self::Unwanted,
        Self::Stopped,
        Self::HubShut,
        Self::Fenced,
        Self::Newer,
        Self::OtherHub,
    ];

    /// Its name as it is written in labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unwanted => "unwanted",
            Self::Stopped => "stopped",
            Self::HubShut => "hub_shut",
            Self::Fenced => "fenced",
            Self::Newer => "newer",
            Self::OtherHub => "other_hub",
        }
    }
}

/// When a shut hub is tried again, if it does not say.
const SHUT_PAUSE: Duration = Duration::from_secs(60);
/// A shut hub is tried at least this often, whatever it says: one refused message costs nothing,
/// and clocks differ (a daily quota ends at the hub's midnight, not at ours).
const LONGEST_SHUT_PAUSE: Duration = Duration::from_secs(15 * 60);

/// How long it may take to tell the others of a throttle.
const TELL: Duration = Duration::from_secs(1);

/// A device whose send had no answer so often in a row may be what ends the connection. It is sent to alone, so that
/// it takes no other device's answer with it.
const SUSPECT_AFTER: u8 = 2;

/// How long a suspect waits to be alone.
const ALONE_WITHIN: Duration = Duration::from_secs(2);

/// How often a hub that is not ready for sends is asked again.
const READY_AGAIN: Duration = Duration::from_millis(50);

type Sending = BoxFuture<'static, (u32, SendResult)>;
type Saving = BoxFuture<'static, Saved>;
type Acquiring = BoxFuture<'static, Result<(), StoreError>>;

/// Until when a run's sends may leave, for those that wait for their turn.
#[derive(Clone)]
struct Clearance(Arc<Mutex<Instant>>);

impl Clearance {
    fn until(at: Instant) -> Self {
        Self(Arc::new(Mutex::new(at)))
    }

    fn set(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn holds(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A send that did not get its turn.
fn not_now() -> SendResult {
    SendResult::NotSent {
        cause: NotSent::NoConnection,
        retry_after: None,
        detail: "another send of the hub is alone".to_owned(),
    }
}

pub(crate) struct BatchRun<'a> {
    inner: &'a Inner,
    lease: Lease,
    rollout: RolloutId,
    devices: DeviceList,
    attempt: Attempt,
    content: Arc<Content>,
    pacer: Option<Arc<Pacer>>,
    /// Unanswered sends are made again.
    again: bool,

    /// Positions that nothing was done for yet.
    fresh: VecDeque<u32>,
    /// Positions that may be sent to now: fresh ones, and retries whose time has come.
    ready: VecDeque<u32>,
    /// Positions to be sent to again, with their time.
    waiting: BinaryHeap<Reverse<(Instant, u32)>>,
    retries: HashMap<u32, Retry>,
    in_flight: FuturesUnordered<Sending>,
    acquiring: Option<Acquiring>,

    /// What is to be recorded, and since when the oldest of it waits.
    unsaved: Vec<Report>,
    unsaved_since: Instant,
    saving: Option<Saving>,
    save_delays: Delays,
    saved_at: Instant,
    /// When the store was last asked what the rollout wants, and said that it is to go on.
    wanted_at: Instant,
    clearance: Clearance,
    /// Since when the store does not answer.
    silent_since: Option<Instant>,
    /// Positions between their first step and their record.
    open: usize,
    /// What was recorded in this run.
    recorded: Counts,
    ending: Option<Ended>,
    /// When nothing more may be sent, by the rollout's schedule.
    closes_at: Option<Instant>,
    /// When a stopping worker waits for answers no longer.
    drained_at: Option<Instant>,
}

/// What became of a record.
struct Saved {
    reports: Vec<Report>,
    /// When the store was asked: its answer is not older than that.
    asked_at: Instant,
    result: Result<Wanted, StoreError>,
}

/// The tries at one device so far.
struct Retry {
    delays: Delays,
    tries: u8,
    /// How many sends in a row had no answer.
    unanswered: u8,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            delays: Policy::send_retry().delays(),
            tries: 0,
            unanswered: 0,
        }
    }
}

impl<'a> BatchRun<'a> {
    /// A run under a lease that was asked for at `leased_at`.
    pub(crate) fn new(
        inner: &'a Inner,
        lease: Lease,
        leased_at: Instant,
        work: BatchWork,
        known: &Known,
        closes_at: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        let mut fresh = VecDeque::new();
        let mut unsaved = Vec::new();
        for (index, outcome) in (0u32..).zip(work.outcomes.iter()) {
            match outcome {
                Outcome::Pending => fresh.push_back(index),
                // A worker before us died between this mark and its record.
                Outcome::Attempting => unsaved.push(Report {
                    index,
                    outcome: Outcome::Unknown,
                    code: 0,
                }),
                _ => {}
            }
        }
        Self {
            inner,
            lease,
            rollout: work.rollout,
            pacer: known.pacer(work.batch.header.stage),
            devices: work.batch.devices,
            attempt: work.attempt,
            content: Arc::clone(&known.content),
            again: known.again,
            fresh,
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            retries: HashMap::new(),
            in_flight: FuturesUnordered::new(),
            acquiring: None,
            open: unsaved.len(),
            unsaved,
            unsaved_since: now,
            saving: None,
            save_delays: Policy::store_retry().delays(),
            saved_at: leased_at,
            wanted_at: leased_at,
            clearance: Clearance::until(leased_at + inner.config.heartbeat * 2),
            silent_since: None,
            recorded: Counts::default(),
            ending: None,
            closes_at,
            drained_at: None,
        }
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(crate) fn recorded(&self) -> &Counts {
        &self.recorded
    }

    /// Works until the batch is done or is to be put down, and everything in flight is recorded.
    pub(crate) async fn until_ended(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        loop {
            self.start_sends();
            self.start_save();
            if let Some(ended) = self.ended() {
                return Ok(ended);
            }
            let wake_at = self.wake_at();
            // The arms that are futures of ours are kept across turns; the others are cancel-safe.
            tokio::select! {
                biased;
                saved = wait_for(&mut self.saving) => {
                    self.saving = None;
                    self.on_saved(saved)?;
                }
                Some((index, result)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.on_answer(index, result).await;
                    // Takes what else has been answered: turns are not free.
                    while let Some(Some((index, result))) = self.in_flight.next().now_or_never() {
                        self.on_answer(index, result).await;
                    }
                }
                acquired = wait_for(&mut self.acquiring) => {
                    self.acquiring = None;
                    acquired?;
                    if self.is_in_touch() && !self.is_closed() {
                        self.send_one();
                    }
                }
                () = stop.cancelled(), if self.drained_at.is_none() => self.end(Ended::Stopped),
                () = tokio::time::sleep_until(wake_at) => self.on_time(),
            }
        }
    }

    /// Whether it is known what the rollout wants. Without a word from the store it may have been
    /// paused, and the batch may be somebody else's.
    fn is_in_touch(&self) -> bool {
        self.wanted_at.elapsed() < self.inner.config.heartbeat * 2
    }

    fn is_closed(&self) -> bool {
        self.closes_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Sends as much as window and permits allow.
    fn start_sends(&mut self) {
        if self.ending.is_none() && self.is_closed() {
            self.end(Ended::Unwanted);
        }
        if self.ending.is_some() || !self.is_in_touch() {
            return;
        }
        while self.open < self.inner.config.window
            && let Some(index) = self.fresh.pop_front()
        {
            self.open += 1;
            self.ready.push_back(index);
        }
        match &self.pacer {
            None => {
                while !self.ready.is_empty() {
                    self.send_one();
                }
            }
            // No permit for a send that could not leave.
            Some(pacer)
                if self.acquiring.is_none()
                    && !self.ready.is_empty()
                    && self.inner.hub.hub.is_ready() =>
            {
                let pacer = Arc::clone(pacer);
                let more = self.fresh.len() + self.ready.len() + self.waiting.len();
                self.acquiring = Some(pacer.acquire(more).boxed());
            }
            Some(_) => {}
        }
    }

    /// Uses a permit.
    fn send_one(&mut self) {
        let Some(index) = self.ready.pop_front() else {
            return;
        };
        if self.again || self.retries.contains_key(&index) {
            self.transmit(index);
        } else {
            // The permit is there, so the send follows as soon as this is recorded.
            self.report(index, Outcome::Attempting, 0);
        }
    }

    fn transmit(&mut self, index: u32) {
        let id = MessageId {
            rollout: self.lease.rollout.clone(),
            id: self.rollout,
            batch: self.lease.batch,
            index,
            attempt: self.attempt,
        };
        let message = Outbound {
            device: self.devices.get(index as usize),
            id: id.to_string(),
            content: Arc::clone(&self.content),
        };
        let hub = Arc::clone(&self.inner.hub.hub);
        let status = Arc::clone(&self.inner.status);
        let turns = Arc::clone(&self.inner.turns);
        let tried = self.retries.get(&index);
        let is_suspect = tried.is_some_and(|retry| retry.unanswered >= SUSPECT_AFTER);
        let patience = if is_suspect { ALONE_WITHIN } else { LATE };
        let (pacer, clearance) = (self.pacer.clone(), self.clearance.clone());
        let sending = async move {
            let asked_at = Instant::now();
            let Ok(_turn) = timeout(patience, turns.take(is_suspect)).await else {
                return (index, not_now());
            };
            // What its permit stood for is over, and the rollout may have been stopped.
            if asked_at.elapsed() > LATE {
                let is_paced = match pacer {
                    Some(pacer) => pacer.acquire(0).await.is_ok(),
                    None => true,
                };
                if !is_paced || !clearance.holds() {
                    return (index, not_now());
                }
            }
            let in_flight = OneMore::of(&status.metrics().in_flight);
            let sent_at = Instant::now();
            let result = hub.send(message).await;
            drop(in_flight);
            let took = sent_at.elapsed().as_secs_f64();
            status.metrics().send_seconds.observe(took);
            (index, result)
        };
        self.in_flight.push(sending.boxed());
    }

    async fn on_answer(&mut self, index: u32, result: SendResult) {
        let status = &self.inner.status;
        match result {
            SendResult::Enqueued => {
                status.metrics().accepted.inc();
                status.serving();
                self.settle(index, Outcome::Enqueued, 0);
            }
            SendResult::Final {
                outcome,
                code,
                detail,
            } => {
                status.serving();
                tracing::debug!(device = %self.devices.get(index as usize), %outcome, code, detail, "not sent, for good");
                self.settle(index, outcome, code);
            }
            SendResult::NotSent {
                cause,
                retry_after,
                detail,
            } => {
                if cause == NotSent::Throttled {
                    status.metrics().throttled.inc();
                    if let Some(pacer) = &self.pacer {
                        // The batch's other answers, and its lease, must not wait for long.
                        let told = timeout(TELL, pacer.throttled(retry_after)).await;
                        if !matches!(told, Ok(Ok(()))) {
                            tracing::warn!(hub = %self.inner.hub.name, "throttle not passed on to others");
                        }
                    }
                }
                if cause != NotSent::NoConnection
                    && let Some(retry) = self.retries.get_mut(&index)
                {
                    // The hub has answered: what it got did no harm.
                    retry.unanswered = 0;
                }
                self.retry(index, cause, retry_after, &detail);
            }
            SendResult::Unknown { detail } => {
                status.metrics().unanswered.inc();
                if self.again {
                    let retry = self.retries.entry(index).or_default();
                    retry.unanswered = retry.unanswered.saturating_add(1);
                    // The hub may have it: that counts as a try, or a message whose answer never
                    // comes would be sent for ever.
                    self.retry(index, NotSent::Refused(0), None, &detail);
                } else {
                    self.settle(index, Outcome::Unknown, 0);
                }
            }
            SendResult::HubShut {
                retry_after,
                reason,
                trouble,
            } => {
                let pause = retry_after.unwrap_or(SHUT_PAUSE).min(LONGEST_SHUT_PAUSE);
                if status.shut(pause, trouble, &reason) {
                    tracing::warn!(hub = %self.inner.hub.name, reason, "hub takes nothing for now");
                }
                self.waiting.push(Reverse((Instant::now(), index)));
                self.end(Ended::HubShut);
            }
        }
    }

    fn settle(&mut self, index: u32, outcome: Outcome, code: u32) {
        self.retries.remove(&index);
        self.report(index, outcome, code);
    }

    fn report(&mut self, index: u32, outcome: Outcome, code: u32) {
        if self.unsaved.is_empty() {
            self.unsaved_since = Instant::now();
        }
        self.unsaved.push(Report {
            index,
            outcome,
            code,
        });
    }

    fn retry(&mut self, index: u32, cause: NotSent, retry_after: Option<Duration>, detail: &str) {
        self.inner.status.metrics().resent.inc();
        let retry = self.retries.entry(index).or_default();
        retry.tries += u8::from(matches!(cause, NotSent::Refused(_)));
        if retry.tries >= self.inner.config.tries {
            let (outcome, code) = match cause {
                NotSent::Refused(code) if code != 0 => (Outcome::Refused, code),
                _ => (Outcome::Unknown, 0),
            };
            tracing::debug!(device = %self.devices.get(index as usize), %outcome, code, detail, "gave up on a device");
            return self.settle(index, outcome, code);
        }
        let delay = next_delay(&mut retry.delays);
        self.waiting.push(Reverse((
            Instant::now() + delay.max(retry_after.unwrap_or_default()),
            index,
        )));
    }

    /// Records what there is, when it is enough, or has waited enough, or is the last.
    fn start_save(&mut self) {
        if self.saving.is_some() {
            return;
        }
        let config = &self.inner.config;
        let now = Instant::now();
        let idle = self.in_flight.is_empty() && self.ready.is_empty();
        let due = !self.unsaved.is_empty()
            && (idle
                || self.unsaved.len() >= config.window / 2
                || now >= self.unsaved_since + config.linger);
        let heartbeat = now >= self.saved_at + config.heartbeat;
        if due || heartbeat {
            let reports = std::mem::take(&mut self.unsaved);
            self.save(reports, Duration::ZERO);
        }
    }

    fn save(&mut self, reports: Vec<Report>, delay: Duration) {
        let (store, status) = (
            Arc::clone(&self.inner.store),
            Arc::clone(&self.inner.status),
        );
        let (lease, ttl) = (self.lease.clone(), self.inner.config.lease);
        let saving = async move {
            tokio::time::sleep(delay).await;
            let asked_at = Instant::now();
            let result = store.record(&lease, &reports, ttl).await;
            if result.is_ok() {
                let took = asked_at.elapsed().as_secs_f64();
                status.metrics().record_seconds.observe(took);
                reports
                    .iter()
                    .for_each(|report| status.metrics().recorded(report.outcome));
            }
            Saved {
                reports,
                asked_at,
                result,
            }
        };
        self.saving = Some(saving.boxed());
    }

    fn on_saved(&mut self, saved: Saved) -> Result<(), StoreError> {
        let Saved {
            reports,
            asked_at,
            result,
        } = saved;
        self.saved_at = Instant::now();
        match result {
            Ok(wanted) => {
                self.save_delays.reset();
                self.silent_since = None;
                let in_time = self.is_in_touch();
                self.wanted_at = asked_at;
                if self.ending.is_none() {
                    self.clearance
                        .set(asked_at + self.inner.config.heartbeat * 2);
                }
                for report in reports {
                    match report.outcome {
                        // Even when the batch is being put down: what is marked is never sent
                        // later, so it would be lost.
                        Outcome::Attempting if in_time || wanted == Wanted::Stop => {
                            self.transmit(report.index);
                        }
                        // What its permit stood for is over.
                        Outcome::Attempting => {
                            self.retries.entry(report.index).or_default();
                            self.ready.push_back(report.index);
                        }
                        outcome => {
                            self.open -= 1;
                            self.recorded.count(outcome);
                        }
                    }
                }
                if wanted == Wanted::Stop {
                    self.end(Ended::Unwanted);
                }
                Ok(())
            }
            Err(StoreError::Superseded { .. }) => {
                self.ending = Some(Ended::Fenced);
                self.clearance.set(Instant::now());
                Ok(())
            }
            // It may have taken effect. Recording again is harmless, the outcomes are a join.
            Err(error) if is_passing(&error) && !self.inner.is_local(&error) => {
                if self.silent_since.is_none() {
                    tracing::warn!(rollout = %self.lease.rollout, batch = %self.lease.batch, ?error, "outcomes not recorded yet");
                }
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                if self
                    .inner
                    .config
                    .give_up
                    .is_some_and(|limit| since.elapsed() >= limit)
                {
                    return Err(error);
                }
                let delay = next_delay(&mut self.save_delays);
                self.save(reports, delay);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Nothing new is sent from here on; what is in flight is still recorded.
    fn end(&mut self, how: Ended) {
        if self.ending.is_none() {
            // Marks that nobody has recorded yet: these devices are still pending.
            let marks = self.unsaved.len();
            self.unsaved
                .retain(|report| report.outcome != Outcome::Attempting);
            self.open -= marks - self.unsaved.len();
        }
        self.ending.get_or_insert(how);
        self.clearance.set(Instant::now());
        if how == Ended::Stopped {
            self.drained_at = Some(Instant::now() + self.inner.config.drain);
        }
        self.acquiring = None;
        self.ready.clear();
    }

    fn ended(&self) -> Option<Ended> {
        if self.ending == Some(Ended::Fenced) {
            return Some(Ended::Fenced);
        }
        let overdue = self.drained_at.is_some_and(|at| at <= Instant::now());
        if overdue && self.silent_since.is_some() {
            // What is not recorded counts as after a crash.
            return Some(Ended::Stopped);
        }
        let answered = self.in_flight.is_empty() || overdue;
        let settled = answered && self.unsaved.is_empty() && self.saving.is_none();
        let nothing_left = self.fresh.is_empty() && self.open == 0;
        match self.ending {
            _ if settled && nothing_left => Some(Ended::Done),
            Some(ending) if settled => Some(ending),
            _ => None,
        }
    }

    fn wake_at(&self) -> Instant {
        let config = &self.inner.config;
        let mut at = Instant::now() + config.heartbeat;
        if self.acquiring.is_none() && !self.ready.is_empty() && self.is_in_touch() {
            at = at.min(Instant::now() + READY_AGAIN);
        }
        // While a save is under way its end wakes us, and nothing else can be saved.
        if self.saving.is_none() {
            at = at.min(self.saved_at + config.heartbeat);
            if !self.unsaved.is_empty() {
                at = at.min(self.unsaved_since + config.linger);
            }
        }
        if let (Some(Reverse((retry_at, _))), None) = (self.waiting.peek(), self.ending) {
            at = at.min(*retry_at);
        }
        if let (Some(closes_at), None) = (self.closes_at, self.ending) {
            at = at.min(closes_at);
        }
        match self.drained_at {
            Some(drained_at) if drained_at > Instant::now() => at.min(drained_at),
            _ => at,
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, index))) = self.waiting.peek().copied()
            && at <= now
            && self.ending.is_none()
        {
            self.waiting.pop();
            self.ready.push_back(index);
        }
    }
}

/// The store may do later what it does not do now: it is away, or full.
pub(crate) fn is_passing(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unavailable { .. } | StoreError::NotWritable { .. }
    )
}

/// The next delay of a policy that never gives up.
pub(crate) fn next_delay(delays: &mut Delays) -> Duration {
    delays.next_delay().unwrap_or_else(|| {
        delays.reset();
        Policy::send_retry().max()
    })
}

/// Waits for a future that is kept elsewhere; for ever if there is none.
async fn wait_for<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
