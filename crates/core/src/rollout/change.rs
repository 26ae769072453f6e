//! What an event makes of a rollout's record.

use super::adding::Looks;
use super::event::Event;
use super::history::{self, HistoryEntry};
use super::life::transition;
use super::phase::{Owed, Phase};
use super::progress::{Approval, StageProgress};
use super::record::{Reliance, Retry, Rollout};
use super::refusal::IllegalTransition;
use crate::evidence::Evidence;
use crate::ids::{Attempt, StageName};
use crate::outcome::Outcome;
use crate::spec::OnFailure;
use crate::time::Timestamp;

impl Rollout {
    /// The phase that `event` leads to, as far as the phase decides.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event cannot happen in the rollout's phase.
    pub fn phase_after(&self, event: &Event) -> Result<Phase, IllegalTransition> {
        transition(&self.phase, event).map_err(|refused| refused.of(&self.spec.name))
    }

    /// A refusal of `event`: `found` is the reason, in words for people, with what can be done.
    #[must_use]
    pub fn cannot(&self, event: &Event, found: impl Into<String>) -> IllegalTransition {
        IllegalTransition::new(event, found).of(&self.spec.name)
    }

    /// The record after `event`; `None` when the event changes nothing.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event cannot happen now.
    pub fn after(&self, event: Event, now: Timestamp) -> Result<Option<Self>, IllegalTransition> {
        let phase = self.phase_after(&event)?;
        let mut next = self.clone();
        let noted = next.note(&event, now);
        noted.map_err(|refused| refused.of(&self.spec.name))?;
        next.phase = phase;
        next.search_after(&event);
        if next.phase.owed() != Owed::Plan || event == Event::PlanningStarted {
            next.behind = None;
        }
        if next.phase.owed() != Owed::Plan
            && let Some(reason) = next.pause.take()
            && next.phase == Phase::Running
        {
            next.phase = Phase::Paused { reason };
        }
        if matches!(next.phase, Phase::Aborting { .. }) {
            next.retry = None;
        }
        if next == *self {
            return Ok(None);
        }
        let described = serde_json::to_vec(&event).expect("an event is plain data");
        next.lineage = self.lineage.then(&described, now);
        next.relies_on = Reliance::of(&event);
        next.version.0 += 1;
        next.book(&self.phase, &event, now);
        if next.phase != self.phase || event == Event::PlanningStarted {
            next.changed_at = now;
        }
        if event.is_told() {
            next.history.push(HistoryEntry {
                version: next.version,
                at: now,
                phase: next.phase.as_str().to_owned(),
                event,
            });
        }
        if next.phase == Phase::Running && self.phase != Phase::Running {
            next.notes.clock.go_on(now);
        }
        history::bound(&mut next.history);
        Ok(Some(next))
    }

    /// Notes what an event says of plan and stages.
    // Long, for it has an arm for each event.
    fn note(&mut self, event: &Event, now: Timestamp) -> Result<(), IllegalTransition> {
        match event {
            Event::Queued { behind } => self.behind = Some(behind.clone()),
            Event::PauseRequested { reason } if self.phase.owed() == Owed::Plan => {
                self.pause.get_or_insert_with(|| reason.clone());
            }
            Event::ResumeRequested { .. } => self.pause = None,
            // Planning anew is a change even though the phase stays: the new try gets its own id.
            Event::PlanningStarted => self.plan_id.0 += 1,
            Event::PlanCompleted { plan } => {
                self.plan = Some(plan.clone());
                let stages = self.spec.all_stages().into_iter();
                self.stages = stages.map(|stage| StageProgress::new(stage.name)).collect();
                // Who has joined while it was being planned is found by the first look.
                self.looks = self.spec.continuous.as_ref().map(|_| Looks {
                    last: self.changed_at,
                    ..Looks::default()
                });
                self.start_stage(now);
            }
            Event::StageSent { stage } => {
                let stage = self.current(stage, event)?;
                if stage.sent_at.is_none() {
                    stage.sent_at = Some(now);
                    self.notes.clock.start_bake(now);
                }
            }
            Event::AllSent => {
                self.sent_at.get_or_insert(now);
            }
            Event::ApprovalAwaited { stage } => {
                self.current(stage, event)?.ripe_at.get_or_insert(now);
            }
            Event::Approved { stage, word } if !self.has_passed(stage) => {
                self.current(stage, event)?;
                let until = self.approved_until();
                if let Some(until) = until.filter(|until| now >= *until) {
                    let found = format!(
                        "the time for an approval of stage {stage} was over at {until}; promote it, with a reason"
                    );
                    return Err(self.cannot(event, found));
                }
                let stage = self.current(stage, event)?;
                let word = word.clone();
                stage.approved.get_or_insert(Approval { word, at: now });
            }
            Event::Promoted { stage, word } if !self.has_passed(stage) => {
                let stage = self.current(stage, event)?;
                stage.promoted.get_or_insert_with(|| word.clone());
            }
            Event::StagePassed { stage, .. } => {
                self.current(stage, event)?.passed_at = Some(now);
                self.start_stage(now);
            }
            Event::GateFailed {
                stage,
                reason,
                then,
            } => {
                let stage = self.current(stage, event)?;
                if *then == OnFailure::Continue {
                    stage.ignored.get_or_insert_with(|| reason.clone());
                } else {
                    stage.begin_gate_anew();
                }
            }
            Event::GateUndecided { stage, .. } => self.current(stage, event)?.begin_gate_anew(),
            Event::MetricMeasured {
                stage,
                metric,
                result,
                found,
            } => {
                let stage = self.current(stage, event)?;
                stage.note_measurement(metric, *result, found, now);
            }
            Event::RetryRequested {
                outcomes, stage, ..
            } => self.request_retry(outcomes, stage.as_ref(), event)?,
            Event::RetryPrepared => self.retry = None,
            Event::LookStarted => self.start_look(now),
            Event::Looked { found } => self.end_look(found),
            Event::AllSettled { .. } if self.retry.is_some() => {
                return Err(self.cannot(event, "a retry is being prepared"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes a retry, of which there is one at a time; the same one again changes nothing. The gate of the
    /// current stage is asked anew, all of it, when its devices are concerned.
    fn request_retry(
        &mut self,
        outcomes: &[Outcome],
        stage: Option<&StageName>,
        event: &Event,
    ) -> Result<(), IllegalTransition> {
        if let Some(earlier) = &self.retry {
            return if earlier.outcomes == outcomes && earlier.stage.as_ref() == stage {
                Ok(())
            } else {
                let found =
                    format!("another retry is being prepared ({earlier}); wait until it is ready");
                Err(self.cannot(event, found))
            };
        }
        if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.can_be_retried()) {
            let found = format!("devices that are {outcome} are not sent to again");
            return Err(self.cannot(event, found));
        }
        let has_started = |name: &StageName| {
            let stage = self.stage_named(name);
            stage.is_some_and(|stage| stage.started_at.is_some())
        };
        if let Some(name) = stage.filter(|name| !has_started(name)) {
            let found = format!("nothing of stage {name} was sent yet; wait for its turn");
            return Err(self.cannot(event, found));
        }
        let Some(number) = self.attempt.0.checked_add(1) else {
            let found = "it has had all the attempts that a rollout can have; start a rollout of another name";
            return Err(self.cannot(event, found));
        };
        self.attempt = Attempt(number);
        self.sent_at = None;
        self.retry = Some(Retry {
            attempt: self.attempt,
            outcomes: outcomes.to_vec(),
            stage: stage.cloned(),
        });
        let index = usize::from(self.stage().0);
        if let Some(current) = self.stages.get_mut(index)
            && current.passed_at.is_none()
            && stage.is_none_or(|stage| *stage == current.name)
        {
            (current.sent_at, current.ignored) = (None, None);
            current.begin_gate_anew();
        }
        Ok(())
    }

    /// Until when the current stage may be approved, if that is limited.
    fn approved_until(&self) -> Option<Timestamp> {
        let rule = self.spec.gate_of(self.stage())?.approval.as_ref()?;
        let ripe_at = self.stage_progress()?.ripe_at?;
        Some(ripe_at.plus(rule.within?.0))
    }

    /// Counts the time up to `now` of what is waited for, while it runs: how far its hubs were heard is `evidence`.
    pub fn advance_clock(&mut self, evidence: &Evidence, now: Timestamp) {
        let bakes = self
            .stage_progress()
            .is_some_and(|stage| stage.sent_at.is_some() && stage.passed_at.is_none());
        self.notes.clock.advance(bakes, evidence, now);
    }

    fn start_stage(&mut self, now: Timestamp) {
        let index = usize::from(self.stage().0);
        if let Some(stage) = self.stages.get_mut(index) {
            stage.started_at.get_or_insert(now);
        }
    }

    fn has_passed(&self, name: &StageName) -> bool {
        let stage = self.stage_named(name);
        stage.is_some_and(|stage| stage.passed_at.is_some())
    }

    fn stage_named(&self, name: &StageName) -> Option<&StageProgress> {
        self.stages.iter().find(|stage| stage.name == *name)
    }

    /// The current stage, which must be the one of that name.
    fn current(
        &mut self,
        name: &StageName,
        event: &Event,
    ) -> Result<&mut StageProgress, IllegalTransition> {
        let index = usize::from(self.stage().0);
        let at = self.stages.get(index);
        let is_open = at.is_some_and(|at| at.name == *name && at.passed_at.is_none());
        if is_open {
            return Ok(&mut self.stages[index]);
        }
        let named = match self.stage_named(name).and_then(|stage| stage.passed_at) {
            Some(passed) => format!("{name} passed at {passed}, and stays passed"),
            None => format!("wait until it is the turn of {name}"),
        };
        let found = match at.filter(|at| at.name != *name) {
            Some(at) => {
                let at = &at.name;
                format!("the rollout is at stage {at}, and only that can be judged; {named}")
            }
            None => named,
        };
        Err(self.cannot(event, found))
    }
}
