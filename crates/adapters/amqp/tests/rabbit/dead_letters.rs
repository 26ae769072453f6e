//! Reading, replaying and discarding dead letters.

use twincast_amqp::{Amqp, AmqpError, COMMAND_TYPE, DeadLetter};
use twincast_core::ports::Queue;

use crate::broker::{Other, json};
use crate::{amqp, dispatch, hub, in_time, next};
use twincast_testkit::services::RabbitMq;

async fn bury(amqp: &Amqp, bodies: impl IntoIterator<Item = u32>) {
    let mut commands = amqp.commands(1).await.unwrap();
    for body in bodies {
        let body = body.to_string().into_bytes();
        amqp.send_command(body, COMMAND_TYPE, None).await.unwrap();
        let command = in_time(commands.next()).await.unwrap();
        command.dead_letter("unreadable", "a test").await.unwrap();
    }
}

/// Waits for a dead letter.
async fn first_letter(amqp: &Amqp) -> DeadLetter {
    let waiting = async {
        loop {
            if let Some(letter) = amqp.dead_letters(1).await.unwrap().pop() {
                return letter;
            }
        }
    };
    in_time(waiting).await
}

fn bodies(letters: &[DeadLetter]) -> Vec<u32> {
    let bodies = letters
        .iter()
        .map(|letter| String::from_utf8_lossy(&letter.body));
    bodies.map(|body| body.parse().unwrap()).collect()
}

/// Any number of reads loses no letter. From 4.0 on, a queue without a declared limit drops a
/// message returned 20 times.
#[tokio::test]
async fn reading_dead_letters_loses_no_letter() {
    let (amqp, _) = amqp().await;
    bury(&amqp, 0..15).await;
    let first = amqp.dead_letters(100).await.unwrap();
    assert_eq!(bodies(&first), (0..15).collect::<Vec<_>>());
    for most in [0, 1, 5, 14, 15, 100].repeat(5) {
        let letters = amqp.dead_letters(most).await.unwrap();
        assert_eq!(letters, first[..most.min(15)]);
    }
    let found = amqp.dead_letter(&first[7].id).await.unwrap();
    assert_eq!(found, first[7]);
    assert_eq!(amqp.dead_letters(100).await.unwrap(), first);
}

#[tokio::test]
async fn replayed_letter_keeps_id_and_content_type() {
    let (amqp, _) = amqp().await;
    bury(&amqp, 0..3).await;
    let letters = amqp.dead_letters(9).await.unwrap();
    let replayed = amqp.replay_dead_letter(&letters[1].id).await.unwrap();
    assert_eq!(replayed, letters[1]);
    assert_eq!(bodies(&amqp.dead_letters(9).await.unwrap()), [0, 2]);
    let mut commands = amqp.commands(1).await.unwrap();
    let command = in_time(commands.next()).await.unwrap();
    assert_eq!(command.message_id, letters[1].message_id);
    assert_eq!(command.content_type.as_deref(), Some(COMMAND_TYPE));
    command.ack().await.unwrap();
    let error = amqp.replay_dead_letter(&letters[1].id).await.unwrap_err();
    assert!(matches!(error, AmqpError::NoLetter { .. }), "{error:?}");
}

#[tokio::test]
async fn a_letter_is_discarded() {
    let (amqp, _) = amqp().await;
    bury(&amqp, 0..3).await;
    let letters = amqp.dead_letters(9).await.unwrap();
    amqp.discard_dead_letter(&letters[0].id).await.unwrap();
    assert_eq!(bodies(&amqp.dead_letters(9).await.unwrap()), [1, 2]);
    let error = amqp.dead_letter(&letters[0].id).await.unwrap_err();
    assert!(error.to_string().contains(&letters[0].id), "{error}");
}

/// A dispatch moved by the broker to the dead letters shows the reason, and can be replayed.
#[tokio::test]
async fn broker_dead_lettered_dispatch_can_be_replayed() {
    let (amqp, prefix) = amqp().await;
    let queue = amqp.queue();
    queue.publish(&dispatch(1)).await.unwrap();
    let mut consumer = queue.consume(&hub(), 1).await.unwrap();
    for _ in 0..=20 {
        next(&mut consumer).await.ticket.requeue().await.unwrap();
    }
    let letter = first_letter(&amqp).await;
    assert_eq!(letter.cause.as_deref(), Some("delivery_limit"));
    assert_eq!(letter.queue, Some(format!("{prefix}.dispatch.eu")));
    assert!(letter.at.is_some());
    amqp.replay_dead_letter(&letter.id).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.dispatch, dispatch(1));
    assert!(!delivery.redelivered);
    delivery.ticket.ack().await.unwrap();
}

/// Any client can write into the queue of dead letters.
#[tokio::test]
async fn a_stray_letter_is_shown_and_not_replayed() {
    let (amqp, prefix) = amqp().await;
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    other
        .publish(&format!("{prefix}.dead"), json(), &[0xff, 0])
        .await;
    let letter = first_letter(&amqp).await;
    assert_eq!((letter.cause, letter.queue), (None, None));
    let error = amqp.replay_dead_letter(&letter.id).await.unwrap_err();
    assert!(
        matches!(error, AmqpError::NotReplayable { .. }),
        "{error:?}"
    );
    assert_eq!(amqp.dead_letters(9).await.unwrap().len(), 1);
}
