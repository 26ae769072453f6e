//! The position of a batch in the release order of a stage.

use serde::{Deserialize, Serialize};

use super::cohort::Cohort;

/// The position of a batch among the batches of the same stage and hub: hexadecimal digits,
/// compared as text. Batches with the same sort key are ordered by number. Without a release order,
/// all batches have the same sort key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SortKey(String);

/// The number of leading bytes of a tag's value that determine the sort key. Values with equal
/// leading bytes have the same sort key.
pub const COMPARED_BYTES: usize = 40;

impl SortKey {
    /// Returns the sort key of a tag's value, ascending: numbers by value, then texts byte by byte,
    /// then devices without the tag.
    #[must_use]
    pub fn of_value(value: Option<&str>) -> Self {
        let Some(value) = value else {
            return Self("2".into());
        };
        let number = value.trim().parse::<f64>().ok();
        if let Some(number) = number.filter(|number| number.is_finite()) {
            return Self(format!("0{:016x}", ascending(number)));
        }
        let bytes = value.bytes().take(COMPARED_BYTES);
        let digits: String = bytes.map(|byte| format!("{byte:02x}")).collect();
        Self(format!("1{digits}"))
    }

    /// Returns the sort key of the batch number `round` of a group.
    pub(super) fn of_round(round: u32) -> Self {
        Self(format!("{round:08x}"))
    }

    /// Returns a sort key that is pseudorandom, but always the same for the same cohort.
    pub(super) fn of_cohort(cohort: Cohort) -> Self {
        Self(format!("{:016x}", cohort.0))
    }

    /// Returns the digits; empty without a release order.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the sort key is empty, because there is no release order.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

/// Maps a finite number to bits, such that greater numbers have greater bits.
fn ascending(number: f64) -> u64 {
    // Turns -0 into 0.
    let bits = (number + 0.0).to_bits();
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}
