//! How far the search for a rollout's devices is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::{ERROR_CHARS, cut};
use crate::time::Timestamp;

/// How far the search for devices is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// Devices that the newest try has found so far.
    #[serde(default)]
    pub found: u64,
    /// What keeps it from being finished, if something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<SearchTrouble>,
    /// When this was noted.
    pub(super) noted_at: Timestamp,
}

/// What keeps a search for devices from being finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchTrouble {
    /// Since when nothing was found.
    pub since: Timestamp,
    /// The last error, in words.
    pub error: String,
    /// When the next try begins; `None` while one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
}

impl fmt::Display for SearchTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; in vain since {}", self.error, self.since)?;
        match self.next_try {
            Some(at) => write!(f, ", next try at {at}"),
            None => Ok(()),
        }
    }
}

impl SearchTrouble {
    /// The trouble after an error at `since`; it goes on from what was `before`.
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
