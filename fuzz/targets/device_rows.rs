//! Pages of twin queries.

#![no_main]

use std::sync::LazyLock;

use serde_json::Value;
use twincast_core::query::TagPath;
use twincast_hub_adapter::fuzzing::devices;

static TAGS: LazyLock<Vec<TagPath>> = LazyLock::new(|| {
    let paths = ["region", "site.name"].map(TagPath::new);
    paths.into_iter().collect::<Result<_, _>>().expect("paths")
});

twincast_fuzz::bytes!(|page| {
    let page = String::from_utf8_lossy(page);
    let Some(read) = devices(&page, &TAGS) else {
        return;
    };
    for malformed in &read.malformed_rows {
        assert!(malformed.found.chars().count() <= 141 && !malformed.reason.is_empty());
        assert!(
            malformed.reason.len() < 1024,
            "a reason of {} bytes",
            malformed.reason.len()
        );
    }
    for row in &read.rows {
        assert_eq!(row.tags.len(), TAGS.len());
        assert!(!row.tags.contains(&Some(Value::Null)));
    }
    // In a valid page, every value is either a row or a malformed row.
    let Ok(values) = serde_json::from_str::<Vec<Value>>(&page) else {
        return;
    };
    assert_eq!(values.len(), read.rows.len() + read.malformed_rows.len());
});
