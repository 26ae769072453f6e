use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use twincast_core::ports::HubTrouble;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns the state at the beginning of a run on this many pending devices.
fn at_start(
    devices: usize,
    resend_unanswered: bool,
    is_paced: bool,
    config: WorkerConfig,
) -> (State, Instant) {
    let now = Instant::now();
    let start = RunStart {
        leased_at: now,
        closes_at: None,
        resend_unanswered,
        is_paced,
    };
    let outcomes = std::iter::repeat_n(Outcome::Pending, devices);
    (State::new(config, start, outcomes, now), now)
}

fn not_sent(cause: NotSent, retry_after: Option<Duration>) -> SendResult {
    SendResult::NotSent {
        cause,
        retry_after,
        detail: "no".into(),
    }
}

fn saved(
    reports: Vec<Report>,
    requested_at: Instant,
    result: Result<Directive, StoreError>,
) -> Event {
    Event::Saved(Saved {
        reports,
        requested_at,
        result,
    })
}

fn away() -> StoreError {
    StoreError::Unavailable {
        doing: "record".into(),
        source: "away".into(),
    }
}

fn damaged() -> StoreError {
    StoreError::Corrupt {
        doing: "give permits".into(),
        source: "damaged".into(),
    }
}

fn superseded() -> StoreError {
    StoreError::Superseded { what: "it".into() }
}

fn send(index: u32) -> Step {
    Step::Send {
        index,
        alone: false,
    }
}

fn reports_of(steps: Vec<Step>) -> Vec<Report> {
    let mut saves = steps.into_iter().filter_map(|step| match step {
        Step::Save { reports, .. } => Some(reports),
        _ => None,
    });
    let reports = saves.next().expect("a record");
    assert!(saves.next().is_none(), "one record at a time");
    reports
}

/// Any number of throttled sends leads to a single report to the store at a time, and to a single
/// further report of all throttles since. Answers and records do not wait for the reports.
#[test]
fn throttle_reports_do_not_delay_other_steps() {
    let (mut state, now) = at_start(4, true, true, WorkerConfig::default());
    assert_eq!(state.handle(Event::Time, now), [Step::Acquire { more: 4 }]);
    for _ in 0..4 {
        state.handle(Event::Acquired(Ok(())), now);
    }
    let throttled = |wait| not_sent(NotSent::Throttled, Some(ms(wait)));
    let steps = state.handle(
        Event::Answered(vec![(0, throttled(7)), (1, throttled(8))]),
        now,
    );
    let report = |wait| Step::ReportThrottle {
        retry_after: Some(ms(wait)),
    };
    assert_eq!(steps, [Step::VoidPermits, Step::VoidPermits, report(8)]);
    let steps = state.handle(Event::Answered(vec![(2, throttled(9))]), now);
    assert_eq!(steps, [Step::VoidPermits]);
    let steps = state.handle(
        Event::Answered(vec![(3, SendResult::Enqueued)]),
        now + ms(100),
    );
    assert_eq!(reports_of(steps).len(), 1, "recorded concurrently");
    assert_eq!(state.handle(Event::ThrottleReported, now), [report(9)]);
    state.handle(Event::Stop, now);
    state.handle(saved(vec![], now, Ok(Directive::Continue)), now);
    assert!(state.ended(now).is_none(), "the report is under way");
    state.handle(Event::ThrottleReported, now);
    assert!(matches!(state.ended(now), Some(Ok(Ended::Stopped))));
}

#[test]
fn a_failed_permit_ends_the_run_after_all_answers_are_recorded() {
    let (mut state, now) = at_start(3, true, true, WorkerConfig::default());
    state.handle(Event::Time, now);
    state.handle(Event::Acquired(Ok(())), now);
    state.handle(Event::Acquired(Err(damaged())), now);
    assert!(state.ended(now).is_none(), "a send is in flight");
    let steps = state.handle(Event::Answered(vec![(0, SendResult::Enqueued)]), now);
    let reports = reports_of(steps);
    assert_eq!(reports.len(), 1);
    assert!(state.ended(now).is_none(), "a record is under way");
    state.handle(saved(reports, now, Ok(Directive::Continue)), now);
    let ended = state.ended(now);
    assert!(matches!(ended, Some(Err(StoreError::Corrupt { .. }))));
}

/// A failed record is repeated, or ends the run.
#[test]
fn a_failed_record_is_repeated_or_ends_the_run() {
    let limit = Some(Duration::from_secs(30));
    let full = || StoreError::NotWritable {
        doing: "record".into(),
        source: "full".into(),
    };
    for (give_up, error, ended) in [
        (None, away(), "no"),
        (None, full(), "no"),
        (limit, away(), "no"),
        (limit, full(), "failed"),
        (None, damaged(), "failed"),
        (None, superseded(), "fenced"),
        (None, StoreError::NotFound { what: "it".into() }, "fenced"),
    ] {
        let case = format!("{error:?} of {give_up:?}");
        let config = WorkerConfig {
            give_up,
            ..WorkerConfig::default()
        };
        let (mut state, now) = at_start(1, true, false, config);
        assert_eq!(state.handle(Event::Time, now), [send(0)]);
        let steps = state.handle(Event::Answered(vec![(0, SendResult::Enqueued)]), now);
        let reports = reports_of(steps);
        let steps = state.handle(saved(reports.clone(), now, Err(error)), now);
        let found = match state.ended(now) {
            None => "no",
            Some(Ok(Ended::Fenced)) => "fenced",
            Some(Ok(_)) => "ended",
            Some(Err(_)) => "failed",
        };
        assert_eq!(found, ended, "{case}");
        if ended == "no" {
            assert_eq!(reports_of(steps), reports, "{case}");
        }
    }
}

/// A model of the environment of a state machine, with events in any order.
struct World {
    state: State,
    config: WorkerConfig,
    resend_unanswered: bool,
    now: Instant,
    /// When the store was called for the last known directive.
    directive_at: Instant,
    /// No new work may begin.
    is_over: bool,
    in_flight: BTreeSet<u32>,
    saving: Option<Vec<Report>>,
    acquiring: bool,
    /// Permits that may be used now; `None` when no permits are needed.
    permits: Option<usize>,
    reporting_throttle: bool,
    marked: BTreeSet<u32>,
    /// Devices sent to or marked, and not recorded.
    open: BTreeSet<u32>,
    /// Open devices with a known result.
    answered: BTreeSet<u32>,
    recorded: BTreeMap<u32, Outcome>,
}

impl World {
    fn new(known: &[u8], resend_unanswered: bool, is_paced: bool) -> Self {
        let config = WorkerConfig {
            window: 5,
            tries: 3,
            ..WorkerConfig::default()
        };
        let now = Instant::now();
        let start = RunStart {
            leased_at: now,
            closes_at: None,
            resend_unanswered,
            is_paced,
        };
        let known = known.iter().map(|kind| match kind {
            0 => Outcome::Attempting,
            1 => Outcome::Enqueued,
            _ => Outcome::Pending,
        });
        let known: Vec<_> = known.collect();
        let settled = known
            .iter()
            .enumerate()
            .filter(|(_, outcome)| **outcome == Outcome::Enqueued);
        Self {
            recorded: settled
                .map(|(index, outcome)| (index as u32, *outcome))
                .collect(),
            state: State::new(config, start, known.into_iter(), now),
            config,
            resend_unanswered,
            now,
            directive_at: now,
            is_over: false,
            in_flight: BTreeSet::new(),
            saving: None,
            acquiring: false,
            permits: is_paced.then_some(0),
            reporting_throttle: false,
            marked: BTreeSet::new(),
            open: BTreeSet::new(),
            answered: BTreeSet::new(),
        }
    }

    /// Passes an event to the state machine, and checks the resulting steps.
    fn happens(&mut self, event: Event) {
        for step in self.state.handle(event, self.now) {
            match step {
                Step::Send { index, .. } => self.sends(index),
                Step::Save { reports, .. } => self.saves(reports),
                Step::Acquire { .. } => {
                    assert!(!self.is_over);
                    assert!(!std::mem::replace(&mut self.acquiring, true));
                }
                Step::CancelAcquire => assert!(std::mem::take(&mut self.acquiring)),
                Step::VoidPermits => {}
                Step::ReportThrottle { .. } => {
                    assert!(!std::mem::replace(&mut self.reporting_throttle, true));
                }
            }
        }
        self.permits = self.permits.map(|_| 0);
        assert!(self.open.len() <= self.config.window, "{:?}", self.open);
        assert!(self.state.wake_at(self.now) <= self.now + self.config.heartbeat);
    }

    fn sends(&mut self, index: u32) {
        assert!(self.in_flight.insert(index), "the device is in flight");
        assert!(!self.recorded.contains_key(&index), "the device is settled");
        assert!(!self.answered.contains(&index), "the device has an answer");
        self.open.insert(index);
        if self.resend_unanswered {
            assert!(!self.is_over);
            let since_directive = self.now - self.directive_at;
            assert!(
                since_directive < self.config.heartbeat * 2,
                "{since_directive:?}"
            );
            self.permits = self
                .permits
                .map(|left| left.checked_sub(1).expect("a permit"));
        } else {
            assert!(self.marked.contains(&index), "the device is not marked");
        }
    }

    fn saves(&mut self, reports: Vec<Report>) {
        assert!(self.saving.is_none(), "one record at a time");
        let devices: BTreeSet<_> = reports.iter().map(|report| report.index).collect();
        assert_eq!(devices.len(), reports.len(), "one report per device");
        let marks = reports
            .iter()
            .filter(|report| report.outcome == Outcome::Attempting);
        self.open.extend(marks.map(|report| report.index));
        self.saving = Some(reports);
    }

    fn answers(&mut self, nth: u8, result: SendResult) {
        let nth = usize::from(nth) % self.in_flight.len().max(1);
        let Some(index) = self.in_flight.iter().nth(nth).copied() else {
            return;
        };
        self.in_flight.remove(&index);
        match result {
            SendResult::Enqueued | SendResult::Final { .. } => _ = self.answered.insert(index),
            SendResult::Unknown { .. } if !self.resend_unanswered => {
                _ = self.answered.insert(index);
            }
            SendResult::HubUnavailable { .. } => self.is_over = true,
            _ => {}
        }
        self.happens(Event::Answered(vec![(index, result)]));
    }

    fn is_saved(&mut self, result: Result<Directive, StoreError>, requested_at: Instant) {
        let Some(reports) = self.saving.take() else {
            return;
        };
        match &result {
            Ok(directive) => {
                self.directive_at = requested_at;
                self.is_over |= *directive == Directive::Stop;
                for report in &reports {
                    if report.outcome == Outcome::Attempting {
                        self.marked.insert(report.index);
                    } else {
                        self.open.remove(&report.index);
                        let before = self.recorded.insert(report.index, report.outcome);
                        assert_eq!(before, None, "recorded twice");
                    }
                }
            }
            Err(error) => self.is_over |= error.disposition() == Disposition::Superseded,
        }
        self.happens(saved(reports, requested_at, result));
    }

    /// Makes an event of this kind happen, if possible now.
    fn happens_some(&mut self, kind: u8, nth: u8) {
        let refused = |code| not_sent(NotSent::Refused(code), None);
        let requested_at = self.now - ms(u64::from(nth) % 300);
        match kind {
            0..=3 => self.answers(nth, SendResult::Enqueued),
            4 => self.answers(nth, refused(500_001)),
            5 => self.answers(nth, not_sent(NotSent::NoConnection, None)),
            6 => self.answers(nth, not_sent(NotSent::Throttled, None)),
            7 => {
                let detail = "lost".into();
                self.answers(nth, SendResult::Unknown { detail });
            }
            8..=11 => self.is_saved(Ok(Directive::Continue), requested_at.max(self.directive_at)),
            12 => self.is_saved(Err(away()), self.now),
            13..=17 if self.acquiring => {
                self.acquiring = false;
                self.permits = self.permits.map(|_| 1);
                self.happens(Event::Acquired(Ok(())));
            }
            18 if self.reporting_throttle => {
                self.reporting_throttle = false;
                self.happens(Event::ThrottleReported);
            }
            19..=22 => {
                self.now += ms(u64::from(nth));
                self.happens(Event::Time);
            }
            23 if nth < 16 => self.is_saved(Ok(Directive::Stop), self.now),
            23 if nth < 24 => self.is_saved(Err(superseded()), self.now),
            23 if nth < 40 && !self.state.is_stopping() => {
                self.is_over = true;
                self.happens(Event::Stop);
            }
            23 if nth < 48 => {
                let unavailable = SendResult::HubUnavailable {
                    retry_after: None,
                    reason: "suspended".into(),
                    trouble: HubTrouble::Unavailable,
                };
                self.answers(nth, unavailable);
            }
            _ => {}
        }
    }

    /// Continues without further failures until the run ends.
    fn comes_to_an_end(&mut self) -> Ended {
        for _ in 0..10_000 {
            for kind in [0, 8, 13, 18] {
                if let Some(ended) = self.state.ended(self.now) {
                    return ended.expect("no permanent failure");
                }
                self.happens_some(kind, 1);
            }
            self.now = self.now.max(self.state.wake_at(self.now));
            self.happens(Event::Time);
        }
        panic!("the run does not end");
    }
}

proptest! {
    /// No message is sent without a permit, beyond the window, without a current directive, after
    /// the end, or twice where forbidden. Every answered send is recorded once, and every run ends.
    #[test]
    fn send_invariants_hold_for_any_event_order(
        known in prop::collection::vec(0u8..12, 1..40),
        events in prop::collection::vec((0u8..24, any::<u8>()), 0..400),
        resend_unanswered: bool,
        is_paced: bool,
    ) {
        let mut world = World::new(&known, resend_unanswered, is_paced);
        world.happens(Event::Time);
        for (kind, nth) in events {
            if let Some(ended) = world.state.ended(world.now) {
                prop_assert!(ended.is_ok());
                return Ok(());
            }
            world.happens_some(kind, nth);
        }
        let ended = world.comes_to_an_end();
        // A drain that ended before the store answered counts as a crash.
        if ended != Ended::Fenced && !world.state.is_store_failing() {
            for index in &world.answered {
                prop_assert!(world.recorded.contains_key(index), "{index} is not recorded");
            }
        }
        prop_assert_eq!(ended == Ended::Done, world.recorded.len() == known.len());
        prop_assert!(ended == Ended::Done || world.is_over);
    }
}
