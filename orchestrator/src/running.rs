//! Keeps a running rollout going: batches on the hubs' queues, the gate asked, joiners looked for.
//!
//! Gives what happens to the rollout; to store that is for the driver.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::batch::MAX_STRIKES;
use twincast_core::evidence::Evidence;
use twincast_core::gate::{self, Measured, Next, Seen};
use twincast_core::ids::{HubName, StageIndex};
use twincast_core::plan::Group;
use twincast_core::ports::{Clock, MetricSource, Queue, Store, StoreError, Tally};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::time::Timestamp;
use twincast_core::waiting::Waiting;

use crate::Hubs;
use crate::accounting::Accounting;
use crate::answers::{AnswerNews, Reading};
use crate::config::DriverConfig;
use crate::hearing;
use crate::looks::{self, LookNews, Looking};
use crate::measure::{self, Measuring};
use crate::metric::Asking;
use crate::metrics::Repairs;
use crate::news::{self, News};
use crate::reach::Reach;
use crate::ringing::{Ringer, Round, Rung};

/// Hubs that could not be asked are asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// While nothing changes, the next look is after this part of the time since something did.
const PART: u32 = 8;

/// Keeps running rollouts going.
pub(crate) struct Running<'a> {
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) queue: &'a dyn Queue,
    pub(crate) hubs: &'a Hubs,
    pub(crate) metric_source: Option<&'a Arc<dyn MetricSource>>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) config: &'a DriverConfig,
    pub(crate) news: &'a News,
    pub(crate) repairs: &'a Repairs,
    pub(crate) broker: &'a Reach,
}

/// What a driver remembers between its turns. Nothing of it need be known to go on.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    rung: Rung,
    /// The newest count of a stage's devices, as told by the twins.
    measured: Option<(StageIndex, Measured)>,
    /// When the hubs last could not be asked.
    asked_in_vain: Option<Instant>,
    asking: Asking,
    looking: Looking,
    reading: Reading,
    /// What each device has answered is recorded.
    recorded: bool,
    rhythm: Rhythm,
    were_halted: bool,
    /// When the store was last asked whether the record is the one that is known.
    assured_at: Option<Instant>,
}

/// Why a rollout is kept going no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// This happens to it.
    Happened(Box<Event>),
    /// Somebody else may have changed it, or this is to stop.
    LookAgain,
    /// It waits for an approval or for answers, and is not to be driven meanwhile.
    LeftAlone,
}

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pass {
    /// This has happened to the rollout.
    Happened(Box<Event>),
    /// The devices that have applied the change must be counted.
    Measure,
    /// Batches were released.
    Rang,
    /// There was nothing to do.
    Waits(Wait),
}

/// A wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wait {
    /// All that is missing is an approval.
    for_approval: bool,
    /// Nothing is to be sent.
    is_idle: bool,
    /// The time at which something is to be done in any case.
    until: Option<Timestamp>,
}

impl Memory {
    /// Begins a turn: what the store shows from here on is newer than this.
    pub(crate) fn begin(&mut self, news: &News) {
        self.rhythm = Rhythm::default();
        self.assured_at = None;
        self.were_halted = news.were_halted();
    }

    /// Begins the look that was just noted in `rollout`'s record, by us.
    pub(crate) fn begin_look(
        &mut self,
        rollout: &Rollout,
        store: &Arc<dyn Store>,
        hubs: &Hubs,
        base: &Path,
    ) {
        self.looking.begin(rollout, store, hubs, base);
    }
}

impl Running<'_> {
    /// Keeps a rollout going until something happens to it, or `stop`. What it is doing is noted in its record meanwhile.
    ///
    /// Cancel safety: may be dropped at any time; batches that were rung for and are not remembered are rung for once more.
    pub(crate) async fn keep_going(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<Ended, StoreError> {
        tokio::select! {
            biased;
            ended = self.passes(rollout, memory) => ended,
            () = stop.cancelled() => Ok(Ended::LookAgain),
        }
    }

    async fn passes(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Ended, StoreError> {
        loop {
            let wait = match self.pass(rollout, memory).await? {
                Pass::Happened(event) => return Ok(Ended::Happened(event)),
                Pass::Measure => match self.measure(rollout, memory).await? {
                    Some(event) => return Ok(Ended::Happened(Box::new(event))),
                    None if memory.asked_in_vain.is_none() => continue,
                    None => self.config.longest_pass,
                },
                Pass::Rang => memory.rhythm.begin(self.config),
                Pass::Waits(wait) if self.is_left(rollout, wait) => return Ok(Ended::LeftAlone),
                Pass::Waits(wait) => self.next_pass(wait, &mut memory.rhythm),
            };
            if let Some(ended) = self.wait(rollout, memory, wait).await? {
                return Ok(ended);
            }
        }
    }

    /// Driving is to end here.
    fn is_left(&self, rollout: &Rollout, wait: Wait) -> bool {
        (wait.for_approval && self.config.leave_at_approval)
            || (!wait.for_approval && self.config.leave_when_sent && rollout.sent_at.is_some())
    }

    fn next_pass(&self, wait: Wait, rhythm: &mut Rhythm) -> Duration {
        // Who is not told of changes must ask for them.
        let is_idle = wait.is_idle && self.news.is_told();
        let left = wait.until.map(|until| until.since(self.clock.now()));
        let left = left.map(|left| left + Duration::from_millis(1));
        let pass = rhythm.grow(self.config, is_idle);
        left.map_or(pass, |left| pass.min(left))
    }

    /// Waits for `pass`, or until something happens.
    async fn wait(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
        pass: Duration,
    ) -> Result<Option<Ended>, StoreError> {
        let (store, every) = (&**self.store, self.config.longest_pass);
        let halted = Some(memory.were_halted);
        let assured = &mut memory.assured_at;
        tokio::select! {
            biased;
            changed = self.news.changed(store, rollout, halted, every, assured), if self.news.is_told() => {
                return changed.map(|()| Some(Ended::LookAgain));
            }
            event = memory.asking.measured(rollout, self.metric_source, self.clock) => {
                return Ok(Some(Ended::Happened(Box::new(event))));
            }
            news = memory.looking.happened(rollout, self.clock) => {
                match news {
                    LookNews::Happened(event) => return Ok(Some(Ended::Happened(Box::new(event)))),
                    LookNews::Failed(why) => self.note_failed_look(rollout, &why).await?,
                }
            }
            news = memory.reading.happened(rollout, (self.store, self.hubs), self.clock) => {
                match news? {
                    AnswerNews::Noted { rollout: noted, changed, missing } => {
                        *rollout = *noted;
                        match missing {
                            Some(why) => note_not_asked(rollout, &why),
                            None => rollout.notes.clock.asked(None),
                        }
                        if changed {
                            self.store.note(rollout).await?;
                        }
                    }
                    AnswerNews::Recorded { rollout: noted } => {
                        *rollout = *noted;
                        rollout.notes.clock.asked(None);
                        self.store.note(rollout).await?;
                        memory.recorded = true;
                    }
                    AnswerNews::Undecided(event) => {
                        return Ok(Some(Ended::Happened(Box::new(event))));
                    }
                }
            }
            () = tokio::time::sleep(pass) => {}
        }
        let is_current =
            self.news.is_told() || news::is_current(store, &rollout.spec.name, rollout).await?;
        Ok((!is_current).then_some(Ended::LookAgain))
    }

    async fn note_failed_look(&self, rollout: &mut Rollout, why: &str) -> Result<(), StoreError> {
        let now = self.clock.now();
        if let Some(noted) = rollout.noting_failed_search(why, Some(looks::AGAIN), now) {
            self.store.note(&noted).await?;
            *rollout = noted;
        }
        Ok(())
    }

    /// One look at the current stage: what its gate says, and whether batches are to be rung for.
    async fn pass(&self, rollout: &mut Rollout, memory: &mut Memory) -> Result<Pass, StoreError> {
        let (name, stage) = (rollout.spec.name.clone(), rollout.stage());
        // Read before the outcomes: what was heard by then is among these.
        let tallies = self.store.tallies(&name).await?;
        let now = self.clock.now();
        let evidence = hearing::evidence(&**self.store, rollout, &tallies, now).await?;
        let tallies = match evidence == Evidence::complete() {
            true => tallies,
            false => self.store.tallies(&name).await?,
        };
        memory.rhythm.saw(&tallies);
        let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
        let owing = rollout.owing(&tallies);
        let hubs: BTreeSet<&HubName> = owing.map(|tally| &tally.hub).collect();
        let now = self.clock.now();
        let measured = memory.measured.filter(|(of, _)| *of == stage);
        let seen = Seen {
            stage: &counts,
            all: &Tally::sum(&tallies),
            left: !hubs.is_empty(),
            measured: measured.map(|(_, it)| it),
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
            .note(rollout, &next, &hubs, &mut memory.rung.way)
            .await?;
        self.ringer()
            .wake_listeners(rollout, &tallies, &mut memory.rung)
            .await?;
        match next {
            Next::Send => self.send(rollout, hubs, &tallies, &mut memory.rung).await,
            Next::Happened(event) => Ok(Pass::Happened(Box::new(event))),
            Next::Measure if rollout.goes_by_answers() => {
                memory.reading.ask_now();
                Ok(Pass::Waits(Wait::default()))
            }
            Next::Record => {
                memory.reading.record();
                Ok(Pass::Waits(Wait::default()))
            }
            Next::Measure => {
                let in_vain = memory.asked_in_vain;
                let is_early = in_vain.is_some_and(|at| at.elapsed() < ASK_AGAIN);
                Ok(match is_early {
                    true => Pass::Waits(Wait::default()),
                    false => Pass::Measure,
                })
            }
            Next::Wait(waits) => Ok(Pass::Waits(Wait::of(&waits))),
            Next::Over => {
                let counts = Tally::sum(&tallies);
                Ok(Pass::Happened(Box::new(Event::AllSettled { counts })))
            }
        }
    }

    /// Rings for what is to be sent, unless the schedule is closed for all of it.
    async fn send(
        &self,
        rollout: &Rollout,
        hubs: BTreeSet<&HubName>,
        tallies: &[Tally],
        rung: &mut Rung,
    ) -> Result<Pass, StoreError> {
        let opening = rollout.spec.opening(&Group::default(), self.clock.now());
        let closed = Waiting::of_schedule(&opening).filter(|_| !rollout.spec.has_zones());
        if let Some(closed) = closed {
            let until = closed.until();
            rung.is_closed(closed);
            return Ok(Pass::Waits(Wait {
                is_idle: true,
                until,
                ..Wait::default()
            }));
        }
        let rate = rollout.rate_now(tallies);
        let round = self.ringer().ring_for(rollout, hubs, rate, rung).await?;
        Ok(match round {
            Round::Rang => Pass::Rang,
            Round::Waited => Pass::Waits(Wait::default()),
            Round::Quarantined(batch) => {
                let reason = format!(
                    "batch {batch} has brought down {MAX_STRIKES} workers in a row; see their logs, then resume"
                );
                Pass::Happened(Box::new(Event::PauseRequested { reason }))
            }
        })
    }

    /// Asks the hubs how many devices have applied the change. Hubs that cannot be asked at present are asked again.
    async fn measure(
        &self,
        rollout: &mut Rollout,
        memory: &mut Memory,
    ) -> Result<Option<Event>, StoreError> {
        let at = self.clock.now();
        match measure::measure(rollout, &**self.store, self.hubs, at).await? {
            Measuring::Measured(measured) => {
                memory.measured = Some((rollout.stage(), measured));
                memory.asked_in_vain = None;
                rollout.notes.clock.asked(None);
                Ok(None)
            }
            Measuring::Undecided(event) => Ok(Some(event)),
            Measuring::Failed(why) => {
                memory.asked_in_vain = Some(Instant::now());
                note_not_asked(rollout, &why);
                Ok(None)
            }
        }
    }

    fn ringer(&self) -> Ringer<'_> {
        Ringer {
            store: &**self.store,
            queue: self.queue,
            hubs: self.hubs,
            clock: self.clock,
            config: self.config,
            repairs: self.repairs,
            broker: self.broker,
        }
    }
}

/// Notes that the hubs cannot be asked what devices have done, and why; logs it when that is new.
fn note_not_asked(rollout: &mut Rollout, why: &str) {
    if rollout.notes.clock.not_asked().is_none() {
        let name = &rollout.spec.name;
        tracing::warn!(rollout = %name, error = why, "the hubs cannot be asked what devices have done");
    }
    rollout.notes.clock.asked(Some(why));
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

/// When the next look is due: soon after something has changed, and later while nothing does.
#[derive(Debug)]
struct Rhythm {
    pass: Duration,
    quiet_since: Instant,
    tallies: Vec<Tally>,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            pass: Duration::ZERO,
            quiet_since: Instant::now(),
            tallies: Vec::new(),
        }
    }
}

impl Rhythm {
    /// Notes the outcomes as they are.
    fn saw(&mut self, tallies: &[Tally]) {
        if self.tallies != tallies {
            self.quiet_since = Instant::now();
            self.tallies = tallies.to_vec();
        }
    }

    fn begin(&mut self, config: &DriverConfig) -> Duration {
        self.pass = config.pass;
        self.pass
    }

    fn grow(&mut self, config: &DriverConfig, is_idle: bool) -> Duration {
        let quiet = self.quiet_since.elapsed() / PART;
        let most = match is_idle {
            true => quiet.clamp(config.longest_pass, config.idle_pass),
            false => config.longest_pass,
        };
        self.pass = (self.pass * 2).clamp(config.pass, most);
        self.pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_become_rare_while_nothing_changes() {
        let config = DriverConfig::default();
        let mut rhythm = Rhythm::default();
        let mut looks = 0;
        let mut longest = Duration::ZERO;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(600) {
            longest = rhythm.grow(&config, true);
            let quiet = begun.elapsed();
            assert!(
                longest <= config.longest_pass.max(quiet / PART),
                "{longest:?} after {quiet:?}"
            );
            tokio::time::sleep(longest).await;
            looks += 1;
        }
        assert_eq!(longest, config.idle_pass);
        assert!(looks < 120, "{looks}");
        assert_eq!(rhythm.grow(&config, false), config.longest_pass);
        assert_eq!(rhythm.begin(&config), config.pass);
    }
}
