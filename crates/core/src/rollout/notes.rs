//! The driver's notes on a rollout between two changes of the record.

use serde::{Deserialize, Serialize};

use super::search::Search;
use crate::account::TimeAccount;
use crate::answer::Answers;
use crate::evidence::EvidenceClock;

/// The driver's notes on a rollout. They are stored beside the record and have no version of their
/// own: a note is no event, and fences no writer. A lost note costs a little of the time counted
/// since the last change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// The time account.
    #[serde(default)]
    pub account: TimeAccount,
    /// Clocks for bakes and waits for evidence, running only while the rollout is driven and
    /// feedback is received.
    #[serde(default)]
    pub clock: EvidenceClock,
    /// The progress of the search for the rollout's devices, during a search and as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// The answers of the devices, as of the last queries to the hubs.
    #[serde(default, skip_serializing_if = "Answers::is_empty")]
    pub answers: Answers,
}
