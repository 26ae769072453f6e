//! Concurrency groups: the rollouts of a group run one at a time.
//!
//! A rollout joins the queue of its group before its record is stored, so a refused rollout is
//! never stored. Before planning or sending, the driver checks that the rollout is at the head of
//! the queue. This check prevents concurrent sends of two rollouts; the order of the earlier steps
//! does not.

use twincast_core::concurrency_group::{self, Admission, MAX_QUEUE, MemberState};
use twincast_core::ids::{ConcurrencyGroup, RolloutName, Version};
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::rollout::{Duty, Event, Phase, Rollout};
use twincast_core::spec::{Concurrency, ConcurrencyPolicy, RolloutSpec};
use twincast_core::time::Timestamp;

/// The most attempts at a contended change of a queue.
const MAX_TRIES: usize = 20;

/// Why a rollout may not join its concurrency group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Another rollout is active or waits.
    #[error(
        "concurrency group {group} has an active rollout, {active}; wait for its end, abort it, or \
         set the `concurrency.policy` to `queue` or `supersede`"
    )]
    Active {
        /// The concurrency group.
        group: ConcurrencyGroup,
        /// The first active or waiting rollout.
        active: RolloutName,
    },
    /// Too many rollouts are active or wait.
    #[error("concurrency group {group} is full: {MAX_QUEUE} rollouts are active or waiting")]
    Full {
        /// The concurrency group.
        group: ConcurrencyGroup,
    },
}

/// The queue of a concurrency group, and the state of the other members.
struct QueueState {
    queue: concurrency_group::GroupQueue,
    /// The members that have ended.
    ended: Vec<RolloutName>,
    /// The members ahead of the rollout, first to last.
    ahead: Vec<(RolloutName, MemberState)>,
    /// The first of all other members.
    active: Option<RolloutName>,
}

async fn read_queue(
    store: &dyn Store,
    group: &ConcurrencyGroup,
    name: &RolloutName,
    now: Timestamp,
) -> Result<QueueState, StoreError> {
    let queue = store.group_queue(group).await?;
    let before = queue.ahead_of(name).count();
    let mut found = QueueState {
        ended: Vec::new(),
        ahead: Vec::new(),
        active: None,
        queue,
    };
    for (place, member) in found.queue.members.iter().enumerate() {
        if member.name == *name {
            continue;
        }
        let record = store.rollout(&member.name).await?;
        let state = concurrency_group::member_state(group, member, record.as_ref(), now);
        if state == MemberState::Gone {
            found.ended.push(member.name.clone());
            continue;
        }
        found.active.get_or_insert_with(|| member.name.clone());
        if place < before {
            found.ahead.push((member.name.clone(), state));
        }
    }
    Ok(found)
}

/// Adds a rollout to the queue of its group, for the `version` of the record about to be stored: as
/// a new rollout, or as an ended rollout about to run again. With `alone`, adds the rollout only if
/// no other rollout of the group is active or waits.
///
/// Idempotent. If the record is not stored after all, the other members drop the entry after a
/// while ([`JOIN_GRACE`](twincast_core::concurrency_group::JOIN_GRACE)).
///
/// # Errors
/// When the store fails, or concurrent changes exhaust all attempts ([`StoreError::Superseded`]).
pub async fn join(
    store: &dyn Store,
    group: &ConcurrencyGroup,
    name: &RolloutName,
    version: Version,
    alone: bool,
    now: Timestamp,
) -> Result<Result<(), NotAdmitted>, StoreError> {
    for _ in 0..MAX_TRIES {
        let state = read_queue(store, group, name, now).await?;
        if let (true, Some(active)) = (alone, state.active) {
            let group = group.clone();
            return Ok(Err(NotAdmitted::Active { group, active }));
        }
        let next = state.queue.joined(name, version, true, &state.ended, now);
        let Some(next) = next else {
            let group = group.clone();
            return Ok(Err(NotAdmitted::Full { group }));
        };
        match store.save_group_queue(group, &next).await {
            Ok(()) => return Ok(Ok(())),
            Err(StoreError::Superseded { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(contended(group))
}

/// Adds a rollout about to be stored to the group of its spec. Does nothing if the spec has no
/// group.
pub(crate) async fn join_for(
    store: &dyn Store,
    spec: &RolloutSpec,
    version: Version,
    now: Timestamp,
) -> Result<Result<(), NotAdmitted>, StoreError> {
    let Some(concurrency) = &spec.concurrency else {
        return Ok(Ok(()));
    };
    let group = &concurrency.group;
    let alone = concurrency.policy == ConcurrencyPolicy::Reject;
    join(store, group, &spec.name, version, alone, now).await
}

/// Removes an ended rollout from the queue of its group.
///
/// # Errors
/// When the store fails, or concurrent changes exhaust all attempts ([`StoreError::Superseded`]).
pub(crate) async fn leave(
    store: &dyn Store,
    group: &ConcurrencyGroup,
    name: &RolloutName,
) -> Result<(), StoreError> {
    for _ in 0..MAX_TRIES {
        let Some(next) = store.group_queue(group).await?.without(name) else {
            return Ok(());
        };
        match store.save_group_queue(group, &next).await {
            Err(StoreError::Superseded { .. }) => {}
            saved => return saved,
        }
    }
    Err(contended(group))
}

/// Returns the error for exhausted attempts.
fn contended(group: &ConcurrencyGroup) -> StoreError {
    StoreError::Superseded {
        what: format!("the queue of concurrency group {group}"),
    }
}

/// The decision of the concurrency group about a rollout with pending plans or sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Continue: the rollout is at the head of the queue.
    Go,
    /// Apply this event to the rollout.
    Apply(Event),
    /// Abort these rollouts first.
    Supersedes(Vec<RolloutName>),
    /// Wait. The listed rollouts ahead are being aborted, which needs no further command.
    Waits { aborting: Vec<RolloutName> },
}

/// Decides whether a rollout may plan or send now, by the queue of its group.
///
/// # Errors
/// When the store fails, or concurrent changes exhaust all attempts ([`StoreError::Superseded`]).
pub(crate) async fn turn(
    store: &dyn Store,
    clock: &dyn Clock,
    rollout: &Rollout,
) -> Result<Turn, StoreError> {
    let wants = matches!(rollout.phase.duty(), Duty::Plan | Duty::ReleaseBatches);
    let Some(concurrency) = rollout.spec.concurrency.as_ref().filter(|_| wants) else {
        return Ok(Turn::Go);
    };
    let group = &concurrency.group;
    let (admission, ahead) = admission(store, clock, concurrency, rollout).await?;
    // The rollout lost its place while under way: its record was stored after the other members
    // stopped waiting. The current head of the queue keeps its place.
    if let (true, Some((active, _))) = (rollout.plan.is_some(), ahead.first()) {
        let reason = format!("rollout {active} of concurrency group {group} is in progress");
        return Ok(Turn::Apply(Event::PauseRequested { reason }));
    }
    Ok(match admission {
        Admission::Go => Turn::Go,
        Admission::Refused { active } => {
            let group = group.clone();
            let reason = NotAdmitted::Active { group, active }.to_string();
            Turn::Apply(Event::PlanningFailed { reason })
        }
        Admission::Supersedes(rivals) => Turn::Supersedes(rivals),
        Admission::Waits { behind } if rollout.queued_behind.as_ref() != Some(&behind) => {
            Turn::Apply(Event::Queued { behind })
        }
        Admission::Waits { .. } => {
            let is_aborting =
                |state: &MemberState| matches!(state, MemberState::Active(Phase::Aborting { .. }));
            let aborting = ahead.into_iter().filter(|(_, it)| is_aborting(it));
            let aborting = aborting.map(|(name, _)| name).collect();
            Turn::Waits { aborting }
        }
    })
}

/// Reads the queue, and joins when the rollout is not a member or when no member is ahead any more.
/// The latter always changes the queue, so that no member with an older view removes a rollout
/// under way.
async fn admission(
    store: &dyn Store,
    clock: &dyn Clock,
    concurrency: &Concurrency,
    rollout: &Rollout,
) -> Result<(Admission, Vec<(RolloutName, MemberState)>), StoreError> {
    let (name, group) = (&rollout.spec.name, &concurrency.group);
    for _ in 0..MAX_TRIES {
        let now = clock.now();
        let state = read_queue(store, group, name, now).await?;
        let is_in = state.queue.members.iter().any(|it| it.name == *name);
        let admission = concurrency_group::admission(concurrency.policy, &state.ahead);
        if is_in && admission != Admission::Go && state.ended.is_empty() {
            return Ok((admission, state.ahead));
        }
        let next = state
            .queue
            .joined(name, rollout.version, false, &state.ended, now);
        // The queue is full: the rollout waits as if the last member were active.
        let Some(next) = next else {
            return Ok((admission, state.ahead));
        };
        match store.save_group_queue(group, &next).await {
            Ok(()) => return Ok((admission, state.ahead)),
            Err(StoreError::Superseded { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(contended(group))
}
