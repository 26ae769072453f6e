//! Planted defects of doubles.

use std::time::Duration;

use serde_json::json;
use twincast_core::evidence::{ListenerState, ListenerStatus};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::spec::{ApprovalRule, Delivery, HumanDuration, OnFailure, SmallSample};

/// A planted defect. A simulation that misses the defect checks too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The store accepts records under superseded leases.
    NoFence,
    /// The store accepts rollout records based on older records.
    NoVersions,
    /// The store confirms reports, and forgets some.
    ForgetsReports,
    /// The store always answers with the directive to continue.
    NeverStops,
    /// The store grants permits without any quota.
    NoQuota,
    /// The store shows every rollout with repeatable messages.
    AlwaysAtLeastOnce,
    /// The queue forgets confirmed dispatches, permanently.
    ForgetsDispatches,
    /// The hub confirms messages, and forgets some.
    ForgetsMessages,
    /// The store hands out batches of stages not yet started.
    NoStages,
    /// The store confirms the batches of late joiners, and forgets them.
    ForgetsLateJoiners,
    /// The store confirms the hub's feedback, and forgets some.
    ForgetsFeedback,
    /// The store counts silent devices as delivered.
    CountsSilent,
    /// The store forgets approvals and promotions.
    ForgetsApprovals,
    /// The store answers every skip as overtaken by another change, permanently.
    SkipsOvertaken,
    /// The store shows specs without gates.
    NoGates,
    /// The store shows gates that continue after a failure.
    NoFailures,
    /// The store shows gates without a bake.
    NoBakes,
    /// The store shows gates without an approval.
    NoApprovals,
    /// The store shows gates waiting for an approval without a time limit.
    ApprovalsWithoutTimeout,
    /// The store shows gates with a deadline of zero: silent devices are judged at once.
    NoDeadlines,
    /// The store shows gates that pass on too few measurements.
    PassesTooLittle,
    /// The store shows every listener as having heard all feedback just now.
    ClaimsHeard,
    /// The store shows every bake as long enough.
    LongBakes,
    /// The store accepts changes that rely on lost data, and claims to have every batch of a plan.
    RefusesNothing,
    /// The store hands out batches, and counts commands as done, before they are durable.
    NotDurable,
}

impl Bug {
    /// Returns a rollout, as shown by a store with this defect.
    pub(super) fn shows(self, mut rollout: Rollout) -> Rollout {
        if self == Self::AlwaysAtLeastOnce {
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
                Self::ApprovalsWithoutTimeout => {
                    gate.approval = gate.approval.take().map(|_| ApprovalRule::default());
                }
                Self::NoDeadlines => gate.deadline = Some(HumanDuration(Duration::ZERO)),
                Self::PassesTooLittle => gate.too_little = SmallSample::Pass,
                _ => {}
            }
        }
        if self == Self::LongBakes {
            let clock = json!({"baked_ms": 3_600_000, "counted_to": rollout.changed_at});
            rollout.notes.clock = serde_json::from_value(clock).expect("a clock");
        }
        rollout
    }

    /// Returns listeners, as shown by a store with this defect.
    pub(super) fn shows_listeners(self, listeners: Vec<ListenerStatus>) -> Vec<ListenerStatus> {
        let listeners = listeners.into_iter();
        match self {
            Self::ClaimsHeard => listeners
                .map(|listener| ListenerStatus {
                    received_ago: Some(Duration::ZERO),
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

    /// Returns whether a store with this defect forgets the newest change of a rollout.
    pub(super) fn forgets(self, rollout: &Rollout) -> bool {
        let newest = rollout.change_entry().map(|entry| &entry.event);
        let is_approval = matches!(
            newest,
            Some(Event::Approved { .. } | Event::Promoted { .. })
        );
        self == Self::ForgetsApprovals && is_approval
    }
}
