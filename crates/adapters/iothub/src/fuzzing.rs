//! Entries for the targets in `fuzz/`; in no other build.

use serde_json::value::RawValue;
use twincast_core::answer::Answer;
use twincast_core::ports::DevicePage;
use twincast_core::query::TagPath;

/// The devices of one page of a twin query; none if it is no page at all.
#[must_use]
pub fn devices(page: &str, tags: &[TagPath]) -> Option<DevicePage> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(page).ok()?;
    Some(crate::queries::page(&items, tags))
}

/// The answers of one page; none if it is no page at all.
#[must_use]
pub fn answers(page: &str) -> Option<Vec<Answer>> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(page).ok()?;
    let answers = items.iter().filter_map(|item| crate::answers::answer(item));
    Some(answers.collect())
}
