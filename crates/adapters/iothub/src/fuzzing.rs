//! Entry points of the targets in `fuzz/`; compiled only for fuzzing.

use serde_json::value::RawValue;
use twincast_core::answer::Answer;
use twincast_core::ports::DevicePage;
use twincast_core::query::TagPath;

/// Parses the devices of one page of a twin query; `None` for input other than a page.
#[must_use]
pub fn devices(page: &str, tags: &[TagPath]) -> Option<DevicePage> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(page).ok()?;
    Some(crate::queries::page(&items, tags))
}

/// Parses the answers of one page; `None` for input other than a page.
#[must_use]
pub fn answers(page: &str) -> Option<Vec<Answer>> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(page).ok()?;
    let answers = items.iter().filter_map(|item| crate::answers::answer(item));
    Some(answers.collect())
}
