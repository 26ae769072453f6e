//! Defects that doubles can be given.

use std::time::Duration;

use serde_json::json;
use twincast_core::evidence::{ListenerState, ListenerStatus};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::spec::{ApprovalRule, Delivery, OnFailure, Span, TooLittle};

/// A defect. A simulation that does not find it checks too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The store takes records under leases that were superseded.
    NoFence,
    /// The store takes records of rollouts that were made from older ones.
    NoVersions,
    /// The store says that reports are recorded, and forgets some.
    ForgetsReports,
    /// The store tells workers to go on, whatever the rollout wants.
    NeverStops,
    /// The store hands out permits as if there were no quota.
    EndlessPermits,
    /// The store says of every rollout that its messages may be repeated.
    AlwaysAgain,
    /// The queue forgets dispatches that it has confirmed, for ever.
    ForgetsDispatches,
    /// The hub says that it has messages which it has not.
    ForgetsMessages,
    /// The store gives out batches of stages whose time has not come.
    NoStages,
    /// The store says that devices which have joined are added, and forgets them.
    ForgetsJoiners,
    /// The store takes what the hub has told, and forgets some.
    ForgetsFeedback,
    /// The store counts devices as delivered that nobody has heard of.
    CountsSilent,
    /// The store forgets what people say to gates.
    ForgetsWords,
    /// The store says of batches of an aborted rollout that somebody has them, for ever.
    NeverSkips,
    /// The store shows specs without gates.
    NoGates,
    /// The store shows gates that have nothing against a failure.
    NoFailures,
    /// The store shows gates without a bake.
    NoBakes,
    /// The store shows gates that need nobody's approval.
    NoApprovals,
    /// The store shows gates that wait for an approval for ever.
    PatientApprovals,
    /// The store shows gates that take the silence of devices for a verdict at once.
    NoDeadlines,
    /// The store shows gates that pass when too little was measured.
    PassesTooLittle,
    /// The store says of every listener that it has heard all, just now.
    ClaimsHeard,
    /// The store shows rollouts that have baked long enough.
    BakesAsleep,
    /// The store takes changes that rely on what it has lost, and says that it has every batch of a plan.
    RefusesNothing,
    /// The store gives out batches, and counts commands as done, before they are durable.
    NotDurable,
}

impl Bug {
    /// A rollout as a store with this defect shows it.
    pub(super) fn shows(self, mut rollout: Rollout) -> Rollout {
        if self == Self::AlwaysAgain {
            rollout.spec.delivery = Delivery::AtLeastOnce;
        }
        for stage in &mut rollout.spec.stages {
            stage.gate = stage.gate.take().filter(|_| self != Self::NoGates);
            let Some(gate) = &mut stage.gate else {
                continue;
            };
            match self {
                Self::NoFailures => gate.on_failure = OnFailure::Continue,
                Self::NoBakes => gate.bake = None,
                Self::NoApprovals => gate.approval = None,
                Self::PatientApprovals => {
                    gate.approval = gate.approval.take().map(|_| ApprovalRule::default());
                }
                Self::NoDeadlines => gate.deadline = Some(Span(Duration::ZERO)),
                Self::PassesTooLittle => gate.too_little = TooLittle::Pass,
                _ => {}
            }
        }
        if self == Self::BakesAsleep {
            let slept = json!({"baked_ms": 3_600_000, "counted_to": rollout.changed_at});
            rollout.notes.clock = serde_json::from_value(slept).expect("a clock");
        }
        rollout
    }

    /// Listeners as a store with this defect shows them.
    pub(super) fn shows_listeners(self, listeners: Vec<ListenerStatus>) -> Vec<ListenerStatus> {
        let listeners = listeners.into_iter();
        match self {
            Self::ClaimsHeard => listeners
                .map(|listener| ListenerStatus {
                    heard_ago: Some(Duration::ZERO),
                    reported_ago: Duration::ZERO,
                    state: ListenerState {
                        listening: true,
                        ..listener.state
                    },
                    ..listener
                })
                .collect(),
            _ => listeners.collect(),
        }
    }

    /// Whether a store with this defect forgets the newest change of a rollout.
    pub(super) fn forgets(self, rollout: &Rollout) -> bool {
        let newest = rollout.happened().map(|entry| &entry.event);
        let is_word = matches!(
            newest,
            Some(Event::Approved { .. } | Event::Promoted { .. })
        );
        self == Self::ForgetsWords && is_word
    }
}
