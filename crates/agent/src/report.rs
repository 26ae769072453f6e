//! What a device answers: the reported property `update`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where an update is on a device. The last five are ends: final for their message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The message is stored.
    Received,
    /// Signature and manifest are good; it waits for its turn or its time.
    Verified,
    /// The artefact is being fetched.
    Downloading,
    /// The artefact is complete and is being installed. From here on it cannot be cancelled.
    Installing,
    /// The new version is being started, checked, confirmed, or rolled back.
    Restarting,
    /// The new version runs and is confirmed.
    Applied,
    /// It could not be installed.
    Failed,
    /// It must not be installed: signature, hardware, version ...
    Refused,
    /// It was installed, did not work, and the version before it runs again.
    RolledBack,
    /// It was given up on request, before it was installed.
    Cancelled,
}

impl Stage {
    /// Whether nothing follows for the same message.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(
            self,
            Self::Applied | Self::Failed | Self::Refused | Self::RolledBack | Self::Cancelled
        )
    }
}

/// Why an update did not come to `applied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A word in snake case, at most 64 characters.
    pub code: String,
    /// For people, at most 256 characters in one line.
    pub text: String,
}

impl Reason {
    /// The longest text, in characters.
    pub const LONGEST_TEXT: usize = 256;

    /// A reason. Of a text that is too long, the end is kept: with what commands print, it says what went wrong.
    #[must_use]
    pub fn new(code: &'static str, text: impl AsRef<str>) -> Self {
        Self {
            code: code.to_owned(),
            text: last_words(text.as_ref()),
        }
    }
}

/// The end of a text in one line without control characters, at most [`Reason::LONGEST_TEXT`] characters.
fn last_words(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let words: String = text.chars().map(visible).collect();
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count().checked_sub(Reason::LONGEST_TEXT) {
        None | Some(0) => line,
        Some(over) => ["..."]
            .into_iter()
            .map(str::to_owned)
            .chain([line.chars().skip(over + 3).collect()])
            .collect(),
    }
}

/// The value of the reported property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The id of the message.
    pub id: String,
    /// Where the update is.
    pub state: Stage,
    /// The version, where it is known: not before the signature was verified.
    pub version: Option<String>,
    /// In all ends but `applied`.
    pub error: Option<Reason>,
    /// How often the device tried to install it.
    pub attempt: u32,
    /// When it came to this state, by the device's clock.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_commands_are_one_short_line() {
        let long = format!("{} the end", "x".repeat(400));
        for (text, line) in [
            (
                "no space\n\n left\t\u{1b}[1m",
                "no space left [1m".to_owned(),
            ),
            ("", String::new()),
            (&long, format!("...{} the end", "x".repeat(245))),
            (&"é".repeat(256), "é".repeat(256)),
        ] {
            let reason = Reason::new("code", text);
            assert_eq!(reason.text, line);
            assert!(reason.text.chars().count() <= Reason::LONGEST_TEXT);
        }
    }

    #[test]
    fn the_contract_by_example() {
        let report = Report {
            id: "fw.1.0.0.1.1".to_owned(),
            state: Stage::RolledBack,
            version: Some("1.4.2".to_owned()),
            error: Some(Reason::new(
                "health_check",
                "the compressor does not answer",
            )),
            attempt: 1,
            at: "2026-11-30T12:00:00Z".parse().unwrap(),
        };
        let text = r#"{"id":"fw.1.0.0.1.1","state":"rolled_back","version":"1.4.2","error":{"code":"health_check","text":"the compressor does not answer"},"attempt":1,"at":"2026-11-30T12:00:00Z"}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), text);
        assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
    }
}
