//! The record of a rollout, and the facts derived from the record alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::adding::{PlanId, Scans};
use super::event::Event;
use super::history::HistoryEntry;
use super::notes::Notes;
use super::phase::{Directive, Duty, Phase};
use super::progress::{Attribution, StageProgress};
use crate::account::TimeAccount;
use crate::ids::{
    Attempt, Lineage, Revision, RolloutId, RolloutName, StageIndex, StageName, Version,
};
use crate::outcome::{Outcome, Tally};
use crate::plan::{Checksum, PlanSummary};
use crate::spec::{Rate, RolloutSpec};
use crate::time::Timestamp;
use crate::trace::TraceContext;

/// The stored record of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The id; distinguishes the rollout from other rollouts of the same name.
    pub id: RolloutId,
    /// The record's generation; a change based on an older generation is refused.
    pub version: Version,
    /// The digest of all changes up to this version. A store that lost its last writes may repeat a
    /// version, but not a lineage.
    pub lineage: Lineage,
    /// The condition on the store for storing this version, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precondition: Option<StorePrecondition>,
    /// The spec. Files are inlined, or identified by their digest in `files`.
    pub spec: RolloutSpec,
    /// The SHA-256 of the files named in the spec, by path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The phase.
    #[serde(flatten)]
    pub phase: Phase,
    /// The newest try at planning.
    pub plan_id: PlanId,
    /// The summary of the plan, once the plan is complete.
    pub plan: Option<PlanSummary>,
    /// The stages in order, once the plan is complete.
    #[serde(default)]
    pub stages: Vec<StageProgress>,
    /// The rollout directly ahead in the queue of the concurrency group, while this rollout waits
    /// to be planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_behind: Option<RolloutName>,
    /// The reason for a requested pause before the plan is complete. The rollout is paused as soon
    /// as the plan is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_planning: Option<String>,
    /// The newest attempt at any device.
    #[serde(default = "Attempt::first")]
    pub attempt: Attempt,
    /// The retry to prepare before anything is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When the driver noted that every device was sent the message and only answers are awaited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// The span of the command that started the rollout. Older records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// The scans of a continuous rollout for joined and departed devices, once the plan is
    /// complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scans: Option<Scans>,
    /// The time of acceptance.
    pub created_at: Timestamp,
    /// The time of the last change of the phase.
    pub changed_at: Timestamp,
    /// The history, oldest entry first, [bounded](super::history::bound).
    pub history: Vec<HistoryEntry>,
    /// The driver's notes since the last change. Stored beside the record.
    #[serde(skip)]
    pub notes: Notes,
}

/// A condition on the contents of the store for storing a change.
///
/// A change follows from earlier reads and writes. A store that crashed in between may have lost
/// some of the acknowledged writes, so the store checks the condition in the same step as it stores
/// the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorePrecondition {
    /// The rollout has exactly these batches.
    Batches(Checksum),
    /// No send is owed to any device.
    Settled,
}

impl StorePrecondition {
    /// Returns the condition for storing an event.
    pub(super) fn of(event: &Event) -> Option<Self> {
        match event {
            Event::PlanCompleted { plan } => Some(Self::Batches(plan.checksum)),
            Event::ScanCompleted { found } => Some(Self::Batches(found.checksum)),
            Event::AllSettled { .. } => Some(Self::Settled),
            _ => None,
        }
    }
}

/// A new attempt at some devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The number of the attempt.
    pub attempt: Attempt,
    /// The outcomes of the devices to retry.
    pub outcomes: Vec<Outcome>,
    /// The stage of the devices to retry; `None` for all stages.
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
    /// Creates the record of a newly accepted rollout.
    #[must_use]
    pub fn accepted(spec: RolloutSpec, files: BTreeMap<String, String>, now: Timestamp) -> Self {
        let described = serde_json::to_vec(&(&spec, &files)).expect("a spec is plain data");
        let lineage = Lineage::default().then(&described, now);
        Self {
            id: lineage.id(),
            version: Version(1),
            lineage,
            precondition: None,
            spec,
            files,
            phase: Phase::Accepted,
            plan_id: PlanId(0),
            plan: None,
            stages: Vec::new(),
            queued_behind: None,
            pause_after_planning: None,
            attempt: Attempt::FIRST,
            retry: None,
            sent_at: None,
            trace: None,
            scans: None,
            created_at: now,
            changed_at: now,
            history: vec![HistoryEntry {
                version: Version(1),
                at: now,
                phase: Phase::Accepted.as_str().to_owned(),
                event: Event::Accepted {
                    attribution: Attribution::default(),
                },
            }],
            notes: Notes {
                account: TimeAccount::opened(now),
                ..Notes::default()
            },
        }
    }

    /// Sets the attribution of the acceptance.
    #[must_use]
    pub fn with_attribution(mut self, attribution: Attribution) -> Self {
        if let Some(HistoryEntry {
            event: Event::Accepted { attribution: noted },
            ..
        }) = self.history.first_mut()
        {
            *noted = attribution;
        }
        self
    }

    /// Sets the span of the command that started the rollout.
    #[must_use]
    pub fn with_trace(mut self, span: TraceContext) -> Self {
        self.trace = Some(span);
        self
    }

    /// Returns the revision of the record.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision {
            version: self.version,
            lineage: self.lineage,
        }
    }

    /// Returns the history entry of this version's change; `None` for a change that is not
    /// [published](Event::is_published).
    #[must_use]
    pub fn change_entry(&self) -> Option<&HistoryEntry> {
        let newest = self.history.last();
        newest.filter(|entry| entry.version == self.version)
    }

    /// Returns the driver's duty.
    #[must_use]
    pub fn duty(&self) -> Duty {
        match self.phase.duty() {
            Duty::ReleaseBatches if self.retry.is_some() => Duty::PrepareRetry,
            duty => duty,
        }
    }

    /// Returns the directive to workers with a batch.
    #[must_use]
    pub fn directive(&self) -> Directive {
        match &self.retry {
            Some(_) => Directive::Stop,
            None => self.phase.directive(),
        }
    }

    /// Returns whether devices may be reopened for `attempt` now.
    #[must_use]
    pub fn prepares(&self, attempt: Attempt) -> bool {
        let prepared = self.retry.as_ref().map(|retry| retry.attempt);
        self.duty() == Duty::PrepareRetry && prepared == Some(attempt)
    }

    /// Returns the current stage, whose devices are sent to; all earlier stages have passed. After
    /// all stages have passed, the last stage stays current.
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

    /// Returns the current rate through each hub, if the rollout has a rate.
    #[must_use]
    pub fn rate_now(&self, tallies: &[Tally]) -> Option<Rate> {
        let pace = self.spec.pace_of(self.stage());
        pace.rate_at(pace.counted(tallies))
    }

    /// Returns the progress of the current stage; `None` before the plan is complete.
    #[must_use]
    pub fn stage_progress(&self) -> Option<&StageProgress> {
        self.stages.get(usize::from(self.stage().0))
    }

    /// Returns a description of the rollout's fate after planning, if the rollout is not to send
    /// then.
    #[must_use]
    pub fn pending_pause(&self) -> Option<String> {
        let reason = self.pause_after_planning.as_ref()?;
        Some(format!("is paused once it is planned: {reason}"))
    }
}
