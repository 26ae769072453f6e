//! The hub's log of messages, and the comparison with a report.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The ids of all messages to each device, in order; only devices with messages.
pub(crate) type MessageLog = BTreeMap<String, Vec<String>>;

/// A device in a report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Row {
    /// The device's id.
    pub(crate) device: String,
    /// The device's hub.
    pub(crate) hub: String,
    /// The device's tag group.
    pub(crate) group: String,
    /// The outcome.
    pub(crate) outcome: String,
    /// The hub's code of a refusal.
    pub(crate) code: Option<u32>,
    /// The id of the device's message.
    pub(crate) message_id: String,
}

/// Asserts that report and hub agree on every device. Devices reported as enqueued were enqueued
/// under the reported id; devices reported as unknown may have been; no other device was.
#[track_caller]
pub(crate) fn assert_report_matches(report: &[Row], message_log: &MessageLog) {
    let mut devices = BTreeSet::new();
    for row in report {
        assert!(devices.insert(&row.device), "{row:?} is listed twice");
        match (row.outcome.as_str(), message_log.get(&row.device)) {
            ("enqueued" | "unknown", Some(ids)) => {
                assert!(
                    ids.iter().all(|id| *id == row.message_id),
                    "{row:?}, but the hub has {ids:?}"
                );
            }
            ("enqueued", None) => panic!("{row:?}, but the hub has no message for the device"),
            (_, None) => {}
            (_, Some(ids)) => panic!("{row:?}, but the hub has {ids:?}"),
        }
    }
    for (device, ids) in message_log {
        assert!(
            devices.contains(device),
            "{device} is not in the report, but the hub has {ids:?} for it"
        );
    }
}

/// Asserts that all messages to a device carry the same id, and that different devices have
/// different ids.
#[track_caller]
pub(crate) fn assert_same_ids(message_log: &MessageLog) {
    let mut seen = BTreeSet::new();
    for (device, ids) in message_log {
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 1, "{device} received {ids:?}");
        assert!(
            seen.insert(&ids[0]),
            "{} was sent to {device} and to another device",
            ids[0]
        );
    }
}

/// Returns the number of messages to devices with an earlier message.
pub(crate) fn repeats(message_log: &MessageLog) -> u64 {
    message_log.values().map(|ids| ids.len() as u64 - 1).sum()
}
