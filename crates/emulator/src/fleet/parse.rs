//! Values of the fleet file: shares and ranges of durations.

use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A share of the whole, between 0 and 1; written `0.1` or `10%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let share = deserializer.deserialize_any(ShareVisitor)?;
        if (0.0..=1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err(D::Error::custom(format!(
                "the share {share} is not between 0 and 1 (or 0% and 100%)"
            )))
        }
    }
}

struct ShareVisitor;

impl Visitor<'_> for ShareVisitor {
    type Value = f64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a share such as 0.1 or 10%")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
        Ok(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
        let (number, scale) = match text.trim().strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text.trim(), 1.0),
        };
        let number: f64 = number
            .trim()
            .parse()
            .map_err(|_| E::custom(format!("'{text}' is not a share such as 0.1 or 10%")))?;
        Ok(number / scale)
    }
}

/// A range of durations, from which each device draws; written `250ms`, `5s`, `10m`, `1h` or
/// `1s..5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationRange {
    /// The shortest duration.
    pub from: Duration,
    /// The longest duration.
    pub to: Duration,
}

impl DurationRange {
    /// Returns the duration at `share` of the way from the shortest to the longest.
    pub(crate) fn at(&self, share: f64) -> Duration {
        self.from
            + self
                .to
                .saturating_sub(self.from)
                .mul_f64(share.clamp(0.0, 1.0))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = match text.split_once("..") {
            Some((from, to)) => (duration(from)?, duration(to)?),
            None => (duration(text)?, duration(text)?),
        };
        if from > to {
            return Err(format!("the range '{text}' ends before its start"));
        }
        Ok(Self { from, to })
    }
}

impl<'de> Deserialize<'de> for DurationRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is not a time such as 250ms, 5s, 10m or 1h");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(wrong)?;
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_checked() {
        assert_eq!(
            DurationRange::parse("250ms").unwrap().from,
            Duration::from_millis(250)
        );
        let range = DurationRange::parse("1s..2m").unwrap();
        assert_eq!(
            (range.from, range.to),
            (Duration::from_secs(1), Duration::from_secs(120))
        );
        assert_eq!(range.at(0.5), Duration::from_millis(60_500));
        for wrong in ["", "5", "5 parsecs", "2s..1s", "-1s"] {
            assert!(DurationRange::parse(wrong).is_err(), "{wrong}");
        }
    }
}
