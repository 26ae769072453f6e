//! The effect of an event on a rollout's record.

use super::adding::Scans;
use super::event::Event;
use super::history::{self, HistoryEntry};
use super::phase::{Duty, Phase};
use super::progress::{Approval, StageProgress};
use super::record::{Retry, Rollout, StorePrecondition};
use super::refusal::IllegalTransition;
use super::transition::transition;
use crate::evidence::Evidence;
use crate::ids::{Attempt, StageName};
use crate::outcome::Outcome;
use crate::spec::OnFailure;
use crate::time::Timestamp;

impl Rollout {
    /// Returns the phase after `event`, as far as the phase decides.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event is not allowed in the rollout's phase.
    pub fn phase_after(&self, event: &Event) -> Result<Phase, IllegalTransition> {
        transition(&self.phase, event).map_err(|refused| refused.of(&self.spec.name))
    }

    /// Refuses `event`. `found` is the human-readable reason, with the possible remedy.
    #[must_use]
    pub fn refuse(&self, event: &Event, found: impl Into<String>) -> IllegalTransition {
        IllegalTransition::new(event, found).of(&self.spec.name)
    }

    /// Returns the record after `event`; `None` when the event changes nothing.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event is not allowed now.
    pub fn after(&self, event: Event, now: Timestamp) -> Result<Option<Self>, IllegalTransition> {
        let phase = self.phase_after(&event)?;
        let mut next = self.clone();
        let noted = next.apply(&event, now);
        noted.map_err(|refused| refused.of(&self.spec.name))?;
        next.phase = phase;
        next.search_after(&event);
        if next.phase.duty() != Duty::Plan || event == Event::PlanningStarted {
            next.queued_behind = None;
        }
        if next.phase.duty() != Duty::Plan
            && let Some(reason) = next.pause_after_planning.take()
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
        next.precondition = StorePrecondition::of(&event);
        next.version.0 += 1;
        next.book(&self.phase, &event, now);
        if next.phase != self.phase || event == Event::PlanningStarted {
            next.changed_at = now;
        }
        if event.is_published() {
            next.history.push(HistoryEntry {
                version: next.version,
                at: now,
                phase: next.phase.as_str().to_owned(),
                event,
            });
        }
        match (&self.phase, &next.phase) {
            (Phase::Paused { .. } | Phase::Halted { .. }, Phase::Running) => {
                next.notes.clock.resume(now);
            }
            (before, Phase::Running) if *before != Phase::Running => next.notes.clock.start(now),
            _ => {}
        }
        history::bound(&mut next.history);
        Ok(Some(next))
    }

    /// Applies an event to the plan, the stages and the other fields beside the phase.
    // Long: one arm per event.
    fn apply(&mut self, event: &Event, now: Timestamp) -> Result<(), IllegalTransition> {
        match event {
            Event::Queued { behind } => self.queued_behind = Some(behind.clone()),
            Event::PauseRequested { reason } if self.phase.duty() == Duty::Plan => {
                self.pause_after_planning
                    .get_or_insert_with(|| reason.clone());
            }
            Event::ResumeRequested { .. } => self.pause_after_planning = None,
            // A new try at planning is a change in spite of the same phase: the try gets its own
            // id.
            Event::PlanningStarted => self.plan_id.0 += 1,
            Event::PlanCompleted { plan } => {
                self.plan = Some(plan.clone());
                let stages = self.spec.all_stages().into_iter();
                self.stages = stages.map(|stage| StageProgress::new(stage.name)).collect();
                // The first scan finds devices that join during the planning.
                self.scans = self.spec.continuous.as_ref().map(|_| Scans {
                    last: self.changed_at,
                    ..Scans::default()
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
                self.current(stage, event)?
                    .approval_awaited_at
                    .get_or_insert(now);
            }
            Event::Approved { stage, attribution } if !self.has_passed(stage) => {
                self.current(stage, event)?;
                let until = self.approved_until();
                if let Some(until) = until.filter(|until| now >= *until) {
                    let found = format!(
                        "the time for approving stage {stage} ended at {until}; promote the stage, \
                         with a reason"
                    );
                    return Err(self.refuse(event, found));
                }
                let stage = self.current(stage, event)?;
                let attribution = attribution.clone();
                stage.approved.get_or_insert(Approval {
                    attribution,
                    at: now,
                });
            }
            Event::Promoted { stage, attribution } if !self.has_passed(stage) => {
                let stage = self.current(stage, event)?;
                stage.promoted.get_or_insert_with(|| attribution.clone());
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
                    stage.ignored_failure.get_or_insert_with(|| reason.clone());
                } else {
                    stage.begin_gate_anew();
                }
            }
            Event::GateUndecided { stage, .. } => self.current(stage, event)?.begin_gate_anew(),
            Event::MetricMeasured {
                stage,
                metric,
                result,
                samples,
            } => {
                let stage = self.current(stage, event)?;
                stage.note_measurement(metric, *result, samples, now);
            }
            Event::RetryRequested {
                outcomes, stage, ..
            } => self.request_retry(outcomes, stage.as_ref(), event)?,
            Event::RetryPrepared => self.retry = None,
            Event::ScanStarted => self.start_scan(now),
            Event::ScanCompleted { found } => self.end_scan(found),
            Event::AllSettled { .. } if self.retry.is_some() => {
                return Err(self.refuse(event, "a retry is being prepared"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes a retry. Only one retry at a time is possible; a repeated request changes nothing. If
    /// the retry concerns devices of the current stage, the stage's gate is judged anew from the
    /// start.
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
                Err(self.refuse(event, found))
            };
        }
        if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.can_be_retried()) {
            let found = format!("devices with the outcome {outcome} cannot be retried");
            return Err(self.refuse(event, found));
        }
        let has_started = |name: &StageName| {
            let stage = self.stage_named(name);
            stage.is_some_and(|stage| stage.started_at.is_some())
        };
        if let Some(name) = stage.filter(|name| !has_started(name)) {
            let found = format!("stage {name} has not started yet; wait for its start");
            return Err(self.refuse(event, found));
        }
        let Some(number) = self.attempt.0.checked_add(1) else {
            let found = "it has used the maximum number of attempts; start a rollout with another \
                 name";
            return Err(self.refuse(event, found));
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
            (current.sent_at, current.ignored_failure) = (None, None);
            current.begin_gate_anew();
        }
        Ok(())
    }

    /// Returns the deadline for approving the current stage, if there is one.
    fn approved_until(&self) -> Option<Timestamp> {
        let rule = self.spec.gate_of(self.stage())?.approval.as_ref()?;
        let approval_awaited_at = self.stage_progress()?.approval_awaited_at?;
        Some(approval_awaited_at.plus(rule.within?.0))
    }

    /// Advances the clocks of waits and bakes up to `now`, if they run. `evidence` says how far the
    /// feedback of the hubs was received.
    pub fn advance_clock(&mut self, evidence: &Evidence, now: Timestamp) {
        let bakes = self
            .stage_progress()
            .is_some_and(|stage| stage.sent_at.is_some() && stage.passed_at.is_none());
        self.notes.clock.advance(bakes, evidence, now);
        let answered = self.notes.answers.of(self.stage());
        let queried_at = answered.map(|it| it.asked_at).unwrap_or_default();
        let is_needed = self.gate_counts_answers();
        self.notes
            .clock
            .note_received(is_needed.then_some(queried_at));
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

    /// Returns the current stage if it has this name and has not passed.
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
            None => format!("wait for the start of {name}"),
        };
        let found = match at.filter(|at| at.name != *name) {
            Some(at) => {
                let at = &at.name;
                format!("the rollout is at stage {at}, and only this stage can be judged; {named}")
            }
            None => named,
        };
        Err(self.refuse(event, found))
    }
}
