//! What a batch's run does next. Pure: no futures and no clock; what comes in is an [`Event`] at a time, what is to be done
//! are [`Step`]s.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Disposition, NotSent, Report, SendResult, StoreError};
use twincast_core::rollout::Wanted;
use twincast_retry::{Delays, Policy};

use crate::config::WorkerConfig;
use crate::patience::{Patience, Tries, next_delay};

/// A device whose send had no answer so often in a row may be what ends the connection. It is sent to alone, so that
/// it takes no other device's answer with it.
const SUSPECT_AFTER: u8 = 2;

/// How a batch run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
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
        self.into()
    }
}

/// What comes in.
#[derive(Debug)]
pub(super) enum Event {
    /// The run begins, or its time to wake has come.
    Time,
    /// What became of sends, by position.
    Answered(Vec<(u32, SendResult)>),
    /// A record was made, or not.
    Saved(Saved),
    /// One message may be sent now, or none can be for good.
    Acquired(Result<(), StoreError>),
    /// The others know of a throttle, or could not be told.
    Told,
    /// The worker is to stop.
    Stop,
}

/// What became of a record.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) reports: Vec<Report>,
    /// When the store was asked: its answer is not older than that.
    pub(super) asked_at: Instant,
    pub(super) result: Result<Wanted, StoreError>,
}

/// What is to be done. Sends, a record, an acquisition and a telling go on by themselves, and come back as events; of each
/// but the sends there is one at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send to a device; alone, if that may end the connection.
    Send { index: u32, alone: bool },
    /// Record this after a pause, and renew the lease.
    Save {
        reports: Vec<Report>,
        after: Duration,
    },
    /// Acquire the right to send one message; so many more are to be sent after it.
    Acquire { more: usize },
    /// Give up the acquisition.
    Waive,
    /// Void permits at hand: the hub has refused a send for its quota.
    Void,
    /// Tell the others of that.
    Tell { retry_after: Option<Duration> },
}

/// How a run begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// When the lease was asked for.
    pub(super) leased_at: Instant,
    /// When nothing more may be sent, by the rollout's schedule.
    pub(super) closes_at: Option<Instant>,
    /// Unanswered sends are made again.
    pub(super) again: bool,
    /// Sends need permits.
    pub(super) is_paced: bool,
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

pub(super) struct State {
    config: WorkerConfig,
    begun: Begun,
    steps: Vec<Step>,

    /// Positions that nothing was done for yet.
    fresh: VecDeque<u32>,
    /// Positions that may be sent to now: fresh ones, and retries whose time has come.
    ready: VecDeque<u32>,
    /// Positions to be sent to again, with their time.
    waiting: BinaryHeap<Reverse<(Instant, u32)>>,
    retries: HashMap<u32, Retry>,
    in_flight: usize,
    acquiring: bool,
    telling: bool,
    /// A throttle that the others are to be told of.
    throttle: Option<Option<Duration>>,

    /// What is to be recorded, and since when the oldest of it waits.
    unsaved: Vec<Report>,
    unsaved_since: Instant,
    saving: bool,
    save_tries: Tries,
    saved_at: Instant,
    /// When the store was last asked what the rollout wants, and said that it is to go on.
    wanted_at: Instant,
    /// Until when sends may leave that wait for their turn.
    cleared_until: Instant,
    /// Positions between their first step and their record.
    open: usize,
    /// What was recorded in this run.
    recorded: Counts,
    ending: Option<Ended>,
    /// Why the run cannot go on, and whether nothing can be recorded any more either.
    failed: Option<StoreError>,
    refused: bool,
    /// When a stopping worker waits for answers no longer.
    drained_at: Option<Instant>,
}

impl State {
    /// The state at the beginning, with what is known of the devices.
    pub(super) fn new(
        config: WorkerConfig,
        begun: Begun,
        outcomes: impl Iterator<Item = Outcome>,
        now: Instant,
    ) -> Self {
        let mut fresh = VecDeque::new();
        let mut unsaved = Vec::new();
        for (index, outcome) in (0u32..).zip(outcomes) {
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
            config,
            begun,
            steps: Vec::new(),
            fresh,
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            retries: HashMap::new(),
            in_flight: 0,
            acquiring: false,
            telling: false,
            throttle: None,
            open: unsaved.len(),
            unsaved,
            unsaved_since: now,
            saving: false,
            save_tries: Tries::new(Patience(config.give_up), &Policy::store_retry()),
            saved_at: begun.leased_at,
            wanted_at: begun.leased_at,
            cleared_until: begun.leased_at + config.heartbeat * 2,
            recorded: Counts::default(),
            ending: None,
            failed: None,
            refused: false,
            drained_at: None,
        }
    }

    pub(super) fn recorded(&self) -> &Counts {
        &self.recorded
    }

    /// Whether unanswered sends are made again.
    pub(super) fn sends_again(&self) -> bool {
        self.begun.again
    }

    /// Whether the last record has failed.
    pub(super) fn is_silent(&self) -> bool {
        self.save_tries.is_failing()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.drained_at.is_some()
    }

    /// Until when sends may leave that wait for their turn.
    pub(super) fn cleared_until(&self) -> Instant {
        self.cleared_until
    }

    /// Takes an event in, and says what is to be done.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Vec<Step> {
        match event {
            Event::Time => self.on_time(now),
            Event::Answered(answers) => {
                for (index, result) in &answers {
                    self.on_answer(*index, result, now);
                }
            }
            Event::Saved(saved) => self.on_saved(saved, now),
            Event::Acquired(acquired) => self.on_acquired(acquired, now),
            Event::Told => self.telling = false,
            Event::Stop => self.end(Ended::Stopped, now),
        }
        self.start_sends(now);
        self.start_save(now);
        if !self.telling
            && let Some(retry_after) = self.throttle.take()
        {
            self.telling = true;
            self.steps.push(Step::Tell { retry_after });
        }
        std::mem::take(&mut self.steps)
    }

    /// Whether it is known what the rollout wants. Without a word from the store it may have been
    /// paused, and the batch may be somebody else's.
    fn is_in_touch(&self, now: Instant) -> bool {
        now < self.wanted_at + self.config.heartbeat * 2
    }

    fn is_closed(&self, now: Instant) -> bool {
        self.begun.closes_at.is_some_and(|at| now >= at)
    }

    /// Sends as much as window and permits allow.
    fn start_sends(&mut self, now: Instant) {
        if self.ending.is_none() && self.is_closed(now) {
            self.end(Ended::Unwanted, now);
        }
        if self.ending.is_some() || !self.is_in_touch(now) {
            return;
        }
        while self.open < self.config.window
            && let Some(index) = self.fresh.pop_front()
        {
            self.open += 1;
            self.ready.push_back(index);
        }
        if !self.begun.is_paced {
            while !self.ready.is_empty() {
                self.send_one(now);
            }
        } else if !self.acquiring && !self.ready.is_empty() {
            self.acquiring = true;
            let more = self.fresh.len() + self.ready.len() + self.waiting.len();
            self.steps.push(Step::Acquire { more });
        }
    }

    fn on_acquired(&mut self, acquired: Result<(), StoreError>, now: Instant) {
        self.acquiring = false;
        match acquired {
            Ok(()) if self.is_in_touch(now) && !self.is_closed(now) => self.send_one(now),
            Ok(()) => {}
            // What was answered and is being answered is recorded first.
            Err(error) => {
                self.failed = Some(error);
                self.end(Ended::Unwanted, now);
            }
        }
    }

    /// Uses a permit.
    fn send_one(&mut self, now: Instant) {
        let Some(index) = self.ready.pop_front() else {
            return;
        };
        if self.begun.again || self.retries.contains_key(&index) {
            self.transmit(index);
        } else {
            // The permit is there, so the send follows as soon as this is recorded.
            self.report(index, Outcome::Attempting, 0, now);
        }
    }

    fn transmit(&mut self, index: u32) {
        let tried = self.retries.get(&index);
        let alone = tried.is_some_and(|retry| retry.unanswered >= SUSPECT_AFTER);
        self.in_flight += 1;
        self.steps.push(Step::Send { index, alone });
    }

    fn on_answer(&mut self, index: u32, result: &SendResult, now: Instant) {
        self.in_flight -= 1;
        match *result {
            SendResult::Enqueued => self.settle(index, Outcome::Enqueued, 0, now),
            SendResult::Final { outcome, code, .. } => self.settle(index, outcome, code, now),
            SendResult::NotSent {
                cause, retry_after, ..
            } => {
                if cause == NotSent::Throttled && self.begun.is_paced {
                    self.steps.push(Step::Void);
                    self.throttle = Some(retry_after);
                }
                if cause != NotSent::NoConnection
                    && let Some(retry) = self.retries.get_mut(&index)
                {
                    // The hub has answered: what it got did no harm.
                    retry.unanswered = 0;
                }
                self.retry(index, cause, retry_after, now);
            }
            SendResult::Unknown { .. } if self.begun.again => {
                let retry = self.retries.entry(index).or_default();
                retry.unanswered = retry.unanswered.saturating_add(1);
                // The hub may have it: that counts as a try, or a message whose answer never
                // comes would be sent for ever.
                self.retry(index, NotSent::Refused(0), None, now);
            }
            SendResult::Unknown { .. } => self.settle(index, Outcome::Unknown, 0, now),
            SendResult::HubShut { .. } => {
                self.waiting.push(Reverse((now, index)));
                self.end(Ended::HubShut, now);
            }
        }
    }

    fn settle(&mut self, index: u32, outcome: Outcome, code: u32, now: Instant) {
        self.retries.remove(&index);
        self.report(index, outcome, code, now);
    }

    fn report(&mut self, index: u32, outcome: Outcome, code: u32, now: Instant) {
        if self.unsaved.is_empty() {
            self.unsaved_since = now;
        }
        self.unsaved.push(Report {
            index,
            outcome,
            code,
        });
    }

    fn retry(&mut self, index: u32, cause: NotSent, retry_after: Option<Duration>, now: Instant) {
        let retry = self.retries.entry(index).or_default();
        retry.tries += u8::from(matches!(cause, NotSent::Refused(_)));
        if retry.tries >= self.config.tries {
            let (outcome, code) = match cause {
                NotSent::Refused(code) if code != 0 => (Outcome::Refused, code),
                _ => (Outcome::Unknown, 0),
            };
            return self.settle(index, outcome, code, now);
        }
        let delay = next_delay(&mut retry.delays, Policy::send_retry().max());
        let at = now + delay.max(retry_after.unwrap_or_default());
        self.waiting.push(Reverse((at, index)));
    }

    /// Records what there is, when it is enough, or has waited enough, or is the last.
    fn start_save(&mut self, now: Instant) {
        if self.saving {
            return;
        }
        let idle = self.in_flight == 0 && self.ready.is_empty();
        let due = !self.unsaved.is_empty()
            && (idle
                || self.unsaved.len() >= self.config.window / 2
                || now >= self.unsaved_since + self.config.linger);
        if due || now >= self.saved_at + self.config.heartbeat {
            let reports = std::mem::take(&mut self.unsaved);
            self.save(reports, Duration::ZERO);
        }
    }

    fn save(&mut self, reports: Vec<Report>, after: Duration) {
        self.saving = true;
        self.steps.push(Step::Save { reports, after });
    }

    fn on_saved(&mut self, saved: Saved, now: Instant) {
        let Saved {
            reports,
            asked_at,
            result,
        } = saved;
        self.saving = false;
        self.saved_at = now;
        let error = match result {
            Ok(wanted) => return self.on_recorded(&reports, wanted, asked_at, now),
            Err(error) => error,
        };
        if error.disposition() == Disposition::Superseded {
            self.ending = Some(Ended::Fenced);
            self.cleared_until = now;
            return;
        }
        match self.save_tries.failed(error, now) {
            // It may have taken effect. Recording again is harmless, the outcomes are a join.
            Ok(after) => self.save(reports, after),
            Err(error) => {
                self.failed = Some(error);
                self.refused = true;
            }
        }
    }

    fn on_recorded(&mut self, reports: &[Report], wanted: Wanted, asked_at: Instant, now: Instant) {
        self.save_tries.succeeded();
        let in_time = self.is_in_touch(now);
        self.wanted_at = asked_at;
        if self.ending.is_none() {
            self.cleared_until = asked_at + self.config.heartbeat * 2;
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
            self.end(Ended::Unwanted, now);
        }
    }

    /// Nothing new is sent from here on; what is in flight is still recorded.
    fn end(&mut self, how: Ended, now: Instant) {
        if self.ending.is_none() {
            // Marks that nobody has recorded yet: these devices are still pending.
            let marks = self.unsaved.len();
            self.unsaved
                .retain(|report| report.outcome != Outcome::Attempting);
            self.open -= marks - self.unsaved.len();
        }
        self.ending.get_or_insert(how);
        self.cleared_until = now;
        if how == Ended::Stopped {
            self.drained_at = Some(now + self.config.drain);
        }
        if std::mem::take(&mut self.acquiring) {
            self.steps.push(Step::Waive);
        }
        self.ready.clear();
    }

    /// How the run has ended, once it has.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Result<Ended, StoreError>> {
        if self.ending == Some(Ended::Fenced) {
            return Some(Ok(Ended::Fenced));
        }
        if self.refused {
            return self.failed.take().map(Err);
        }
        let overdue = self.drained_at.is_some_and(|at| at <= now);
        if overdue && self.is_silent() {
            // What is not recorded counts as after a crash.
            return Some(Ok(Ended::Stopped));
        }
        let answered = self.in_flight == 0 || overdue;
        if !answered || !self.unsaved.is_empty() || self.saving || self.telling {
            return None;
        }
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let is_done = self.fresh.is_empty() && self.open == 0;
        is_done.then_some(Ended::Done).or(self.ending).map(Ok)
    }

    /// When there is something to do, if no event comes before.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let config = &self.config;
        let mut at = now + config.heartbeat;
        // While a save is under way its end wakes us, and nothing else can be saved.
        if !self.saving {
            at = at.min(self.saved_at + config.heartbeat);
            if !self.unsaved.is_empty() {
                at = at.min(self.unsaved_since + config.linger);
            }
        }
        if let (Some(Reverse((retry_at, _))), None) = (self.waiting.peek(), self.ending) {
            at = at.min(*retry_at);
        }
        if let (Some(closes_at), None) = (self.begun.closes_at, self.ending) {
            at = at.min(closes_at);
        }
        match self.drained_at {
            Some(drained_at) if drained_at > now => at.min(drained_at),
            _ => at,
        }
    }

    fn on_time(&mut self, now: Instant) {
        while let Some(Reverse((at, index))) = self.waiting.peek().copied()
            && at <= now
            && self.ending.is_none()
        {
            self.waiting.pop();
            self.ready.push_back(index);
        }
    }
}

#[cfg(test)]
mod tests;
