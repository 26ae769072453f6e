//! The times of the last updates of a twin's properties: the `$metadata` of the sections.

use serde_json::{Map, Value};

use super::twin::iso_time;

/// The time of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The section's version after the update; `None` omits `$lastUpdatedVersion`, as in reported
    /// properties.
    pub(crate) version: Option<u64>,
}

impl Stamp {
    fn mark(self, metadata: &mut Map<String, Value>) {
        metadata.insert("$lastUpdated".to_owned(), iso_time(self.at_ms).into());
        if let Some(version) = self.version {
            metadata.insert("$lastUpdatedVersion".to_owned(), version.into());
        }
    }
}

/// Records the update by `patch` in `metadata`, at every level. Entries of removed values are
/// removed; all other values in `patch` count as updated, changed or not.
pub(crate) fn touch(metadata: &mut Map<String, Value>, patch: &Map<String, Value>, stamp: Stamp) {
    stamp.mark(metadata);
    for (key, value) in patch {
        if value.is_null() {
            metadata.shift_remove(key);
            continue;
        }
        let slot = metadata
            .entry(key.as_str())
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inner) = slot else {
            continue;
        };
        match value {
            Value::Object(patch) => touch(inner, patch, stamp),
            _ => {
                inner.clear();
                stamp.mark(inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_level_records_the_last_update() {
        let mut metadata = Map::new();
        let mut update = |at_ms, version, patch: Value| {
            let stamp = Stamp { at_ms, version };
            touch(&mut metadata, patch.as_object().unwrap(), stamp);
            Value::Object(metadata.clone())
        };
        let first = "1970-01-01T00:00:01.000Z";
        let second = "1970-01-01T00:00:02.500Z";
        assert_eq!(
            update(1_000, None, json!({ "a": { "b": 1, "c": 2 }, "d": 3 })),
            json!({
                "$lastUpdated": first,
                "a": { "$lastUpdated": first, "b": { "$lastUpdated": first }, "c": { "$lastUpdated": first } },
                "d": { "$lastUpdated": first },
            })
        );
        assert_eq!(
            update(2_500, Some(7), json!({ "a": { "b": 1, "c": null } })),
            json!({
                "$lastUpdated": second,
                "a": {
                    "$lastUpdated": second,
                    "b": { "$lastUpdated": second, "$lastUpdatedVersion": 7 },
                    "$lastUpdatedVersion": 7,
                },
                "d": { "$lastUpdated": first },
                "$lastUpdatedVersion": 7,
            })
        );
        let third = update(2_500, None, json!({ "a": 5 }));
        assert_eq!(third["a"], json!({ "$lastUpdated": second }));
    }
}
