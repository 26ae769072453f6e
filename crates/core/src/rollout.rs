//! A rollout's life.
//!
//! ```text
//!                      ┌────────────── plan failed ─────────────▶ Failed
//!                      │
//!  Accepted ──▶ Planning ──▶ Running ──▶ Succeeded | FinishedWithFailures
//!                  ▲  │        │  ▲
//!                  │  └─ (again, after a crash)
//!                  │           │  └── resume ── Paused
//!                  │           ├───── pause ────▶ │
//!                  │           │                  │
//!                  │           └── halt all ▶ Halted ── lift ──▶ Running
//!      pause before there is a plan: the plan leads to Paused
//!      abort from any of these ──▶ Aborting ──▶ Aborted
//!      retry: Succeeded | FinishedWithFailures ──▶ Running
//! ```
//!
//! [`transition`] decides, and nothing else does. What a rollout *owes* the world ([`Rollout::owed`])
//! follows from its record alone: after a crash that is loaded and what is owed is done again, which is
//! always safe.
//!
//! A retry lowers outcomes, which nothing else does. It is requested, then prepared, batch by batch; until
//! it is, nothing is sent and no gate is asked.

pub mod history;
mod life;
mod looks;
mod planning;
mod refusal;
mod stance;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::evidence::{Evidence, EvidenceClock};
use crate::gate::metric::{self, MetricTally, Weighed};
use crate::ids::{
    Attempt, CommandKey, Lineage, Revision, RolloutId, RolloutName, StageIndex, StageName, Version,
};
use crate::outcome::Outcome;
use crate::outcome::Tally;
use crate::plan::{Checksum, PlanSummary};
use crate::spec::{OnFailure, Rate, RolloutSpec};
use crate::time::Timestamp;
use crate::trace::TraceContext;

pub use history::HistoryEntry;
pub use life::{Event, Owed, Phase, Wanted, transition};
pub use looks::{Adding, Found, LookId, Looks};
pub use planning::{Search, SearchTrouble};
pub use refusal::IllegalTransition;
pub use stance::Stance;

/// One try at planning. Batches are stored under it, so a crashed try leaves no trace.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PlanId(pub u32);

/// A rollout as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// What tells it from other rollouts of its name.
    pub id: RolloutId,
    /// The record's generation; a change is refused when it was made on an older one.
    pub version: Version,
    /// What led to this version. A store that lost its last writes may give a version twice, but no lineage.
    pub lineage: Lineage,
    /// What the store must hold for this version to be stored, if the change relies on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relies_on: Option<Reliance>,
    /// What was asked for. Files are inlined, or known by their digest in `files`.
    pub spec: RolloutSpec,
    /// SHA-256 of the files that the spec names, by path.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, String>,
    /// Where it is in its life.
    #[serde(flatten)]
    pub phase: Phase,
    /// The newest try at planning.
    pub plan_id: PlanId,
    /// What the plan came to, once it is whole.
    pub plan: Option<PlanSummary>,
    /// How far the search for its devices is, while there is one and something is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// Its stages, in order, once the plan is whole.
    #[serde(default)]
    pub stages: Vec<StageProgress>,
    /// The rollout of its group that it waits for, before it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<RolloutName>,
    /// Why it is to be paused as soon as its plan is whole, if somebody wants that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<String>,
    /// The newest attempt at any of its devices.
    #[serde(default = "Attempt::first")]
    pub attempt: Attempt,
    /// What is to be prepared before anything is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Time that counts only while it is driven and heard: bakes, and waits for evidence.
    #[serde(default)]
    pub clock: EvidenceClock,
    /// When it was noted that every device was sent the message and that answers are all that is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The span of the command that started it. Older records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// Of a continuous rollout, once the plan is whole: its looks for devices that have joined or left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks: Option<Looks>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its phase last changed.
    pub changed_at: Timestamp,
    /// For how long it has done what. Older records have none.
    #[serde(default)]
    pub account: Account,
    /// What happened to it, oldest first, [bounded](history::bound).
    pub history: Vec<HistoryEntry>,
    /// Commands with a key that have changed it, oldest first; the newest [`Rollout::KEYS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyed: Vec<Keyed>,
}

/// What the store must hold when a change is stored.
///
/// A change follows from what was read and written before. A store that crashed in between may have lost some of that,
/// though it acknowledged it; so the store checks the condition in the step that stores the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reliance {
    /// The rollout has exactly these batches.
    Batches(Checksum),
    /// No send is owed to any device.
    Settled,
}

impl Reliance {
    /// What a change relies on.
    fn of(event: &Event) -> Option<Self> {
        match event {
            Event::PlanCompleted { plan } => Some(Self::Batches(plan.checksum)),
            Event::Looked { found } => Some(Self::Batches(found.checksum)),
            Event::AllSettled { .. } => Some(Self::Settled),
            _ => None,
        }
    }
}

/// A command that is done once, however often it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// What it is known by.
    pub key: CommandKey,
    /// What it asks for, to be told from another one that was given the same key.
    pub asks: String,
}

/// A new attempt that is to be made at some devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Which attempt it is.
    pub attempt: Attempt,
    /// At devices that have one of these outcomes ...
    pub outcomes: Vec<Outcome>,
    /// ... and are of this stage, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
}

impl std::fmt::Display for Retry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("devices ")?;
        if let Some(stage) = &self.stage {
            write!(f, "of stage {stage} ")?;
        }
        let words: Vec<_> = self.outcomes.iter().map(|it| it.as_str()).collect();
        write!(f, "that are {}", words.join(" or "))
    }
}

impl Rollout {
    /// How many commands are known by their keys.
    pub const KEYS: usize = 64;

    /// A rollout that was just accepted.
    #[must_use]
    pub fn accepted(
        spec: RolloutSpec,
        files: std::collections::BTreeMap<String, String>,
        now: Timestamp,
    ) -> Self {
        let described = serde_json::to_vec(&(&spec, &files)).expect("a spec is plain data");
        let lineage = Lineage::default().then(&described, now);
        Self {
            id: lineage.id(),
            version: Version(1),
            lineage,
            relies_on: None,
            spec,
            files,
            phase: Phase::Accepted,
            plan_id: PlanId(0),
            plan: None,
            search: None,
            stages: Vec::new(),
            behind: None,
            pause: None,
            attempt: Attempt::FIRST,
            retry: None,
            clock: EvidenceClock::default(),
            sent_at: None,
            trace: None,
            looks: None,
            created_at: now,
            changed_at: now,
            account: Account::opened(now),
            history: vec![HistoryEntry {
                version: Version(1),
                at: now,
                phase: Phase::Accepted.as_str().to_owned(),
                event: Event::Accepted {
                    word: Word::default(),
                },
            }],
            keyed: Vec::new(),
        }
    }

    /// The same, with who wanted it, and why.
    #[must_use]
    pub fn wanted_by(mut self, word: Word) -> Self {
        if let Some(HistoryEntry {
            event: Event::Accepted { word: noted },
            ..
        }) = self.history.first_mut()
        {
            *noted = word;
        }
        self
    }

    /// The same, begun by the command of that span.
    #[must_use]
    pub fn traced_to(mut self, span: TraceContext) -> Self {
        self.trace = Some(span);
        self
    }

    /// The state that the record is in.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision {
            version: self.version,
            lineage: self.lineage,
        }
    }

    /// The command of that key, if it has changed the rollout.
    #[must_use]
    pub fn done(&self, key: &CommandKey) -> Option<&Keyed> {
        self.keyed.iter().find(|keyed| keyed.key == *key)
    }

    /// The same, changed by that command.
    #[must_use]
    pub fn done_by(mut self, command: Keyed) -> Self {
        self.keyed.push(command);
        let surplus = self.keyed.len().saturating_sub(Self::KEYS);
        self.keyed.drain(..surplus);
        self
    }

    /// What has led to this version of the record; `None` when that is not [told](Event::is_told).
    #[must_use]
    pub fn happened(&self) -> Option<&HistoryEntry> {
        let newest = self.history.last();
        newest.filter(|entry| entry.version == self.version)
    }

    /// What it owes the world.
    #[must_use]
    pub fn owed(&self) -> Owed {
        match self.phase.owed() {
            Owed::ReleaseBatches if self.retry.is_some() => Owed::PrepareRetry,
            owed => owed,
        }
    }

    /// What a worker that holds a batch is to do.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match &self.retry {
            Some(_) => Wanted::Stop,
            None => self.phase.wanted(),
        }
    }

    /// Whether devices may be reopened for `attempt` now.
    #[must_use]
    pub fn prepares(&self, attempt: Attempt) -> bool {
        let prepared = self.retry.as_ref().map(|retry| retry.attempt);
        self.owed() == Owed::PrepareRetry && prepared == Some(attempt)
    }

    /// The stage whose devices are sent to; those before it are over. The last one stays it when all are.
    #[must_use]
    pub fn stage(&self) -> StageIndex {
        let open = self
            .stages
            .iter()
            .position(|stage| stage.passed_at.is_none());
        let last = self.stages.len().saturating_sub(1);
        let stage = open.unwrap_or(last);
        StageIndex(u16::try_from(stage).expect("there are at most MAX_STAGES stages"))
    }

    /// The rate through each hub now, if the rollout has one.
    #[must_use]
    pub fn rate_now(&self, tallies: &[Tally]) -> Option<Rate> {
        let pace = self.spec.pace_of(self.stage());
        pace.rate_at(pace.counted(tallies))
    }

    /// How far the stage is whose devices are sent to; `None` before the plan is whole.
    #[must_use]
    pub fn stage_progress(&self) -> Option<&StageProgress> {
        self.stages.get(usize::from(self.stage().0))
    }

    /// What it waits for before it is planned, in words, if that is known.
    #[must_use]
    pub fn waits_in_line(&self) -> Option<String> {
        let (behind, group) = self.behind.as_ref().zip(self.spec.group.as_ref())?;
        Some(format!(
            "waits for rollout {behind}, which is before it in group {group}"
        ))
    }

    /// What becomes of it once it is planned, in words, if that is not to be sent.
    #[must_use]
    pub fn is_to_be_paused(&self) -> Option<String> {
        let reason = self.pause.as_ref()?;
        Some(format!("is paused once it is planned: {reason}"))
    }

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
            next.clock.go_on(now);
        }
        history::bound(&mut next.history);
        Ok(Some(next))
    }

    /// Notes what an event says of plan and stages.
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
                    self.clock.start_bake(now);
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
                let (result, found) = (*result, found.clone());
                let stage = self.current(stage, event)?;
                metric::note(stage, metric, Weighed { result, found }, now);
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
            let stage = self.stages.iter().find(|stage| stage.name == *name);
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
        self.clock.advance(bakes, evidence, now);
    }

    fn start_stage(&mut self, now: Timestamp) {
        let index = usize::from(self.stage().0);
        if let Some(stage) = self.stages.get_mut(index) {
            stage.started_at.get_or_insert(now);
        }
    }

    fn has_passed(&self, name: &StageName) -> bool {
        let stage = self.stages.iter().find(|stage| stage.name == *name);
        stage.is_some_and(|stage| stage.passed_at.is_some())
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
        let named = self.stages.iter().find(|stage| stage.name == *name);
        let named = match named.and_then(|stage| stage.passed_at) {
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

/// Who said something, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, if they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.by.as_deref().unwrap_or("somebody"))?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// Somebody's yes to a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who, and why.
    #[serde(flatten)]
    pub word: Word,
    /// When.
    pub at: Timestamp,
}

/// How far a stage is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The stage.
    pub name: StageName,
    /// Since when its devices are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it was noted that all of them were sent to. Only of a stage with a gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// Since when an approval is all that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ripe_at: Option<Timestamp>,
    /// Who approved, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
    /// Who wants its gate to count as passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Word>,
    /// Why its gate failed, when the rollout is to go on all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
    /// What is known of its gate's metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricTally>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<Timestamp>,
}

impl StageProgress {
    /// A stage that has not started.
    #[must_use]
    pub fn new(name: StageName) -> Self {
        Self {
            name,
            started_at: None,
            sent_at: None,
            ripe_at: None,
            approved: None,
            promoted: None,
            ignored: None,
            metrics: Vec::new(),
            passed_at: None,
        }
    }

    /// The gate is asked again, all of it.
    fn begin_gate_anew(&mut self) {
        (self.ripe_at, self.approved) = (None, None);
        self.metrics.clear();
    }
}
