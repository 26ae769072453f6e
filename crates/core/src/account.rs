//! Where a rollout's time goes.
//!
//! A rollout's record has an [`Account`]: what it is doing, since when, and for how long it did what before.
//! Whenever it begins to do something else, the time since is booked. So the parts add up to the whole, to the
//! millisecond, whatever is noted and however late; and while nobody drives a rollout, after a crash say, its time
//! is booked to what it was doing.
//!
//! A transition books at its very moment. What a running rollout does changes without one, too: that is noted by
//! its driver, at once after a transition, and then once in [`NOTED_EVERY`] at the most.

mod activity;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::{Timestamp, ms};
use crate::waiting::Waiting;

pub use activity::Activity;

/// How often it is noted, at the most, that a running rollout does something else. What lasts for less may be
/// booked to what came before or after it.
pub const NOTED_EVERY: Duration = Duration::from_secs(5);

/// For how long a rollout has done what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Milliseconds, up to `since`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    booked: BTreeMap<Activity, u64>,
    /// What it is doing.
    doing: Activity,
    /// Since when, or since the last booking.
    since: Timestamp,
    /// When a driver last noted something, since the last transition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noted_at: Option<Timestamp>,
    /// What the sends wait for, as far as a driver has noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<Waiting>,
}

impl Account {
    /// That of a rollout which was just accepted.
    #[must_use]
    pub fn opened(at: Timestamp) -> Self {
        Self {
            since: at,
            ..Self::default()
        }
    }

    /// What the rollout is doing, as far as it was noted.
    #[must_use]
    pub fn doing(&self) -> Activity {
        self.doing
    }

    /// What the sends wait for at `now`, as far as a driver has noted it.
    #[must_use]
    pub fn held_back(&self, now: Timestamp) -> Option<&Waiting> {
        let hold = self.hold.as_ref();
        hold.filter(|hold| hold.until().is_none_or(|until| now < until))
    }

    /// Books the time up to `now`. A clock that was put back books nothing until it has caught up.
    pub(crate) fn begin(&mut self, doing: Activity, now: Timestamp) {
        let passed = now.since(self.since);
        if !passed.is_zero() {
            *self.booked.entry(self.doing).or_default() += ms(passed);
            self.since = now;
        }
        self.doing = doing;
    }

    /// The account with what a driver has seen of a running rollout; `None` if that is noted, or is not to be noted yet.
    pub(crate) fn noting(
        mut self,
        doing: Activity,
        hold: Option<Waiting>,
        now: Timestamp,
    ) -> Option<Self> {
        let is_early = |at: Timestamp| at <= now && now.since(at) < NOTED_EVERY;
        if (self.doing == doing && self.hold == hold) || self.noted_at.is_some_and(is_early) {
            return None;
        }
        self.begin(doing, now);
        (self.noted_at, self.hold) = (Some(now), hold);
        Some(self)
    }

    /// Books a transition, after which the rollout is `doing` that. What a driver has noted before is over.
    pub(crate) fn turn(&mut self, doing: Activity, now: Timestamp) {
        self.begin(doing, now);
        (self.noted_at, self.hold) = (None, None);
    }

    /// Where the time has gone up to `now`; up to its end, for a rollout that is over.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> TimeSpent {
        let mut parts = self.booked.clone();
        if self.doing != Activity::Over {
            *parts.entry(self.doing).or_default() += ms(now.since(self.since));
        }
        TimeSpent(parts)
    }
}

/// For how long a rollout did what. Written as seconds, with their `total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeSpent(BTreeMap<Activity, u64>);

impl TimeSpent {
    /// All of it: from when the rollout was accepted to its end, or to now.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_millis(self.0.values().sum())
    }

    /// How long it did one thing.
    #[must_use]
    pub fn on(&self, activity: Activity) -> Duration {
        Duration::from_millis(self.0.get(&activity).copied().unwrap_or(0))
    }

    /// Whole seconds for each activity, which add up to those of the total: each is the difference of two
    /// sums that were rounded down.
    #[must_use]
    pub fn seconds(&self) -> [(Activity, u64); Activity::ALL.len()] {
        let mut sum = Duration::ZERO;
        Activity::ALL.map(|activity| {
            let before = sum.as_secs();
            sum += self.on(activity);
            (activity, sum.as_secs() - before)
        })
    }
}

impl Serialize for TimeSpent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Activity::ALL.len() + 1))?;
        map.serialize_entry("total", &self.total().as_secs())?;
        for (activity, seconds) in self.seconds() {
            map.serialize_entry(activity.as_str(), &seconds)?;
        }
        map.end()
    }
}

/// Back from the seconds; the total is their sum.
impl<'de> Deserialize<'de> for TimeSpent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = BTreeMap::<String, u64>::deserialize(deserializer)?;
        let on = |activity: Activity| Some((activity, seconds.get(activity.as_str())? * 1_000));
        Ok(Self(Activity::ALL.into_iter().filter_map(on).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_add_up_however_they_are_broken() {
        let mut parts = BTreeMap::new();
        for activity in Activity::ALL {
            parts.insert(activity, 999);
        }
        let spent = TimeSpent(parts);
        assert_eq!(spent.total().as_secs(), 14);
        let seconds = spent.seconds();
        assert_eq!(seconds.iter().map(|(_, seconds)| seconds).sum::<u64>(), 14);
        assert!(seconds.iter().all(|(_, seconds)| *seconds <= 1));
    }
}
