//! A batch's place in the order in which a stage is sent.

use serde::{Deserialize, Serialize};

use super::cohort::Cohort;

/// A batch's place among those of its stage and hub: hexadecimal digits, compared as text. Batches of one place are
/// in the order of their numbers; without an order, all have the same place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(String);

/// So many bytes of a tag's value decide; values that begin with the same ones are in one place.
pub const COMPARED: usize = 40;

impl Place {
    /// The place of a tag's value, ascending: numbers by their size, then texts byte by byte, then devices without the tag.
    #[must_use]
    pub fn of_value(value: Option<&str>) -> Self {
        let Some(value) = value else {
            return Self("2".into());
        };
        let number = value.trim().parse::<f64>().ok();
        if let Some(number) = number.filter(|number| number.is_finite()) {
            return Self(format!("0{:016x}", ascending(number)));
        }
        let bytes = value.bytes().take(COMPARED);
        let digits: String = bytes.map(|byte| format!("{byte:02x}")).collect();
        Self(format!("1{digits}"))
    }

    /// The place of a group's so-manieth batch.
    pub(super) fn of_round(round: u32) -> Self {
        Self(format!("{round:08x}"))
    }

    /// A place that is as good as random, and always the same.
    pub(super) fn of_cohort(cohort: Cohort) -> Self {
        Self(format!("{:016x}", cohort.0))
    }

    /// The digits; none where there is no order.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// There is no order.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

/// The bits of a finite number, so that greater numbers have greater bits.
fn ascending(number: f64) -> u64 {
    // Zero has two forms, which are one number.
    let bits = (number + 0.0).to_bits();
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}
