//! Groups of rollouts, of which one at a time is under way.
//!
//! Each group has a *line*: the rollouts that are under way or want to be, first come first. The one at its head has the
//! floor; only it may plan and send. The line is a small record that is changed by comparing its version, so two that
//! come at the same moment are one behind the other, whoever looks.
//!
//! Nobody leaves the line when it ends: whoever comes or waits looks at the records of those ahead and removes the ones
//! that have ended. One that is deleted leaves. That a rollout has ended is read *after* the line was. A rollout that ended joins again before it goes on, which
//! changes the line's version; so nobody is removed who is under way again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupName, RolloutName, Version};
use crate::rollout::{Phase, Rollout};
use crate::spec::Conflict;
use crate::time::Timestamp;

/// Rollouts that a line holds at the most. Far more than people keep apart, and few enough to look at.
pub const LONGEST_LINE: usize = 100;

/// For how long a member counts that has no record that fits: it joins first, and its record is stored then. Much more
/// than a store takes, and little enough for others to wait when whoever joined has died in between.
pub const FORMING: Duration = Duration::from_secs(60);

/// The rollouts of a group, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its generation; a change is refused when it was made on an older one. 0 before the first.
    pub version: Version,
    /// Its members, the one that has the floor first.
    pub members: Vec<Member>,
}

/// One rollout in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The rollout.
    pub name: RolloutName,
    /// The version of its record that it has joined for, the last time.
    pub version: Version,
    /// When that was.
    pub at: Timestamp,
}

impl Line {
    /// The members but one.
    pub fn others(&self, name: &RolloutName) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.name != *name)
    }

    /// The members that come before one; all of them when it is not in the line.
    pub fn ahead_of(&self, name: &RolloutName) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .take_while(move |member| member.name != *name)
    }

    /// The line without `name`; `None` when it is not in the line.
    #[must_use]
    pub fn without(&self, name: &RolloutName) -> Option<Self> {
        let mut next = self.clone();
        next.version.0 += 1;
        next.members.retain(|member| member.name != *name);
        (next.members.len() < self.members.len()).then_some(next)
    }

    /// The line without those that have ended, with `name` in it: where it was, or at its end. One that joins `anew`, for it
    /// had ended, always goes to the end. `None` when the line is too long for it.
    #[must_use]
    pub fn with(
        &self,
        name: &RolloutName,
        version: Version,
        anew: bool,
        gone: &[RolloutName],
        now: Timestamp,
    ) -> Option<Self> {
        let mut next = self.clone();
        next.version.0 += 1;
        next.members.retain(|member| !gone.contains(&member.name));
        let joined = Member {
            name: name.clone(),
            version,
            at: now,
        };
        let place = next.members.iter().position(|member| member.name == *name);
        match place {
            Some(place) if !anew || next.members[place].version >= version => {
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
        if next.members.len() >= LONGEST_LINE {
            return None;
        }
        next.members.push(joined);
        Some(next)
    }
}

/// What a member of a line is up to, by its record.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It is not in the line any more: it has ended, or never came to be.
    Gone,
    /// It is about to come to be, or to go on again.
    Forming,
    /// It is under way, or waits.
    Active(Phase),
}

/// Looks at a member of the line of `group`. `record` is its record, read after the line was.
#[must_use]
pub fn standing(
    group: &GroupName,
    member: &Member,
    record: Option<&Rollout>,
    now: Timestamp,
) -> Standing {
    let of_group = record.filter(|rollout| rollout.spec.group.as_ref() == Some(group));
    match of_group {
        Some(rollout) if !rollout.phase.is_ended() => Standing::Active(rollout.phase.clone()),
        // It had this record before it ended.
        Some(rollout) if member.version <= rollout.version => Standing::Gone,
        _ if now.since(member.at) < FORMING => Standing::Forming,
        _ => Standing::Gone,
    }
}

/// Whether a rollout may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It has the floor.
    Go,
    /// It waits for the one that comes before it.
    Waits {
        /// That one.
        behind: RolloutName,
    },
    /// These are to be aborted first.
    Supersedes(Vec<RolloutName>),
    /// It is refused: another one is under way.
    Refused {
        /// That one.
        active: RolloutName,
    },
}

/// Decides for a rollout by those that come before it, first to last, of which none is gone.
#[must_use]
pub fn admission(conflict: Conflict, ahead: &[(RolloutName, Standing)]) -> Admission {
    let (Some((first, _)), Some((last, _))) = (ahead.first(), ahead.last()) else {
        return Admission::Go;
    };
    let waits = Admission::Waits {
        behind: last.clone(),
    };
    match conflict {
        Conflict::Reject => Admission::Refused {
            active: first.clone(),
        },
        Conflict::Queue => waits,
        Conflict::Supersede => {
            let to_abort = |standing: &Standing| match standing {
                Standing::Active(phase) => !matches!(phase, Phase::Aborting { .. }),
                Standing::Gone | Standing::Forming => false,
            };
            let rivals = ahead.iter().filter(|(_, standing)| to_abort(standing));
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

    fn group() -> GroupName {
        GroupName::new("firmware").unwrap()
    }

    fn rollout(text: &str) -> Rollout {
        let spec = format!(
            "{{name: {text}, group: firmware, target: {{all: true}}, message: {{body: {{text: hi}}}}}}"
        );
        let spec = RolloutSpec::read("x", &spec).unwrap();
        Rollout::accepted(spec, Default::default(), Timestamp(0))
    }

    fn names(line: &Line) -> String {
        let names: Vec<_> = line.members.iter().map(|it| it.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn a_line_keeps_its_order() {
        let with = |line: &Line, text: &str, version, anew, gone: &[&str]| {
            let gone: Vec<_> = gone.iter().map(|text| name(text)).collect();
            let next = line.with(&name(text), Version(version), anew, &gone, Timestamp(9));
            next.unwrap()
        };
        let mut line = Line::default();
        for text in ["a", "b", "c"] {
            line = with(&line, text, 1, true, &[]);
        }
        assert_eq!((names(&line).as_str(), line.version), ("a b c", Version(3)));
        // The same again is where it was, and yet a change: whoever thought it gone has to look again.
        let again = with(&line, "a", 1, true, &[]);
        assert_eq!(
            (names(&again).as_str(), again.version),
            ("a b c", Version(4))
        );
        // It goes on, and its record with it.
        let on = with(&again, "a", 5, false, &[]);
        assert_eq!(
            (names(&on).as_str(), on.members[0].version),
            ("a b c", Version(5))
        );
        let back = with(&on, "a", 3, false, &[]);
        assert_eq!(back.members[0].version, Version(5));
        // It ended and comes again.
        assert_eq!(names(&with(&on, "a", 6, true, &[])), "b c a");
        assert_eq!(names(&with(&on, "c", 2, false, &["a", "b"])), "c");
        assert_eq!(names(&with(&on, "d", 1, true, &["b"])), "a c d");

        let ahead: Vec<_> = on.ahead_of(&name("c")).map(|it| it.name.as_str()).collect();
        assert_eq!(ahead, ["a", "b"]);
        assert_eq!(on.ahead_of(&name("x")).count(), 3);
        assert_eq!(on.others(&name("b")).count(), 2);
    }

    #[test]
    fn a_line_has_an_end() {
        let mut line = Line::default();
        for number in 0..LONGEST_LINE {
            let name = name(&number.to_string());
            line = line
                .with(&name, Version(1), true, &[], Timestamp(0))
                .unwrap();
        }
        let one_more =
            |gone: &[RolloutName]| line.with(&name("x"), Version(1), true, gone, Timestamp(0));
        assert_eq!(one_more(&[]), None);
        assert!(one_more(&[name("7")]).is_some());
        // Those in it are still in it.
        assert!(
            line.with(&name("7"), Version(1), false, &[], Timestamp(0))
                .is_some()
        );
    }

    #[test]
    fn members_are_known_by_their_records() {
        let member = |version| Member {
            name: name("a"),
            version: Version(version),
            at: Timestamp(1_000),
        };
        let soon = Timestamp(1_000).plus(FORMING - Duration::from_millis(1));
        let late = Timestamp(1_000).plus(FORMING);
        let stands = |version, record: Option<&Rollout>, now| {
            standing(&group(), &member(version), record, now)
        };
        // It has joined, and has no record yet.
        assert_eq!(stands(1, None, soon), Standing::Forming);
        assert_eq!(stands(1, None, late), Standing::Gone);

        let active = rollout("a");
        assert_eq!(
            stands(1, Some(&active), late),
            Standing::Active(Phase::Accepted)
        );
        let reason = "r".to_owned();
        let ended = active.after(Event::PlanningFailed { reason }, Timestamp(5));
        let ended = ended.unwrap().unwrap();
        assert_eq!(stands(1, Some(&ended), soon), Standing::Gone);
        assert_eq!(stands(2, Some(&ended), soon), Standing::Gone);
        // It is about to start again.
        assert_eq!(stands(3, Some(&ended), soon), Standing::Forming);
        assert_eq!(stands(3, Some(&ended), late), Standing::Gone);

        // Its name was taken by a rollout that is not of this group.
        let mut other = rollout("a");
        other.spec.group = None;
        assert_eq!(stands(1, Some(&other), soon), Standing::Forming);
        assert_eq!(stands(1, Some(&other), late), Standing::Gone);
    }

    #[test]
    fn each_policy_and_who_comes_before() {
        let reason = || "r".to_owned();
        let member = |text: &str, standing: &Standing| (name(text), standing.clone());
        let running = Standing::Active(Phase::Running);
        let paused = Standing::Active(Phase::Paused { reason: reason() });
        let aborting = Standing::Active(Phase::Aborting { reason: reason() });
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
            // What has no record cannot be aborted yet.
            (
                vec![member("a", &Standing::Forming)],
                ["refused by a", "behind a", "behind a"],
            ),
        ] {
            let policies = [Conflict::Reject, Conflict::Queue, Conflict::Supersede];
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
