//! Devices that say something of their zone which is no zone.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Values that are named.
const VALUES: usize = 5;
/// Characters of a value that are kept: the longest names of zones have 32.
const CHARS: usize = 40;

/// How many devices have a zone that is unknown, and some of their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnknownZones {
    /// The devices.
    pub devices: u64,
    /// Values that they have: the first 5 that were found, 40 characters of each.
    pub values: Vec<String>,
}

impl UnknownZones {
    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices == 0
    }

    /// Counts a device that has `value`.
    pub fn add(&mut self, value: &str) {
        self.devices += 1;
        self.note(value.chars().take(CHARS).collect());
    }

    /// Counts those of another hub, too.
    pub fn merge(&mut self, other: Self) {
        self.devices += other.devices;
        other.values.into_iter().for_each(|value| self.note(value));
    }

    fn note(&mut self, value: String) {
        if self.values.len() < VALUES && !self.values.contains(&value) {
            self.values.push(value);
        }
    }
}

impl fmt::Display for UnknownZones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.values.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{value:?}")?;
        }
        f.write_str(if self.values.len() < VALUES {
            ""
        } else {
            ", ..."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_bounded() {
        let mut zones = UnknownZones::default();
        assert!(zones.is_empty());
        zones.add("Europe/Olso");
        zones.add("Europe/Olso");
        zones.add("");
        assert_eq!(
            (zones.devices, &*zones.to_string()),
            (3, r#""Europe/Olso", """#)
        );
        let mut other = UnknownZones::default();
        for n in 0..10 {
            other.add(&format!("{n}{}", "é".repeat(100)));
        }
        assert!(
            other
                .values
                .iter()
                .all(|value| value.chars().count() == CHARS)
        );
        zones.merge(other);
        assert_eq!((zones.devices, zones.values.len()), (13, VALUES));
        assert!(zones.to_string().ends_with(", ..."), "{zones}");
    }
}
