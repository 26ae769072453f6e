//! Workers that listen to a hub's feedback, and dispatches to workers.

use std::time::Duration;

use twincast_core::evidence::{ListenerReport, ListenerState};
use twincast_core::ids::{BatchId, HubName};
use twincast_core::ports::{Deliveries, Presence};
use twincast_testkit::build;

/// Reports a listening worker every second.
pub(crate) async fn listen(store: &impl Presence, hub: &HubName, seconds: u64) {
    for _ in 0..seconds {
        let report = ListenerReport {
            listener: build::holder("worker"),
            received_ago: Some(Duration::ZERO),
            state: ListenerState {
                listening: true,
                ..ListenerState::default()
            },
        };
        store.report_listener(hub, &report).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Acknowledges the next dispatch, and returns its batch. Returns `None` without a dispatch within
/// this many seconds.
pub(crate) async fn next_batch(deliveries: &mut dyn Deliveries, within: u64) -> Option<BatchId> {
    let next = tokio::time::timeout(Duration::from_secs(within), deliveries.next());
    let delivery = next.await.ok()?.unwrap();
    delivery.ticket.ack().await.unwrap();
    Some(delivery.dispatch.batch)
}
