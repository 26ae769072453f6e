//! A release pipeline: an AMQP client with knowledge only of the documented names and messages.

use std::time::Duration;

use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};

use crate::services::{Access, wait};

/// Time limit for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

pub(crate) struct Pipeline {
    /// Kept open.
    _connection: Connection,
    channel: Channel,
    prefix: String,
    replies: ShortString,
    answers: Consumer,
    command_count: u32,
}

impl Pipeline {
    pub(crate) fn connect(access: &Access) -> Self {
        wait(async {
            let connection =
                Connection::connect(&access.amqp_url, ConnectionProperties::default()).await;
            let connection = connection.expect("a connection to RabbitMQ");
            let channel = connection.create_channel().await.expect("a channel");
            let confirms = channel.confirm_select(ConfirmSelectOptions::default());
            confirms.await.expect("confirms");
            let replies = private_queue(&channel).await;
            let answers = consume(&channel, &replies).await;
            Self {
                _connection: connection,
                channel,
                prefix: access.prefix.clone(),
                replies,
                answers,
                command_count: 0,
            }
        })
    }

    /// Publishes a message to the queue of commands; returns once the message is on the queue.
    pub(crate) fn publish(&self, body: &[u8], properties: BasicProperties) {
        self.publish_to("commands", body, properties);
    }

    /// Publishes a message to another queue of the engine; returns once the message is on the
    /// queue.
    pub(crate) fn publish_to(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let queue = format!("{}.{queue}", self.prefix);
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let confirmation = wait(async {
            let sent = self.channel.basic_publish(
                ShortString::default(),
                queue.as_str().into(),
                options,
                body,
                properties,
            );
            sent.await.expect("a publish").await
        });
        let confirmation = confirmation.expect("a confirmation");
        assert!(
            matches!(confirmation, lapin::Confirmation::Ack(None)),
            "the queue did not accept the message: {confirmation:?}"
        );
    }

    /// Publishes a command without waiting for the answer.
    pub(crate) fn publish_command(&mut self, command: &Value) -> String {
        self.publish_command_with(command, FieldTable::default())
    }

    /// Publishes a command with headers, without waiting for the answer.
    fn publish_command_with(&mut self, command: &Value, headers: FieldTable) -> String {
        self.command_count += 1;
        let id = format!("question-{}", self.command_count);
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_content_type("application/json".into())
            .with_reply_to(self.replies.clone())
            .with_correlation_id(id.as_str().into());
        self.publish(command.to_string().as_bytes(), properties);
        id
    }

    /// Returns the next answer, with the id of the answered command.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> (String, Value) {
        let delivery = wait(next(&mut self.answers));
        let id = delivery.properties.correlation_id().clone();
        let id = id.expect("a correlation id").to_string();
        let answer = serde_json::from_slice(&delivery.data).expect("a JSON answer");
        (id, answer)
    }

    /// Returns the next answer to a command. An earlier command may be answered twice: a process
    /// may lose its connection between the answer and the ack.
    #[track_caller]
    fn answer_to(&mut self, command_id: &str) -> Value {
        loop {
            let (id, answer) = self.answer();
            if id == command_id {
                return answer;
            }
        }
    }

    /// Publishes a command and waits for the answer.
    #[track_caller]
    pub(crate) fn command(&mut self, command: &Value) -> Value {
        let command_id = self.publish_command(command);
        self.answer_to(&command_id)
    }

    /// Publishes a command and waits for success.
    #[track_caller]
    pub(crate) fn command_ok(&mut self, command: &Value) -> Value {
        let answer = self.command(command);
        assert_eq!(answer["ok"], true, "{command}: {answer}");
        answer
    }

    /// Publishes a command as part of a span, and waits for success.
    #[track_caller]
    pub(crate) fn command_ok_in_span(&mut self, command: &Value, traceparent: &str) -> Value {
        let mut headers = FieldTable::default();
        let value = AMQPValue::LongString(traceparent.into());
        headers.insert("traceparent".into(), value);
        let command_id = self.publish_command_with(command, headers);
        let answer = self.answer_to(&command_id);
        assert_eq!(answer["ok"], true, "{answer}");
        answer
    }

    /// Subscribes to all events from now on.
    pub(crate) fn listen(&self) -> Listener {
        let exchange = format!("{}.events", self.prefix);
        wait(async {
            let queue = private_queue(&self.channel).await;
            let bound = self.channel.queue_bind(
                queue.clone(),
                exchange.as_str().into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            bound.await.expect("the exchange exists");
            Listener(consume(&self.channel, &queue).await)
        })
    }
}

/// A subscription to the exchange of events.
pub(crate) struct Listener(Consumer);

impl Listener {
    /// Returns the next event, with the topic.
    #[track_caller]
    pub(crate) fn next(&mut self) -> (String, Value) {
        let delivery = wait(next(&mut self.0));
        let content_type = delivery.properties.content_type().clone();
        let content_type = content_type.unwrap_or_default().to_string();
        assert_eq!(content_type, "application/cloudevents+json");
        let event = serde_json::from_slice(&delivery.data).expect("a JSON event");
        (delivery.routing_key.to_string(), event)
    }
}

async fn private_queue(channel: &Channel) -> ShortString {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel.queue_declare(ShortString::default(), options, FieldTable::default());
    queue.await.expect("a private queue").name().clone()
}

async fn consume(channel: &Channel, queue: &ShortString) -> Consumer {
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let tag = ShortString::default();
    let consumer = channel.basic_consume(queue.clone(), tag, options, FieldTable::default());
    consumer.await.expect("a consumer")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(ANSWER_TIMEOUT, consumer.next()).await;
    let next = next.expect("a message in time");
    next.expect("the subscription is open").expect("a message")
}

/// Returns the `start` of a rollout to all refrigerators, batched by region: the same spec as the
/// file of [`Room::rollout`].
///
/// [`Room::rollout`]: crate::harness::Room::rollout
pub(crate) fn start(name: &str) -> Value {
    start_with(name, json!({}))
}

/// Like [`start`], with further fields.
pub(crate) fn start_with(name: &str, more: Value) -> Value {
    let mut spec = json!({
        "name": name,
        "target": { "tags": { "type": "fridge" } },
        "batch_by": ["region"],
        "message": { "body": { "text": "hello" }, "ttl": "24h" },
    });
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more);
    }
    json!({ "command": "start", "spec": spec })
}

/// The `start` of a rollout to a [`scattered`] fleet.
///
/// [`scattered`]: crate::engine::scattered
pub(crate) fn start_scattered(name: &str) -> Value {
    let stages = json!([
        { "name": "canary", "percent": "1%", "gate": { "failure_above": "50%" } },
        { "name": "tenth", "percent": "10%", "gate": { "success_at_least": "50%" } },
        { "name": "half", "percent": "50%", "gate": { "failure_above": "50%" } },
        { "name": "most", "percent": "90%" },
    ]);
    start_with(
        name,
        json!({ "batch_by": ["region", "site"], "stages": stages }),
    )
}

/// Returns a command about a single rollout.
pub(crate) fn about(command: &str, rollout: &str) -> Value {
    json!({ "command": command, "rollout": rollout, "by": "a test" })
}

/// Returns a command about all rollouts.
pub(crate) fn about_all(command: &str) -> Value {
    json!({ "command": command, "by": "a test" })
}
