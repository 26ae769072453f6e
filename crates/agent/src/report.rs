//! A device's report: the reported property `update`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The progress of an update on a device. The last five values are ends: final for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// The message is stored.
    Received,
    /// Signature and manifest are valid; the update waits for the start of the download.
    Verified,
    /// The artefact is being fetched.
    Downloading,
    /// The artefact is complete and is being installed. From here on, the update cannot be
    /// cancelled.
    Installing,
    /// The new version is being started, checked, confirmed, or rolled back.
    Restarting,
    /// The new version runs and is confirmed.
    Applied,
    /// The update could not be downloaded or installed, or the rollback failed.
    Failed,
    /// The update must not be installed: signature, hardware, version ...
    Refused,
    /// The new version was installed and did not work, and the previous version runs again.
    RolledBack,
    /// The update was cancelled on request, before the installation.
    Cancelled,
}

impl Progress {
    /// Returns whether the progress is final for the message.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(
            self,
            Self::Applied | Self::Failed | Self::Refused | Self::RolledBack | Self::Cancelled
        )
    }
}

/// The reason why an update was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A code in snake case, at most 64 characters.
    pub code: String,
    /// A text for people, at most 256 characters in a single line.
    pub text: String,
}

impl Reason {
    /// The longest text, in characters.
    pub const MAX_TEXT_CHARS: usize = 256;

    /// Creates a reason. Of a long text, only the end is kept: the end of a command's output names
    /// the problem.
    #[must_use]
    pub fn new(code: &'static str, text: impl AsRef<str>) -> Self {
        Self {
            code: code.to_owned(),
            text: shortened(text.as_ref()),
        }
    }
}

/// Returns the end of a text in a single line without control characters, at most
/// [`Reason::MAX_TEXT_CHARS`] characters.
fn shortened(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let printable: String = text.chars().map(visible).collect();
    let line = printable.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count().checked_sub(Reason::MAX_TEXT_CHARS) {
        None | Some(0) => line,
        Some(over) => ["..."]
            .into_iter()
            .map(str::to_owned)
            .chain([line.chars().skip(over + 3).collect()])
            .collect(),
    }
}

/// The value of the reported property `update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The id of the message.
    pub id: String,
    /// The progress of the update.
    pub state: Progress,
    /// The version; none before the signature is verified.
    pub version: Option<String>,
    /// The reason, for every end except `applied`.
    pub error: Option<Reason>,
    /// The number of the installation attempt, from 1.
    pub attempt: u32,
    /// The time of reaching this state, by the device's clock.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_a_single_short_line() {
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
            assert!(reason.text.chars().count() <= Reason::MAX_TEXT_CHARS);
        }
    }

    #[test]
    fn the_contract_by_example() {
        let report = Report {
            id: "fw.1.0.0.1.1".to_owned(),
            state: Progress::RolledBack,
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
