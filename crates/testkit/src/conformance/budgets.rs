//! Conformance cases about budgets, which limit the batches handed out.

use std::time::Duration;

use twincast_core::budget::{BudgetGroup, GroupProgress, Limit};
use twincast_core::ids::{Attempt, BatchId, RolloutId, StageIndex};
use twincast_core::outcome::Outcome;
use twincast_core::plan::Batch;
use twincast_core::ports::{LeaseReply, Store};
use twincast_core::rollout::{Adding, Event, PlanId};

use super::Subject;
use crate::assert_refused;
use crate::build::{
    TTL, apply, batch, batch_on, hub, lease_request, leased, name, plan_completed, planning,
    report, running,
};

/// The time after which the budget groups of these cases stop counting silent devices.
const SILENT: Duration = Duration::from_secs(600);

fn group(group: &str, limit: Limit) -> BudgetGroup {
    BudgetGroup {
        group: group.to_owned(),
        limit,
        silent_ms: SILENT.as_millis() as u64,
    }
}

/// Returns a batch of `devices` devices in budget groups with at most three devices in progress
/// each.
fn threes(id: u32, devices: u32, groups: &[&str]) -> Batch {
    let groups = groups.iter().map(|name| group(name, Limit::Devices(3)));
    with(batch(id, devices), groups.collect())
}

fn with(mut batch: Batch, groups: Vec<BudgetGroup>) -> Batch {
    batch.header.budgets = groups;
    batch
}

async fn is_granted(store: &dyn Store, batch: u32) -> bool {
    let request = lease_request(&name("r"), batch, &format!("w-{batch}"));
    match store.lease(&request).await.unwrap() {
        LeaseReply::Granted(_) => true,
        LeaseReply::NotWanted => false,
        other => panic!("batch {batch}: {other:?}"),
    }
}

/// Records `Enqueued` for the first devices of a batch, by the batch's holder.
async fn sent(store: &dyn Store, batch: u32, devices: u32) {
    let lease = leased(store, &name("r"), batch, &format!("w-{batch}")).await;
    let reports: Vec<_> = (0..devices)
        .map(|index| report(index, Outcome::Enqueued))
        .collect();
    store.record(&lease, &reports, TTL).await.unwrap();
}

async fn merge_feedback(store: &dyn Store, batch: u32, index: u32, outcome: Outcome) {
    let reports = [report(index, outcome)];
    let merged = store
        .merge(
            &name("r"),
            RolloutId::default(),
            BatchId(batch),
            Attempt::FIRST,
            &reports,
        )
        .await;
    merged.unwrap();
}

async fn in_progress(store: &dyn Store, groups: &[BudgetGroup]) -> Vec<(u64, u64)> {
    let progress = store.in_progress(&name("r"), groups).await.unwrap();
    let pair = |progress: GroupProgress| (progress.devices, progress.in_progress);
    progress.into_iter().map(pair).collect()
}

/// A batch is handed out if all its devices fit into the budget. A sent device counts until
/// confirmed or failed.
pub async fn a_batch_is_leased_when_the_group_has_room(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![
        threes(0, 2, &["site=1"]),
        threes(1, 2, &["site=1"]),
        threes(2, 1, &["site=1"]),
        threes(3, 3, &["site=2"]),
        batch(4, 9),
    ];
    running(store, "r", batches).await;
    assert!(is_granted(store, 0).await);
    assert!(
        !is_granted(store, 1).await,
        "four devices exceed the budget"
    );
    assert!(is_granted(store, 3).await, "another group has room");
    assert!(
        is_granted(store, 4).await,
        "a batch without a group has no budget"
    );
    assert!(is_granted(store, 2).await);
    sent(store, 0, 2).await;
    sent(store, 2, 1).await;
    assert!(!is_granted(store, 1).await, "no device has confirmed");
    merge_feedback(store, 0, 0, Outcome::Delivered).await;
    assert!(
        !is_granted(store, 1).await,
        "the group has room for one device"
    );
    merge_feedback(store, 2, 0, Outcome::Rejected).await;
    assert!(is_granted(store, 1).await);
    let open = store
        .open_batches(&name("r"), &hub("a"), StageIndex(0), 9)
        .await
        .unwrap();
    let counted: Vec<_> = open
        .iter()
        .map(|it| (it.header.id.0, it.is_counted))
        .collect();
    assert_eq!(counted, [(1, true), (3, true), (4, false)]);
}

/// A crash frees no budget: the lost worker may have sent the messages. The worker's batch is
/// handed out again.
pub async fn the_sends_of_a_lost_worker_count(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![threes(0, 3, &["site=1"]), threes(1, 1, &["site=1"])];
    running(store, "r", batches).await;
    let first = leased(store, &name("r"), 0, "lost").await;
    subject.clock.advance(SILENT * 3);
    assert!(!is_granted(store, 1).await, "unsent devices still count");
    let again = leased(store, &name("r"), 0, "next").await;
    let one = [report(0, Outcome::Enqueued)];
    assert_refused!(store.record(&first, &one, TTL).await, Superseded);
    store.record(&again, &one, TTL).await.unwrap();
    store.release(&again).await.unwrap();
    merge_feedback(store, 0, 0, Outcome::Delivered).await;
    assert!(
        is_granted(store, 1).await,
        "two of three devices are in progress"
    );
    assert!(
        is_granted(store, 0).await,
        "a started batch is always granted"
    );
}

/// Silent devices stop counting after a time, measured from the last send of the batch.
pub async fn silent_devices_stop_counting(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![threes(0, 3, &["site=1"]), threes(1, 3, &["site=1"])];
    running(store, "r", batches).await;
    sent(store, 0, 1).await;
    subject.clock.advance(SILENT / 2);
    sent(store, 0, 3).await;
    subject.clock.advance(SILENT - Duration::from_millis(1));
    assert!(!is_granted(store, 1).await);
    let site = [group("site=1", Limit::Devices(3))];
    assert_eq!(in_progress(store, &site).await, [(6, 3)]);
    subject.clock.advance(Duration::from_millis(1));
    assert_eq!(in_progress(store, &site).await, [(6, 0)]);
    assert!(is_granted(store, 1).await);
    // Late feedback changes nothing.
    merge_feedback(store, 0, 0, Outcome::Delivered).await;
    assert_eq!(in_progress(store, &site).await, [(6, 3)]);
}

/// A percentage refers to the group's devices in all stages and hubs, is rounded down, and gives at
/// least one device.
pub async fn a_per_cent_is_of_the_whole_group(subject: Subject) {
    let store = &*subject.store;
    let fifth = || vec![group("site=1", Limit::Millionths(200_000))];
    let small = || vec![group("site=2", Limit::Millionths(200_000))];
    let batches = vec![
        with(batch_on(0, "a", 0, 1), fifth()),
        with(batch_on(1, "b", 0, 1), fifth()),
        with(batch_on(2, "a", 0, 1), fifth()),
        with(batch_on(3, "b", 1, 11), fifth()),
        with(batch(4, 1), small()),
        with(batch(5, 1), small()),
    ];
    running(store, "r", batches).await;
    let groups = [fifth(), small(), vec![group("site=3", Limit::Devices(1))]].concat();
    assert_eq!(in_progress(store, &groups).await, [(14, 0), (2, 0), (0, 0)]);
    assert!(is_granted(store, 0).await);
    assert!(is_granted(store, 1).await);
    assert!(!is_granted(store, 2).await, "2.8 is rounded to 2");
    assert!(is_granted(store, 5).await, "0.4 is rounded to 1");
    assert!(!is_granted(store, 4).await);
    assert_eq!(in_progress(store, &groups).await, [(14, 2), (2, 1), (0, 0)]);
    sent(store, 5, 1).await;
    merge_feedback(store, 5, 0, Outcome::Delivered).await;
    assert!(is_granted(store, 4).await);
}

/// A batch needs room in all its budget groups, and takes room in all groups or in none.
pub async fn all_budgets_hold_at_once(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![
        threes(0, 2, &["site=1", "region=eu"]),
        threes(1, 2, &["site=2", "region=eu"]),
        threes(2, 2, &["site=2", "region=us"]),
        // A group name beginning with the name of another group.
        threes(3, 3, &["site=22"]),
    ];
    running(store, "r", batches).await;
    assert!(is_granted(store, 0).await);
    assert!(
        !is_granted(store, 1).await,
        "region=eu has room for one device"
    );
    let groups = ["site=1", "site=2", "region=eu", "site=22"];
    let groups = groups.map(|name| group(name, Limit::Devices(3)));
    let now = in_progress(store, &groups).await;
    assert_eq!(now, [(2, 2), (4, 0), (4, 2), (3, 0)]);
    assert!(is_granted(store, 2).await);
    assert!(is_granted(store, 3).await);
    let now = in_progress(store, &groups).await;
    assert_eq!(now, [(2, 2), (4, 2), (4, 2), (3, 3)]);
}

/// A new planning attempt begins with empty budget groups.
pub async fn a_new_planning_attempt_has_empty_groups(subject: Subject) {
    let store = &*subject.store;
    let first = planning(store, "r").await;
    let old = vec![threes(0, 2, &["site=1"]), threes(1, 1, &["site=1"])];
    store
        .add_batches(&name("r"), Adding::Plan(PlanId(1)), old.clone())
        .await
        .unwrap();
    // A repeated call counts once.
    store
        .add_batches(&name("r"), Adding::Plan(PlanId(1)), old)
        .await
        .unwrap();
    let site = [group("site=1", Limit::Devices(3))];
    assert_eq!(in_progress(store, &site).await, [(3, 0)]);
    let second = apply(store, &first, Event::PlanningStarted).await;
    assert_eq!(in_progress(store, &site).await, [(0, 0)]);
    let new = vec![threes(0, 1, &["site=1"])];
    store
        .add_batches(&name("r"), Adding::Plan(PlanId(2)), new)
        .await
        .unwrap();
    apply(store, &second, plan_completed(1)).await;
    assert_eq!(in_progress(store, &site).await, [(1, 0)]);
    assert!(is_granted(store, 0).await);
    assert_refused!(store.in_progress(&name("nobody"), &site).await, NotFound);
}
