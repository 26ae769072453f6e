//! Conformance cases about the queue. Each case gets a function that creates a queue with a limit.

use std::time::Duration;

use futures::FutureExt;
use twincast_core::ids::BatchId;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError};

use crate::build::{hub, name};

/// Enough room for all cases not about the limit.
const ROOM: usize = 100;
/// The time limit of an expected delivery. No successful case waits this long.
const TIMEOUT: Duration = Duration::from_secs(30);

fn dispatch(on: &str, batch: u32) -> Dispatch {
    Dispatch {
        rollout: name("r"),
        batch: BatchId(batch),
        hub: hub(on),
    }
}

async fn publish(queue: &impl Queue, batches: impl IntoIterator<Item = u32>) {
    for batch in batches {
        queue.publish(&dispatch("a", batch)).await.unwrap();
    }
}

async fn consume(queue: &impl Queue) -> Box<dyn Deliveries> {
    queue.consume(&hub("a"), 10).await.unwrap()
}

/// Asserts that no delivery arrives for a short time. Silence and slowness of a queue look the
/// same, so a slow queue passes wrongly rather than failing wrongly.
async fn nothing_comes(consumer: &mut Box<dyn Deliveries>) {
    let delivery = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await;
    assert!(delivery.is_err(), "{delivery:?}");
}

/// Polls until the depth is `expected`: brokers update the counts with a delay.
async fn until_depth(queue: &impl Queue, expected: Depth) {
    let started_at = tokio::time::Instant::now();
    loop {
        let depth = queue.depth(&hub("a")).await.unwrap();
        if depth == expected {
            return;
        }
        assert!(
            started_at.elapsed() < TIMEOUT,
            "{depth:?}, not {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn next(consumer: &mut Box<dyn Deliveries>) -> Delivery {
    let delivery = tokio::time::timeout(TIMEOUT, consumer.next()).await;
    delivery.expect("a dispatch waits").unwrap()
}

/// Receives and acknowledges `count` deliveries. Returns the batch and the redelivery flag of each
/// delivery.
async fn drain(consumer: &mut Box<dyn Deliveries>, count: usize) -> Vec<(u32, bool)> {
    let mut got = Vec::new();
    for _ in 0..count {
        let delivery = next(consumer).await;
        got.push((delivery.dispatch.batch.0, delivery.redelivered));
        delivery.ticket.ack().await.unwrap();
    }
    got
}

/// Dispatches arrive first in, first out.
pub async fn dispatches_come_in_order<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [3, 1, 2, 1]).await;
    let mut consumer = consume(&queue).await;
    let got = drain(&mut consumer, 4).await;
    assert_eq!(got, [(3, false), (1, false), (2, false), (1, false)]);
}

/// A hub's consumer gets only the dispatches of this hub, with all fields.
pub async fn each_hub_has_a_separate_queue<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(1).await;
    queue.publish(&dispatch("b", 1)).await.unwrap();
    queue.publish(&dispatch("a", 2)).await.unwrap();
    let mut consumer = consume(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch("a", 2));
    nothing_comes(&mut consumer).await;
}

/// An acknowledged dispatch is removed, also after the consumer is dropped.
pub async fn acked_dispatches_are_removed<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, 0..3).await;
    let mut consumer = consume(&queue).await;
    drain(&mut consumer, 3).await;
    drop(consumer);
    let mut consumer = consume(&queue).await;
    nothing_comes(&mut consumer).await;
}

/// A requeued dispatch is delivered again to any consumer, marked as redelivered.
pub async fn requeued_dispatches_are_redelivered<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [7]).await;
    let mut consumer = consume(&queue).await;
    let delivery = next(&mut consumer).await;
    delivery.ticket.requeue().await.unwrap();
    assert_eq!(drain(&mut consumer, 1).await, [(7, true)]);
    nothing_comes(&mut consumer).await;
}

/// A dropped ticket requeues the dispatch: a panic or cancellation of a task drops the ticket.
pub async fn a_dropped_ticket_requeues_the_dispatch<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [7]).await;
    let mut consumer = consume(&queue).await;
    drop(next(&mut consumer).await);
    assert_eq!(drain(&mut consumer, 1).await, [(7, true)]);
}

/// A dropped consumer returns all unacknowledged dispatches, each once. The tickets of the consumer
/// become invalid. A dispatch sent ahead but not taken may be marked as redelivered or not: a
/// broker that sends ahead cannot know.
pub async fn a_dropped_consumer_requeues_dispatches<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, 0..3).await;
    let mut dropped = consume(&queue).await;
    let first = next(&mut dropped).await;
    let second = next(&mut dropped).await;
    drop(dropped);
    assert!(first.ticket.ack().await.is_err());
    drop(second);
    let mut consumer = consume(&queue).await;
    let mut got = drain(&mut consumer, 3).await;
    got.sort_unstable();
    let ids: Vec<_> = got.iter().map(|(batch, _)| *batch).collect();
    assert_eq!(ids, [0, 1, 2]);
    assert_eq!(got[..2], [(0, true), (1, true)]);
    nothing_comes(&mut consumer).await;
}

/// A full queue refuses new dispatches, but a requeued dispatch still finds a place. An emptied
/// queue accepts dispatches again, after a delay of its own.
pub async fn the_queue_is_bounded<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(2).await;
    publish(&queue, [1]).await;
    // Hold only a single dispatch at a time: dispatches sent ahead would not wait in the queue.
    let mut consumer = queue.consume(&hub("a"), 1).await.unwrap();
    let held = next(&mut consumer).await;
    publish(&queue, [2, 3]).await;
    let refused = queue.publish(&dispatch("a", 4)).await.unwrap_err();
    assert!(
        matches!(&refused, QueueError::Full { hub: full, limit: 2 } if *full == hub("a")),
        "{refused:?}"
    );
    held.ticket.requeue().await.unwrap();
    let mut got = drain(&mut consumer, 3).await;
    got.sort_unstable();
    assert_eq!(got, [(1, true), (2, false), (3, false)]);
    let emptied = tokio::time::Instant::now();
    while let Err(refused) = queue.publish(&dispatch("a", 4)).await {
        assert!(emptied.elapsed() < TIMEOUT, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each dispatch goes to only one of two consumers, and both consumers get dispatches.
pub async fn two_consumers_share<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let (mut one, mut two) = (consume(&queue).await, consume(&queue).await);
    publish(&queue, 0..4).await;
    let first = [next(&mut one).await, next(&mut one).await];
    let second = [next(&mut two).await, next(&mut two).await];
    let mut got: Vec<_> = first
        .iter()
        .chain(&second)
        .map(|delivery| delivery.dispatch.batch.0)
        .collect();
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3]);
    nothing_comes(&mut one).await;
}

/// A waiting consumer is woken.
pub async fn a_consumer_waits_for_dispatches<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let mut consumer = consume(&queue).await;
    let (delivery, ()) = tokio::join!(next(&mut consumer), async {
        tokio::task::yield_now().await;
        publish(&queue, [5]).await;
    });
    assert_eq!(delivery.dispatch.batch, BatchId(5));
}

/// A `next` dropped while waiting, or just after waking up, loses no dispatch. The next receiver
/// may differ: a broker may have sent the dispatch to the first consumer already, and this consumer
/// gets the dispatch on the next call.
pub async fn an_abandoned_wait_loses_no_dispatch<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let (mut one, mut two) = (consume(&queue).await, consume(&queue).await);
    for batch in 0..20 {
        let mut waiting = one.next();
        assert!((&mut waiting).now_or_never().is_none());
        let mut waiting_too = two.next();
        assert!((&mut waiting_too).now_or_never().is_none());
        publish(&queue, [batch]).await;
        // The first waiting consumer may have been woken for this dispatch already.
        drop(waiting);
        let taken = async {
            tokio::select! {
                delivery = waiting_too => delivery,
                delivery = one.next() => delivery,
            }
        };
        let delivery = tokio::time::timeout(TIMEOUT, taken).await;
        let delivery = delivery.expect("a consumer receives the dispatch").unwrap();
        assert_eq!(delivery.dispatch.batch.0, batch);
        delivery.ticket.ack().await.unwrap();
    }
}

/// A consumer gets no more unanswered dispatches than wanted; the rest stays for other consumers.
pub async fn a_consumer_gets_at_most_the_limit<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, 0..3).await;
    let mut modest = queue.consume(&hub("a"), 1).await.unwrap();
    let first = next(&mut modest).await;
    nothing_comes(&mut modest).await;
    let mut other = consume(&queue).await;
    let held = [next(&mut other).await, next(&mut other).await];
    publish(&queue, [3]).await;
    drop(other);
    drop(held);
    first.ticket.ack().await.unwrap();
    let mut got: Vec<_> = drain(&mut modest, 3)
        .await
        .into_iter()
        .map(|d| d.0)
        .collect();
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3]);
}

/// The depth counts neither dispatches handed out nor dropped consumers.
pub async fn depth_counts_dispatches_and_consumers<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let depth = |waiting, consumers| Depth { waiting, consumers };
    until_depth(&queue, depth(0, 0)).await;
    publish(&queue, 0..3).await;
    queue.publish(&dispatch("b", 9)).await.unwrap();
    until_depth(&queue, depth(3, 0)).await;
    let mut consumer = queue.consume(&hub("a"), 1).await.unwrap();
    let held = next(&mut consumer).await;
    until_depth(&queue, depth(2, 1)).await;
    held.ticket.ack().await.unwrap();
    drop(consumer);
    until_depth(&queue, depth(2, 0)).await;
}
