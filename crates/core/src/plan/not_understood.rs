//! Rows of the hubs' answers that are not understood, and so are left out of a plan.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::HubName;
use crate::ports::OddRow;

/// Rows that are named: enough to see the pattern, and little in a record.
const NAMED: usize = 10;

/// The number of rows that are not understood, and some of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotUnderstood {
    /// The rows. A row that the hub gives twice counts twice.
    pub rows: u64,
    /// The first 10 of them.
    pub examples: Vec<OddExample>,
}

/// One row that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OddExample {
    /// The hub that has given it.
    pub hub: HubName,
    /// The id of the device as the hub gives it, or the whole row if there is none; 140 characters at the most.
    pub found: String,
    /// What is wrong with it, in words.
    pub reason: String,
}

impl fmt::Display for OddExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever stands there must not move a terminal's cursor.
        write!(f, "{:?} of hub {}: {}", self.found, self.hub, self.reason)
    }
}

impl NotUnderstood {
    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Counts a row of a hub.
    pub fn add(&mut self, hub: &HubName, row: OddRow) {
        self.rows += 1;
        if self.examples.len() < NAMED {
            self.examples.push(OddExample {
                hub: hub.clone(),
                found: row.found,
                reason: row.reason,
            });
        }
    }

    /// Counts those of another hub, too.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        let room = NAMED.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// How many rows are not named.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.rows.saturating_sub(self.examples.len() as u64)
    }

    /// What there is to be said of them in one line, with the first one; `None` if there are none.
    #[must_use]
    pub fn in_short(&self) -> Option<String> {
        let first = self.examples.first()?;
        Some(match self.rows {
            1 => format!("1 row of the hubs' answers is not understood, and left out: {first}"),
            rows => format!(
                "{rows} rows of the hubs' answers are not understood, and left out; among them {first}"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_are_named() {
        let hub = |name: &str| HubName::new(name).unwrap();
        let mut all = NotUnderstood::default();
        assert!(all.is_empty() && all.in_short().is_none());
        all.add(&hub("a"), OddRow::new("x y", "its id is no good"));
        assert_eq!(
            all.in_short().unwrap(),
            "1 row of the hubs' answers is not understood, and left out: \"x y\" of hub a: its id is no good"
        );
        let mut other = NotUnderstood::default();
        for number in 0..200 {
            let long = format!("{number}\u{1b}[2J{}", "é".repeat(500));
            other.add(&hub("b"), OddRow::new(&long, "too long"));
        }
        all.merge(other);
        assert_eq!(
            (all.rows, all.examples.len(), all.unnamed()),
            (201, 10, 191)
        );
        let shown = all.examples[9].to_string();
        assert!(shown.starts_with("\"8\\u{1b}[2Jé"), "{shown}");
        assert!(
            all.examples
                .iter()
                .all(|it| it.found.chars().count() <= 141)
        );
        let short = all.in_short().unwrap();
        assert!(
            short.starts_with("201 rows of the hubs' answers are not"),
            "{short}"
        );
    }
}
