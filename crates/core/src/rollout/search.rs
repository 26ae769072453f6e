//! The progress of the search for a rollout's devices.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{ERROR_CHARS, cut};
use crate::time::Timestamp;

/// The progress of the search for devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// The devices found so far by the newest try.
    #[serde(default)]
    pub found: u64,
    /// The trouble of the search, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<SearchTrouble>,
    /// The time of this note.
    pub(super) noted_at: Timestamp,
}

/// The trouble of a search for devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchTrouble {
    /// The time since which nothing was found.
    pub since: Timestamp,
    /// The text of the last error.
    pub error: String,
    /// The start of the next try; `None` during a try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

impl fmt::Display for SearchTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; failing since {}", self.error, self.since)?;
        match self.next_try {
            Some(at) => write!(f, ", next try at {at}"),
            None => Ok(()),
        }
    }
}

impl SearchTrouble {
    /// Returns the trouble after an error at `since`, as a continuation of the trouble `before`.
    pub(super) fn after(
        before: &Search,
        since: Timestamp,
        error: &str,
        next_try: Option<Timestamp>,
    ) -> Self {
        let earlier = before.trouble.as_ref().map(|trouble| trouble.since);
        Self {
            since: earlier.map_or(since, |earlier| earlier.min(since)),
            error: cut(error, ERROR_CHARS),
            next_try,
        }
    }
}
