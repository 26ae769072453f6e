//! Rollouts of one group, one after the other: what is done when another one is under way.
//!
//! A rollout joins its group's line before it is stored, so that one which is refused is not stored at all; and its
//! driver makes sure that it has the floor before it plans or sends. What keeps two from sending at the same time is
//! the driver's look, not the order of these steps.

use twincast_core::group::{self, Admission, LONGEST_LINE, Standing};
use twincast_core::ids::{GroupName, RolloutName, Version};
use twincast_core::ports::{Clock, Store, StoreError};
use twincast_core::rollout::{Event, Owed, Phase, Rollout};
use twincast_core::spec::{Conflict, RolloutSpec};
use twincast_core::time::Timestamp;

/// How often a line is looked at anew that others keep changing.
const TRIES: usize = 20;

/// Why a rollout may not join its group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Another one is under way, or waits.
    #[error(
        "group {group} has an active rollout, {active}; wait for its end or abort it, or say `conflict: queue` or \
         `conflict: supersede`"
    )]
    Active {
        /// The group.
        group: GroupName,
        /// The first of those.
        active: RolloutName,
    },
    /// Too many wait.
    #[error("{LONGEST_LINE} rollouts of group {group} are active or wait; more are not taken")]
    Full {
        /// The group.
        group: GroupName,
    },
}

/// A line, and what its other members are up to.
struct Looked {
    line: group::Line,
    /// Those that have ended.
    gone: Vec<RolloutName>,
    /// Those that come before it, first to last.
    ahead: Vec<(RolloutName, Standing)>,
    /// The first of all others.
    active: Option<RolloutName>,
}

async fn look(
    store: &dyn Store,
    group: &GroupName,
    name: &RolloutName,
    now: Timestamp,
) -> Result<Looked, StoreError> {
    let line = store.line(group).await?;
    let before = line.ahead_of(name).count();
    let mut looked = Looked {
        gone: Vec::new(),
        ahead: Vec::new(),
        active: None,
        line,
    };
    for (place, member) in looked.line.members.iter().enumerate() {
        if member.name == *name {
            continue;
        }
        let record = store.rollout(&member.name).await?;
        let standing = group::standing(group, member, record.as_ref(), now);
        if standing == Standing::Gone {
            looked.gone.push(member.name.clone());
            continue;
        }
        looked.active.get_or_insert_with(|| member.name.clone());
        if place < before {
            looked.ahead.push((member.name.clone(), standing));
        }
    }
    Ok(looked)
}

/// Lets a rollout join its group's line for the `version` in which its record is about to be stored: as a new one, or
/// one that had ended. `alone`: only if no other one of the group is active or waits.
///
/// Idempotent. When the record is not stored after all, the others forget it after a while
/// ([`FORMING`](twincast_core::group::FORMING)).
///
/// # Errors
/// When the store fails, or others keep changing the line ([`StoreError::Superseded`]).
pub async fn join(
    store: &dyn Store,
    group: &GroupName,
    name: &RolloutName,
    version: Version,
    alone: bool,
    now: Timestamp,
) -> Result<Result<(), NotAdmitted>, StoreError> {
    for _ in 0..TRIES {
        let looked = look(store, group, name, now).await?;
        if let (true, Some(active)) = (alone, looked.active) {
            let group = group.clone();
            return Ok(Err(NotAdmitted::Active { group, active }));
        }
        let next = looked.line.with(name, version, true, &looked.gone, now);
        let Some(next) = next else {
            let group = group.clone();
            return Ok(Err(NotAdmitted::Full { group }));
        };
        match store.save_line(group, &next).await {
            Ok(()) => return Ok(Ok(())),
            Err(StoreError::Superseded { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(contended(group))
}

/// The same for the spec of a rollout that is to be stored: nothing to do if it is in no group.
pub(crate) async fn join_for(
    store: &dyn Store,
    spec: &RolloutSpec,
    version: Version,
    now: Timestamp,
) -> Result<Result<(), NotAdmitted>, StoreError> {
    let Some(group) = &spec.group else {
        return Ok(Ok(()));
    };
    let alone = spec.conflict == Conflict::Reject;
    join(store, group, &spec.name, version, alone, now).await
}

/// Takes a rollout that has ended out of its group's line.
///
/// # Errors
/// When the store fails, or others keep changing the line ([`StoreError::Superseded`]).
pub(crate) async fn leave(
    store: &dyn Store,
    group: &GroupName,
    name: &RolloutName,
) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        let Some(next) = store.line(group).await?.without(name) else {
            return Ok(());
        };
        match store.save_line(group, &next).await {
            Err(StoreError::Superseded { .. }) => {}
            saved => return saved,
        }
    }
    Err(contended(group))
}

/// Others kept changing the line.
fn contended(group: &GroupName) -> StoreError {
    StoreError::Superseded {
        what: format!("the line of group {group}"),
    }
}

/// What a rollout that wants to plan or send is to do about its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Go on: it has the floor.
    Go,
    /// This has happened to it.
    Happened(Event),
    /// These are to be aborted in its favour.
    Supersedes(Vec<RolloutName>),
    /// Wait. These of the ones before it are being aborted, which needs nobody's word.
    Waits { aborting: Vec<RolloutName> },
}

/// Whose turn it is in a rollout's group, when the rollout wants to plan or send.
///
/// # Errors
/// When the store fails, or others keep changing the line ([`StoreError::Superseded`]).
pub(crate) async fn turn(
    store: &dyn Store,
    clock: &dyn Clock,
    rollout: &Rollout,
) -> Result<Turn, StoreError> {
    let wants = matches!(rollout.phase.owed(), Owed::Plan | Owed::ReleaseBatches);
    let Some(group) = rollout.spec.group.as_ref().filter(|_| wants) else {
        return Ok(Turn::Go);
    };
    let (admission, ahead) = admission(store, clock, group, rollout).await?;
    // It lost its place while it was under way: its record was stored later than anybody waits for. The one that has
    // the floor now keeps it.
    if let (true, Some((active, _))) = (rollout.plan.is_some(), ahead.first()) {
        let reason = format!("rollout {active} of group {group} is under way");
        return Ok(Turn::Happened(Event::PauseRequested { reason }));
    }
    Ok(match admission {
        Admission::Go => Turn::Go,
        Admission::Refused { active } => {
            let group = group.clone();
            let reason = NotAdmitted::Active { group, active }.to_string();
            Turn::Happened(Event::PlanningFailed { reason })
        }
        Admission::Supersedes(rivals) => Turn::Supersedes(rivals),
        Admission::Waits { behind } if rollout.behind.as_ref() != Some(&behind) => {
            Turn::Happened(Event::Queued { behind })
        }
        Admission::Waits { .. } => {
            let is_aborting =
                |standing: &Standing| matches!(standing, Standing::Active(Phase::Aborting { .. }));
            let aborting = ahead.into_iter().filter(|(_, it)| is_aborting(it));
            let aborting = aborting.map(|(name, _)| name).collect();
            Turn::Waits { aborting }
        }
    })
}

/// Looks at the line, and joins it: when the rollout is not in it, or when nobody is ahead any more. The latter always
/// changes the line, so that it is not removed by someone who has seen it before it was under way.
async fn admission(
    store: &dyn Store,
    clock: &dyn Clock,
    group: &GroupName,
    rollout: &Rollout,
) -> Result<(Admission, Vec<(RolloutName, Standing)>), StoreError> {
    let name = &rollout.spec.name;
    for _ in 0..TRIES {
        let now = clock.now();
        let looked = look(store, group, name, now).await?;
        let is_in = looked.line.members.iter().any(|it| it.name == *name);
        let admission = group::admission(rollout.spec.conflict, &looked.ahead);
        if is_in && admission != Admission::Go && looked.gone.is_empty() {
            return Ok((admission, looked.ahead));
        }
        let next = looked
            .line
            .with(name, rollout.version, false, &looked.gone, now);
        // It is as if the last of them were active.
        let Some(next) = next else {
            return Ok((admission, looked.ahead));
        };
        match store.save_line(group, &next).await {
            Ok(()) => return Ok((admission, looked.ahead)),
            Err(StoreError::Superseded { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(contended(group))
}
