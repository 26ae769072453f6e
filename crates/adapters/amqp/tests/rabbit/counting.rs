//! Deliveries are counted on every version of the broker (docs/adr/0028-deliveries-are-counted.md).

use twincast_amqp::{Amqp, DeadLetter};
use twincast_core::ports::Queue;
use twincast_secret::SecretSource;
use twincast_testkit::services::{DeliveryCounts, NACK, NewerBroker, REJECT, RabbitMq};

use crate::{connect, dispatch, hub, in_time, next, settings};

/// Two clients with the same topology: the first connects through the proxy, the second
/// directly.
async fn both(counts: DeliveryCounts) -> (NewerBroker, Amqp, Amqp) {
    let broker = RabbitMq::shared().await;
    let newer_broker = NewerBroker::start(broker.address(), counts).await;
    let direct = settings(&broker.url());
    let through = twincast_amqp::Settings {
        urls: SecretSource::Fixed(newer_broker.url().into()),
        ..direct.clone()
    };
    (newer_broker, connect(through).await, connect(direct).await)
}

async fn letter(amqp: &Amqp) -> DeadLetter {
    in_time(async {
        loop {
            if let Some(letter) = amqp.dead_letters(1).await.unwrap().pop() {
                return letter;
            }
        }
    })
    .await
}

/// From 4.3 on only `basic.reject` and a lost channel count towards the delivery limit. Hidden
/// counts make no difference, because the broker enforces the declared limit.
#[tokio::test]
async fn returned_deliveries_are_rejected_and_counted() {
    let (newer_broker, amqp, direct) = both(DeliveryCounts::Hidden).await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    for round in 0..=20 {
        let delivery = next(&mut consumer).await;
        if round % 2 == 0 {
            delivery.ticket.requeue().await.unwrap();
        } else {
            drop(delivery);
        }
    }
    let letter = letter(&direct).await;
    assert_eq!(letter.cause.as_deref(), Some("delivery_limit"));
    assert_eq!(
        (newer_broker.sent(REJECT), newer_broker.sent(NACK)),
        (21, 0)
    );
}

/// RabbitMQ 4.3 does not count a message held by a consumer for too long, but shows the number of
/// hand-outs. The client enforces the limit.
#[tokio::test]
async fn client_enforces_delivery_limit_on_acquired_counts() {
    let (_newer_broker, amqp, direct) = both(DeliveryCounts::Acquired { more: 19 }).await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    queue.publish(&dispatch(2)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    // Not handed out before, handed out 20 times before, and 21 times.
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.dispatch, dispatch(1));
        delivery.ticket.requeue().await.unwrap();
    }
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(2));
    delivery.ticket.ack().await.unwrap();
    let letter = letter(&direct).await;
    assert_eq!(letter.cause.as_deref(), Some("delivery_limit"));
    let detail = letter.detail.as_deref().unwrap_or_default();
    assert!(detail.contains("more than 20 times"), "{detail}");
    // A replayed letter begins with a count of zero.
    direct.replay_dead_letter(&letter.id).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(1));
    assert!(!delivery.redelivered);
    delivery.ticket.ack().await.unwrap();
    assert_eq!(direct.dead_letters_waiting().await.unwrap(), 0);
}

/// From 4.3 on the channel stays open when a delivery was held for too long, and only the consumer
/// is cancelled.
#[tokio::test]
async fn cancelled_consumer_resumes() {
    let (newer_broker, amqp, _direct) = both(DeliveryCounts::Acquired { more: 0 }).await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 3).await.unwrap();
    let held = next(&mut consumer).await;
    newer_broker.cancel_consumers();
    let again = next(&mut consumer).await;
    assert_eq!(again.dispatch, held.dispatch);
    assert!(again.redelivered);
    assert!(held.ticket.ack().await.is_err());
    again.ticket.ack().await.unwrap();
    queue.publish(&dispatch(2)).await.unwrap();
    assert_eq!(next(&mut consumer).await.dispatch, dispatch(2));
}
