//! A rollout's record, and what follows from it alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::adding::{Looks, PlanId};
use super::event::Event;
use super::history::HistoryEntry;
use super::notes::Notes;
use super::phase::{Owed, Phase, Wanted};
use super::progress::{StageProgress, Word};
use crate::account::Account;
use crate::ids::{
    Attempt, Lineage, Revision, RolloutId, RolloutName, StageIndex, StageName, Version,
};
use crate::outcome::{Outcome, Tally};
use crate::plan::{Checksum, PlanSummary};
use crate::spec::{Rate, RolloutSpec};
use crate::time::Timestamp;
use crate::trace::TraceContext;

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
    pub files: BTreeMap<String, String>,
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
    /// Why it is to be paused as soon as its plan is whole, if somebody wants that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<String>,
    /// The newest attempt at any of its devices.
    #[serde(default = "Attempt::first")]
    pub attempt: Attempt,
    /// What is to be prepared before anything is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
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
    /// What happened to it, oldest first, [bounded](super::history::bound).
    pub history: Vec<HistoryEntry>,
    /// What its driver has noted since. Stored beside the record.
    #[serde(skip)]
    pub notes: Notes,
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
    pub(super) fn of(event: &Event) -> Option<Self> {
        match event {
            Event::PlanCompleted { plan } => Some(Self::Batches(plan.checksum)),
            Event::Looked { found } => Some(Self::Batches(found.checksum)),
            Event::AllSettled { .. } => Some(Self::Settled),
            _ => None,
        }
    }
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

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("devices ")?;
        if let Some(stage) = &self.stage {
            write!(f, "of stage {stage} ")?;
        }
        let words: Vec<_> = self.outcomes.iter().map(|it| it.as_str()).collect();
        write!(f, "that are {}", words.join(" or "))
    }
}

impl Rollout {
    /// A rollout that was just accepted.
    #[must_use]
    pub fn accepted(spec: RolloutSpec, files: BTreeMap<String, String>, now: Timestamp) -> Self {
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
            stages: Vec::new(),
            behind: None,
            pause: None,
            attempt: Attempt::FIRST,
            retry: None,
            sent_at: None,
            trace: None,
            looks: None,
            created_at: now,
            changed_at: now,
            history: vec![HistoryEntry {
                version: Version(1),
                at: now,
                phase: Phase::Accepted.as_str().to_owned(),
                event: Event::Accepted {
                    word: Word::default(),
                },
            }],
            notes: Notes {
                account: Account::opened(now),
                ..Notes::default()
            },
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

    /// What becomes of it once it is planned, in words, if that is not to be sent.
    #[must_use]
    pub fn is_to_be_paused(&self) -> Option<String> {
        let reason = self.pause.as_ref()?;
        Some(format!("is paused once it is planned: {reason}"))
    }
}
