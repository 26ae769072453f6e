//! Commands: request, reply, and dead letter.

use std::time::Duration;

use lapin::BasicProperties;
use twincast_amqp::{
    AmqpError, COMMAND_TYPE, CommandBody, CommandConsumer, IncomingCommand, MAX_COMMAND_BYTES,
};
use twincast_testkit::services::RabbitMq;

use crate::broker::{Other, json};
use crate::{amqp, in_time};

async fn take(consumer: &mut CommandConsumer) -> IncomingCommand {
    in_time(consumer.next()).await.unwrap()
}

/// A command and the reply, with the ids that connect them.
#[tokio::test]
async fn a_request_is_answered() {
    let (amqp, _) = amqp().await;
    let mut commands = amqp.commands(4).await.unwrap();
    let request = amqp.request(b"{}".to_vec(), COMMAND_TYPE, None, Duration::from_secs(30));
    let (reply, ()) = tokio::join!(request, async {
        let command = take(&mut commands).await;
        assert_eq!(command.body, CommandBody::Whole(b"{}".to_vec()));
        assert_eq!(command.content_type.as_deref(), Some(COMMAND_TYPE));
        assert!(command.message_id.is_some());
        assert_eq!(command.message_id, command.correlation_id);
        assert!(!command.redelivered);
        command.reply(b"{\"ok\":true}".to_vec()).await;
        command.ack().await.unwrap();
    });
    assert_eq!(reply.unwrap(), b"{\"ok\":true}");
    amqp.close().await;
}

/// Without a reply, the command stays in the queue for a later consumer.
#[tokio::test]
async fn unanswered_request_times_out() {
    let (amqp, _) = amqp().await;
    let unanswered = async || {
        let timeout = Duration::from_millis(300);
        let request = amqp.request(b"{}".to_vec(), COMMAND_TYPE, None, timeout);
        let error = in_time(request).await.unwrap_err();
        assert!(matches!(error, AmqpError::TimedOut { .. }), "{error:?}");
    };
    unanswered().await;
    let mut commands = amqp.commands(4).await.unwrap();
    let command = loop {
        tokio::select! {
            command = take(&mut commands) => break command,
            // On a busy machine, the time may be up before the first command is sent.
            () = unanswered() => {}
        }
    };
    // The requester is gone; the reply does no harm.
    command.reply(b"{}".to_vec()).await;
    command.ack().await.unwrap();
}

/// A command with an id given by the sender, and a command with the properties of another client.
#[tokio::test]
async fn command_arrives_with_the_sent_properties() {
    let (amqp, prefix) = amqp().await;
    let sent = amqp.send_command(b"1".to_vec(), COMMAND_TYPE, Some("mine"));
    sent.await.unwrap();
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let queue = format!("{prefix}.commands");
    other
        .publish(&queue, BasicProperties::default(), b"2")
        .await;
    let mut commands = amqp.commands(4).await.unwrap();
    let first = take(&mut commands).await;
    assert_eq!(first.message_id.as_deref(), Some("mine"));
    assert_eq!(first.reply_to, None);
    first.reply(b"not wanted".to_vec()).await;
    let second = take(&mut commands).await;
    assert_eq!((second.content_type, second.message_id), (None, None));
    let id = "x".repeat(256);
    let too_long = amqp.send_command(Vec::new(), COMMAND_TYPE, Some(&id));
    let error = too_long.await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "message id is too long: 256 bytes, at most 255"
    );
}

/// A requeued or dropped command comes again.
#[tokio::test]
async fn requeued_or_dropped_command_is_redelivered() {
    let (amqp, _) = amqp().await;
    amqp.send_command(b"1".to_vec(), COMMAND_TYPE, None)
        .await
        .unwrap();
    let mut commands = amqp.commands(1).await.unwrap();
    take(&mut commands).await.requeue().await;
    let again = take(&mut commands).await;
    assert!(again.redelivered);
    drop(again);
    drop(commands);
    let mut commands = amqp.commands(1).await.unwrap();
    take(&mut commands).await.ack().await.unwrap();
}

/// A reply cannot be used to write to the system's own queues.
#[tokio::test]
async fn replies_to_own_queues_are_dropped() {
    let (amqp, prefix) = amqp().await;
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    let dead = format!("{prefix}.dead");
    let properties = json().with_reply_to(dead.as_str().into());
    other
        .publish(&format!("{prefix}.commands"), properties, b"{}")
        .await;
    let mut commands = amqp.commands(1).await.unwrap();
    let command = take(&mut commands).await;
    command.reply(b"boo".to_vec()).await;
    command.ack().await.unwrap();
    assert_eq!(amqp.dead_letters(1).await.unwrap(), []);
}

/// A too large command is not kept in memory whole, and the letter shows the original size.
#[tokio::test]
async fn dead_letter_of_oversized_command_is_truncated() {
    let (amqp, _) = amqp().await;
    let body = vec![b'x'; MAX_COMMAND_BYTES + 1];
    amqp.send_command(body, COMMAND_TYPE, None).await.unwrap();
    let mut commands = amqp.commands(1).await.unwrap();
    let command = take(&mut commands).await;
    assert!(matches!(&command.body, CommandBody::TooLarge { size, head }
            if *size == MAX_COMMAND_BYTES + 1 && head.len() == 65_536));
    let dead_lettered = command.dead_letter("too_large", "at most 1 MiB");
    dead_lettered.await.unwrap();
    let letters = amqp.dead_letters(10).await.unwrap();
    let [letter] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!(letter.cause.as_deref(), Some("too_large"));
    assert_eq!(letter.body.len(), 65_536);
    assert_eq!(letter.truncated_from, Some(MAX_COMMAND_BYTES as u64 + 1));
    let error = amqp.replay_dead_letter(&letter.id).await.unwrap_err();
    assert!(error.to_string().contains("only 65536 of its"), "{error}");
}

/// A dead letter keeps the original message, and is written before the original is removed.
#[tokio::test]
async fn a_dead_letter_has_the_reason_and_the_original() {
    let (amqp, prefix) = amqp().await;
    let other = Other::at(&RabbitMq::shared().await.url()).await;
    // The broker would close the channel of a client that republishes under another user's name.
    let properties = json()
        .with_message_id("m7".into())
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_reply_to("somewhere".into());
    let queue = format!("{prefix}.commands");
    other.publish(&queue, properties, b"{oops").await;
    let mut commands = amqp.commands(1).await.unwrap();
    let command = take(&mut commands).await;
    let detail = "x".repeat(5000);
    command.dead_letter("unreadable", &detail).await.unwrap();
    let (properties, body) = other.get(&format!("{prefix}.dead")).await.unwrap();
    assert_eq!(body, b"{oops");
    assert_eq!(properties.message_id(), &Some("m7".into()));
    assert_eq!(properties.reply_to(), &Some("somewhere".into()));
    assert_eq!(properties.expiration(), &None);
    let headers = properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| headers[name].as_long_string().unwrap().to_string();
    assert_eq!(text("x-twincast-cause"), "unreadable");
    assert_eq!(text("x-twincast-detail"), "x".repeat(1024));
    assert_eq!(text("x-twincast-queue"), queue);
    assert!(headers["x-twincast-at"].as_long_long_int().is_some());
    assert!(!headers.contains_key("x-twincast-truncated"));
    // The original message is removed.
    drop(commands);
    amqp.close().await;
    assert_eq!(other.get(&queue).await.map(|_| ()), None);
}
