//! Names, ids and versions. No bare string or number crosses a module boundary.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::time::Timestamp;

/// A text that is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {found:?} is not valid: {allowed}")]
pub struct InvalidName {
    /// The kind of name.
    pub kind: &'static str,
    /// The text, cut to 140 characters.
    pub found: String,
    /// A description of the allowed texts.
    pub allowed: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $pattern:literal, $allowed:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Creates a name from valid text.
            ///
            /// # Errors
            /// [`InvalidName`], with a description of the allowed texts.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName {
                        kind: $kind,
                        found: text.chars().take(140).collect(),
                        allowed: $allowed,
                    })
                }
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": $pattern,
                    "description": $allowed,
                })
            }
        }
    };
}

fn is_label(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

name!(
    /// The name of a rollout, unique in a store. Part of every message id.
    RolloutName, "rollout name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 64)
);

name!(
    /// The alias of an IoT hub in the configuration. A store binds the alias to one [`HubHost`].
    HubName, "hub name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 63)
);

name!(
    /// The host name of an IoT hub in lower case, with the port if configured. The host name
    /// identifies the hub; a [`HubName`] is an alias, and the configuration may move the alias to
    /// another hub.
    HubHost, "hub host name", r"^[a-z0-9.:\[\]_-]{1,255}$",
    "1 to 255 lower-case letters, digits or any of . - _ : [ ]",
    |text| (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_:[]".contains(&b))
);

name!(
    /// The name of a stage, unique in its rollout.
    StageName, "stage name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 63)
);

name!(
    /// The name of a concurrency group: of its rollouts, only one is under way at a time.
    ConcurrencyGroup, "group name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 63)
);

name!(
    /// The name of a metric, unique in its gate.
    MetricName, "metric name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 63)
);

name!(
    /// The idempotency key of a command. The sender chooses the key, and never uses it for another
    /// command.
    CommandKey, "command key", "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 128)
);

name!(
    /// A device's id in the registry of its hub. Case-sensitive.
    ///
    /// The allowed characters are from the documentation of the identity registry
    /// (`iot-hub-devguide-identity-registry`): all characters allowed in any version of its list.
    DeviceId, "device id", r"^[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}$",
    "1 to 128 ASCII letters, digits or any of - : . + % _ # * ? ! ( ) , = @ ; $ '",
    |text| (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&b))
);

name!(
    /// The holder of a lease or claim: one run of one process. Never reused.
    Holder, "holder", "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 128)
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The number of a batch in its rollout's plan, from 0.
    BatchId(u32)
);
number!(
    /// The position of a stage in its rollout, from 0.
    StageIndex(u16)
);
number!(
    /// The number of an attempt at a device, from 1. Only the operator's `retry` begins a new
    /// attempt; resending by the engine does not.
    Attempt(u16)
);

impl Attempt {
    /// The first attempt at every device.
    pub const FIRST: Self = Self(1);

    pub(crate) fn first() -> Self {
        Self::FIRST
    }
}

number!(
    /// A fencing token: grows with every lease. A store refuses a write with an older epoch than
    /// the newest granted epoch.
    Epoch(u64)
);
number!(
    /// The generation of a record. Grows with every change.
    Version(u64)
);
number!(
    /// A digest of all changes up to a version of a record.
    ///
    /// A store may come back from a crash without its last writes. The store then assigns the same
    /// versions again, to other changes. Records of the same version are the same record only if
    /// their lineages are equal, too.
    Lineage(u64)
);

impl Lineage {
    /// Returns the id of a rollout whose record begins with this lineage.
    pub(crate) fn id(self) -> RolloutId {
        RolloutId(self.0)
    }

    /// Returns the lineage after a change at `now`; `change` is a description of the change.
    #[must_use]
    pub(crate) fn then(self, change: &[u8], now: Timestamp) -> Self {
        let mut all = Vec::with_capacity(16 + change.len());
        all.extend(self.0.to_be_bytes());
        all.extend(now.0.to_be_bytes());
        all.extend(change);
        Self(xxh3_64(&all))
    }
}

/// The unique id of a rollout, in this store and in all others. A name alone is not unique, because
/// the name of a deleted rollout can be used again. Written in base 36, at most 13 characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RolloutId(pub u64);

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&base36(self.0))
    }
}

impl std::str::FromStr for RolloutId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        from_base36(text).map(Self).ok_or_else(|| InvalidName {
            kind: "rollout id",
            found: text.chars().take(140).collect(),
            allowed: "1 to 13 digits or lower-case letters, without a leading zero",
        })
    }
}

impl Serialize for RolloutId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RolloutId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Formats a number in base 36, with lower-case letters.
pub(crate) fn base36(mut number: u64) -> String {
    let mut digits = [0u8; 13];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&digits[start..]).into_owned()
}

/// Parses the result of [`base36`] and no other text: each number has exactly one text.
pub(crate) fn from_base36(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 36).ok()?;
    (base36(number) == text).then_some(number)
}

number!(
    /// The version of a batch in a store. A store never assigns a version twice, not even after
    /// losing its last writes.
    BatchVersion(u64)
);

/// The version and the lineage of a record: together they identify one state of the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The record's version.
    pub version: Version,
    /// The digest of the changes up to the version.
    pub lineage: Lineage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_are_refused() {
        assert!(RolloutName::new("firmware-1.4.2").is_ok());
        for bad in ["", "-x", "a b", "ä", &"x".repeat(65)] {
            let error = RolloutName::new(bad).unwrap_err();
            assert!(error.to_string().contains("1 to 64 letters"), "{error}");
        }
        for good in ["fridge-4711:eu@x'y", "-:.+%_#*?!(),=@;$'", &"x".repeat(128)] {
            assert!(DeviceId::new(good).is_ok(), "{good:?} was refused");
        }
        for bad in [
            "",
            "a/b",
            "a b",
            "a\"b",
            "a\\b",
            "a\nb",
            "a|b",
            "a&b",
            "é",
            &"x".repeat(129),
        ] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_bad_name_is_refused_while_reading() {
        let error = serde_json::from_str::<HubName>("\"no spaces\"").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("hub name \"no spaces\" is not valid"),
            "{error}"
        );
    }
}
