//! Actions of other clients and operators at the broker.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// Another client, on a connection of its own.
pub(crate) struct Other {
    channel: Channel,
    _connection: Connection,
}

impl Other {
    pub(crate) async fn at(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        let connection = connection.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        confirm.await.unwrap();
        Self {
            channel,
            _connection: connection,
        }
    }

    /// Publishes a message; returns once the message is on the queue. Without a confirmation, a
    /// later message of another connection could come first.
    pub(crate) async fn publish(&self, queue: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let sent = self.channel.basic_publish(
            ShortString::default(),
            queue.into(),
            options,
            body,
            properties,
        );
        let confirmation = sent.await.unwrap().await.unwrap();
        assert_eq!(confirmation, Confirmation::Ack(None), "{queue}");
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions::durable();
        let declared = self.channel.queue_declare(queue.into(), options, arguments);
        declared.await.unwrap();
    }

    pub(crate) async fn delete(&self, queue: &str) {
        let options = QueueDeleteOptions::default();
        self.channel
            .queue_delete(queue.into(), options)
            .await
            .unwrap();
    }

    /// Returns the next message of a queue, if present.
    pub(crate) async fn get(&self, queue: &str) -> Option<(BasicProperties, Vec<u8>)> {
        let got = self
            .channel
            .basic_get(queue.into(), BasicGetOptions { no_ack: true });
        let delivery = got.await.unwrap()?.delivery;
        Some((delivery.properties, delivery.data))
    }
}

pub(crate) fn json() -> BasicProperties {
    BasicProperties::default().with_content_type("application/json".into())
}
