//! Quantities as written by people: `24h`, `600/min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A duration, written like `90s`, `15m`, `1h 30m` or `2d`.
///
/// ```
/// use std::time::Duration;
/// use twincast_core::spec::{HumanDuration, InvalidDuration};
///
/// let duration: HumanDuration = "90m".parse()?;
/// assert_eq!(duration.0, Duration::from_secs(5_400));
/// assert_eq!(duration.to_string(), "1h 30m");
/// assert!("90".parse::<HumanDuration>().is_err(), "a unit is required");
/// # Ok::<(), InvalidDuration>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(pub Duration);

/// The error for a text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write for example \"90s\", \"15m\", \"1h 30m\" or \"2d\"")]
pub struct InvalidDuration(String);

impl FromStr for HumanDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.to_owned());
        let mut total = 0u64;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let unit_len = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(unit_len);
            let factor = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(invalid()),
            };
            total = number
                .checked_mul(factor)
                .and_then(|ms| total.checked_add(ms))
                .ok_or_else(invalid)?;
            rest = after.trim_start();
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.0.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        let mut first = true;
        for (unit, size) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ] {
            if ms >= size {
                write!(f, "{}{}{unit}", if first { "" } else { " " }, ms / size)?;
                first = false;
                ms %= size;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = InvalidDuration;
    fn try_from(text: String) -> Result<Self, InvalidDuration> {
        text.parse()
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> String {
        duration.to_string()
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HumanDuration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^\s*([0-9]+(ms|s|m|min|h|d)\s*)+$",
            "description": "a duration: `90s`, `15m`, `1h 30m`, `2d`",
        })
    }
}

/// A rate, written like `600/min`, `10/s` or `5000/h`. Kept per minute, as hubs count.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    per_minute: f64,
}

/// The error for a text that is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate; write for example \"600/min\", \"10/s\" or \"5000/h\", at least 0.001/min"
)]
pub struct InvalidRate(String);

impl Rate {
    /// The highest rate.
    pub const MAX: Self = Self { per_minute: 1e9 };

    /// Creates a rate of `n` per minute.
    ///
    /// # Errors
    /// Returns an error if `n` is not a number from 0.001 to 1e9. Other rates are presumably
    /// mistakes, and would harm the arithmetic of permits.
    pub fn per_minute(n: f64) -> Result<Self, InvalidRate> {
        if (0.001..=1e9).contains(&n) {
            Ok(Self { per_minute: n })
        } else {
            Err(InvalidRate(n.to_string()))
        }
    }

    /// Returns the rate per minute; above zero.
    #[must_use]
    pub fn as_per_minute(self) -> f64 {
        self.per_minute
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let invalid = || InvalidRate(text.to_owned());
        let (number, unit) = text.split_once('/').ok_or_else(invalid)?;
        let number: f64 = number.trim().parse().map_err(|_| invalid())?;
        let per_minute = match unit.trim() {
            "s" => number * 60.0,
            "m" | "min" => number,
            "h" => number / 60.0,
            _ => return Err(invalid()),
        };
        Self::per_minute(per_minute).map_err(|_| invalid())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact: a stored rate must be read back as the same rate.
        write!(f, "{}/min", self.per_minute)
    }
}

impl TryFrom<String> for Rate {
    type Error = InvalidRate;
    fn try_from(text: String) -> Result<Self, InvalidRate> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*/\s*(s|m|min|h)\s*$",
            "description": "a rate: `600/min`, `10/s`, `5000/h`",
        })
    }
}

/// A part of a whole, written like `5%` or `0.5%`. The sign is required, because `0.5` could be
/// half a per cent or half of all. Exact to a ten-thousandth of a per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "PercentText", into = "String")]
pub struct Percent {
    millionths: u32,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a per cent such as \"5%\"")]
enum PercentText {
    Number(f64),
    Text(String),
}

/// The error for a value that is not a per cent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPercent {
    /// The value has no valid reading.
    #[error(
        "{0:?} is not a per cent; write for example \"5%\" or \"0.5%\", from 0% to 100%, with at \
         most four decimals"
    )]
    NoPercent(String),
    /// The sign is missing, and only a single reading is a part of a whole.
    #[error("{number} has no per cent sign: write \"{percent}\"")]
    NoSign {
        /// The number found.
        number: String,
        /// The reading.
        percent: Percent,
    },
    /// The sign is missing, and there are two readings.
    #[error(
        "{number} can be read as {percent} or as {fraction}: write \"{percent}\" or \"{fraction}\""
    )]
    Ambiguous {
        /// The number found.
        number: String,
        /// The number read as per cent.
        percent: Percent,
        /// The number read as a fraction of 1.
        fraction: Percent,
    },
}

impl InvalidPercent {
    /// Returns the error for a number without the sign.
    pub(super) fn bare(number: f64) -> Self {
        let percent = Percent::of_number(number);
        let fraction = Percent::of_number(number * 100.0);
        let number = number.to_string();
        match (percent, fraction) {
            (Some(percent), Some(fraction)) if percent != fraction => Self::Ambiguous {
                number,
                percent,
                fraction,
            },
            (Some(percent), _) | (None, Some(percent)) => Self::NoSign { number, percent },
            (None, None) => Self::NoPercent(number),
        }
    }
}

impl Percent {
    /// The whole.
    pub const ALL: Self = Self {
        millionths: 1_000_000,
    };
    /// No part.
    pub const NONE: Self = Self { millionths: 0 };

    fn of_number(number: f64) -> Option<Self> {
        let millionths = number * 10_000.0;
        let whole = millionths.round();
        let exact = (millionths - whole).abs() < 1e-6;
        ((0.0..=1e6).contains(&whole) && exact).then_some(Self {
            millionths: whole as u32,
        })
    }

    /// Returns the part in millionths.
    #[must_use]
    pub fn millionths(self) -> u32 {
        self.millionths
    }

    /// Returns the part as a fraction, 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.millionths) / 1e6
    }

    /// Returns this part of `whole`, rounded up: at least 1 for any per cent above zero and any
    /// `whole` above zero.
    #[must_use]
    pub fn of(self, whole: u64) -> u64 {
        let part = (u128::from(whole) * u128::from(self.millionths)).div_ceil(1_000_000);
        u64::try_from(part).expect("a part is no more than the whole")
    }

    /// Returns whether `part` of `whole` is at least this per cent. Exact. A `part` of zero reaches
    /// any per cent of a `whole` of zero.
    #[must_use]
    pub fn is_reached_by(self, part: u64, whole: u64) -> bool {
        self.times(whole) <= u128::from(part) * 1_000_000
    }

    /// Returns whether `part` of `whole` is strictly above this per cent. Exact.
    #[must_use]
    pub fn is_exceeded_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 1_000_000 > self.times(whole)
    }

    fn times(self, whole: u64) -> u128 {
        u128::from(whole) * u128::from(self.millionths)
    }
}

impl FromStr for Percent {
    type Err = InvalidPercent;

    fn from_str(text: &str) -> Result<Self, InvalidPercent> {
        let invalid = || InvalidPercent::NoPercent(text.to_owned());
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| invalid());
        match text.trim().strip_suffix('%') {
            Some(text) => Self::of_number(number(text)?).ok_or_else(invalid),
            None => Err(InvalidPercent::bare(number(text)?)),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.millionths) / 10_000.0)
    }
}

impl TryFrom<PercentText> for Percent {
    type Error = InvalidPercent;
    fn try_from(text: PercentText) -> Result<Self, InvalidPercent> {
        match text {
            PercentText::Number(number) => Err(InvalidPercent::bare(number)),
            PercentText::Text(text) => text.parse(),
        }
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> String {
        percent.to_string()
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percent".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^\s*[0-9]+(\.[0-9]{1,4})?\s*%\s*$",
            "description": "a part of a whole, with the sign: `5%`, `0.5%`",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, ms, written) in [
            ("90s", 90_000, "1m 30s"),
            ("1h 30m", 5_400_000, "1h 30m"),
            ("1h30min", 5_400_000, "1h 30m"),
            ("2d", 172_800_000, "2d"),
            ("250ms", 250, "250ms"),
            ("0s", 0, "0s"),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(
                (duration.0.as_millis(), duration.to_string().as_str()),
                (ms, written)
            );
            assert_eq!(written.parse::<HumanDuration>().unwrap(), duration);
        }
        for bad in [
            "",
            "h",
            "5",
            "5x",
            "-1s",
            "1.5h",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(
                bad.parse::<HumanDuration>().is_err(),
                "{bad:?} was accepted"
            );
        }
    }

    #[test]
    fn rates_read_and_write() {
        for (text, per_minute, written) in [
            ("600/min", 600.0, "600/min"),
            ("10/s", 600.0, "600/min"),
            ("0.5 / m", 0.5, "0.5/min"),
            ("6000/h", 100.0, "100/min"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert!((rate.as_per_minute() - per_minute).abs() < 1e-9);
            assert_eq!(rate.to_string(), written);
        }
        for text in ["1/h", "7/h", "0.06/h", "0.001/min", "16666666/s"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate, "{text}");
        }
        for bad in ["", "600", "0/min", "-1/s", "inf/s", "NaN/s", "1/day"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_number_without_the_sign_is_no_percent() {
        for (number, expected) in [
            (
                "0.95",
                "0.95 can be read as 0.95% or as 95%: write \"0.95%\" or \"95%\"",
            ),
            (
                "0.07",
                "0.07 can be read as 0.07% or as 7%: write \"0.07%\" or \"7%\"",
            ),
            (
                "1",
                "1 can be read as 1% or as 100%: write \"1%\" or \"100%\"",
            ),
            (
                "1.0",
                "1 can be read as 1% or as 100%: write \"1%\" or \"100%\"",
            ),
            ("0", "0 has no per cent sign: write \"0%\""),
            ("95", "95 has no per cent sign: write \"95%\""),
            ("2.5", "2.5 has no per cent sign: write \"2.5%\""),
            ("0.00005", "0.00005 has no per cent sign: write \"0.005%\""),
            ("101", "\"101\" is not a per cent"),
            ("-1", "\"-1\" is not a per cent"),
        ] {
            let as_text = number.parse::<Percent>().unwrap_err().to_string();
            let as_number = serde_json::from_str::<Percent>(number)
                .unwrap_err()
                .to_string();
            for found in [as_text, as_number] {
                assert!(found.starts_with(expected), "{number}: {found}");
            }
        }
    }

    #[test]
    fn percents_are_exact() {
        for (text, shown) in [
            ("5%", "5%"),
            ("0.5 %", "0.5%"),
            ("100%", "100%"),
            ("0%", "0%"),
            ("33.3333%", "33.3333%"),
        ] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), shown);
        }
        for bad in ["101%", "-1%", "x", "", "1.00001%", "5%%", "NaN"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
        let percent = |text: &str| text.parse::<Percent>().unwrap();
        // Rounded up at every fleet size: 1 of 10 is exactly a tenth, and another device begins the
        // next tenth.
        for (text, whole, part) in [
            ("10%", 0, 0),
            ("10%", 1, 1),
            ("10%", 10, 1),
            ("10%", 11, 2),
            ("0.0001%", 1_000, 1),
            ("33.3333%", 3, 1),
            ("100%", 7, 7),
            ("0%", 1_000, 0),
            ("50%", u64::MAX, u64::MAX / 2 + 1),
        ] {
            assert_eq!(percent(text).of(whole), part, "{text} of {whole}");
        }
        for (text, part, whole, reached, exceeded) in [
            ("5%", 5, 100, true, false),
            ("5%", 6, 100, true, true),
            ("5%", 4, 100, false, false),
            ("0%", 0, 100, true, false),
            ("0%", 1, 100, true, true),
            ("100%", 100, 100, true, false),
            ("33.3333%", 1, 3, true, true),
            ("5%", 0, 0, true, false),
        ] {
            assert_eq!(
                percent(text).is_reached_by(part, whole),
                reached,
                "{part} of {whole} and {text}"
            );
            assert_eq!(
                percent(text).is_exceeded_by(part, whole),
                exceeded,
                "{part} of {whole} and {text}"
            );
        }
    }
}
