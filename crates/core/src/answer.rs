//! What devices answer: how far each is with what the message asks for.
//!
//! A device writes its answer into a reported property of its twin, for example `update`:
//!
//! ```json
//! {"id": "firmware-1.4.2.2f1x9kq0c7m4a.0.h.3.1", "state": "failed", "version": "1.4.2",
//!  "error": {"code": "health_check", "text": "the door sensor does not answer"}, "attempt": 1, "at": "2026-12-01T12:00:00Z"}
//! ```
//!
//! The id is that of the message, so the answers to one rollout, or to one of its stages, begin alike
//! ([`MessageId::prefix`](crate::message::MessageId::prefix)), and a hub counts them in one query. Which device failed, and
//! why, is read from the twins of the failed ones. `docs/devices.md` has the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::StageIndex;
use crate::outcome::{Counts, Outcome, Tally, thousands};
use crate::text::cut;
use crate::time::Timestamp;

/// The most characters of an error's code that are kept.
const CODE_CHARS: usize = 64;
/// The most characters of an error's text that are kept.
const TEXT_CHARS: usize = 256;
/// How many different errors of a rollout are kept with their words.
const ERRORS: usize = 50;

/// The outcome that a state stands for. A device may use any words for states on the way.
#[must_use]
pub fn outcome_of(state: &str) -> Outcome {
    match state {
        "applied" => Outcome::Applied,
        "failed" | "refused" | "rolled_back" | "cancelled" => Outcome::Failed,
        _ => Outcome::Installing,
    }
}

/// Why a device failed, in its own words. Both texts are cut at their bounds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceError {
    /// A word for programs, at most 64 characters. May be empty.
    pub code: String,
    /// For people, at most 256 characters. May be empty.
    pub text: String,
}

impl DeviceError {
    /// The error as a device tells it.
    #[must_use]
    pub fn new(code: &str, text: &str) -> Self {
        let plain = |text: &str, most| cut(text.trim(), most).replace(char::is_control, " ");
        Self {
            code: plain(code, CODE_CHARS),
            text: plain(text, TEXT_CHARS),
        }
    }

    /// A number for it, the same for the same words; never 0. It is the code of a device that is
    /// [`Outcome::Failed`].
    #[must_use]
    pub fn number(&self) -> u32 {
        let words = format!("{}\0{}", self.code, self.text);
        let hash = xxhash_rust::xxh3::xxh3_64(words.as_bytes());
        ((hash >> 32) as u32).max(1)
    }
}

/// The words of a device that are not kept any more.
pub const WORDS_NOT_KEPT: &str =
    "its words are not kept: a rollout's first 50 different errors are";

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.text.as_str()) {
            ("", "") => f.write_str("the device does not say why"),
            (code, "") => f.write_str(code),
            ("", text) => f.write_str(text),
            (code, text) => write!(f, "{code}: {text}"),
        }
    }
}

/// The answer of one device, as its hub tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The id of the message that it is about. May be of any application.
    pub message_id: String,
    /// The device whose twin has it.
    pub device: String,
    /// The state, in the device's words.
    pub state: String,
    /// Why the device failed; of no meaning in other states.
    pub error: DeviceError,
}

/// How many devices of a stage have answered what, according to their hubs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Devices that are at work on it.
    pub installing: u64,
    /// Devices that have done it.
    pub applied: u64,
    /// Devices that could not do it.
    pub failed: u64,
    /// Devices of the stage that had failed by then in any way, as far as they were known. The failed ones among these are
    /// counted in `failed`, too.
    pub known_failed: u64,
    /// Everything that devices have reported by then is counted: the time of the query, less the lag of the hub's queries.
    pub as_of: Timestamp,
    /// The time of the query.
    pub asked_at: Timestamp,
}

impl Answered {
    /// Counts devices with a state.
    pub fn count(&mut self, state: &str, devices: u64) {
        match outcome_of(state) {
            Outcome::Applied => self.applied += devices,
            Outcome::Failed => self.failed += devices,
            _ => self.installing += devices,
        }
    }

    /// The numbers, for people: `950 applied, 30 installing`; `None` before a device has answered.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
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

/// The answers to a rollout: how many by stage, and the words of those that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stages: BTreeMap<StageIndex, Answered>,
    /// The words of failed devices, by [number](DeviceError::number). At most [`ERRORS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    errors: BTreeMap<u32, Told>,
}

/// An error, and how many devices have told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    error: DeviceError,
    devices: u64,
}

impl Answers {
    /// Nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.errors.is_empty()
    }

    /// What is known of a stage.
    #[must_use]
    pub fn of(&self, stage: StageIndex) -> Option<&Answered> {
        self.stages.get(&stage)
    }

    /// All stages that something is known of, in order.
    pub fn stages(&self) -> impl Iterator<Item = (StageIndex, &Answered)> {
        self.stages
            .iter()
            .map(|(stage, answered)| (*stage, answered))
    }

    /// The numbers of all stages together.
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

    /// For how long the answers to queries lack changes, as of the newest questions.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let stages = self.stages.values();
        let lags = stages.map(|answered| answered.asked_at.since(answered.as_of));
        lags.max().unwrap_or_default()
    }

    /// Devices that may have the message and have not answered that they have done it, or could not: of these tallies,
    /// stage by stage.
    #[must_use]
    pub fn unanswered(&self, tallies: &[Tally]) -> u64 {
        let stages: BTreeSet<_> = tallies.iter().map(|tally| tally.stage).collect();
        let of_stage = |stage: StageIndex| {
            let counts = Tally::sum(tallies.iter().filter(|tally| tally.stage == stage));
            unanswered(&counts, self.of(stage).map_or(0, |it| it.applied))
        };
        stages.into_iter().map(of_stage).sum()
    }

    /// Whether everything that devices have reported by `at` is counted, in all stages that were asked about.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        !self.stages.is_empty() && self.stages.values().all(|answered| answered.as_of >= at)
    }

    /// Notes what was found of a stage.
    pub fn note(&mut self, stage: StageIndex, answered: Answered) {
        self.stages.insert(stage, answered);
    }

    /// Whether the same numbers and words are known, whenever they were asked for.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
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

    /// Keeps the words of an error, which so many devices have told at once, unless 50 others are kept. Gives its number.
    pub fn keep(&mut self, error: DeviceError, devices: u64) -> u32 {
        let number = error.number();
        if let Some(told) = self.errors.get_mut(&number) {
            told.devices = told.devices.max(devices);
        } else if self.errors.len() < ERRORS {
            self.errors.insert(number, Told { error, devices });
        }
        number
    }

    /// The error that most devices have told.
    #[must_use]
    pub fn most_told(&self) -> Option<&DeviceError> {
        let told = self.errors.values().max_by_key(|told| told.devices)?;
        Some(&told.error)
    }

    /// The words of the error with this number, if they are kept.
    #[must_use]
    pub fn error(&self, number: u32) -> Option<&DeviceError> {
        self.errors.get(&number).map(|told| &told.error)
    }
}

/// Devices that were sent the message and have not answered that they have done it, or could not: of these counts, which
/// have every device that failed, and of the devices that have applied it according to their hubs.
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
    fn states_are_on_the_way_or_an_end() {
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
    fn numbers_are_told_in_words() {
        let answered = |applied, installing, failed| Answered {
            applied,
            installing,
            failed,
            ..Answered::default()
        };
        assert_eq!(answered(0, 0, 0).in_words(), None);
        let all = answered(1_950, 30, 2).in_words().unwrap();
        assert_eq!(all, "1,950 applied, 30 installing, 2 failed");
    }

    #[test]
    fn words_of_devices_are_bounded() {
        let error = DeviceError::new(&"c".repeat(90), &format!(" a\nb{}", "x".repeat(900)));
        assert_eq!(error.code.chars().count(), CODE_CHARS + 1);
        assert_eq!(error.text.chars().count(), TEXT_CHARS + 1);
        assert!(error.text.starts_with("a bx"), "{error}");
        let told = |code, text| DeviceError::new(code, text).to_string();
        assert_eq!(told("a", "b"), "a: b");
        assert_eq!(told("a", ""), "a");
        assert_eq!(told("", "b"), "b");
        assert_eq!(told("", ""), "the device does not say why");

        let mut answers = Answers::default();
        let numbers: Vec<_> = (0..90)
            .map(|n| answers.keep(DeviceError::new("e", &n.to_string()), n))
            .collect();
        let kept = numbers.iter().filter(|it| answers.error(**it).is_some());
        assert_eq!(kept.count(), ERRORS);
        assert_eq!(answers.most_told().unwrap().text, "49");
        assert_eq!(answers.keep(DeviceError::new("e", "7"), 90), numbers[7]);
        assert_eq!(answers.most_told().unwrap().text, "7");
    }

    #[test]
    fn who_has_not_answered_is_counted() {
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
        assert_eq!(unanswered(&counts, 0), 12, "8 are recorded");
        assert_eq!(unanswered(&counts, 12), 8);
        assert_eq!(unanswered(&counts, 99), 0);
    }
}
