//! What the hub says of its messages, and whether a report says the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The devices that were sent something, with the ids of all their messages in order.
pub(crate) type Account = BTreeMap<String, Vec<String>>;

/// A device in a report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Row {
    /// Its id.
    pub(crate) device: String,
    /// Its hub.
    pub(crate) hub: String,
    /// Its tag group.
    pub(crate) group: String,
    /// What became of it.
    pub(crate) outcome: String,
    /// The hub's code for it, if it refused.
    pub(crate) code: Option<u32>,
    /// The id that its message carries.
    pub(crate) message_id: String,
}

/// A report must say what the hub says, device by device: what it calls enqueued was enqueued
/// under the id that it names, what it calls unknown may have been, and nothing else was.
#[track_caller]
pub(crate) fn agree(report: &[Row], account: &Account) {
    let mut devices = BTreeSet::new();
    for row in report {
        assert!(devices.insert(&row.device), "{row:?} is there twice");
        match (row.outcome.as_str(), account.get(&row.device)) {
            ("enqueued" | "unknown", Some(ids)) => {
                assert!(
                    ids.iter().all(|id| *id == row.message_id),
                    "{row:?}, but the hub has {ids:?}"
                );
            }
            ("enqueued", None) => panic!("{row:?}, but the hub has nothing for it"),
            (_, None) => {}
            (_, Some(ids)) => panic!("{row:?}, but the hub has {ids:?}"),
        }
    }
    for (device, ids) in account {
        assert!(
            devices.contains(device),
            "{device} is not in the report, but the hub has {ids:?} for it"
        );
    }
}

/// All messages to one device must carry one id, and those to different devices different ones.
#[track_caller]
pub(crate) fn assert_same_ids(account: &Account) {
    let mut seen = BTreeSet::new();
    for (device, ids) in account {
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 1, "{device} was sent {ids:?}");
        assert!(
            seen.insert(&ids[0]),
            "{} was sent to {device} and to another device",
            ids[0]
        );
    }
}

/// How many messages were sent to devices that had been sent one before.
pub(crate) fn repeats(account: &Account) -> u64 {
    account.values().map(|ids| ids.len() as u64 - 1).sum()
}
