//! The times at which a rollout sends: after a start, inside windows, and not on frozen days.
//!
//! A schedule has no history: at a given time, a schedule is either open or closed, and knows the
//! next change. Times of day and dates are read in a time zone, from the compiled-in database.

mod calendar;
mod check;
mod civil;

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::civil::{
    CivilDate, Day, InvalidDate, InvalidTimeOfDay, InvalidZone, TimeOfDay, ZoneName,
};
use super::limits::MAX_TEXT_CHARS;
use super::quantity::HumanDuration;
use crate::query::TagPath;
use crate::time::Timestamp;

/// The shortest window. In a shorter window, a rollout would hardly get permits.
pub const MIN_WINDOW: Duration = Duration::from_secs(60);
/// The longest window: windows repeat every week.
pub const MAX_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
/// The maximum number of windows of a schedule. Already seven a day are more than people can keep
/// apart.
pub const MAX_WINDOWS: usize = 50;
/// The maximum number of freezes of a schedule: the holidays of some years.
pub const MAX_FREEZES: usize = 200;
/// How far ahead the starts and ends of windows are searched: more than a year, to cover everything
/// that recurs every year.
pub const HORIZON: Duration = Duration::from_secs(400 * 24 * 3600);

/// The valid years of a start: from 2020, before 2100. Other years are presumably mistakes.
pub(super) const STARTS: std::ops::Range<Timestamp> =
    Timestamp(1_577_836_800_000)..Timestamp(4_102_444_800_000);

/// The times at which messages are sent. Absent fields do not limit: the empty schedule is always
/// open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The time before which no message is sent, in RFC 3339; from 2020, before 2100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Timestamp>,
    /// Messages are sent only inside these windows. Default: always. At most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub windows: Vec<Window>,
    /// The time zone of `windows` and `freeze`. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// The tag with a device's own zone, as an IANA name. `zone` is for the devices without the
    /// tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_tag: Option<TagPath>,
    /// With `zone_tag`: the treatment of devices with an unknown zone.
    #[serde(default, skip_serializing_if = "UnknownZone::is_default")]
    pub unknown_zone: UnknownZone,
    /// Days without sending. At most 200.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub freeze: Vec<Freeze>,
}

/// The treatment of devices with an unknown zone in `zone_tag`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownZone {
    /// The devices are sent to by `zone`, and the plan names their values.
    #[default]
    Default,
    /// The devices are left out of the plan.
    Skip,
}

impl UnknownZone {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out a reference to the field"
    )]
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// A time that recurs on days of the week, from the start until just before the end. Touching or
/// overlapping windows count as a single window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which the window starts. The window may end on a later day. Default: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// The time of day at which the window starts, in the zone. If clocks go forward over this
    /// time, the window starts as much later: 02:30 becomes 03:30. If clocks go back and show this
    /// time twice, the window starts the first time.
    pub from: TimeOfDay,
    /// The length of the window, from 1 minute to 7 days. Clock changes do not affect the length:
    /// `4h` is 4 hours also when summer time begins or ends.
    #[serde(rename = "for")]
    pub length: HumanDuration,
}

impl Window {
    fn starts_on(&self, date: jiff::civil::Date) -> bool {
        self.days.is_empty() || self.days.contains(&Day::of(date))
    }
}

/// Days without sending, from the first midnight to the midnight after the last day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The first day, in the zone.
    pub from: CivilDate,
    /// The last day. Default: the first day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<CivilDate>,
    /// The reason, for people. Shown during the freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub reason: Option<String>,
}

impl Freeze {
    fn last(&self) -> CivilDate {
        self.to.unwrap_or(self.from)
    }
}

/// Whether messages may be sent at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScheduleState {
    /// The schedule is open.
    Open {
        /// The next closing. `None`: never, or not within [`HORIZON`].
        until: Option<Timestamp>,
    },
    /// The schedule is closed.
    Closed {
        /// The next opening. `None`: never, or not within [`HORIZON`]. Before the schedule's start,
        /// [`HORIZON`] counts from the start.
        until: Option<Timestamp>,
        /// The reason.
        why: Closed,
    },
}

/// The reason why a schedule is closed: the first of these that applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// The schedule's start is still to come.
    NotStarted,
    /// The day is frozen.
    Frozen {
        /// The reason of the first matching freeze in the list.
        reason: Option<String>,
    },
    /// No window is open.
    OutsideWindow,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted => f.write_str("before its start"),
            Self::Frozen { reason: None } => f.write_str("frozen"),
            Self::Frozen {
                reason: Some(reason),
            } => write!(f, "frozen: {reason}"),
            Self::OutsideWindow => f.write_str("outside its windows"),
        }
    }
}

#[cfg(test)]
mod tests;
