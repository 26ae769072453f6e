//! Types of configuration values: secrets and shares.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use twincast_secret::{Secret, SecretSource};

/// A text never shown.
#[derive(Clone)]
pub(crate) struct SecretText(pub(super) String);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        // The library's error would show the found value.
        text.map(Self).map_err(|_| {
            serde::de::Error::custom("must be a text, in quotes; the found value is not shown")
        })
    }
}

impl SecretText {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// Returns the source of a secret: the text of `setting`, or the file named by `{setting}_file`,
/// below `base`.
pub(crate) fn source_of(
    setting: &str,
    text: Option<&SecretText>,
    file: Option<&Path>,
    base: &Path,
) -> Option<SecretSource> {
    match (text, file) {
        (Some(text), _) => Some(SecretSource::Fixed(Secret::new(text.expose()))),
        (None, Some(file)) => Some(SecretSource::File {
            setting: format!("{setting}_file"),
            path: base.join(file),
        }),
        (None, None) => None,
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// A share of a whole, written like `90%`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Share(pub(super) f64);

impl Share {
    /// Returns the share as a fraction: 0.9 for `90%`.
    pub(crate) fn of_one(self) -> f64 {
        self.0
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(1.0)
    }
}

impl TryFrom<String> for Share {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let percent = text
            .trim()
            .strip_suffix('%')
            .and_then(|number| number.trim().parse::<f64>().ok());
        match percent {
            Some(percent) if (0.1..=100.0).contains(&percent) => Ok(Self(percent / 100.0)),
            _ => Err(format!(
                "{text:?} is not a share; write for example \"90%\", 0.1% to 100%"
            )),
        }
    }
}

impl From<Share> for String {
    fn from(share: Share) -> String {
        format!("{}%", share.0 * 100.0)
    }
}
