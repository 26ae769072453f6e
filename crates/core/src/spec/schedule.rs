//! When a rollout sends: from a start on, inside its windows, and not on frozen days.
//!
//! A schedule says nothing of the past: it is asked for a time and answers whether it is open
//! then, and when that changes. Times of day and dates are read in a zone, from the database
//! that is compiled in.

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
use super::quantity::Span;
use crate::query::TagPath;
use crate::time::Timestamp;

/// The shortest window. Within less, a rollout would hardly get its permits.
pub const MIN_WINDOW: Duration = Duration::from_secs(60);
/// The longest window: they repeat every week.
pub const MAX_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most windows of a schedule; seven a day is more than people keep apart.
pub const MAX_WINDOWS: usize = 50;
/// The most freezes of a schedule: the holidays of some years.
pub const MAX_FREEZES: usize = 200;
/// How far ahead the ends and starts of windows are looked for: more than a year, so that
/// whatever recurs every year is seen.
pub const HORIZON: Duration = Duration::from_secs(400 * 24 * 3600);

/// The years in which a start is taken for meant: from 2020, before 2100.
pub(super) const STARTS: std::ops::Range<Timestamp> =
    Timestamp(1_577_836_800_000)..Timestamp(4_102_444_800_000);

/// When messages are sent. What is not said does not limit: the empty schedule is always open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Nothing is sent before this time, in RFC 3339; from 2020, before 2100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Timestamp>,
    /// Messages are sent only inside one of these. Default: always. At most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub windows: Vec<Window>,
    /// The zone in which `windows` and `freeze` are read. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// The tag that holds a device's own zone, as an IANA name. `zone` is for the devices
    /// without the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_tag: Option<TagPath>,
    /// With `zone_tag`: what becomes of devices whose value is no zone.
    #[serde(default, skip_serializing_if = "UnknownZone::is_default")]
    pub unknown_zone: UnknownZone,
    /// Days on which nothing is sent. At most 200.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub freeze: Vec<Freeze>,
}

/// What becomes of devices whose `zone_tag` holds something that is no zone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownZone {
    /// They are sent to by `zone`, and the plan names their values.
    #[default]
    Default,
    /// They are left out of the plan.
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

/// A time that recurs on days of the week: from its start until just before its end. Windows
/// that touch or overlap are one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which it starts; it may end on a later one. Default: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// The time of day at which it starts, in the zone. Where clocks go forward over it, it
    /// starts as much later as they do: 02:30 is then 03:30. Where they go back and show it
    /// twice, it starts the first time.
    pub from: TimeOfDay,
    /// How long it lasts, from 1 minute to 7 days. That much time passes, whatever the clocks
    /// do meanwhile: `4h` is 4 hours also where summer time begins or ends.
    #[serde(rename = "for")]
    pub length: Span,
}

impl Window {
    fn starts_on(&self, date: jiff::civil::Date) -> bool {
        self.days.is_empty() || self.days.contains(&Day::of(date))
    }
}

/// Days on which nothing is sent, from the first midnight to the one after the last day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The first day, in the zone.
    pub from: CivilDate,
    /// The last day. Default: the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<CivilDate>,
    /// Why, for people. Shown while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT_CHARS))]
    pub reason: Option<String>,
}

impl Freeze {
    fn last(&self) -> CivilDate {
        self.to.unwrap_or(self.from)
    }
}

/// Whether a schedule lets messages be sent at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It does.
    Open {
        /// From when on it does not. None: never, or not within [`HORIZON`].
        until: Option<Timestamp>,
    },
    /// It does not.
    Closed {
        /// From when on it does. None: never, or not within [`HORIZON`] of its start.
        until: Option<Timestamp>,
        /// Why not.
        why: Closed,
    },
}

/// Why a schedule is closed; the first of these that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closed {
    /// Its start is still to come.
    NotStarted,
    /// It is a frozen day.
    Frozen {
        /// Of the freeze that is listed first.
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
