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

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::gate::metric::{self, MetricResult, MetricTally, Weighed};
use crate::ids::{Attempt, MetricName, RolloutName, StageIndex, StageName, Version};
use crate::outcome::{Counts, Outcome};
use crate::plan::PlanSummary;
use crate::ports::Tally;
use crate::spec::{OnFailure, Rate, RolloutSpec};
use crate::time::Timestamp;

/// One try at planning. Batches are stored under it, so a crashed try leaves no trace.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PlanId(pub u32);

/// Where a rollout is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Accepted, nothing done yet.
    Accepted,
    /// Its devices are being found.
    Planning,
    /// Its batches are being worked on.
    Running,
    /// Nothing is sent until it is resumed.
    Paused {
        /// Why, for people.
        reason: String,
    },
    /// Nothing is sent by any rollout until all may go on.
    Halted {
        /// Why, for people.
        reason: String,
    },
    /// What is in flight is recorded, the rest will be skipped.
    Aborting {
        /// Why, for people.
        reason: String,
    },
    /// Ended by abort.
    Aborted {
        /// Why, for people.
        reason: String,
    },
    /// Every device was sent the message.
    Succeeded,
    /// Nothing more to do, but not every device was sent the message.
    FinishedWithFailures,
    /// It could not be planned.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// What a phase owes the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Find the devices and store the batches.
    Plan,
    /// Make the devices pending that are to be sent to again.
    PrepareRetry,
    /// Keep batches on the queue until every device is settled.
    ReleaseBatches,
    /// Mark every device that was not sent anything as skipped.
    SkipRemaining,
    /// Nothing, until something happens.
    Nothing,
}

impl Phase {
    /// What this phase owes the world; see [`Rollout::owed`], too.
    #[must_use]
    pub fn owed(&self) -> Owed {
        match self {
            Self::Accepted | Self::Planning => Owed::Plan,
            Self::Running => Owed::ReleaseBatches,
            Self::Aborting { .. } => Owed::SkipRemaining,
            Self::Paused { .. }
            | Self::Halted { .. }
            | Self::Aborted { .. }
            | Self::Succeeded
            | Self::FinishedWithFailures
            | Self::Failed { .. } => Owed::Nothing,
        }
    }

    /// Nothing will happen to the rollout again, unless somebody wants a retry.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            self,
            Self::Aborted { .. }
                | Self::Succeeded
                | Self::FinishedWithFailures
                | Self::Failed { .. }
        )
    }

    /// What a worker that holds a batch is to do; see [`Rollout::wanted`], too.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match self {
            Self::Running => Wanted::GoOn,
            _ => Wanted::Stop,
        }
    }

    /// Why it is in this phase, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Paused { reason }
            | Self::Halted { reason }
            | Self::Aborting { reason }
            | Self::Aborted { reason }
            | Self::Failed { reason } => Some(reason),
            Self::Accepted
            | Self::Planning
            | Self::Running
            | Self::Succeeded
            | Self::FinishedWithFailures => None,
        }
    }

    /// The phase's name as it is written in files and labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Paused { .. } => "paused",
            Self::Halted { .. } => "halted",
            Self::Aborting { .. } => "aborting",
            Self::Aborted { .. } => "aborted",
            Self::Succeeded => "succeeded",
            Self::FinishedWithFailures => "finished_with_failures",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What the rollout wants of a worker; every record of a window is answered with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Send on.
    GoOn,
    /// Record what is in flight, send nothing more, let go of the batch.
    Stop,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// It was accepted. Always the first.
    Accepted {
        /// Who wanted it, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// It waits for a rollout of its group that came before it.
    Queued {
        /// That one.
        behind: RolloutName,
    },
    /// Planning began, or began anew.
    PlanningStarted,
    /// The plan is whole in the store.
    PlanCompleted {
        /// What it came to.
        plan: PlanSummary,
    },
    /// The plan cannot be made.
    PlanningFailed {
        /// Why, for people.
        reason: String,
    },
    /// An operator, or a rule, wants nothing more to be sent for now.
    PauseRequested {
        /// Why, for people.
        reason: String,
    },
    /// An operator wants it to go on.
    ResumeRequested {
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// An operator wants nothing to be sent by any rollout.
    HaltRequested {
        /// Why, for people.
        reason: String,
    },
    /// All rollouts may go on that were sending before.
    HaltLifted {
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// An operator, or a rule, wants it ended.
    AbortRequested {
        /// Why, for people.
        reason: String,
    },
    /// Every device of a stage that has a gate is settled.
    StageSent {
        /// The stage.
        stage: StageName,
    },
    /// A stage's gate holds but for an approval.
    ApprovalAwaited {
        /// The stage.
        stage: StageName,
    },
    /// Somebody approves of a stage.
    Approved {
        /// The stage.
        stage: StageName,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// Somebody wants a stage's gate to count as passed, whatever it says.
    Promoted {
        /// The stage.
        stage: StageName,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// A stage is over; the next one starts.
    StagePassed {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
    },
    /// A stage's gate does not hold.
    GateFailed {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
        /// What is to be done about it.
        then: OnFailure,
    },
    /// A metric of a stage's gate was measured, and that is worth remembering.
    MetricMeasured {
        /// The stage.
        stage: StageName,
        /// The metric.
        metric: MetricName,
        /// What it came to.
        result: MetricResult,
        /// What was found, for people.
        found: String,
    },
    /// Of a stage's gate it cannot be said whether it holds: people must look.
    GateUndecided {
        /// The stage.
        stage: StageName,
        /// Why, for people.
        reason: String,
    },
    /// Somebody wants a new attempt at some devices.
    RetryRequested {
        /// Those that have one of these outcomes ...
        outcomes: Vec<Outcome>,
        /// ... and are of this stage, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<StageName>,
        /// Who, and why.
        #[serde(flatten)]
        word: Word,
    },
    /// All of these devices are pending again.
    RetryPrepared,
    /// Every device of the plan is settled.
    AllSettled {
        /// The outcomes.
        counts: Counts,
    },
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a rollout that is {phase} cannot take the event {event}")]
pub struct IllegalTransition {
    phase: String,
    event: String,
}

impl Event {
    /// The event's name as it is written.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).ok();
        let name = value.and_then(|value| Some(value.get("event")?.as_str()?.to_owned()));
        name.unwrap_or_default()
    }
}

/// The phase that `event` leads to. `Ok` with the same phase means that it changed nothing:
/// asking twice is not an error.
///
/// # Errors
/// [`IllegalTransition`] when the event cannot happen in this phase.
pub fn transition(phase: &Phase, event: &Event) -> Result<Phase, IllegalTransition> {
    use Event as E;
    use Phase as P;
    let illegal = || IllegalTransition {
        phase: phase.as_str().to_owned(),
        event: event.name(),
    };
    let next = match (phase, event) {
        (_, E::AllSettled { counts }) if counts.unsettled() > 0 => return Err(illegal()),
        (_, E::Accepted { .. }) => return Err(illegal()),
        (P::Accepted | P::Planning, E::Queued { .. }) => phase.clone(),
        (P::Accepted | P::Planning, E::PlanningStarted) => P::Planning,
        (P::Planning, E::PlanCompleted { plan }) if plan.devices == 0 => P::Failed {
            reason: "the target matches no device".into(),
        },
        (P::Planning, E::PlanCompleted { .. }) => P::Running,
        (P::Accepted | P::Planning, E::PlanningFailed { reason }) => P::Failed {
            reason: reason.clone(),
        },

        (P::Running, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },
        (P::Paused { .. }, E::PauseRequested { .. }) => phase.clone(),
        (P::Paused { .. } | P::Running, E::ResumeRequested { .. }) => P::Running,
        // It stays paused when all the others may go on.
        (P::Halted { .. }, E::PauseRequested { reason }) => P::Paused {
            reason: reason.clone(),
        },

        (P::Running, E::HaltRequested { reason }) => P::Halted {
            reason: reason.clone(),
        },
        (P::Halted { .. }, E::HaltLifted { .. }) => P::Running,
        // Those that send nothing need no halting.
        (_, E::HaltRequested { .. } | E::HaltLifted { .. }) => phase.clone(),

        (
            P::Running,
            E::GateFailed {
                stage,
                reason,
                then,
            },
        ) => match then {
            OnFailure::Pause => P::Paused {
                reason: format!("the gate of stage {stage} failed: {reason}"),
            },
            OnFailure::Abort => P::Aborting {
                reason: format!("the gate of stage {stage} failed: {reason}"),
            },
            OnFailure::Continue => P::Running,
        },
        (P::Running, E::GateUndecided { stage, reason }) => P::Paused {
            reason: format!("the gate of stage {stage} cannot be judged: {reason}"),
        },
        (P::Running, E::MetricMeasured { .. }) => P::Running,
        (P::Running, E::StageSent { .. } | E::ApprovalAwaited { .. } | E::StagePassed { .. }) => {
            P::Running
        }
        (P::Running | P::Paused { .. } | P::Halted { .. }, E::Approved { .. }) => phase.clone(),
        // A word on the gate that it was paused by, and so one to go on.
        (P::Running | P::Paused { .. }, E::Promoted { .. }) => P::Running,
        (P::Halted { .. }, E::Promoted { .. }) => phase.clone(),

        (P::Running | P::Succeeded | P::FinishedWithFailures, E::RetryRequested { .. }) => {
            P::Running
        }
        (P::Paused { .. } | P::Halted { .. }, E::RetryRequested { .. })
        | (P::Running | P::Paused { .. } | P::Halted { .. }, E::RetryPrepared) => phase.clone(),

        (
            P::Accepted | P::Planning | P::Running | P::Paused { .. } | P::Halted { .. },
            E::AbortRequested { reason },
        ) => P::Aborting {
            reason: reason.clone(),
        },
        (P::Aborting { .. } | P::Aborted { .. }, E::AbortRequested { .. }) => phase.clone(),

        (P::Running | P::Paused { .. } | P::Halted { .. }, E::AllSettled { counts }) => {
            if counts.failed() == 0 && counts.get(Outcome::Skipped) == 0 {
                P::Succeeded
            } else {
                P::FinishedWithFailures
            }
        }
        (P::Aborting { reason }, E::AllSettled { .. }) => P::Aborted {
            reason: reason.clone(),
        },
        (P::Aborted { .. } | P::Succeeded | P::FinishedWithFailures, E::AllSettled { .. }) => {
            phase.clone()
        }

        (
            P::Running
            | P::Paused { .. }
            | P::Halted { .. }
            | P::Aborting { .. }
            | P::Aborted { .. }
            | P::Succeeded
            | P::FinishedWithFailures
            | P::Failed { .. },
            E::PlanningStarted | E::PlanCompleted { .. } | E::PlanningFailed { .. },
        )
        | (
            P::Accepted,
            E::PlanCompleted { .. }
            | E::PauseRequested { .. }
            | E::ResumeRequested { .. }
            | E::AllSettled { .. },
        )
        | (
            P::Planning,
            E::PauseRequested { .. } | E::ResumeRequested { .. } | E::AllSettled { .. },
        )
        | (P::Halted { .. }, E::ResumeRequested { .. })
        | (
            P::Aborting { .. }
            | P::Aborted { .. }
            | P::Succeeded
            | P::FinishedWithFailures
            | P::Failed { .. },
            E::PauseRequested { .. } | E::ResumeRequested { .. },
        )
        | (P::Succeeded | P::FinishedWithFailures | P::Failed { .. }, E::AbortRequested { .. })
        | (P::Failed { .. }, E::AllSettled { .. })
        | (
            _,
            E::Queued { .. }
            | E::StageSent { .. }
            | E::ApprovalAwaited { .. }
            | E::Approved { .. }
            | E::Promoted { .. }
            | E::StagePassed { .. }
            | E::MetricMeasured { .. }
            | E::GateUndecided { .. }
            | E::GateFailed { .. }
            | E::RetryRequested { .. }
            | E::RetryPrepared,
        ) => return Err(illegal()),
    };
    Ok(next)
}

/// A rollout as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The record's generation; a change is refused when it was made on an older one.
    pub version: Version,
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
    /// Its stages, in order, once the plan is whole.
    #[serde(default)]
    pub stages: Vec<StageProgress>,
    /// The rollout of its group that it waits for, before it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<RolloutName>,
    /// The newest attempt at any of its devices.
    #[serde(default = "Attempt::first")]
    pub attempt: Attempt,
    /// What is to be prepared before anything is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its phase last changed.
    pub changed_at: Timestamp,
    /// For how long it has done what. Older records have none.
    #[serde(default)]
    pub account: Account,
    /// What happened to it, oldest first; the newest [`Rollout::HISTORY`].
    pub history: Vec<HistoryEntry>,
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

/// One thing that happened to a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The record's version that it led to.
    #[serde(default)]
    pub version: Version,
    /// When.
    pub at: Timestamp,
    /// The phase that it led to, by its name.
    #[serde(default)]
    pub phase: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

impl Rollout {
    /// How many history entries are kept.
    pub const HISTORY: usize = 200;

    /// A rollout that was just accepted.
    #[must_use]
    pub fn accepted(
        spec: RolloutSpec,
        files: std::collections::BTreeMap<String, String>,
        now: Timestamp,
    ) -> Self {
        Self {
            version: Version(1),
            spec,
            files,
            phase: Phase::Accepted,
            plan_id: PlanId(0),
            plan: None,
            stages: Vec::new(),
            behind: None,
            attempt: Attempt::FIRST,
            retry: None,
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

    /// The record after `event`; `None` when the event changes nothing.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event cannot happen now.
    pub fn after(&self, event: Event, now: Timestamp) -> Result<Option<Self>, IllegalTransition> {
        let phase = transition(&self.phase, &event)?;
        let mut next = self.clone();
        next.note(&event, now)?;
        next.phase = phase;
        if next.phase.owed() != Owed::Plan || event == Event::PlanningStarted {
            next.behind = None;
        }
        if matches!(next.phase, Phase::Aborting { .. }) {
            next.retry = None;
        }
        if next == *self {
            return Ok(None);
        }
        next.version.0 += 1;
        next.book(&self.phase, &event, now);
        if next.phase != self.phase || event == Event::PlanningStarted {
            next.changed_at = now;
        }
        next.history.push(HistoryEntry {
            version: next.version,
            at: now,
            phase: next.phase.as_str().to_owned(),
            event,
        });
        let surplus = next.history.len().saturating_sub(Self::HISTORY);
        next.history.drain(..surplus);
        Ok(Some(next))
    }

    /// Notes what an event says of plan and stages.
    fn note(&mut self, event: &Event, now: Timestamp) -> Result<(), IllegalTransition> {
        match event {
            Event::Queued { behind } => self.behind = Some(behind.clone()),
            // Planning anew is a change even though the phase stays: the new try gets its own id.
            Event::PlanningStarted => self.plan_id.0 += 1,
            Event::PlanCompleted { plan } => {
                self.plan = Some(plan.clone());
                let stages = self.spec.all_stages().into_iter();
                self.stages = stages.map(|stage| StageProgress::new(stage.name)).collect();
                self.start_stage(now);
            }
            Event::StageSent { stage } => {
                self.current(stage, event)?.sent_at.get_or_insert(now);
            }
            Event::ApprovalAwaited { stage } => {
                self.current(stage, event)?.ripe_at.get_or_insert(now);
            }
            Event::Approved { stage, word } if !self.has_passed(stage) => {
                let stage = self.current(stage, event)?;
                stage.approved.get_or_insert_with(|| word.clone());
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
            Event::AllSettled { .. } if self.retry.is_some() => {
                return Err(self.cannot("preparing a retry", event));
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
                Err(self.cannot("preparing another retry", event))
            };
        }
        if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.can_be_retried()) {
            return Err(IllegalTransition {
                phase: self.phase.as_str().to_owned(),
                event: format!("{} of devices that are {outcome}", event.name()),
            });
        }
        let has_started = |name: &StageName| {
            let stage = self.stages.iter().find(|stage| stage.name == *name);
            stage.is_some_and(|stage| stage.started_at.is_some())
        };
        if let Some(name) = stage.filter(|name| !has_started(name)) {
            return Err(self.cannot(&format!("not at stage {name} yet"), event));
        }
        let Some(number) = self.attempt.0.checked_add(1) else {
            return Err(self.cannot("at its last attempt", event));
        };
        self.attempt = Attempt(number);
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

    fn cannot(&self, as_it_is: &str, event: &Event) -> IllegalTransition {
        IllegalTransition {
            phase: as_it_is.to_owned(),
            event: event.name(),
        }
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
        match self.stages.get_mut(index) {
            Some(stage) if stage.name == *name => Ok(stage),
            other => Err(IllegalTransition {
                phase: match other {
                    Some(stage) => format!("at stage {}", stage.name),
                    None => "not planned yet".to_owned(),
                },
                event: format!("{} of stage {name}", event.name()),
            }),
        }
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
    /// Who approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Word>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(devices: u64) -> Event {
        Event::PlanCompleted {
            plan: PlanSummary {
                devices,
                batches: 1,
                digest: String::new(),
                hubs: vec![],
                stages: vec![],
                excluded: vec![],
                repeated: 0,
            },
        }
    }

    fn phases() -> Vec<Phase> {
        let reason = || "r".to_owned();
        vec![
            Phase::Accepted,
            Phase::Planning,
            Phase::Running,
            Phase::Paused { reason: reason() },
            Phase::Halted { reason: reason() },
            Phase::Aborting { reason: reason() },
            Phase::Aborted { reason: reason() },
            Phase::Succeeded,
            Phase::FinishedWithFailures,
            Phase::Failed { reason: reason() },
        ]
    }

    fn events() -> Vec<Event> {
        let reason = || "e".to_owned();
        let mut failed = Counts::pending(2);
        failed.shift(Outcome::Pending, Outcome::Enqueued);
        let mut counts = failed;
        failed.shift(Outcome::Pending, Outcome::NotFound);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        vec![
            Event::Queued {
                behind: RolloutName::new("b").unwrap(),
            },
            Event::PlanningStarted,
            plan(2),
            plan(0),
            Event::PlanningFailed { reason: reason() },
            Event::PauseRequested { reason: reason() },
            Event::ResumeRequested {
                word: Word::default(),
            },
            Event::HaltRequested { reason: reason() },
            Event::HaltLifted {
                word: Word::default(),
            },
            Event::AbortRequested { reason: reason() },
            Event::AllSettled { counts },
            Event::AllSettled { counts: failed },
            retry(&[Outcome::NotFound], None),
            Event::RetryPrepared,
        ]
    }

    fn retry(outcomes: &[Outcome], stage: Option<&str>) -> Event {
        Event::RetryRequested {
            outcomes: outcomes.to_vec(),
            stage: stage.map(|stage| StageName::new(stage).unwrap()),
            word: Word::default(),
        }
    }

    fn stage_events() -> Vec<Event> {
        let stage = || StageName::new("s").unwrap();
        let failed = |then| Event::GateFailed {
            stage: stage(),
            reason: "g".into(),
            then,
        };
        vec![
            Event::StageSent { stage: stage() },
            Event::ApprovalAwaited { stage: stage() },
            Event::StagePassed {
                stage: stage(),
                reason: "g".into(),
            },
            Event::Approved {
                stage: stage(),
                word: Word::default(),
            },
            Event::Promoted {
                stage: stage(),
                word: Word::default(),
            },
            failed(OnFailure::Pause),
            failed(OnFailure::Abort),
            failed(OnFailure::Continue),
            Event::MetricMeasured {
                stage: stage(),
                metric: MetricName::new("m").unwrap(),
                result: MetricResult::Succeeded,
                found: "1".into(),
            },
            Event::GateUndecided {
                stage: stage(),
                reason: "g".into(),
            },
        ]
    }

    fn table(events: &[Event]) -> Vec<String> {
        phases()
            .iter()
            .map(|phase| {
                let row: Vec<_> = events
                    .iter()
                    .map(|event| match transition(phase, event) {
                        Err(_) => ".",
                        Ok(next) if next == *phase => "=",
                        Ok(next) => next.as_str(),
                    })
                    .collect();
                format!("{}: {}", phase.as_str(), row.join(" "))
            })
            .collect()
    }

    /// What is said of a stage's gate has a meaning while the rollout is under way only.
    #[test]
    fn every_edge_of_stages() {
        assert_eq!(
            table(&stage_events()),
            [
                "accepted: . . . . . . . . . .",
                "planning: . . . . . . . . . .",
                "running: = = = = = paused aborting = = paused",
                "paused: . . . = running . . . . .",
                "halted: . . . = = . . . . .",
                "aborting: . . . . . . . . . .",
                "aborted: . . . . . . . . . .",
                "succeeded: . . . . . . . . . .",
                "finished_with_failures: . . . . . . . . . .",
                "failed: . . . . . . . . . .",
            ]
        );
    }

    /// The whole machine as a table: `.` is illegal, `=` changes nothing.
    #[test]
    fn every_edge() {
        assert_eq!(
            table(&events()),
            [
                "accepted: = planning . . failed . . = = aborting . . . .",
                "planning: = = running failed failed . . = = aborting . . . .",
                "running: . . . . . paused = halted = aborting succeeded finished_with_failures = =",
                "paused: . . . . . = running = = aborting succeeded finished_with_failures = =",
                "halted: . . . . . paused . = running aborting succeeded finished_with_failures = =",
                "aborting: . . . . . . . = = = aborted aborted . .",
                "aborted: . . . . . . . = = = = = . .",
                "succeeded: . . . . . . . = = . = = running .",
                "finished_with_failures: . . . . . . . = = . = = running .",
                "failed: . . . . . . . = = . . . . .",
            ]
        );
    }

    #[test]
    fn ended_is_ended_and_only_running_sends() {
        for phase in phases() {
            assert_eq!(phase.wanted() == Wanted::GoOn, phase == Phase::Running);
            if phase.is_ended() {
                assert_eq!(phase.owed(), Owed::Nothing);
                for event in events() {
                    if matches!(event, Event::RetryRequested { .. }) {
                        continue;
                    }
                    assert!(
                        transition(&phase, &event).is_err()
                            || transition(&phase, &event).unwrap() == phase
                    );
                }
            }
        }
    }

    /// A rollout of two stages, of which the first has a gate, that runs.
    fn staged() -> Rollout {
        let spec = RolloutSpec::read(
            "x",
            "{name: a, target: {all: true}, message: {body: {text: hi}}, \
             stages: [{name: s, percent: 10, gate: {approval: {}}}]}",
        )
        .unwrap();
        let rollout = Rollout::accepted(spec, Default::default(), Timestamp(5));
        let rollout = step(&rollout, Event::PlanningStarted);
        step(&rollout, plan(20))
    }

    fn step(rollout: &Rollout, event: Event) -> Rollout {
        rollout.after(event, Timestamp(9)).unwrap().unwrap()
    }

    #[test]
    fn a_retry_is_prepared_before_anything_else_happens() {
        let stage = || StageName::new("s").unwrap();
        let running = staged();
        let sent = step(&running, Event::StageSent { stage: stage() });
        let ripe = step(&sent, Event::ApprovalAwaited { stage: stage() });
        let requested = step(&ripe, retry(&[Outcome::NotFound, Outcome::Expired], None));
        assert_eq!(requested.attempt, Attempt(2));
        let progress = requested.stage_progress().unwrap();
        assert_eq!(
            (progress.sent_at, progress.ripe_at),
            (None, None),
            "all anew"
        );
        assert_eq!(requested.owed(), Owed::PrepareRetry);
        assert_eq!(requested.wanted(), Wanted::Stop);
        assert!(requested.prepares(Attempt(2)) && !requested.prepares(Attempt(1)));

        let again = |event| requested.after(event, Timestamp(9));
        assert_eq!(
            again(retry(&[Outcome::NotFound, Outcome::Expired], None)),
            Ok(None)
        );
        let other = again(retry(&[Outcome::NotFound], None)).unwrap_err();
        assert!(
            other.to_string().contains("preparing another retry"),
            "{other}"
        );
        let settled = Event::AllSettled {
            counts: Counts::default(),
        };
        assert!(again(settled).is_err());

        let paused = step(&requested, Event::PauseRequested { reason: "p".into() });
        assert_eq!(paused.owed(), Owed::Nothing);
        assert!(!paused.prepares(Attempt(2)));
        let resumed = step(
            &paused,
            Event::ResumeRequested {
                word: Word::default(),
            },
        );
        assert_eq!(resumed.owed(), Owed::PrepareRetry);
        let aborted = step(&resumed, Event::AbortRequested { reason: "a".into() });
        assert_eq!((aborted.owed(), aborted.retry), (Owed::SkipRemaining, None));

        let prepared = step(&requested, Event::RetryPrepared);
        assert_eq!(prepared.owed(), Owed::ReleaseBatches);
        assert_eq!(prepared.wanted(), Wanted::GoOn);
        assert_eq!(prepared.after(Event::RetryPrepared, Timestamp(9)), Ok(None));
        let third = step(&prepared, retry(&[Outcome::Enqueued], Some("s")));
        assert_eq!(third.attempt, Attempt(3));
    }

    #[test]
    fn a_retry_of_another_stage_leaves_the_current_one_alone() {
        let stage = || StageName::new("s").unwrap();
        let running = staged();
        assert!(
            running
                .after(retry(&[Outcome::Expired], Some("rest")), Timestamp(9))
                .is_err()
        );
        let passed = Event::StagePassed {
            stage: stage(),
            reason: "g".into(),
        };
        let second = step(&running, passed);
        let retried = step(&second, retry(&[Outcome::Expired], Some("s")));
        assert!(
            retried.stages[0].passed_at.is_some(),
            "its gate has been passed"
        );
        assert_eq!(retried.stages, second.stages);
        assert!(
            second
                .after(retry(&[Outcome::Delivered], None), Timestamp(9))
                .is_err()
        );

        let settled = Event::AllSettled {
            counts: Counts::default(),
        };
        let ended = step(&second, settled);
        let again = step(&ended, retry(&[Outcome::Expired], None));
        assert_eq!(again.phase, Phase::Running);
        let text = serde_json::to_string(&again).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), again);
    }

    #[test]
    fn records_without_attempts_are_at_the_first() {
        let mut record = serde_json::to_value(staged()).unwrap();
        record.as_object_mut().unwrap().remove("attempt").unwrap();
        let rollout: Rollout = serde_json::from_value(record).unwrap();
        assert_eq!((rollout.attempt, rollout.retry), (Attempt(1), None));
    }

    #[test]
    fn a_rollout_says_what_it_waits_for_until_it_is_planned() {
        let text = "{name: a, group: g, target: {all: true}, message: {body: {text: hi}}}";
        let spec = RolloutSpec::read("x", text).unwrap();
        let accepted = Rollout::accepted(spec, Default::default(), Timestamp(5));
        let queued = |behind: &str| Event::Queued {
            behind: RolloutName::new(behind).unwrap(),
        };
        let after = |rollout: &Rollout, event| rollout.after(event, Timestamp(6)).unwrap();
        assert_eq!(accepted.waits_in_line(), None);
        let waits = after(&accepted, queued("b")).unwrap();
        assert_eq!(
            waits.waits_in_line().unwrap(),
            "waits for rollout b, which is before it in group g"
        );
        assert_eq!(
            (after(&waits, queued("b")), waits.changed_at),
            (None, Timestamp(5))
        );
        let reason = "r".to_owned();
        for event in [Event::PlanningStarted, Event::AbortRequested { reason }] {
            assert_eq!(after(&waits, event).unwrap().behind, None);
        }
    }

    #[test]
    fn records_keep_a_bounded_history_and_read_back() {
        let spec = RolloutSpec::read(
            "x",
            "{name: a, target: {all: true}, message: {body: {text: hi}}}",
        )
        .unwrap();
        let mut rollout = Rollout::accepted(spec, Default::default(), Timestamp(5));
        rollout = rollout
            .after(Event::PlanningStarted, Timestamp(6))
            .unwrap()
            .unwrap();
        rollout = rollout
            .after(Event::PlanningStarted, Timestamp(7))
            .unwrap()
            .unwrap();
        assert_eq!((rollout.version, rollout.plan_id), (Version(3), PlanId(2)));
        rollout = rollout.after(plan(2), Timestamp(8)).unwrap().unwrap();
        for i in 0..300 {
            rollout = rollout
                .after(
                    Event::PauseRequested {
                        reason: i.to_string(),
                    },
                    Timestamp(9),
                )
                .unwrap()
                .unwrap();
            assert_eq!(
                rollout.after(Event::PauseRequested { reason: "x".into() }, Timestamp(9)),
                Ok(None)
            );
            rollout = rollout
                .after(
                    Event::ResumeRequested {
                        word: Word::default(),
                    },
                    Timestamp(9),
                )
                .unwrap()
                .unwrap();
        }
        assert_eq!(rollout.history.len(), Rollout::HISTORY);
        let text = serde_json::to_string(&rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), rollout);
    }

    #[test]
    fn an_event_says_who_wanted_it_where_that_is_known() {
        let event = |text: &str| serde_json::from_str::<Event>(text).unwrap();
        let resumed = |by: Option<&str>| Event::ResumeRequested {
            word: Word {
                by: by.map(str::to_owned),
                reason: None,
            },
        };
        let text = r#"{"event":"resume_requested","by":"ann"}"#;
        assert_eq!(event(text), resumed(Some("ann")));
        assert_eq!(serde_json::to_string(&resumed(Some("ann"))).unwrap(), text);
        assert_eq!(event(r#"{"event":"resume_requested"}"#), resumed(None));
    }
}
