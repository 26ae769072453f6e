//! Days, dates, times and zones as written by people.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The compiled-in database, by name. The default database may be the system's, and two machines
/// must not read a schedule differently.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    pub(super) fn of(date: Date) -> Self {
        match date.weekday() {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mon => "mon",
            Self::Tue => "tue",
            Self::Wed => "wed",
            Self::Thu => "thu",
            Self::Fri => "fri",
            Self::Sat => "sat",
            Self::Sun => "sun",
        })
    }
}

/// A time of day to the minute, written like `22:00`; from `00:00` to `23:59`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(Time);

/// The error for a text that is not a time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time of day; write for example \"22:00\" or \"06:30\", at most \"23:59\"")]
pub struct InvalidTimeOfDay(String);

impl TimeOfDay {
    pub(super) fn on(self, date: Date) -> jiff::civil::DateTime {
        date.to_datetime(self.0)
    }
}

impl FromStr for TimeOfDay {
    type Err = InvalidTimeOfDay;

    fn from_str(text: &str) -> Result<Self, InvalidTimeOfDay> {
        let read = || {
            let (hour, minute) = text.split_once(':')?;
            Time::new(number(hour, 2)?, number(minute, 2)?, 0, 0).ok()
        };
        read()
            .map(Self)
            .ok_or_else(|| InvalidTimeOfDay(text.to_owned()))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = InvalidTimeOfDay;
    fn try_from(text: String) -> Result<Self, InvalidTimeOfDay> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        time.to_string()
    }
}

impl JsonSchema for TimeOfDay {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeOfDay".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$",
            "description": "a time of day to the minute: `22:00`, `06:30`",
        })
    }
}

/// A date in a zone, written like `2026-12-24`; years 0000 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CivilDate(Date);

/// The error for a text that is not a date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a date; write for example \"2026-12-24\"")]
pub struct InvalidDate(String);

impl CivilDate {
    pub(super) fn date(self) -> Date {
        self.0
    }
}

impl FromStr for CivilDate {
    type Err = InvalidDate;

    fn from_str(text: &str) -> Result<Self, InvalidDate> {
        let read = || {
            let (year, rest) = text.split_once('-')?;
            let (month, day) = rest.split_once('-')?;
            Date::new(number(year, 4)?, number(month, 2)?, number(day, 2)?).ok()
        };
        read().map(Self).ok_or_else(|| InvalidDate(text.to_owned()))
    }
}

impl fmt::Display for CivilDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for CivilDate {
    type Error = InvalidDate;
    fn try_from(text: String) -> Result<Self, InvalidDate> {
        text.parse()
    }
}

impl From<CivilDate> for String {
    fn from(date: CivilDate) -> String {
        date.to_string()
    }
}

impl JsonSchema for CivilDate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CivilDate".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "date",
            "description": "a date: `2026-12-24`",
        })
    }
}

/// Parses a number of exactly `digits` digits: `7` could be half of `17`.
fn number<T: FromStr>(text: &str, digits: usize) -> Option<T> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    well_formed.then(|| text.parse().ok()).flatten()
}

/// The IANA name of a time zone, like `Europe/Berlin` or `UTC`. Case does not matter; the name is
/// kept in the spelling of IANA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ZoneName(TimeZone);

/// The error for a text that is not a time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time zone; write its IANA name, for example \"Europe/Berlin\" or \"UTC\"")]
pub struct InvalidZone(String);

impl ZoneName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0
            .iana_name()
            .expect("a zone that was found by its name has one")
    }

    pub(super) fn zone(&self) -> &TimeZone {
        &self.0
    }

    /// Returns the zone with this name, without the cost of an error.
    pub(super) fn find(name: &str) -> Option<TimeZone> {
        let zone = ZONES.get(name).ok()?;
        // `Etc/Unknown` is the name for no zone.
        (!zone.is_unknown()).then_some(zone)
    }
}

impl FromStr for ZoneName {
    type Err = InvalidZone;

    fn from_str(text: &str) -> Result<Self, InvalidZone> {
        Self::find(text)
            .map(Self)
            .ok_or_else(|| InvalidZone(text.to_owned()))
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for ZoneName {
    type Error = InvalidZone;
    fn try_from(text: String) -> Result<Self, InvalidZone> {
        text.parse()
    }
}

impl From<ZoneName> for String {
    fn from(zone: ZoneName) -> String {
        zone.to_string()
    }
}

impl JsonSchema for ZoneName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ZoneName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "description": "the IANA name of a time zone: `Europe/Berlin`, `UTC`",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_read_and_write() {
        for text in ["00:00", "06:30", "23:59"] {
            assert_eq!(text.parse::<TimeOfDay>().unwrap().to_string(), text);
        }
        for bad in [
            "", "6:30", "24:00", "12:60", "12:3", "12:30:00", "+1:30", "noon",
        ] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn dates_read_and_write() {
        for text in ["2026-12-24", "2028-02-29", "9999-12-31"] {
            assert_eq!(text.parse::<CivilDate>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "2026-02-29",
            "2026-13-01",
            "26-12-24",
            "2026-1-1",
            "20261224",
            "2026-12-24T00:00",
        ] {
            assert!(bad.parse::<CivilDate>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn zones_are_iana_names() {
        for (text, written) in [
            ("Europe/Berlin", "Europe/Berlin"),
            ("america/new_york", "America/New_York"),
            ("utc", "UTC"),
            ("Etc/UTC", "Etc/UTC"),
        ] {
            assert_eq!(text.parse::<ZoneName>().unwrap().to_string(), written);
        }
        for bad in [
            "",
            "Berlin",
            "CEST",
            "+02:00",
            "Etc/Unknown",
            "Europe/Berlin ",
        ] {
            let error = bad.parse::<ZoneName>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{bad:?} is not")) && error.contains("Europe/Berlin"),
                "{error}"
            );
        }
    }
}
