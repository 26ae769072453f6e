//! Concurrency groups: rollouts of which only one at a time may plan and send.
//!
//! Each group has a queue of rollouts, in the order of arrival. Only the rollout at the head of the
//! queue may plan and send. The queue is a small record, changed by comparing its version, so two
//! rollouts arriving at the same moment have the same order for every reader.
//!
//! An ended rollout does not leave the queue by itself: a joining or waiting rollout reads the
//! records of the rollouts ahead, and removes the ended ones. A deleted rollout leaves the queue.
//! The records are read *after* the queue. An ended rollout that is continued first joins the queue
//! again, which changes the queue's version; so no active rollout is removed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ConcurrencyGroup, RolloutName, Version};
use crate::rollout::{Phase, Rollout};
use crate::spec::ConcurrencyPolicy;
use crate::time::Timestamp;

/// The longest queue, in rollouts. Far more than an operator keeps apart, and few enough to read
/// all records.
pub const MAX_QUEUE: usize = 100;

/// How long a member counts without a matching record. A rollout joins the queue first, and its
/// record is stored afterwards. The duration is much longer than a store needs, and short enough
/// for the other rollouts to wait after a crash between the two steps.
pub const JOIN_GRACE: Duration = Duration::from_secs(60);

/// The queue of a concurrency group, in the order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupQueue {
    /// The generation of the queue; a change based on an older generation is refused. 0 before the
    /// first change.
    pub version: Version,
    /// The members, from the head of the queue to its end.
    pub members: Vec<Member>,
}

/// A rollout in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The rollout.
    pub name: RolloutName,
    /// The version of the rollout's record for which the rollout last joined.
    pub version: Version,
    /// The time of the last join.
    pub at: Timestamp,
}

impl GroupQueue {
    /// Returns the members other than `name`.
    pub fn others(&self, name: &RolloutName) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.name != *name)
    }

    /// Returns the members ahead of `name`; all members if `name` is not in the queue.
    pub fn ahead_of(&self, name: &RolloutName) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .take_while(move |member| member.name != *name)
    }

    /// Returns the queue without `name`; `None` if `name` is not in the queue.
    #[must_use]
    pub fn without(&self, name: &RolloutName) -> Option<Self> {
        let mut next = self.clone();
        next.version.0 += 1;
        next.members.retain(|member| member.name != *name);
        (next.members.len() < self.members.len()).then_some(next)
    }

    /// Returns the queue with `name`, and without the ended rollouts `ended`. A member keeps its
    /// place; a new member goes to the end. With `rejoin`, the rollout joins after its end, and
    /// goes to the end unless it has already joined for `version`. Returns `None` if the queue is
    /// full.
    #[must_use]
    pub fn joined(
        &self,
        name: &RolloutName,
        version: Version,
        rejoin: bool,
        ended: &[RolloutName],
        now: Timestamp,
    ) -> Option<Self> {
        let mut next = self.clone();
        next.version.0 += 1;
        next.members.retain(|member| !ended.contains(&member.name));
        let joined = Member {
            name: name.clone(),
            version,
            at: now,
        };
        let place = next.members.iter().position(|member| member.name == *name);
        match place {
            Some(place) if !rejoin || next.members[place].version >= version => {
                let before = next.members[place].version;
                next.members[place] = Member {
                    version: version.max(before),
                    ..joined
                };
                return Some(next);
            }
            Some(place) => drop(next.members.remove(place)),
            None => {}
        }
        if next.members.len() >= MAX_QUEUE {
            return None;
        }
        next.members.push(joined);
        Some(next)
    }
}

/// The condition of a member of the queue, by its record.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberState {
    /// The rollout has ended, or its record was never stored.
    Gone,
    /// The record is about to be stored, or the rollout is about to continue.
    Joining,
    /// The rollout is active, or waits.
    Active(Phase),
}

/// Returns the condition of a member of the queue of `group`. `record` is the member's record, read
/// after the queue.
#[must_use]
pub fn member_state(
    group: &ConcurrencyGroup,
    member: &Member,
    record: Option<&Rollout>,
    now: Timestamp,
) -> MemberState {
    let of_group = record.filter(|rollout| rollout.spec.concurrency_group() == Some(group));
    match of_group {
        Some(rollout) if !rollout.phase.is_ended() => MemberState::Active(rollout.phase.clone()),
        // The rollout had this record before it ended.
        Some(rollout) if member.version <= rollout.version => MemberState::Gone,
        _ if now.since(member.at) < JOIN_GRACE => MemberState::Joining,
        _ => MemberState::Gone,
    }
}

/// Whether a rollout may plan and send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The rollout is at the head of the queue.
    Go,
    /// The rollout waits for the member directly ahead.
    Waits {
        /// The member directly ahead.
        behind: RolloutName,
    },
    /// The listed rollouts must be aborted first.
    Supersedes(Vec<RolloutName>),
    /// The rollout is refused: another rollout is active.
    Refused {
        /// The active rollout.
        active: RolloutName,
    },
}

/// Decides by the members ahead, first to last. None of them is [`MemberState::Gone`].
///
/// # Example
/// ```
/// use twincast_core::concurrency_group::{Admission, MemberState, admission};
/// use twincast_core::ids::{InvalidName, RolloutName};
/// use twincast_core::rollout::Phase;
/// use twincast_core::spec::ConcurrencyPolicy;
///
/// let [old, new] = [RolloutName::new("firmware-1")?, RolloutName::new("firmware-2")?];
/// let reason = "superseded".to_owned();
/// let ahead = [
///     (old.clone(), MemberState::Active(Phase::Aborting { reason })),
///     (new.clone(), MemberState::Active(Phase::Running)),
/// ];
/// let decide = |policy| admission(policy, &ahead);
/// assert_eq!(decide(ConcurrencyPolicy::Reject), Admission::Refused { active: old });
/// assert_eq!(decide(ConcurrencyPolicy::Queue), Admission::Waits { behind: new.clone() });
/// assert_eq!(decide(ConcurrencyPolicy::Supersede), Admission::Supersedes(vec![new]));
/// # Ok::<(), InvalidName>(())
/// ```
#[must_use]
pub fn admission(policy: ConcurrencyPolicy, ahead: &[(RolloutName, MemberState)]) -> Admission {
    let (Some((first, _)), Some((last, _))) = (ahead.first(), ahead.last()) else {
        return Admission::Go;
    };
    let waits = Admission::Waits {
        behind: last.clone(),
    };
    match policy {
        ConcurrencyPolicy::Reject => Admission::Refused {
            active: first.clone(),
        },
        ConcurrencyPolicy::Queue => waits,
        ConcurrencyPolicy::Supersede => {
            let to_abort = |state: &MemberState| match state {
                MemberState::Active(phase) => !matches!(phase, Phase::Aborting { .. }),
                MemberState::Gone | MemberState::Joining => false,
            };
            let rivals = ahead.iter().filter(|(_, state)| to_abort(state));
            let rivals: Vec<_> = rivals.map(|(name, _)| name.clone()).collect();
            if rivals.is_empty() {
                waits
            } else {
                Admission::Supersedes(rivals)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Event;
    use crate::spec::RolloutSpec;

    fn name(text: &str) -> RolloutName {
        RolloutName::new(text).unwrap()
    }

    fn group() -> ConcurrencyGroup {
        ConcurrencyGroup::new("firmware").unwrap()
    }

    fn rollout(text: &str) -> Rollout {
        let spec = format!(
            "{{name: {text}, concurrency: {{group: firmware}}, target: {{all: true}}, message: {{body: {{text: hi}}}}}}"
        );
        let spec = RolloutSpec::read("x", &spec).unwrap();
        Rollout::accepted(spec, Default::default(), Timestamp(0))
    }

    fn names(queue: &GroupQueue) -> String {
        let names: Vec<_> = queue.members.iter().map(|it| it.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn queue_keeps_join_order() {
        let with = |queue: &GroupQueue, text: &str, version, rejoin, ended: &[&str]| {
            let ended: Vec<_> = ended.iter().map(|text| name(text)).collect();
            let next = queue.joined(&name(text), Version(version), rejoin, &ended, Timestamp(9));
            next.unwrap()
        };
        let mut queue = GroupQueue::default();
        for text in ["a", "b", "c"] {
            queue = with(&queue, text, 1, true, &[]);
        }
        assert_eq!(
            (names(&queue).as_str(), queue.version),
            ("a b c", Version(3))
        );
        // The same join again keeps the place, and yet changes the version: a reader who took the
        // rollout for gone must read again.
        let again = with(&queue, "a", 1, true, &[]);
        assert_eq!(
            (names(&again).as_str(), again.version),
            ("a b c", Version(4))
        );
        // The rollout continues, with a newer record.
        let on = with(&again, "a", 5, false, &[]);
        assert_eq!(
            (names(&on).as_str(), on.members[0].version),
            ("a b c", Version(5))
        );
        let back = with(&on, "a", 3, false, &[]);
        assert_eq!(back.members[0].version, Version(5));
        // The rollout ended and joins again.
        assert_eq!(names(&with(&on, "a", 6, true, &[])), "b c a");
        assert_eq!(names(&with(&on, "c", 2, false, &["a", "b"])), "c");
        assert_eq!(names(&with(&on, "d", 1, true, &["b"])), "a c d");

        let ahead: Vec<_> = on.ahead_of(&name("c")).map(|it| it.name.as_str()).collect();
        assert_eq!(ahead, ["a", "b"]);
        assert_eq!(on.ahead_of(&name("x")).count(), 3);
        assert_eq!(on.others(&name("b")).count(), 2);
    }

    #[test]
    fn queue_length_is_bounded() {
        let mut queue = GroupQueue::default();
        for number in 0..MAX_QUEUE {
            let name = name(&number.to_string());
            queue = queue
                .joined(&name, Version(1), true, &[], Timestamp(0))
                .unwrap();
        }
        let one_more =
            |ended: &[RolloutName]| queue.joined(&name("x"), Version(1), true, ended, Timestamp(0));
        assert_eq!(one_more(&[]), None);
        assert!(one_more(&[name("7")]).is_some());
        // Members keep their places.
        assert!(
            queue
                .joined(&name("7"), Version(1), false, &[], Timestamp(0))
                .is_some()
        );
    }

    #[test]
    fn member_state_follows_record() {
        let member = |version| Member {
            name: name("a"),
            version: Version(version),
            at: Timestamp(1_000),
        };
        let soon = Timestamp(1_000).plus(JOIN_GRACE - Duration::from_millis(1));
        let late = Timestamp(1_000).plus(JOIN_GRACE);
        let stands = |version, record: Option<&Rollout>, now| {
            member_state(&group(), &member(version), record, now)
        };
        // The rollout has joined, and has no record yet.
        assert_eq!(stands(1, None, soon), MemberState::Joining);
        assert_eq!(stands(1, None, late), MemberState::Gone);

        let active = rollout("a");
        assert_eq!(
            stands(1, Some(&active), late),
            MemberState::Active(Phase::Accepted)
        );
        let reason = "r".to_owned();
        let ended = active.after(Event::PlanningFailed { reason }, Timestamp(5));
        let ended = ended.unwrap().unwrap();
        assert_eq!(stands(1, Some(&ended), soon), MemberState::Gone);
        assert_eq!(stands(2, Some(&ended), soon), MemberState::Gone);
        // The rollout is about to start again.
        assert_eq!(stands(3, Some(&ended), soon), MemberState::Joining);
        assert_eq!(stands(3, Some(&ended), late), MemberState::Gone);

        // Another rollout, outside of this group, took the name.
        let mut other = rollout("a");
        other.spec.concurrency = None;
        assert_eq!(stands(1, Some(&other), soon), MemberState::Joining);
        assert_eq!(stands(1, Some(&other), late), MemberState::Gone);
    }

    #[test]
    fn admission_depends_on_policy_and_members_ahead() {
        let reason = || "r".to_owned();
        let member = |text: &str, state: &MemberState| (name(text), state.clone());
        let running = MemberState::Active(Phase::Running);
        let paused = MemberState::Active(Phase::Paused { reason: reason() });
        let aborting = MemberState::Active(Phase::Aborting { reason: reason() });
        for (ahead, expected) in [
            (vec![], ["go", "go", "go"]),
            (
                vec![member("a", &running)],
                ["refused by a", "behind a", "aborts a"],
            ),
            (
                vec![member("a", &paused), member("b", &running)],
                ["refused by a", "behind b", "aborts a b"],
            ),
            (
                vec![member("a", &aborting), member("b", &running)],
                ["refused by a", "behind b", "aborts b"],
            ),
            (
                vec![member("a", &aborting)],
                ["refused by a", "behind a", "behind a"],
            ),
            // A rollout without a record cannot be aborted yet.
            (
                vec![member("a", &MemberState::Joining)],
                ["refused by a", "behind a", "behind a"],
            ),
        ] {
            let policies = [
                ConcurrencyPolicy::Reject,
                ConcurrencyPolicy::Queue,
                ConcurrencyPolicy::Supersede,
            ];
            let found = policies.map(|policy| match admission(policy, &ahead) {
                Admission::Go => "go".to_owned(),
                Admission::Waits { behind } => format!("behind {behind}"),
                Admission::Supersedes(rivals) => {
                    let rivals: Vec<_> = rivals.iter().map(RolloutName::as_str).collect();
                    format!("aborts {}", rivals.join(" "))
                }
                Admission::Refused { active } => format!("refused by {active}"),
            });
            assert_eq!(found, expected, "{ahead:?}");
        }
    }
}
