//! Malformed rows of the hubs' answers, left out of a plan.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::HubName;
use crate::ports::MalformedRow;

/// The maximum number of examples: enough to show the pattern, and small in a record.
const MAX_EXAMPLES: usize = 10;

/// The number of malformed rows, with examples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MalformedRows {
    /// The number of rows. A row returned twice by the hub counts twice.
    pub rows: u64,
    /// The first 10 rows.
    pub examples: Vec<MalformedRowExample>,
}

/// A malformed row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MalformedRowExample {
    /// The hub that returned the row.
    pub hub: HubName,
    /// The device id as returned by the hub, or the whole row if there is no id; at most 140
    /// characters, followed by `…` if cut.
    pub found: String,
    /// A description of the mistake.
    pub reason: String,
}

impl fmt::Display for MalformedRowExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Escape the text: control characters must not move a terminal's cursor.
        write!(f, "{:?} of hub {}: {}", self.found, self.hub, self.reason)
    }
}

impl MalformedRows {
    /// Returns whether there are no malformed rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Counts a row of a hub.
    pub fn add(&mut self, hub: &HubName, row: MalformedRow) {
        self.rows += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(MalformedRowExample {
                hub: hub.clone(),
                found: row.found,
                reason: row.reason,
            });
        }
    }

    /// Adds the rows of another hub.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        let room = MAX_EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// Returns the number of rows without an example.
    #[must_use]
    pub fn without_example(&self) -> u64 {
        self.rows.saturating_sub(self.examples.len() as u64)
    }

    /// Returns a summary in one line, with the first row as an example; `None` without rows.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let first = self.examples.first()?;
        Some(match self.rows {
            1 => format!("1 malformed row of the hubs' answers was left out: {first}"),
            rows => format!(
                "{rows} malformed rows of the hubs' answers were left out, for example {first}"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_rows_are_counted_and_examples_bounded() {
        let hub = |name: &str| HubName::new(name).unwrap();
        let mut all = MalformedRows::default();
        assert!(all.is_empty() && all.summary().is_none());
        all.add(&hub("a"), MalformedRow::new("x y", "its id is no good"));
        assert_eq!(
            all.summary().unwrap(),
            "1 malformed row of the hubs' answers was left out: \"x y\" of hub a: its id is no good"
        );
        let mut other = MalformedRows::default();
        for number in 0..200 {
            let long = format!("{number}\u{1b}[2J{}", "é".repeat(500));
            other.add(&hub("b"), MalformedRow::new(&long, "too long"));
        }
        all.merge(other);
        assert_eq!(
            (all.rows, all.examples.len(), all.without_example()),
            (201, 10, 191)
        );
        let shown = all.examples[9].to_string();
        assert!(shown.starts_with("\"8\\u{1b}[2Jé"), "{shown}");
        assert!(
            all.examples
                .iter()
                .all(|it| it.found.chars().count() <= 141)
        );
        let short = all.summary().unwrap();
        assert!(
            short.starts_with("201 malformed rows of the hubs' answers were left out"),
            "{short}"
        );
    }
}
