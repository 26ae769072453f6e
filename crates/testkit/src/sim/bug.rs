//! Defects that doubles can be given.

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
}
