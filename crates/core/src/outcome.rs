//! The outcome of one device in one rollout.
//!
//! Within one attempt an [`Outcome`] only rises: [`Outcome::merge`] takes the higher of two
//! outcomes, so reports may be repeated and reordered (feedback can overtake the record of its own
//! send). The order is total, so a merge is commutative, associative and idempotent without further
//! rules; within a rank, the later variant wins. Only [`OutcomeList::reopen`] lowers an outcome,
//! for a new attempt.
//!
//! A failure reported by a device stands until a retry, whatever the device reports later under the
//! same message id: an [answer](crate::answer) is final. So [`Outcome::Failed`] is the highest
//! outcome.
//!
//! [`Counts`] change by the difference of a merge, so they cannot drift from the outcomes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{HubName, StageIndex};

/// The outcome of one device, in four bits.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// Planned; nothing sent yet.
    #[default]
    Pending = 0,
    /// About to be sent. Recorded before a send, only under `at_most_once`.
    Attempting = 1,
    /// In flight when the worker or the connection was lost; must not be repeated.
    Unknown = 2,
    /// Excluded from sending: the rollout was aborted first, or the device has left the target.
    Skipped = 3,
    /// The hub does not know the device.
    NotFound = 4,
    /// The device already has 50 messages waiting in the hub.
    QueueFull = 5,
    /// The hub refused the message permanently, with a code.
    Refused = 6,
    /// The hub has accepted the message and keeps it for the device.
    Enqueued = 7,
    /// The message's time to live ended before the device took it.
    Expired = 8,
    /// The device rejected the message.
    Rejected = 9,
    /// The device was handed the message as often as the hub allows and never completed it.
    Undeliverable = 10,
    /// The device's queue was purged.
    Purged = 11,
    /// The device completed the message.
    Delivered = 12,
    /// The device answers: at work on the request in the message.
    Installing = 13,
    /// The device answers: request fulfilled.
    Applied = 14,
    /// The device answers: request impossible to fulfil.
    Failed = 15,
}

/// The number of outcomes.
pub const OUTCOMES: usize = 16;

impl Outcome {
    /// All outcomes, lowest first.
    pub const ALL: [Self; OUTCOMES] = [
        Self::Pending,
        Self::Attempting,
        Self::Unknown,
        Self::Skipped,
        Self::NotFound,
        Self::QueueFull,
        Self::Refused,
        Self::Enqueued,
        Self::Expired,
        Self::Rejected,
        Self::Undeliverable,
        Self::Purged,
        Self::Delivered,
        Self::Installing,
        Self::Applied,
        Self::Failed,
    ];

    /// Returns the outcome with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Returns the higher of two outcomes.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }

    /// Returns whether no send is owed to the device any more.
    #[must_use]
    pub fn is_settled(self) -> bool {
        self > Self::Attempting
    }

    /// Returns whether the hub accepted a message for the device, regardless of the message's fate.
    #[must_use]
    pub fn was_enqueued(self) -> bool {
        self >= Self::Enqueued
    }

    /// Returns whether devices with this outcome have a code: of the hub for [`Self::Refused`], of
    /// the device's [error](crate::answer::DeviceError) for [`Self::Failed`].
    #[must_use]
    pub fn has_code(self) -> bool {
        matches!(self, Self::Refused | Self::Failed)
    }

    /// Returns whether the device has answered with success or with failure.
    #[must_use]
    pub fn is_answered(self) -> bool {
        matches!(self, Self::Applied | Self::Failed)
    }

    /// Returns whether the device was not sent the message, did not take the message, or could not
    /// fulfil the request.
    #[must_use]
    pub fn is_failure(self) -> bool {
        OutcomeClass::of(self, false).is_failure()
    }

    /// Returns whether a new attempt at the device is allowed: after a failure, or without any
    /// feedback.
    #[must_use]
    pub fn can_be_retried(self) -> bool {
        self.is_failure() || self == Self::Enqueued
    }

    /// Returns the outcome's name in files and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is not an outcome's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not an outcome; the outcomes are {}", Outcome::ALL.map(Outcome::as_str).join(", "))]
pub struct UnknownOutcome {
    found: String,
}

impl std::str::FromStr for Outcome {
    type Err = UnknownOutcome;
    fn from_str(text: &str) -> Result<Self, UnknownOutcome> {
        let found = Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text);
        found.ok_or_else(|| UnknownOutcome {
            found: text.to_owned(),
        })
    }
}

/// The number of devices with each outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; OUTCOMES]);

impl Counts {
    /// Returns counts of `devices` pending devices.
    #[must_use]
    pub fn pending(devices: u64) -> Self {
        let mut counts = Self::default();
        counts.0[0] = devices;
        counts
    }

    /// Returns the number of devices with `outcome`.
    #[must_use]
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// Returns the number of all counted devices.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the number of devices whose outcome satisfies `condition`.
    #[must_use]
    pub fn sum_of(&self, condition: impl Fn(Outcome) -> bool) -> u64 {
        Outcome::ALL
            .into_iter()
            .filter(|o| condition(*o))
            .map(|o| self.get(o))
            .sum()
    }

    /// Returns the number of devices without an owed send.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.sum_of(Outcome::is_settled)
    }

    /// Returns the number of devices with an owed send.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        self.total() - self.settled()
    }

    /// Returns the number of failed devices, see [`Outcome::is_failure`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.sum_of(Outcome::is_failure)
    }

    /// Counts one more device.
    pub fn count(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }

    /// Counts one device as `new` instead of `old`.
    ///
    /// # Panics
    /// When no device is counted as `old`: the counts have drifted, which is a defect.
    pub fn shift(&mut self, old: Outcome, new: Outcome) {
        let from = &mut self.0[old as usize];
        *from = from
            .checked_sub(1)
            .expect("counts are the sum of the outcomes");
        self.0[new as usize] += 1;
    }

    /// Returns the counts after a part of the devices changed from the counts `from` to the counts
    /// `to`; `None` when these devices were not counted.
    #[must_use]
    pub fn moved(&self, from: &Self, to: &Self) -> Option<Self> {
        let mut moved = *self;
        for (number, (from, to)) in moved.0.iter_mut().zip(from.0.iter().zip(to.0)) {
            *number = (*number + to).checked_sub(*from)?;
        }
        Some(moved)
    }

    /// Adds the counts of another set of devices.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Iterates over the outcomes of at least one device, with their counts, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL
            .into_iter()
            .map(|o| (o, self.get(o)))
            .filter(|(_, n)| *n > 0)
    }
}

/// The counts of one stage on one hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The stage.
    pub stage: StageIndex,
    /// The hub.
    pub hub: HubName,
    /// The number of devices with each outcome.
    pub counts: Counts,
}

impl Tally {
    /// Returns the sum of the counts over stages and hubs.
    #[must_use]
    pub fn sum<'a>(tallies: impl IntoIterator<Item = &'a Self>) -> Counts {
        let mut counts = Counts::default();
        for tally in tallies {
            counts.add(&tally.counts);
        }
        counts
    }
}

/// By outcome, lowest first.
impl From<[u64; OUTCOMES]> for Counts {
    fn from(numbers: [u64; OUTCOMES]) -> Self {
        Self(numbers)
    }
}

/// The class of an outcome, for reports. Every outcome has exactly one class, so the classes add up
/// to the number of devices.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum OutcomeClass {
    /// The device has fulfilled the request in the message.
    Applied,
    /// The device took the message.
    Taken,
    /// The hub has the message; no feedback was requested.
    Sent,
    /// The hub has the message; feedback was requested, and none has come.
    Silent,
    /// A send is still owed.
    Pending,
    /// The device took the message, and could not fulfil the request.
    NotApplied,
    /// The hub had the message, and the device did not take it.
    NotTaken,
    /// The hub does not have the message, or may not have the message.
    NotSent,
    /// Excluded from sending: the rollout was aborted first, or the device has left the target.
    Skipped,
}

impl OutcomeClass {
    /// All classes, in the order for reports.
    pub const ALL: [Self; 9] = [
        Self::Applied,
        Self::Taken,
        Self::Sent,
        Self::Silent,
        Self::Pending,
        Self::NotApplied,
        Self::NotTaken,
        Self::NotSent,
        Self::Skipped,
    ];

    /// Returns the class of a device with this outcome. `wants_feedback`: the hub was asked for
    /// feedback.
    #[must_use]
    pub fn of(outcome: Outcome, wants_feedback: bool) -> Self {
        match outcome {
            Outcome::Pending | Outcome::Attempting => Self::Pending,
            Outcome::Unknown | Outcome::NotFound | Outcome::QueueFull | Outcome::Refused => {
                Self::NotSent
            }
            Outcome::Skipped => Self::Skipped,
            Outcome::Enqueued if wants_feedback => Self::Silent,
            Outcome::Enqueued => Self::Sent,
            Outcome::Expired | Outcome::Rejected | Outcome::Undeliverable | Outcome::Purged => {
                Self::NotTaken
            }
            Outcome::Delivered | Outcome::Installing => Self::Taken,
            Outcome::Applied => Self::Applied,
            Outcome::Failed => Self::NotApplied,
        }
    }

    /// Returns the outcomes of this class. `wants_feedback` as in [`OutcomeClass::of`].
    pub fn outcomes(self, wants_feedback: bool) -> impl Iterator<Item = Outcome> {
        let all = Outcome::ALL.into_iter();
        all.filter(move |outcome| Self::of(*outcome, wants_feedback) == self)
    }

    /// Returns whether the device was not sent the message, did not take the message, or could not
    /// fulfil the request.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::NotApplied | Self::NotTaken | Self::NotSent)
    }

    /// Returns the name in files and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Returns the human-readable name.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::NotApplied => "not applied",
            Self::NotTaken => "not taken",
            Self::NotSent => "not sent",
            class => class.as_str(),
        }
    }
}

/// A text that is not a class's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a class; the classes are {}", OutcomeClass::ALL.map(OutcomeClass::as_str).join(", "))]
pub struct UnknownClass {
    found: String,
}

impl std::str::FromStr for OutcomeClass {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| UnknownClass {
            found: text.to_owned(),
        })
    }
}

/// The number of devices in each [`OutcomeClass`]. Serialization includes all classes, in this
/// order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClassCounts {
    /// See [`OutcomeClass::Applied`].
    pub applied: u64,
    /// See [`OutcomeClass::Taken`].
    pub taken: u64,
    /// See [`OutcomeClass::Sent`].
    pub sent: u64,
    /// See [`OutcomeClass::Silent`].
    pub silent: u64,
    /// See [`OutcomeClass::Pending`].
    pub pending: u64,
    /// See [`OutcomeClass::NotApplied`].
    pub not_applied: u64,
    /// See [`OutcomeClass::NotTaken`].
    pub not_taken: u64,
    /// See [`OutcomeClass::NotSent`].
    pub not_sent: u64,
    /// See [`OutcomeClass::Skipped`].
    pub skipped: u64,
}

impl ClassCounts {
    /// Returns the number of devices in each class. `wants_feedback` as in [`OutcomeClass::of`].
    #[must_use]
    pub fn of(counts: &Counts, wants_feedback: bool) -> Self {
        let of =
            |class| counts.sum_of(|outcome| OutcomeClass::of(outcome, wants_feedback) == class);
        Self {
            applied: of(OutcomeClass::Applied),
            taken: of(OutcomeClass::Taken),
            sent: of(OutcomeClass::Sent),
            silent: of(OutcomeClass::Silent),
            pending: of(OutcomeClass::Pending),
            not_applied: of(OutcomeClass::NotApplied),
            not_taken: of(OutcomeClass::NotTaken),
            not_sent: of(OutcomeClass::NotSent),
            skipped: of(OutcomeClass::Skipped),
        }
    }

    /// Returns the number of devices in a class.
    #[must_use]
    pub fn get(&self, class: OutcomeClass) -> u64 {
        match class {
            OutcomeClass::Applied => self.applied,
            OutcomeClass::Taken => self.taken,
            OutcomeClass::Sent => self.sent,
            OutcomeClass::Silent => self.silent,
            OutcomeClass::Pending => self.pending,
            OutcomeClass::NotApplied => self.not_applied,
            OutcomeClass::NotTaken => self.not_taken,
            OutcomeClass::NotSent => self.not_sent,
            OutcomeClass::Skipped => self.skipped,
        }
    }

    /// Returns the number of all devices.
    #[must_use]
    pub fn total(&self) -> u64 {
        OutcomeClass::ALL
            .into_iter()
            .map(|class| self.get(class))
            .sum()
    }

    /// Returns the number of devices without an owed send.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.total() - self.pending
    }

    /// Returns the number of failed devices, see [`OutcomeClass::is_failure`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.not_sent + self.not_taken + self.not_applied
    }

    /// Returns a headline: `42 devices: 40 taken, 2 not sent`.
    #[must_use]
    pub fn headline(&self) -> String {
        match self.total() {
            0 => self.to_string(),
            1 => format!("1 device: {self}"),
            devices => format!("{} devices: {self}", thousands(devices)),
        }
    }

    /// Returns the progress in two parts: `42 of 60 done`, and the classes of these 42 devices.
    #[must_use]
    pub fn progress_texts(&self) -> (String, Option<String>) {
        let [done, total] = [self.done(), self.total()].map(thousands);
        let pending = 0;
        let classes = Self { pending, ..*self }.to_string();
        let classes = (self.done() > 0).then_some(classes);
        (format!("{done} of {total} done"), classes)
    }
}

impl fmt::Display for ClassCounts {
    /// Writes the classes of at least one device: `40 taken, 2 not sent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = OutcomeClass::ALL
            .into_iter()
            .filter(|class| self.get(*class) > 0);
        let parts =
            parts.map(|class| format!("{} {}", thousands(self.get(class)), class.describe()));
        let parts: Vec<_> = parts.collect();
        match parts.as_slice() {
            [] => f.write_str("no devices"),
            parts => f.write_str(&parts.join(", ")),
        }
    }
}

/// Returns a number with separated thousands: `1,234,567`.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Serialize for Counts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = std::collections::BTreeMap::<Outcome, u64>::deserialize(deserializer)?;
        let mut counts = Self::default();
        for (outcome, n) in map {
            counts.0[outcome as usize] = n;
        }
        Ok(counts)
    }
}

/// The outcomes of a batch's devices, in the manifest's order, two per byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeList {
    packed: Vec<u8>,
    len: usize,
}

/// Packed outcomes with a wrong length for their batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are not the outcomes of {devices} devices")]
pub struct CorruptOutcomes {
    bytes: usize,
    devices: usize,
}

impl OutcomeList {
    /// Returns the outcomes of `len` pending devices.
    #[must_use]
    pub fn pending(len: usize) -> Self {
        Self {
            packed: vec![0; len.div_ceil(2)],
            len,
        }
    }

    /// Reads the result of [`OutcomeList::as_bytes`].
    ///
    /// # Errors
    /// When the bytes are too few or too many. Every half of a byte is an outcome.
    pub fn from_bytes(packed: &[u8], len: usize) -> Result<Self, CorruptOutcomes> {
        if packed.len() != len.div_ceil(2) {
            return Err(CorruptOutcomes {
                bytes: packed.len(),
                devices: len,
            });
        }
        Ok(Self {
            packed: packed.to_vec(),
            len,
        })
    }

    /// Returns the packed form: two devices per byte, the earlier device in the low half.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.packed
    }

    /// Returns the number of devices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no devices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the outcome of the device at `index`.
    ///
    /// # Panics
    /// When the batch has no such device.
    #[must_use]
    pub fn get(&self, index: usize) -> Outcome {
        assert!(index < self.len, "device {index} of {}", self.len);
        Outcome::ALL[usize::from(self.packed[index / 2] >> (index % 2 * 4) & 15)]
    }

    /// Merges a report into the outcome at `index`; returns the old and the new outcome.
    ///
    /// # Panics
    /// When the batch has no such device.
    ///
    /// # Example
    /// ```
    /// use twincast_core::outcome::{Outcome, OutcomeList};
    ///
    /// let mut outcomes = OutcomeList::pending(2);
    /// let mut counts = outcomes.counts();
    /// // The feedback of the hub overtakes the record of the send.
    /// for report in [Outcome::Delivered, Outcome::Enqueued] {
    ///     let (old, new) = outcomes.merge(1, report);
    ///     counts.shift(old, new);
    /// }
    /// assert_eq!(outcomes.get(1), Outcome::Delivered);
    /// assert_eq!(counts, outcomes.counts());
    /// ```
    pub fn merge(&mut self, index: usize, report: Outcome) -> (Outcome, Outcome) {
        let old = self.get(index);
        let new = old.merge(report);
        self.set(index, new);
        (old, new)
    }

    /// Makes the device at `index` pending for a new attempt; returns the old outcome.
    ///
    /// # Panics
    /// When the batch has no such device, or the outcome allows no new attempt: see
    /// [`Outcome::can_be_retried`].
    pub fn reopen(&mut self, index: usize) -> Outcome {
        let old = self.get(index);
        assert!(old.can_be_retried(), "device {index} is {old}");
        self.set(index, Outcome::Pending);
        old
    }

    fn set(&mut self, index: usize, outcome: Outcome) {
        let shift = index % 2 * 4;
        let byte = &mut self.packed[index / 2];
        *byte = *byte & !(15 << shift) | (outcome as u8) << shift;
    }

    /// Iterates over the outcomes in order.
    pub fn iter(&self) -> impl Iterator<Item = Outcome> + '_ {
        (0..self.len).map(|index| self.get(index))
    }

    /// Returns the number of devices with each outcome.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for outcome in self.iter() {
            counts.0[outcome as usize] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop::sample::select(Outcome::ALL.to_vec())
    }

    #[test]
    fn codes_and_names_are_fixed() {
        // The codes and names are on disk and in Redis: a change needs a migration.
        let names: Vec<_> = Outcome::ALL
            .iter()
            .map(|o| (*o as u8, o.as_str()))
            .collect();
        assert_eq!(
            names,
            [
                (0, "pending"),
                (1, "attempting"),
                (2, "unknown"),
                (3, "skipped"),
                (4, "not_found"),
                (5, "queue_full"),
                (6, "refused"),
                (7, "enqueued"),
                (8, "expired"),
                (9, "rejected"),
                (10, "undeliverable"),
                (11, "purged"),
                (12, "delivered"),
                (13, "installing"),
                (14, "applied"),
                (15, "failed"),
            ]
        );
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }

    proptest! {
        #[test]
        fn merge_is_a_join(a in any_outcome(), b in any_outcome(), c in any_outcome()) {
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
            prop_assert_eq!(a.merge(a), a);
            prop_assert!(a.merge(b) >= a);
        }

        /// Reports in any order and with repeats give the same result, and the counts match the
        /// outcomes.
        #[test]
        fn reports_commute_and_counts_never_drift(
            len in 1usize..40,
            reports in prop::collection::vec((0usize..40, any_outcome()), 0..200),
            seed in any::<u64>(),
        ) {
            let reports: Vec<_> = reports.into_iter().map(|(i, o)| (i % len, o)).collect();
            let mut shuffled = [reports.clone(), reports.clone()].concat();
            shuffled.sort_by_key(|(i, o)| (*i as u64 * 31 + *o as u64).wrapping_mul(seed | 1));
            let apply = |reports: &[(usize, Outcome)]| {
                let mut list = OutcomeList::pending(len);
                let mut counts = Counts::pending(len as u64);
                for (index, report) in reports {
                    let (old, new) = list.merge(*index, *report);
                    counts.shift(old, new);
                }
                assert_eq!(counts, list.counts());
                assert_eq!(counts.total(), len as u64);
                list
            };
            let list = apply(&reports);
            prop_assert_eq!(&list, &apply(&shuffled));
            prop_assert_eq!(&OutcomeList::from_bytes(list.as_bytes(), len).unwrap(), &list);
        }
    }

    #[test]
    fn every_outcome_is_in_one_class() {
        let table: Vec<_> = Outcome::ALL
            .into_iter()
            .map(|it| {
                [false, true].map(|wants_feedback| OutcomeClass::of(it, wants_feedback).as_str())
            })
            .collect();
        assert_eq!(
            table,
            [
                ["pending", "pending"],
                ["pending", "pending"],
                ["not_sent", "not_sent"],
                ["skipped", "skipped"],
                ["not_sent", "not_sent"],
                ["not_sent", "not_sent"],
                ["not_sent", "not_sent"],
                ["sent", "silent"],
                ["not_taken", "not_taken"],
                ["not_taken", "not_taken"],
                ["not_taken", "not_taken"],
                ["not_taken", "not_taken"],
                ["taken", "taken"],
                ["taken", "taken"],
                ["applied", "applied"],
                ["not_applied", "not_applied"],
            ]
        );
    }

    proptest! {
        #[test]
        fn classes_add_up(numbers in prop::collection::vec(0u64..1_000, OUTCOMES), wants_feedback: bool) {
            let mut counts = Counts::default();
            for (outcome, n) in Outcome::ALL.into_iter().zip(numbers) {
                counts.0[outcome as usize] = n;
            }
            let ends = ClassCounts::of(&counts, wants_feedback);
            prop_assert_eq!(ends.total(), counts.total());
            prop_assert_eq!(ends.failed(), counts.failed());
            prop_assert_eq!(ends.pending, counts.unsettled());
        }
    }

    #[test]
    fn class_counts_are_described() {
        let mut counts = Counts::pending(0);
        assert_eq!(ClassCounts::of(&counts, true).to_string(), "no devices");
        for outcome in [Outcome::Enqueued, Outcome::Enqueued, Outcome::Rejected] {
            counts.count(outcome);
        }
        let ends = ClassCounts::of(&counts, true);
        assert_eq!(ends.to_string(), "2 silent, 1 not taken");
        assert_eq!(ends.headline(), "3 devices: 2 silent, 1 not taken");
        let ends = ClassCounts {
            pending: 1_234_567,
            ..ends
        };
        let (done, classes) = ends.progress_texts();
        assert_eq!(done, "3 of 1,234,570 done");
        assert_eq!(classes.unwrap(), "2 silent, 1 not taken");
        assert_eq!(
            ClassCounts::of(&Counts::pending(2), true)
                .progress_texts()
                .1,
            None
        );
    }

    #[test]
    fn classes_have_their_names_and_outcomes() {
        for class in OutcomeClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        let none = OutcomeClass::Silent.outcomes(false).count();
        assert_eq!((none, OutcomeClass::Silent.outcomes(true).count()), (0, 1));
    }

    #[test]
    fn new_attempt_resets_retryable_outcomes() {
        let retried: Vec<_> = Outcome::ALL
            .into_iter()
            .filter(|o| o.can_be_retried())
            .collect();
        use Outcome as O;
        assert_eq!(
            retried,
            [
                O::Unknown,
                O::NotFound,
                O::QueueFull,
                O::Refused,
                O::Enqueued,
                O::Expired,
                O::Rejected,
                O::Undeliverable,
                O::Purged,
                O::Failed
            ]
        );
        let mut list = OutcomeList::pending(3);
        list.merge(0, O::Delivered);
        list.merge(1, O::Refused);
        assert_eq!(list.reopen(1), O::Refused);
        assert_eq!(
            list.iter().collect::<Vec<_>>(),
            [O::Delivered, O::Pending, O::Pending]
        );
    }

    #[test]
    fn corrupt_bytes_are_refused() {
        assert!(OutcomeList::from_bytes(&[0, 0], 3).is_ok());
        assert!(OutcomeList::from_bytes(&[0], 3).is_err());
        assert!(OutcomeList::from_bytes(&[0, 0, 0], 3).is_err());
    }

    #[test]
    fn counts_read_back() {
        let mut counts = Counts::pending(3);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(text, r#"{"pending":2,"enqueued":1}"#);
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), counts);
    }
}
