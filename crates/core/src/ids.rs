//! The names of things. No bare string or number crosses a module.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::time::Timestamp;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {found:?} is not valid: {allowed}")]
pub struct InvalidName {
    /// What the text was meant to name.
    pub kind: &'static str,
    /// The text, cut to 140 characters.
    pub found: String,
    /// What is allowed, in words.
    pub allowed: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $pattern:literal, $allowed:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`InvalidName`], which says what is allowed.
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

            /// The name as text.
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
    /// The name of a rollout, unique in a store. It is part of every message id.
    RolloutName, "rollout name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 64)
);

name!(
    /// The alias that the configuration gives to one IoT hub. A store binds it to one [`HubHost`].
    HubName, "hub name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 63)
);

name!(
    /// The host name of an IoT hub in lower case, with its port if the configuration gives one. It identifies the hub;
    /// a [`HubName`] is an alias that the configuration may move to another hub.
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
    /// The name of a group of rollouts, of which one at a time is under way.
    GroupName, "group name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
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
    /// What a command is known by when it comes again: chosen by whoever asks, never for another command.
    CommandKey, "command key", "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit",
    |text| is_label(text, 128)
);

name!(
    /// A device's id in its hub's registry. Case-sensitive.
    ///
    /// The allowed characters are those of the identity registry's documentation
    /// (`iot-hub-devguide-identity-registry`): all that any version of its list has.
    DeviceId, "device id", r"^[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}$",
    "1 to 128 ASCII letters, digits or any of - : . + % _ # * ? ! ( ) , = @ ; $ '",
    |text| (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&b))
);

name!(
    /// Who holds a lease: one run of one process. Never reused.
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
    /// A batch's number in its rollout's plan, from 0.
    BatchId(u32)
);
number!(
    /// A stage's position in its rollout, from 0.
    StageIndex(u16)
);
number!(
    /// Which try at a device this is, from 1. Raised only by the operator's `retry`, never by
    /// the engine's own resending.
    Attempt(u16)
);

impl Attempt {
    /// The one that every device begins with.
    pub const FIRST: Self = Self(1);

    pub(crate) fn first() -> Self {
        Self::FIRST
    }
}

number!(
    /// A fencing token: grows with every new holder of a lease. A store refuses writes that
    /// carry an older one than it has seen.
    Epoch(u64)
);
number!(
    /// A record's generation. Grows with every change.
    Version(u64)
);
number!(
    /// A digest of all changes that led to a version of a record.
    ///
    /// A store that crashes may come back without its last writes. It then gives the same versions again, to other
    /// changes. Records of the same version are the same record only if their lineages are equal, too.
    Lineage(u64)
);

impl Lineage {
    /// The id of a rollout whose record begins with this lineage.
    pub(crate) fn id(self) -> RolloutId {
        RolloutId(self.0)
    }

    /// The lineage after a change at `now`, which `change` describes.
    #[must_use]
    pub(crate) fn then(self, change: &[u8], now: Timestamp) -> Self {
        let mut all = Vec::with_capacity(16 + change.len());
        all.extend(self.0.to_be_bytes());
        all.extend(now.0.to_be_bytes());
        all.extend(change);
        Self(xxh3_64(&all))
    }
}

/// What tells a rollout from others of its name, in this store and in all others: a name is free again once its rollout
/// was deleted. Written in base 36, at most 13 characters.
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

/// A number in base 36, with lower-case letters.
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

/// Reads what [`base36`] wrote, and nothing else: one number has one text.
pub(crate) fn from_base36(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 36).ok()?;
    (base36(number) == text).then_some(number)
}

number!(
    /// One state of a batch in a store. A store gives none twice, not even after it has lost its last writes.
    BatchVersion(u64)
);

/// One state of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The record's version.
    pub version: Version,
    /// What led to that version.
    pub lineage: Lineage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_state_what_is_allowed() {
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
            assert!(DeviceId::new(bad).is_err(), "{bad:?} was taken");
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
