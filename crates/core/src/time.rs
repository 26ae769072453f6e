//! Points in time. Decision code never reads a clock; the time is an argument.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A point in time, in milliseconds since the Unix epoch, UTC. Serialized as RFC 3339 text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The latest time with a text form; stands for "for ever".
    pub const MAX: Self = Self(253_402_207_200_000);

    /// Returns this time less `duration`, at least the Unix epoch.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(ms(duration)))
    }

    /// Returns this time plus `duration`, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(ms(duration))).min(Self::MAX)
    }

    /// Returns the time elapsed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0.min(Self::MAX.0)).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(ms) {
            Ok(timestamp) => write!(f, "{timestamp}"),
            Err(_) => write!(f, "{ms} ms after 1970"),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let timestamp = jiff::Timestamp::deserialize(deserializer)?;
        let ms = timestamp.as_millisecond();
        u64::try_from(ms)
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("{timestamp} is before 1970")))
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "a point in time, in RFC 3339: `2026-09-21T14:00:00Z`, `2026-09-21T16:00:00+02:00`",
        })
    }
}

/// Returns a duration in whole milliseconds, at most [`u64::MAX`].
#[must_use]
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a duration as human-readable text: `1h 30m`, `45s`, `0.3s`.
#[must_use]
pub fn friendly(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds % 86_400 / 3_600);
    let (minutes, rest) = (seconds % 3_600 / 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, m) => format!("{m}m {rest:02}s"),
        (0, h, m) => format!("{h}h {m:02}m"),
        (d, h, _) => format!("{d}d {h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_serialize_as_text_and_read_back() {
        let at = Timestamp(1_790_000_000_123);
        let text = serde_json::to_string(&at).unwrap();
        assert_eq!(text, "\"2026-09-21T14:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), at);
        let last = serde_json::to_string(&Timestamp::MAX).unwrap();
        assert_eq!(
            serde_json::from_str::<Timestamp>(&last).unwrap(),
            Timestamp::MAX
        );
    }

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0.25, "0.2s"),
            (9.96, "10.0s"),
            (45.0, "45s"),
            (61.0, "1m 01s"),
            (5400.0, "1h 30m"),
            (90_000.0, "1d 01h"),
        ] {
            assert_eq!(friendly(Duration::from_secs_f64(seconds)), text);
        }
    }
}
