//! The time account of a rollout.
//!
//! A rollout's record has a [`TimeAccount`]: the current activity, its start, and the time spent on
//! all earlier activities. Each change of activity books the elapsed time to the previous activity.
//! So the parts add up to the total, to the millisecond, however late a change is noted. While no
//! driver runs a rollout, after a crash for example, the time is booked to the last noted activity.
//!
//! A transition books the time at the moment of the transition. The activity of a running rollout
//! also changes between transitions: the driver notes the first change after a transition at once,
//! and later changes at most once in [`NOTED_EVERY`].

mod activity;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::{Timestamp, ms};
use crate::waiting::Waiting;

pub use activity::Activity;

/// The shortest interval between two notes on the activity of a running rollout. A shorter activity
/// may be booked to the activity before or after it.
pub const NOTED_EVERY: Duration = Duration::from_secs(5);

/// The time spent by a rollout on each activity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeAccount {
    /// The time spent on each activity up to `since`, in milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    booked: BTreeMap<Activity, u64>,
    /// The current activity.
    doing: Activity,
    /// The start of the current activity, or the last booking.
    since: Timestamp,
    /// The time of the driver's last note since the last transition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noted_at: Option<Timestamp>,
    /// The reason for holding back sends, as of the driver's last note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<Waiting>,
}

impl TimeAccount {
    /// Opens the account of a rollout accepted at `at`.
    #[must_use]
    pub fn opened(at: Timestamp) -> Self {
        Self {
            since: at,
            ..Self::default()
        }
    }

    /// Returns the current activity, as of the last note or transition.
    #[must_use]
    pub fn doing(&self) -> Activity {
        self.doing
    }

    /// Returns the reason for holding back sends, as of the driver's last note; `None` if the noted
    /// wait is over at `now`.
    #[must_use]
    pub fn held_back(&self, now: Timestamp) -> Option<&Waiting> {
        let hold = self.hold.as_ref();
        hold.filter(|hold| hold.until().is_none_or(|until| now < until))
    }

    /// Books the time up to `now` and begins the activity `doing`. After the clock was set back,
    /// nothing is booked until the clock has caught up.
    pub(crate) fn begin(&mut self, doing: Activity, now: Timestamp) {
        let passed = now.since(self.since);
        if !passed.is_zero() {
            *self.booked.entry(self.doing).or_default() += ms(passed);
            self.since = now;
        }
        self.doing = doing;
    }

    /// Returns the account with a driver's observation of a running rollout; `None` if the
    /// observation is noted already or the last note is too recent.
    pub(crate) fn with_note(
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

    /// Books a transition to the activity `doing`, and discards the driver's last note.
    pub(crate) fn book_transition(&mut self, doing: Activity, now: Timestamp) {
        self.begin(doing, now);
        (self.noted_at, self.hold) = (None, None);
    }

    /// Returns the time spent up to `now`, or up to the end of an ended rollout.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> TimeSpent {
        let mut parts = self.booked.clone();
        if self.doing != Activity::Over {
            *parts.entry(self.doing).or_default() += ms(now.since(self.since));
        }
        TimeSpent(parts)
    }
}

/// The time spent on each activity. Serialized as whole seconds, with the `total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeSpent(BTreeMap<Activity, u64>);

impl TimeSpent {
    /// Returns the total time, from the acceptance of the rollout to its end or to now.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_millis(self.0.values().sum())
    }

    /// Returns the time spent on one activity.
    #[must_use]
    pub fn on(&self, activity: Activity) -> Duration {
        Duration::from_millis(self.0.get(&activity).copied().unwrap_or(0))
    }

    /// Returns the whole seconds spent on each activity. They add up to the whole seconds of the
    /// total: each number is the difference of two rounded-down sums.
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

/// Reads the seconds; the total is their sum.
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
    fn rounded_seconds_add_up_to_total() {
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
