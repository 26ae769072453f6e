//! What a driver notes of a rollout between two changes of its record.

use serde::{Deserialize, Serialize};

use super::search::Search;
use crate::account::Account;
use crate::answer::Answers;
use crate::evidence::EvidenceClock;

/// Notes on a rollout. They are stored beside the record and have no version of their own: nothing has happened to the
/// rollout, and nobody is fenced by them. A note that is lost costs a little of what was counted since the last change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// For how long it has done what.
    #[serde(default)]
    pub account: Account,
    /// Time that counts only while it is driven and heard: bakes, and waits for evidence.
    #[serde(default)]
    pub clock: EvidenceClock,
    /// How far the search for its devices is, while there is one and something is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// What its devices have answered, as far as their hubs were asked.
    #[serde(default, skip_serializing_if = "Answers::is_empty")]
    pub answers: Answers,
}
