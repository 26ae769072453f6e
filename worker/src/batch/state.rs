//! The state machine of a batch run. Pure: without futures, without a clock. The input is an
//! [`Event`] at a time, the output is a list of [`Step`]s.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Disposition, NotSent, Report, SendResult, StoreError};
use twincast_core::rollout::Directive;
use twincast_retry::{Delays, Policy};

use crate::config::WorkerConfig;
use crate::store_retry::{StoreRetryLimit, Tries, next_delay};

/// The number of consecutive sends without an answer after which a device is suspected of ending
/// the connection. A suspect is sent to alone, so that no other device loses an answer with the
/// connection.
const SUSPECT_AFTER: u8 = 2;

/// How a batch run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Ended {
    /// Every device is settled.
    Done,
    /// The rollout sends nothing more for now, or the batch is not available for work.
    NotRunning,
    /// This worker is stopping.
    Stopped,
    /// The hub takes nothing for now.
    HubUnavailable,
    /// Another holder has taken over the batch.
    Fenced,
    /// The rollout has the format of a newer release.
    Newer,
    /// The batch was planned for a host other than the host configured under the hub's name.
    OtherHub,
}

impl Ended {
    pub(crate) const ALL: [Self; 7] = [
        Self::Done,
        Self::NotRunning,
        Self::Stopped,
        Self::HubUnavailable,
        Self::Fenced,
        Self::Newer,
        Self::OtherHub,
    ];

    /// Returns the name used in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An input of the state machine.
#[derive(Debug)]
pub(super) enum Event {
    /// The run begins, or the time of [`State::wake_at`] has come.
    Time,
    /// The results of sends, by position.
    Answered(Vec<(u32, SendResult)>),
    /// The result of a record.
    Saved(Saved),
    /// A message may be sent now, or acquiring permits failed permanently.
    Acquired(Result<(), StoreError>),
    /// The throttle was reported to the store, or the report failed.
    ThrottleReported,
    /// The worker is stopping.
    Stop,
}

/// The result of a record.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) reports: Vec<Report>,
    /// When the store was called: the answer is not older.
    pub(super) requested_at: Instant,
    pub(super) result: Result<Directive, StoreError>,
}

/// An output of the state machine. Sends, records, acquisitions and throttle reports run
/// concurrently, and come back as events. At most a single step of each kind is under way at a
/// time, except for sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send to a device; `alone` if the send may end the connection.
    Send { index: u32, alone: bool },
    /// Record the reports after a pause, and renew the lease.
    Save {
        reports: Vec<Report>,
        after: Duration,
    },
    /// Acquire the right to send a message. `more` messages are to be sent after this message.
    Acquire { more: usize },
    /// Cancel the acquisition.
    CancelAcquire,
    /// Void the permits at hand: the hub refused a send for its quota.
    VoidPermits,
    /// Report the refusal to the store, for all workers.
    ReportThrottle { retry_after: Option<Duration> },
}

/// The initial conditions of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunStart {
    /// When the lease was requested.
    pub(super) leased_at: Instant,
    /// When sends must end, by the rollout's schedule.
    pub(super) closes_at: Option<Instant>,
    /// Unanswered sends are repeated.
    pub(super) resend_unanswered: bool,
    /// Sends need permits.
    pub(super) is_paced: bool,
}

/// The tries of a device so far.
struct Retry {
    delays: Delays,
    tries: u8,
    /// The number of consecutive sends without an answer.
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
    start: RunStart,
    steps: Vec<Step>,

    /// Positions without any step so far.
    fresh: VecDeque<u32>,
    /// Positions to be sent to now: fresh positions, and due retries.
    ready: VecDeque<u32>,
    /// Positions to be sent to again, with the time of the retry.
    waiting: BinaryHeap<Reverse<(Instant, u32)>>,
    retries: HashMap<u32, Retry>,
    in_flight: usize,
    acquiring: bool,
    reporting_throttle: bool,
    /// A throttle to be reported to the store, with the hub's `retry_after`.
    throttle: Option<Option<Duration>>,

    /// Reports to be recorded, and the time of the oldest report.
    unsaved: Vec<Report>,
    unsaved_since: Instant,
    saving: bool,
    save_tries: Tries,
    saved_at: Instant,
    /// When the store was called for the last known directive.
    directive_at: Instant,
    /// Until when sends waiting for the send lock may leave.
    may_send_until: Instant,
    /// The number of positions between the first step and the record.
    open: usize,
    /// The outcomes recorded in this run.
    recorded: Counts,
    ending: Option<Ended>,
    /// Why the run cannot continue. `refused` means that records are impossible, too.
    failed: Option<StoreError>,
    refused: bool,
    /// When a stopping worker ends the wait for answers.
    drained_at: Option<Instant>,
}

impl State {
    /// Creates the initial state from the recorded outcomes of the devices.
    pub(super) fn new(
        config: WorkerConfig,
        start: RunStart,
        outcomes: impl Iterator<Item = Outcome>,
        now: Instant,
    ) -> Self {
        let mut fresh = VecDeque::new();
        let mut unsaved = Vec::new();
        for (index, outcome) in (0u32..).zip(outcomes) {
            match outcome {
                Outcome::Pending => fresh.push_back(index),
                // An earlier worker crashed between recording this mark and recording the result.
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
            start,
            steps: Vec::new(),
            fresh,
            ready: VecDeque::new(),
            waiting: BinaryHeap::new(),
            retries: HashMap::new(),
            in_flight: 0,
            acquiring: false,
            reporting_throttle: false,
            throttle: None,
            open: unsaved.len(),
            unsaved,
            unsaved_since: now,
            saving: false,
            save_tries: Tries::new(StoreRetryLimit(config.give_up), &Policy::store_retry()),
            saved_at: start.leased_at,
            directive_at: start.leased_at,
            may_send_until: start.leased_at + config.heartbeat * 2,
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

    /// Returns whether unanswered sends are repeated.
    pub(super) fn resend_unanswered(&self) -> bool {
        self.start.resend_unanswered
    }

    /// Returns whether the last record failed.
    pub(super) fn is_store_failing(&self) -> bool {
        self.save_tries.is_failing()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.drained_at.is_some()
    }

    /// Returns until when sends waiting for the send lock may leave.
    pub(super) fn may_send_until(&self) -> Instant {
        self.may_send_until
    }

    /// Processes an event, and returns the steps to perform.
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
            Event::ThrottleReported => self.reporting_throttle = false,
            Event::Stop => self.end(Ended::Stopped, now),
        }
        self.start_sends(now);
        self.start_save(now);
        if !self.reporting_throttle
            && let Some(retry_after) = self.throttle.take()
        {
            self.reporting_throttle = true;
            self.steps.push(Step::ReportThrottle { retry_after });
        }
        std::mem::take(&mut self.steps)
    }

    /// Returns whether the rollout's directive is known. Without an answer of the store the rollout
    /// may have been paused, and the batch may be leased by another worker.
    fn has_current_directive(&self, now: Instant) -> bool {
        now < self.directive_at + self.config.heartbeat * 2
    }

    fn is_closed(&self, now: Instant) -> bool {
        self.start.closes_at.is_some_and(|at| now >= at)
    }

    /// Starts as many sends as the window and the permits allow.
    fn start_sends(&mut self, now: Instant) {
        if self.ending.is_none() && self.is_closed(now) {
            self.end(Ended::NotRunning, now);
        }
        if self.ending.is_some() || !self.has_current_directive(now) {
            return;
        }
        while self.open < self.config.window
            && let Some(index) = self.fresh.pop_front()
        {
            self.open += 1;
            self.ready.push_back(index);
        }
        if !self.start.is_paced {
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
            Ok(()) if self.has_current_directive(now) && !self.is_closed(now) => self.send_one(now),
            Ok(()) => {}
            // Received and outstanding answers are recorded first.
            Err(error) => {
                self.failed = Some(error);
                self.end(Ended::NotRunning, now);
            }
        }
    }

    /// Uses a permit.
    fn send_one(&mut self, now: Instant) {
        let Some(index) = self.ready.pop_front() else {
            return;
        };
        if self.start.resend_unanswered || self.retries.contains_key(&index) {
            self.transmit(index);
        } else {
            // The permit is at hand, so the send follows as soon as the mark is recorded.
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
                if cause == NotSent::Throttled && self.start.is_paced {
                    self.steps.push(Step::VoidPermits);
                    self.throttle = Some(retry_after);
                }
                if cause != NotSent::NoConnection
                    && let Some(retry) = self.retries.get_mut(&index)
                {
                    // The hub has answered, so the message did not end the connection.
                    retry.unanswered = 0;
                }
                self.retry(index, cause, retry_after, now);
            }
            SendResult::Unknown { .. } if self.start.resend_unanswered => {
                let retry = self.retries.entry(index).or_default();
                retry.unanswered = retry.unanswered.saturating_add(1);
                // The hub may have the message. The send counts as a try; otherwise a message
                // without any answer would be sent for ever.
                self.retry(index, NotSent::Refused(0), None, now);
            }
            SendResult::Unknown { .. } => self.settle(index, Outcome::Unknown, 0, now),
            SendResult::HubUnavailable { .. } => {
                self.waiting.push(Reverse((now, index)));
                self.end(Ended::HubUnavailable, now);
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

    /// Records the collected reports when there are enough reports, or the oldest has waited long
    /// enough, or no send is in flight or ready. Renews the lease when a heartbeat is due.
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
            requested_at,
            result,
        } = saved;
        self.saving = false;
        self.saved_at = now;
        let error = match result {
            Ok(directive) => return self.on_recorded(&reports, directive, requested_at, now),
            Err(error) => error,
        };
        if error.disposition() == Disposition::Superseded {
            self.ending = Some(Ended::Fenced);
            self.may_send_until = now;
            return;
        }
        match self.save_tries.failed(error, now) {
            // The record may have taken effect. Repeating the record is harmless, because outcomes
            // merge as a join.
            Ok(after) => self.save(reports, after),
            Err(error) => {
                self.failed = Some(error);
                self.refused = true;
            }
        }
    }

    fn on_recorded(
        &mut self,
        reports: &[Report],
        directive: Directive,
        requested_at: Instant,
        now: Instant,
    ) {
        self.save_tries.succeeded();
        let in_time = self.has_current_directive(now);
        self.directive_at = requested_at;
        if self.ending.is_none() {
            self.may_send_until = requested_at + self.config.heartbeat * 2;
        }
        for report in reports {
            match report.outcome {
                // Sent even when the run is ending: a marked device is never sent to later, so the
                // message would be lost.
                Outcome::Attempting if in_time || directive == Directive::Stop => {
                    self.transmit(report.index);
                }
                // The permit has expired.
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
        if directive == Directive::Stop {
            self.end(Ended::NotRunning, now);
        }
    }

    /// Ends the run: no new sends begin, and the outcomes of sends in flight are still recorded.
    fn end(&mut self, how: Ended, now: Instant) {
        if self.ending.is_none() {
            // Marks without a record are dropped: the devices are still pending.
            let marks = self.unsaved.len();
            self.unsaved
                .retain(|report| report.outcome != Outcome::Attempting);
            self.open -= marks - self.unsaved.len();
        }
        self.ending.get_or_insert(how);
        self.may_send_until = now;
        if how == Ended::Stopped {
            self.drained_at = Some(now + self.config.drain);
        }
        if std::mem::take(&mut self.acquiring) {
            self.steps.push(Step::CancelAcquire);
        }
        self.ready.clear();
    }

    /// Returns how the run has ended, or `None` while the run is under way.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Result<Ended, StoreError>> {
        if self.ending == Some(Ended::Fenced) {
            return Some(Ok(Ended::Fenced));
        }
        if self.refused {
            return self.failed.take().map(Err);
        }
        let overdue = self.drained_at.is_some_and(|at| at <= now);
        if overdue && self.is_store_failing() {
            // Outcomes without a record count as after a crash.
            return Some(Ok(Ended::Stopped));
        }
        let answered = self.in_flight == 0 || overdue;
        if !answered || !self.unsaved.is_empty() || self.saving || self.reporting_throttle {
            return None;
        }
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let is_done = self.fresh.is_empty() && self.open == 0;
        is_done.then_some(Ended::Done).or(self.ending).map(Ok)
    }

    /// Returns when the run has something to do, if no event comes before.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let config = &self.config;
        let mut at = now + config.heartbeat;
        // A record under way wakes the run at its end, and no other record can begin before.
        if !self.saving {
            at = at.min(self.saved_at + config.heartbeat);
            if !self.unsaved.is_empty() {
                at = at.min(self.unsaved_since + config.linger);
            }
        }
        if let (Some(Reverse((retry_at, _))), None) = (self.waiting.peek(), self.ending) {
            at = at.min(*retry_at);
        }
        if let (Some(closes_at), None) = (self.start.closes_at, self.ending) {
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
