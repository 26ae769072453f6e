//! The answers of devices: how far each device is with the request in the message.
//!
//! A device writes its answer into a reported property of its twin, for example `update`:
//!
//! ```json
//! {"id": "firmware-1.4.2.2f1x9kq0c7m4a.0.h.3.1", "state": "failed", "version": "1.4.2",
//!  "error": {"code": "health_check", "text": "the door sensor does not answer"}, "attempt": 1, "at": "2026-12-01T12:00:00Z"}
//! ```
//!
//! The id is the message id. The answers to one rollout, or to one stage, therefore share a prefix
//! ([`MessageId::prefix`](crate::message::MessageId::prefix)), and a hub counts them in one query.
//! Failed devices and the reasons for their failures are read from the twins of the failed devices.
//! `docs/how-to/devices.md` has the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::StageIndex;
use crate::outcome::{Counts, Outcome, Tally, thousands};
use crate::text::cut;
use crate::time::Timestamp;

/// The most stored characters of an error's code.
const CODE_CHARS: usize = 64;
/// The most stored characters of an error's text.
const TEXT_CHARS: usize = 256;
/// The most different errors of a rollout stored with their texts.
const ERRORS: usize = 50;

/// Returns the outcome for a device's state. A device may use any text for intermediate states.
#[must_use]
pub fn outcome_of(state: &str) -> Outcome {
    match state {
        "applied" => Outcome::Applied,
        "failed" | "refused" | "rolled_back" | "cancelled" => Outcome::Failed,
        _ => Outcome::Installing,
    }
}

/// A device's error, in the device's own words. Both texts are cut to their bounds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceError {
    /// A code for programs, at most 64 characters. May be empty.
    pub code: String,
    /// A human-readable text, at most 256 characters. May be empty.
    pub text: String,
}

impl DeviceError {
    /// Creates an error from the device's texts: trimmed, cut, and with spaces in place of control
    /// characters.
    #[must_use]
    pub fn new(code: &str, text: &str) -> Self {
        let plain = |text: &str, most| cut(text.trim(), most).replace(char::is_control, " ");
        Self {
            code: plain(code, CODE_CHARS),
            text: plain(text, TEXT_CHARS),
        }
    }

    /// Returns a number derived from both texts; never 0. The number is the code of a device with
    /// the outcome [`Outcome::Failed`].
    #[must_use]
    pub fn number(&self) -> u32 {
        let words = format!("{}\0{}", self.code, self.text);
        let hash = xxhash_rust::xxh3::xxh3_64(words.as_bytes());
        ((hash >> 32) as u32).max(1)
    }
}

/// The text for an error without a stored text.
pub const ERROR_NOT_STORED: &str =
    "the text is not kept: a rollout keeps its first 50 different errors";

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.text.as_str()) {
            ("", "") => f.write_str("the device gives no reason"),
            (code, "") => f.write_str(code),
            ("", text) => f.write_str(text),
            (code, text) => write!(f, "{code}: {text}"),
        }
    }
}

/// The answer of one device, as returned by the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The id of the answered message. May belong to another application.
    pub message_id: String,
    /// The answering device.
    pub device: String,
    /// The state, in the device's own words.
    pub state: String,
    /// The device's error; meaningless in other states than a failure.
    pub error: DeviceError,
}

/// The numbers of answers in a stage, as counted by the hubs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Devices at work on the request.
    pub installing: u64,
    /// Devices that fulfilled the request.
    pub applied: u64,
    /// Devices that could not fulfil the request.
    pub failed: u64,
    /// Devices of the stage known to have failed in any way by then. Devices with an answered
    /// failure among them are counted in `failed`, too.
    pub known_failed: u64,
    /// Everything reported by devices until this time is counted: the time of the query, less the
    /// lag of the hub's queries.
    pub as_of: Timestamp,
    /// The time of the query.
    pub asked_at: Timestamp,
}

impl Answered {
    /// Adds devices with a state.
    pub fn count(&mut self, state: &str, devices: u64) {
        match outcome_of(state) {
            Outcome::Applied => self.applied += devices,
            Outcome::Failed => self.failed += devices,
            _ => self.installing += devices,
        }
    }

    /// Returns the numbers as human-readable text: `950 applied, 30 installing`; `None` before the
    /// first answer.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let parts = [
            (self.applied, "applied"),
            (self.installing, "installing"),
            (self.failed, "failed"),
        ];
        let parts = parts.into_iter().filter(|(devices, _)| *devices > 0);
        let parts = parts.map(|(devices, word)| format!("{} {word}", thousands(devices)));
        let parts: Vec<_> = parts.collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// The answers to a rollout: the numbers by stage, and the errors of failed devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stages: BTreeMap<StageIndex, Answered>,
    /// The errors of failed devices, by [number](DeviceError::number). At most [`ERRORS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    errors: BTreeMap<u32, ErrorCount>,
}

/// An error, and the number of devices reporting it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ErrorCount {
    error: DeviceError,
    devices: u64,
}

impl Answers {
    /// Returns whether no answer is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.errors.is_empty()
    }

    /// Returns the numbers of a stage.
    #[must_use]
    pub fn of(&self, stage: StageIndex) -> Option<&Answered> {
        self.stages.get(&stage)
    }

    /// Returns all stages with known numbers, in order.
    pub fn stages(&self) -> impl Iterator<Item = (StageIndex, &Answered)> {
        self.stages
            .iter()
            .map(|(stage, answered)| (*stage, answered))
    }

    /// Returns the sum of the numbers of all stages.
    #[must_use]
    pub fn sum(&self) -> Answered {
        let mut sum = Answered::default();
        for answered in self.stages.values() {
            sum.installing += answered.installing;
            sum.applied += answered.applied;
            sum.failed += answered.failed;
        }
        sum
    }

    /// Returns the lag of the hubs' queries behind the twins, as of the newest queries.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let stages = self.stages.values();
        let lags = stages.map(|answered| answered.asked_at.since(answered.as_of));
        lags.max().unwrap_or_default()
    }

    /// Returns the number of devices, in these tallies, that may have the message and have answered
    /// neither with success nor with failure. Computed stage by stage.
    #[must_use]
    pub fn unanswered(&self, tallies: &[Tally]) -> u64 {
        let stages: BTreeSet<_> = tallies.iter().map(|tally| tally.stage).collect();
        let of_stage = |stage: StageIndex| {
            let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
            unanswered(&counts, self.of(stage).map_or(0, |it| it.applied))
        };
        stages.into_iter().map(of_stage).sum()
    }

    /// Returns whether everything reported by devices until `at` is counted, in all queried stages.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        !self.stages.is_empty() && self.stages.values().all(|answered| answered.as_of >= at)
    }

    /// Notes the numbers of a stage.
    pub fn note(&mut self, stage: StageIndex, answered: Answered) {
        self.stages.insert(stage, answered);
    }

    /// Returns whether both have the same numbers and errors, regardless of the query times.
    #[must_use]
    pub fn has_same_content(&self, other: &Self) -> bool {
        let numbers = |answers: &Self| -> Vec<_> {
            let stages = answers.stages.iter();
            stages
                .map(|(stage, it)| {
                    (
                        *stage,
                        it.installing,
                        it.applied,
                        it.failed,
                        it.known_failed,
                    )
                })
                .collect()
        };
        self.errors == other.errors && numbers(self) == numbers(other)
    }

    /// Stores an error reported by `devices` devices at the same time, unless 50 other errors are
    /// stored. Returns the error's number.
    pub fn store_error(&mut self, error: DeviceError, devices: u64) -> u32 {
        let number = error.number();
        if let Some(counted) = self.errors.get_mut(&number) {
            counted.devices = counted.devices.max(devices);
        } else if self.errors.len() < ERRORS {
            self.errors.insert(number, ErrorCount { error, devices });
        }
        number
    }

    /// Returns the error reported by the most devices.
    #[must_use]
    pub fn most_frequent_error(&self) -> Option<&DeviceError> {
        let counted = self.errors.values().max_by_key(|counted| counted.devices)?;
        Some(&counted.error)
    }

    /// Returns the error with this number, if stored.
    #[must_use]
    pub fn error(&self, number: u32) -> Option<&DeviceError> {
        self.errors.get(&number).map(|counted| &counted.error)
    }
}

/// Returns the number of devices with the message that have answered neither with success nor with
/// failure. `counts` include every failed device; `applied` is the number of devices with the
/// change applied, as counted by the hubs.
#[must_use]
pub fn unanswered(counts: &Counts, applied: u64) -> u64 {
    let sent = counts.sum_of(|outcome| outcome.was_enqueued() && !outcome.is_failure());
    let applied = applied.max(counts.get(Outcome::Applied));
    (sent + counts.get(Outcome::Unknown)).saturating_sub(applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_states_map_to_outcomes() {
        for (state, outcome) in [
            ("received", Outcome::Installing),
            ("downloading", Outcome::Installing),
            ("half way there", Outcome::Installing),
            ("applied", Outcome::Applied),
            ("failed", Outcome::Failed),
            ("refused", Outcome::Failed),
            ("rolled_back", Outcome::Failed),
            ("cancelled", Outcome::Failed),
        ] {
            assert_eq!(outcome_of(state), outcome, "{state}");
        }
    }

    #[test]
    fn numbers_are_described() {
        let answered = |applied, installing, failed| Answered {
            applied,
            installing,
            failed,
            ..Answered::default()
        };
        assert_eq!(answered(0, 0, 0).describe(), None);
        let all = answered(1_950, 30, 2).describe().unwrap();
        assert_eq!(all, "1,950 applied, 30 installing, 2 failed");
    }

    #[test]
    fn device_errors_are_bounded() {
        let error = DeviceError::new(&"c".repeat(90), &format!(" a\nb{}", "x".repeat(900)));
        assert_eq!(error.code.chars().count(), CODE_CHARS + 1);
        assert_eq!(error.text.chars().count(), TEXT_CHARS + 1);
        assert!(error.text.starts_with("a bx"), "{error}");
        let shown = |code, text| DeviceError::new(code, text).to_string();
        assert_eq!(shown("a", "b"), "a: b");
        assert_eq!(shown("a", ""), "a");
        assert_eq!(shown("", "b"), "b");
        assert_eq!(shown("", ""), "the device gives no reason");

        let mut answers = Answers::default();
        let numbers: Vec<_> = (0..90)
            .map(|n| answers.store_error(DeviceError::new("e", &n.to_string()), n))
            .collect();
        let kept = numbers.iter().filter(|it| answers.error(**it).is_some());
        assert_eq!(kept.count(), ERRORS);
        assert_eq!(answers.most_frequent_error().unwrap().text, "49");
        assert_eq!(
            answers.store_error(DeviceError::new("e", "7"), 90),
            numbers[7]
        );
        assert_eq!(answers.most_frequent_error().unwrap().text, "7");
    }

    #[test]
    fn unanswered_devices_are_counted() {
        let mut counts = Counts::default();
        for (outcome, devices) in [
            (Outcome::Pending, 1),
            (Outcome::NotFound, 2),
            (Outcome::Unknown, 3),
            (Outcome::Enqueued, 4),
            (Outcome::Delivered, 5),
            (Outcome::Expired, 6),
            (Outcome::Failed, 7),
            (Outcome::Applied, 8),
        ] {
            for _ in 0..devices {
                counts.count(outcome);
            }
        }
        assert_eq!(unanswered(&counts, 0), 12, "8 answers are recorded");
        assert_eq!(unanswered(&counts, 12), 8);
        assert_eq!(unanswered(&counts, 99), 0);
    }
}
