//! Keeps a running rollout in progress: dispatches batches, judges the gate, and scans for late
//! joiners.
//!
//! Returns the events of the rollout; the driver stores the events.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::batch::MAX_FAILED_LEASES;
use twincast_core::evidence::Evidence;
use twincast_core::gate::{self, AppliedCount, Next, ObservedState};
use twincast_core::ids::{HubName, StageIndex};
use twincast_core::plan::TagGroup;
use twincast_core::ports::{Clock, MetricSource, Store, StoreError, Tally};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::time::Timestamp;
use twincast_core::waiting::Waiting;

use crate::Hubs;
use crate::accounting::Accounting;
use crate::answers::{AnswerMemory, AnswerUpdate, note_query_result};
use crate::changes::{self, ChangeSource};
use crate::config::DriverConfig;
use crate::dispatching::{DispatchLog, Dispatcher, Round};
use crate::evidence;
use crate::measure::{self, MeasureResult};
use crate::metric::MetricMemory;
use crate::scans::{self, ScanMemory, ScanUpdate};

/// The delay before the next query after a failed query.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// While nothing changes, the interval between two passes is the time since the last change,
/// divided by this number.
const BACKOFF_DIVISOR: u32 = 8;

/// Keeps running rollouts in progress.
pub(crate) struct Running<'a> {
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) hubs: &'a Hubs,
    pub(crate) metric_source: Option<&'a Arc<dyn MetricSource>>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) config: &'a DriverConfig,
    pub(crate) changes: &'a ChangeSource,
    pub(crate) dispatcher: Dispatcher<'a>,
}

/// A driver's memory between turns. A driver can continue without any of it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    dispatch_log: DispatchLog,
    /// The newest count of a stage's devices from the twins.
    measured: Option<(StageIndex, AppliedCount)>,
    /// The time of the last failed query of the hubs.
    query_failed_at: Option<Instant>,
    metrics: MetricMemory,
    scan: ScanMemory,
    answers: AnswerMemory,
    /// Whether the answer of each device is recorded.
    recorded: bool,
    intervals: Intervals,
    were_halted: bool,
    /// The time at which the store last confirmed the known record.
    confirmed_at: Option<Instant>,
}

/// Why the passes over a rollout end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// This event is to be applied to the rollout.
    Apply(Box<Event>),
    /// Another component may have changed the rollout, or the driver is to stop.
    Reread,
    /// The rollout waits for an approval or for answers, and is not to be driven meanwhile.
    NotDriven,
}

/// The result of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pass {
    /// This event is to be applied to the rollout.
    Apply(Box<Event>),
    /// The devices with the change applied must be counted.
    Measure,
    /// Batches were released.
    Dispatched,
    /// Nothing was to be done.
    Waits(Wait),
}

/// A wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wait {
    /// Only an approval is missing.
    for_approval: bool,
    /// No sends are pending.
    is_idle: bool,
    /// The time of the next pass at the latest.
    until: Option<Timestamp>,
}

impl Memory {
    /// Begins a turn. Called before the turn reads the store, so no later change is missed.
    pub(crate) fn begin(&mut self, changes: &ChangeSource) {
        self.intervals = Intervals::default();
        self.confirmed_at = None;
        self.were_halted = changes.were_halted();
    }

    /// Starts the scan that this driver has just noted in `rollout`'s record.
    pub(crate) fn begin_scan(
        &mut self,
        rollout: &Rollout,
        store: &Arc<dyn Store>,
        hubs: &Hubs,
        base: &Path,
    ) {
        self.scan.begin(rollout, store, hubs, base);
    }
}

impl Running<'_> {
    /// Keeps a rollout in progress until an event happens to the rollout, or until `stop`. Notes
    /// the rollout's activity in the record meanwhile.
    ///
    /// Cancel safety: may be dropped at any time; dispatches missing from the memory are made once
    /// more.
    pub(crate) async fn run(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        tokio::select! {
            biased;
            ended = self.passes(rollout, memory) => ended,
            () = stop.cancelled() => Ok(Ended::Reread),
        }
    }

    async fn passes(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Ended, StoreError> {
        loop {
            let wait = match self.pass(rollout, memory).await? {
                Pass::Apply(event) => return Ok(Ended::Apply(event)),
                Pass::Measure => match self.measure(rollout, memory).await? {
                    Some(event) => return Ok(Ended::Apply(Box::new(event))),
                    None if memory.query_failed_at.is_none() => continue,
                    None => self.config.longest_pass,
                },
                Pass::Dispatched => memory.intervals.reset(self.config),
                Pass::Waits(wait) if self.ends_here(rollout, wait) => return Ok(Ended::NotDriven),
                Pass::Waits(wait) => self.next_pass(wait, &mut memory.intervals),
            };
            if let Some(ended) = self.wait(rollout, memory, wait).await? {
                return Ok(ended);
            }
        }
    }

    /// Returns whether driving is to end here.
    fn ends_here(&self, rollout: &Rollout, wait: Wait) -> bool {
        (wait.for_approval && self.config.stop_at_approval)
            || (!wait.for_approval && self.config.stop_when_sent && rollout.sent_at.is_some())
    }

    fn next_pass(&self, wait: Wait, intervals: &mut Intervals) -> Duration {
        // Without notifications, a driver must poll for changes.
        let is_idle = wait.is_idle && self.changes.is_notified();
        let remaining = wait.until.map(|until| until.since(self.clock.now()));
        let remaining = remaining.map(|time| time + Duration::from_millis(1));
        let interval = intervals.next_interval(self.config, is_idle);
        remaining.map_or(interval, |time| interval.min(time))
    }

    /// Waits for `pass`, or until an event happens.
    async fn wait(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
        pass: Duration,
    ) -> Result<Option<Ended>, StoreError> {
        let (store, every) = (&**self.store, self.config.longest_pass);
        let halted = Some(memory.were_halted);
        let confirmed_at = &mut memory.confirmed_at;
        tokio::select! {
            biased;
            changed = self.changes.changed(store, rollout, halted, every, confirmed_at), if self.changes.is_notified() => {
                return changed.map(|()| Some(Ended::Reread));
            }
            event = memory.metrics.next_measurement(rollout, self.metric_source, self.clock) => {
                return Ok(Some(Ended::Apply(Box::new(event))));
            }
            update = memory.scan.next_update(rollout, self.clock) => {
                match update {
                    ScanUpdate::Apply(event) => return Ok(Some(Ended::Apply(Box::new(event)))),
                    ScanUpdate::Failed(why) => self.note_failed_scan(rollout, &why).await?,
                }
            }
            update = memory.answers.next_update(rollout, (self.store, self.hubs), self.clock) => {
                match update? {
                    AnswerUpdate::Noted { rollout: noted, changed, missing } => {
                        *rollout = *noted;
                        note_query_result(rollout, missing.as_deref());
                        if changed {
                            self.store.save_notes(rollout).await?;
                        }
                    }
                    AnswerUpdate::Recorded { rollout: noted } => {
                        *rollout = *noted;
                        note_query_result(rollout, None);
                        self.store.save_notes(rollout).await?;
                        memory.recorded = true;
                    }
                    AnswerUpdate::Undecided(event) => {
                        return Ok(Some(Ended::Apply(Box::new(event))));
                    }
                }
            }
            () = tokio::time::sleep(pass) => {}
        }
        let is_current = self.changes.is_notified()
            || changes::is_current(store, &rollout.spec.name, rollout).await?;
        Ok((!is_current).then_some(Ended::Reread))
    }

    async fn note_failed_scan(&self, rollout: &mut Rollout, why: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        if let Some(noted) = rollout.with_failed_search(why, Some(scans::RETRY_DELAY), now) {
            self.store.save_notes(&noted).await?;
            *rollout = noted;
        }
        Ok(())
    }

    /// Makes a pass over the current stage: judges the gate, and dispatches batches if sends are
    /// pending.
    async fn pass(&self, rollout: &mut Rollout, memory: &mut Memory) -> Result<Pass, StoreError> {
        let (name, stage) = (rollout.spec.name.clone(), rollout.stage());
        // Outcomes are read after the evidence, so they include all feedback up to the watermark.
        let tallies = self.store.tallies(&name).await?;
        let now = self.clock.now();
        let evidence = evidence::read(&**self.store, rollout, &tallies, now).await?;
        let tallies = match evidence == Evidence::complete() {
            true => tallies,
            false => self.store.tallies(&name).await?,
        };
        memory.intervals.observe(&tallies);
        let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
        let unsettled = rollout.unsettled(&tallies);
        let hubs: BTreeSet<&HubName> = unsettled.map(|tally| &tally.hub).collect();
        let now = self.clock.now();
        let measured = memory.measured.filter(|(of, _)| *of == stage);
        let seen = ObservedState {
            stage: &counts,
            all: &Tally::sum(&tallies),
            sends_owed: !hubs.is_empty(),
            applied_count: measured.map(|(_, it)| it),
            unanswered: rollout.notes.answers.unanswered(&tallies),
            recorded: memory.recorded,
            evidence: &evidence,
        };
        rollout.advance_clock(&evidence, now);
        let next = gate::next(rollout, seen, now);
        let accounting = Accounting {
            store: &**self.store,
            clock: self.clock,
        };
        accounting
            .note(rollout, &next, &hubs, &mut memory.dispatch_log.obstacles)
            .await?;
        self.dispatcher
            .wake_listeners(rollout, &tallies, &mut memory.dispatch_log)
            .await?;
        match next {
            Next::Send => {
                self.send(rollout, hubs, &tallies, &mut memory.dispatch_log)
                    .await
            }
            Next::Apply(event) => Ok(Pass::Apply(Box::new(event))),
            Next::QueryTwins if rollout.counts_answers() => {
                memory.answers.query_now();
                Ok(Pass::Waits(Wait::default()))
            }
            Next::Record => {
                memory.answers.record();
                Ok(Pass::Waits(Wait::default()))
            }
            Next::QueryTwins => {
                let failed_at = memory.query_failed_at;
                let is_early = failed_at.is_some_and(|at| at.elapsed() < RETRY_DELAY);
                Ok(match is_early {
                    true => Pass::Waits(Wait::default()),
                    false => Pass::Measure,
                })
            }
            Next::Wait(waits) => Ok(Pass::Waits(Wait::of(&waits))),
            Next::Over => {
                let counts = Tally::sum(&tallies);
                Ok(Pass::Apply(Box::new(Event::AllSettled { counts })))
            }
        }
    }

    /// Dispatches pending batches, unless the schedule is closed for all of them.
    async fn send(
        &self,
        rollout: &Rollout,
        hubs: BTreeSet<&HubName>,
        tallies: &[Tally],
        log: &mut DispatchLog,
    ) -> Result<Pass, StoreError> {
        let schedule = rollout
            .spec
            .schedule_state(&TagGroup::default(), self.clock.now());
        let closed = Waiting::of_schedule(&schedule).filter(|_| !rollout.spec.has_zones());
        if let Some(closed) = closed {
            let until = closed.until();
            log.note_closed(closed);
            return Ok(Pass::Waits(Wait {
                is_idle: true,
                until,
                ..Wait::default()
            }));
        }
        let rate = rollout.rate_now(tallies);
        let round = self
            .dispatcher
            .dispatch_open(rollout, hubs, rate, log)
            .await?;
        Ok(match round {
            Round::Dispatched => Pass::Dispatched,
            Round::Waited => Pass::Waits(Wait::default()),
            Round::Quarantined(batch) => {
                let reason = format!(
                    "batch {batch} has crashed {MAX_FAILED_LEASES} workers in a row; check the \
                     workers' logs, then resume"
                );
                Pass::Apply(Box::new(Event::PauseRequested { reason }))
            }
        })
    }

    /// Queries the hubs for the number of devices with the change applied. A failed query is
    /// repeated later.
    async fn measure(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Option<Event>, StoreError> {
        let at = self.clock.now();
        match measure::measure(rollout, &**self.store, self.hubs, at).await? {
            MeasureResult::Measured(measured) => {
                memory.measured = Some((rollout.stage(), measured));
                memory.query_failed_at = None;
                note_query_result(rollout, None);
                Ok(None)
            }
            MeasureResult::Undecided(event) => Ok(Some(event)),
            MeasureResult::Failed(why) => {
                memory.query_failed_at = Some(Instant::now());
                note_query_result(rollout, Some(&why));
                Ok(None)
            }
        }
    }
}

impl Wait {
    fn of(waits: &Waiting) -> Self {
        Self {
            for_approval: matches!(waits, Waiting::Approval { .. }),
            is_idle: true,
            until: waits.until(),
        }
    }
}

/// The schedule of passes: soon after a change, and later while nothing changes.
#[derive(Debug)]
struct Intervals {
    interval: Duration,
    quiet_since: Instant,
    tallies: Vec<Tally>,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            interval: Duration::ZERO,
            quiet_since: Instant::now(),
            tallies: Vec::new(),
        }
    }
}

impl Intervals {
    /// Notes the current outcomes.
    fn observe(&mut self, tallies: &[Tally]) {
        if self.tallies != tallies {
            self.quiet_since = Instant::now();
            self.tallies = tallies.to_vec();
        }
    }

    fn reset(&mut self, config: &DriverConfig) -> Duration {
        self.interval = config.pass;
        self.interval
    }

    fn next_interval(&mut self, config: &DriverConfig, is_idle: bool) -> Duration {
        let quiet = self.quiet_since.elapsed() / BACKOFF_DIVISOR;
        let most = match is_idle {
            true => quiet.clamp(config.longest_pass, config.idle_pass),
            false => config.longest_pass,
        };
        self.interval = (self.interval * 2).clamp(config.pass, most);
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pass_interval_grows_while_a_rollout_is_idle() {
        let config = DriverConfig::default();
        let mut intervals = Intervals::default();
        let mut passes = 0;
        let mut longest = Duration::ZERO;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(600) {
            longest = intervals.next_interval(&config, true);
            let quiet = started.elapsed();
            assert!(
                longest <= config.longest_pass.max(quiet / BACKOFF_DIVISOR),
                "{longest:?} after {quiet:?}"
            );
            tokio::time::sleep(longest).await;
            passes += 1;
        }
        assert_eq!(longest, config.idle_pass);
        assert!(passes < 120, "{passes}");
        assert_eq!(intervals.next_interval(&config, false), config.longest_pass);
        assert_eq!(intervals.reset(&config), config.pass);
    }
}
