//! Behaviour of the queue beyond the contract of the port.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use lapin::BasicProperties;
use lapin::types::FieldTable;
use twincast_amqp::{Amqp, DISPATCH_TYPE, DeadLetter, Settings};
use twincast_core::error::describe;
use twincast_core::ids::HubName;
use twincast_core::ports::{Dispatch, Queue, QueueError};
use twincast_testkit::services::RabbitMq;

use crate::broker::{Other, json};
use crate::{amqp, connect, dispatch, hub, in_time, next, settings};

async fn letters(amqp: &Amqp, count: usize) -> Vec<DeadLetter> {
    in_time(async {
        loop {
            let letters = amqp.dead_letters(count).await.unwrap();
            if letters.len() == count {
                return letters;
            }
        }
    })
    .await
}

/// Unreadable dispatches neither crash nor stop the consumer, nor come again.
#[tokio::test]
async fn unreadable_dispatches_are_dead_lettered() {
    let (amqp, prefix) = amqp().await;
    let queue = amqp.queue();
    let mut consumer = queue.consume(&hub(), 2).await.unwrap();
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let name = format!("{prefix}.dispatch.eu");
    let other_type = "application/vnd.twincast.letter.v1+json";
    let other_type = BasicProperties::default().with_content_type(other_type.into());
    let ours = BasicProperties::default().with_content_type(DISPATCH_TYPE.into());
    other.publish(&name, other_type, b"{\"new\":1}").await;
    other.publish(&name, ours.clone(), b"{").await;
    other
        .publish(
            &name,
            ours,
            b"{\"rollout\":\"a b\",\"batch\":1,\"hub\":\"eu\"}",
        )
        .await;
    other.publish(&name, json(), &[0xff; 100_000]).await;
    queue.publish(&dispatch(5)).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(5));
    delivery.ticket.ack().await.unwrap();
    // A consumer moves a redelivered message only when asked for the next dispatch.
    let mut letters = tokio::select! {
        letters = letters(&amqp, 4) => letters,
        delivery = consumer.next() => panic!("{:?}", delivery.unwrap().dispatch),
    };
    letters.sort_by_key(|letter| letter.body.len());
    let causes: Vec<_> = letters
        .iter()
        .filter_map(|letter| letter.cause.as_deref())
        .collect();
    let (unreadable, unsupported) = ("unreadable", "unsupported_version");
    assert_eq!(causes, [unreadable, unsupported, unreadable, unsupported]);
    assert!(
        letters
            .iter()
            .all(|letter| letter.queue.as_ref() == Some(&name))
    );
    let detail = letters[2].detail.as_deref().unwrap();
    assert!(detail.contains("rollout name"), "{detail}");
}

/// A dispatch of a newer version is acked, and does not become a dead letter: the driver
/// redispatches the batch for newer workers.
#[tokio::test]
async fn dispatch_of_newer_version_is_acked_not_dead_lettered() {
    let (amqp, prefix) = amqp().await;
    let queue = amqp.queue();
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let name = format!("{prefix}.dispatch.eu");
    let newer = "application/vnd.twincast.dispatch.v2+json";
    let newer = BasicProperties::default().with_content_type(newer.into());
    for _ in 0..3 {
        other.publish(&name, newer.clone(), b"something new").await;
    }
    queue.publish(&dispatch(5)).await.unwrap();
    // A single delivery is unanswered at a time, so the dispatches before are answered.
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(5));
    assert!(!delivery.redelivered);
    delivery.ticket.ack().await.unwrap();
    assert_eq!(amqp.dead_letters_waiting().await.unwrap(), 0);
}

/// A full queue refuses a dispatch above the limit.
#[tokio::test]
async fn a_full_queue_refuses() {
    let settings = Settings {
        dispatch_limit: 10,
        ..settings(&RabbitMq::shared().await.url())
    };
    let queue = connect(settings).await.queue();
    for batch in 0..10 {
        queue.publish(&dispatch(batch)).await.unwrap();
    }
    let error = queue.publish(&dispatch(10)).await.unwrap_err();
    assert!(
        matches!(&error, QueueError::Full { limit: 10, .. }),
        "{error:?}"
    );
    assert_eq!(queue.depth(&hub()).await.unwrap().waiting, 10);
}

/// The queue is deleted while in use on both sides. If the queue is created again at once, the
/// broker does not notify the consumers.
#[tokio::test]
async fn deleted_queue_is_recreated() {
    let settings = Settings {
        renew_idle_after: Duration::from_millis(300),
        ..settings(&RabbitMq::shared().await.url())
    };
    let name = format!("{}.dispatch.eu", settings.prefix);
    let queue = connect(settings).await.queue();
    let mut consumer = queue.consume(&hub(), 3).await.unwrap();
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    // For a moment after the deletion, the broker may route to the deleted queue and refuse, as if the
    // queue were full.
    let publish = async |batch| {
        while let Err(error) = queue.publish(&dispatch(batch)).await {
            assert!(matches!(error, QueueError::Full { .. }), "{error:?}");
        }
    };
    for batch in 0..5 {
        in_time(publish(batch)).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.dispatch, dispatch(batch));
        delivery.ticket.ack().await.unwrap();
        other.delete(&name).await;
    }
}

/// A renewal does not take unanswered deliveries away from the consumer.
#[tokio::test]
async fn idle_consumer_keeps_unanswered_deliveries() {
    let settings = Settings {
        renew_idle_after: Duration::from_millis(100),
        ..settings(&RabbitMq::shared().await.url())
    };
    let queue = connect(settings).await.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 3).await.unwrap();
    let held = next(&mut consumer).await;
    let waited = tokio::time::timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    held.ticket.ack().await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    queue.publish(&dispatch(2)).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(2));
}

/// Many concurrent publishes, half of them to a deleted queue: each caller receives the verdict on
/// the caller's own message, so no accepted message is missing. The broker refuses some messages
/// while deleting the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publish_verdicts_reach_the_right_caller() {
    let (amqp, prefix) = amqp().await;
    let queue = amqp.queue();
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let to = |hub: &str, batch| Dispatch {
        hub: HubName::new(hub).unwrap(),
        ..dispatch(batch)
    };
    for round in 0..10 {
        queue.publish(&to("gone", 0)).await.unwrap();
        other.delete(&format!("{prefix}.dispatch.gone")).await;
        let publishes = (0..50).flat_map(|batch| [to("gone", batch), to("eu", batch)]);
        let publishes = publishes.map(|dispatch| {
            let queue = queue.clone();
            tokio::spawn(async move {
                while let Err(error) = queue.publish(&dispatch).await {
                    assert!(matches!(error, QueueError::Full { .. }), "{error:?}");
                }
            })
        });
        for published in join_all(publishes).await {
            published.unwrap();
        }
        for hub in ["gone", "eu"] {
            let hub = HubName::new(hub).unwrap();
            let mut consumer = queue.consume(&hub, 50).await.unwrap();
            let mut missing: BTreeSet<u32> = (0..50).collect();
            while !missing.is_empty() {
                let delivery = in_time(consumer.next()).await.unwrap();
                missing.remove(&delivery.dispatch.batch.0);
                delivery.ticket.ack().await.unwrap();
            }
            assert_eq!(missing.len(), 0, "round {round}, {hub}");
        }
    }
}

/// A queue created by hand, or with another limit: the error names the queue and the remedy.
#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let (amqp, prefix) = amqp().await;
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let name = format!("{prefix}.dispatch.eu");
    other.declare(&name, FieldTable::default()).await;
    let queue = amqp.queue();
    for _ in 0..2 {
        let error = queue.publish(&dispatch(1)).await.unwrap_err();
        let message = describe(&error);
        for expected in [
            &*name,
            "exists with other arguments",
            "delete it",
            "inequivalent arg",
        ] {
            assert!(message.contains(expected), "{message}");
        }
    }
    let error = queue.consume(&hub(), 1).await.map(|_| ()).unwrap_err();
    assert!(describe(&error).contains(&name), "{error:?}");
    // Other operations still work.
    amqp.publish_event("a", Vec::new()).await.unwrap();
    other.delete(&name).await;
    queue.publish(&dispatch(1)).await.unwrap();
}

/// Operations on a closed connection report the close.
#[tokio::test]
async fn operations_fail_after_close() {
    let (amqp, _) = amqp().await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    let delivery = next(&mut consumer).await;
    in_time(amqp.close()).await;
    in_time(amqp.close()).await;
    let error = in_time(consumer.next()).await.unwrap_err();
    assert!(
        describe(&error).contains("this process has closed its connection"),
        "{error:?}"
    );
    assert!(in_time(delivery.ticket.ack()).await.is_err());
    assert!(in_time(queue.publish(&dispatch(2))).await.is_err());
    assert!(in_time(queue.depth(&hub())).await.is_err());
    assert!(in_time(queue.consume(&hub(), 1)).await.is_err());
}
