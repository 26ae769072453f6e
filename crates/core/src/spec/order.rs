//! The order in which devices are sent to within a stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::TagPath;

/// The order in which a stage's batches are released on each hub. The order is about the start of
/// batches: several batches are in progress at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By a tag's value, ascending: numbers by value, then texts, then devices without the tag. The
    /// tag must be in `batch_by`.
    By(TagPath),
    /// Batches in a pseudorandom order, and the devices of each batch in the order of their
    /// cohorts.
    Shuffled,
}
