//! In which order devices are sent to within a stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::TagPath;

/// In which order a stage's batches are released on each hub. It is an order of beginning: several batches are worked on at
/// once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By a tag's value, ascending: numbers by their size, then texts, then devices without it. One of `batch_by`.
    By(TagPath),
    /// Batches in an order that is as good as random, and in each the devices in the order of their cohorts.
    Shuffled,
}
