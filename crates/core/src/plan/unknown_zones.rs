//! Devices with an invalid time zone.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The maximum number of example values.
const MAX_VALUES: usize = 5;
/// The maximum number of characters kept of a value; the longest names of zones have 32.
const MAX_VALUE_CHARS: usize = 40;

/// The number of devices with an unknown zone, with examples of their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnknownZones {
    /// The number of devices.
    pub devices: u64,
    /// The first 5 distinct values, cut to 40 characters each.
    pub values: Vec<String>,
}

impl UnknownZones {
    /// Returns whether no device has an unknown zone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices == 0
    }

    /// Counts a device with the given value.
    pub fn add(&mut self, value: &str) {
        self.devices += 1;
        self.note(value.chars().take(MAX_VALUE_CHARS).collect());
    }

    /// Adds the devices of another hub.
    pub fn merge(&mut self, other: Self) {
        self.devices += other.devices;
        other.values.into_iter().for_each(|value| self.note(value));
    }

    fn note(&mut self, value: String) {
        if self.values.len() < MAX_VALUES && !self.values.contains(&value) {
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
        f.write_str(if self.values.len() < MAX_VALUES {
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
    fn named_zones_are_bounded() {
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
                .all(|value| value.chars().count() == MAX_VALUE_CHARS)
        );
        zones.merge(other);
        assert_eq!((zones.devices, zones.values.len()), (13, MAX_VALUES));
        assert!(zones.to_string().ends_with(", ..."), "{zones}");
    }
}
