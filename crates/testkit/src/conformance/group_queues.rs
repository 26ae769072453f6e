//! Conformance cases about the queues of concurrency groups.

use twincast_core::concurrency_group::GroupQueue;
use twincast_core::ids::{ConcurrencyGroup, Version};
use twincast_core::time::Timestamp;

use super::Subject;
use crate::assert_refused;
use crate::build::name;

fn group(text: &str) -> ConcurrencyGroup {
    ConcurrencyGroup::new(text).expect("a name")
}

fn joined(queue: &GroupQueue, text: &str) -> GroupQueue {
    let next = queue.joined(&name(text), Version(1), true, &[], Timestamp(5));
    next.expect("the queue has room")
}

/// A group without rollouts has an empty queue, and each group has a separate queue.
pub async fn each_group_has_a_separate_queue(subject: Subject) {
    let store = &*subject.store;
    let (one, other) = (group("firmware"), group("config"));
    assert_eq!(
        store.group_queue(&one).await.unwrap(),
        GroupQueue::default()
    );
    let queue = joined(
        &joined(
            &GroupQueue {
                version: Version(0),
                ..GroupQueue::default()
            },
            "a",
        ),
        "b",
    );
    let queue = GroupQueue {
        version: Version(1),
        ..queue
    };
    store.save_group_queue(&one, &queue).await.unwrap();
    assert_eq!(store.group_queue(&one).await.unwrap(), queue);
    assert_eq!(
        store.group_queue(&other).await.unwrap(),
        GroupQueue::default()
    );
    let empty = GroupQueue {
        version: Version(2),
        members: Vec::new(),
    };
    store.save_group_queue(&one, &empty).await.unwrap();
    assert_eq!(store.group_queue(&one).await.unwrap(), empty);
}

/// Of two changes based on the same version of a queue, the second is refused.
pub async fn saving_a_queue_is_a_compare_and_swap(subject: Subject) {
    let store = &*subject.store;
    let firmware = group("firmware");
    let seen = store.group_queue(&firmware).await.unwrap();
    let (a, b) = (joined(&seen, "a"), joined(&seen, "b"));
    store.save_group_queue(&firmware, &a).await.unwrap();
    assert_refused!(store.save_group_queue(&firmware, &b).await, Superseded);
    assert_refused!(store.save_group_queue(&firmware, &a).await, Superseded);
    assert_eq!(store.group_queue(&firmware).await.unwrap(), a);
    let both = joined(&a, "b");
    store.save_group_queue(&firmware, &both).await.unwrap();
    assert_eq!(store.group_queue(&firmware).await.unwrap(), both);
    // A change that skips versions is refused: no caller can have read the version before.
    let ahead = GroupQueue {
        version: Version(9),
        ..both.clone()
    };
    assert_refused!(store.save_group_queue(&firmware, &ahead).await, Superseded);
}

/// Of many concurrent changes, only one at a time succeeds. After retries, the queue has all
/// rollouts.
pub async fn concurrent_joins_are_all_kept(subject: Subject) {
    let (store, firmware) = (&subject.store, &group("firmware"));
    let joins = (0..8).map(|number| async move {
        let name = number.to_string();
        loop {
            let next = joined(&store.group_queue(firmware).await.unwrap(), &name);
            if store.save_group_queue(firmware, &next).await.is_ok() {
                return;
            }
        }
    });
    futures::future::join_all(joins).await;
    let queue = store.group_queue(firmware).await.unwrap();
    assert_eq!((queue.members.len(), queue.version), (8, Version(8)));
}
