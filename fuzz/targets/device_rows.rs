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
    for odd in &read.odd {
        assert!(odd.found.chars().count() <= 141 && !odd.reason.is_empty());
        assert!(
            odd.reason.len() < 1024,
            "a reason of {} bytes",
            odd.reason.len()
        );
    }
    for row in &read.rows {
        assert_eq!(row.tags.len(), TAGS.len());
        assert!(!row.tags.contains(&Some(Value::Null)));
    }
    // A page that is good as a whole is read like its values.
    let Ok(values) = serde_json::from_str::<Vec<Value>>(&page) else {
        return;
    };
    assert_eq!(values.len(), read.rows.len() + read.odd.len());
});
