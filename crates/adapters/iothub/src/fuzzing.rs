//! Entries for the targets in `fuzz/`; in no other build.

use serde_json::value::RawValue;
use twincast_core::ports::DevicePage;
use twincast_core::query::TagPath;

/// The devices of one page of a twin query; none if it is no page at all.
#[must_use]
pub fn devices(page: &str, tags: &[TagPath]) -> Option<DevicePage> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(page).ok()?;
    Some(crate::queries::page(&items, tags))
}
