//! Cases: the queue. Each is given a way to make a queue with a limit.

use std::time::Duration;

use futures::FutureExt;
use twincast_core::ids::BatchId;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError};

use crate::build::{hub, name};

/// Enough for any case that is not about the limit.
const ROOM: usize = 100;
/// A delivery that does not come by then does not come; no case waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// What does not come although it could: nothing tells a queue's silence from its slowness, so
/// this waits a little, and a slow queue passes wrongly rather than failing wrongly.
async fn nothing_comes(consumer: &mut Box<dyn Deliveries>) {
    let delivery = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await;
    assert!(delivery.is_err(), "{delivery:?}");
}

/// Asks for the depth until it is this: brokers count in their own time.
async fn until_depth(queue: &impl Queue, expected: Depth) {
    let asked = tokio::time::Instant::now();
    loop {
        let depth = queue.depth(&hub("a")).await.unwrap();
        if depth == expected {
            return;
        }
        assert!(asked.elapsed() < PATIENCE, "{depth:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn next(consumer: &mut Box<dyn Deliveries>) -> Delivery {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next()).await;
    delivery.expect("a dispatch waits").unwrap()
}

/// What a consumer gets and acks, until it has `count`.
async fn drain(consumer: &mut Box<dyn Deliveries>, count: usize) -> Vec<(u32, bool)> {
    let mut got = Vec::new();
    for _ in 0..count {
        let delivery = next(consumer).await;
        got.push((delivery.dispatch.batch.0, delivery.redelivered));
        delivery.ticket.ack().await.unwrap();
    }
    got
}

/// First in, first out.
pub async fn dispatches_come_in_order<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [3, 1, 2, 1]).await;
    let mut consumer = consume(&queue).await;
    let got = drain(&mut consumer, 4).await;
    assert_eq!(got, [(3, false), (1, false), (2, false), (1, false)]);
}

/// A hub's consumer gets that hub's dispatches, whole.
pub async fn each_hub_has_its_own_line<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(1).await;
    queue.publish(&dispatch("b", 1)).await.unwrap();
    queue.publish(&dispatch("a", 2)).await.unwrap();
    let mut consumer = consume(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch("a", 2));
    nothing_comes(&mut consumer).await;
}

/// Also when its consumer goes.
pub async fn what_is_acked_is_gone<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, 0..3).await;
    let mut consumer = consume(&queue).await;
    drain(&mut consumer, 3).await;
    drop(consumer);
    let mut consumer = consume(&queue).await;
    nothing_comes(&mut consumer).await;
}

/// Marked, and to any consumer.
pub async fn what_is_requeued_comes_back<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [7]).await;
    let mut consumer = consume(&queue).await;
    let delivery = next(&mut consumer).await;
    delivery.ticket.requeue().await.unwrap();
    assert_eq!(drain(&mut consumer, 1).await, [(7, true)]);
    nothing_comes(&mut consumer).await;
}

/// A task that panics or is cancelled drops its ticket.
pub async fn a_dropped_ticket_comes_back<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, [7]).await;
    let mut consumer = consume(&queue).await;
    drop(next(&mut consumer).await);
    assert_eq!(drain(&mut consumer, 1).await, [(7, true)]);
}

/// All that it did not ack, once each; its tickets are worth nothing then. What it was sent and
/// has not taken may be marked or not: a broker that sends ahead cannot know.
pub async fn a_dropped_consumer_hands_back_what_it_held<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    publish(&queue, 0..3).await;
    let mut gone = consume(&queue).await;
    let first = next(&mut gone).await;
    let second = next(&mut gone).await;
    drop(gone);
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

/// A full line says so, and what comes back finds a place in it all the same. Once it has been
/// emptied it takes more, in its own time.
pub async fn the_line_is_bounded<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(2).await;
    publish(&queue, [1]).await;
    // At once only one: what was sent ahead would not wait in the line.
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
        assert!(emptied.elapsed() < PATIENCE, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each dispatch goes to one of them, and neither is left out.
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

/// One that waits is woken.
pub async fn a_consumer_waits_for_what_is_published<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let mut consumer = consume(&queue).await;
    let (delivery, ()) = tokio::join!(next(&mut consumer), async {
        tokio::task::yield_now().await;
        publish(&queue, [5]).await;
    });
    assert_eq!(delivery.dispatch.batch, BatchId(5));
}

/// `next` that is dropped while it waits, or when it was just woken. Whose turn it is then may
/// differ: a broker has sent it to the first already, who gets it when asking again.
pub async fn an_abandoned_wait_loses_nothing<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
    let queue = make(ROOM).await;
    let (mut one, mut two) = (consume(&queue).await, consume(&queue).await);
    for batch in 0..20 {
        let mut waiting = one.next();
        assert!((&mut waiting).now_or_never().is_none());
        let mut waiting_too = two.next();
        assert!((&mut waiting_too).now_or_never().is_none());
        publish(&queue, [batch]).await;
        // The first in line may have been woken for it already.
        drop(waiting);
        let taken = async {
            tokio::select! {
                delivery = waiting_too => delivery,
                delivery = one.next() => delivery,
            }
        };
        let delivery = tokio::time::timeout(PATIENCE, taken).await;
        let delivery = delivery.expect("one of them gets it").unwrap();
        assert_eq!(delivery.dispatch.batch.0, batch);
        delivery.ticket.ack().await.unwrap();
    }
}

/// The rest stays for others until it has answered.
pub async fn a_consumer_is_given_no_more_than_it_wants<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
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

/// What was handed out does not wait, and consumers that went are not counted.
pub async fn depth_shows_what_waits_and_who_takes<Q: Queue>(make: impl AsyncFn(usize) -> Q) {
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
