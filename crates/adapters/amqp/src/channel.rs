//! A channel that is always closed in good order.

use std::ops::Deref;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use crate::error::{AmqpError, BrokerError};
use crate::tasks::Tasks;

/// The time limit for closing a channel. Nothing depends on the close.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A channel with a single user, and at most a single consumer.
///
/// The library closes a channel when the last handle is dropped. But if the broker closes the
/// channel at the same time, or a consumer is still being cancelled, the library treats the close
/// as an error of the whole connection. So `OwnChannel` closes the channel explicitly, in a task on
/// drop, and keeps the consumer until then.
pub(crate) struct OwnChannel {
    /// `None` after closing.
    open: Option<Open>,
    lost: CancellationToken,
    tasks: Tasks,
}

struct Open {
    channel: Channel,
    consumer: Option<Consumer>,
}

impl OwnChannel {
    pub(crate) fn new(channel: Channel, lost: CancellationToken, tasks: Tasks) -> Self {
        Self {
            open: Some(Open {
                channel,
                consumer: None,
            }),
            lost,
            tasks,
        }
    }

    /// Cancelled when the channel's connection is lost.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Runs an operation of the channel, as [`unless_lost`].
    pub(crate) async fn unless_lost<T>(
        &self,
        operation: impl Future<Output = Result<T, AmqpError>>,
    ) -> Result<T, AmqpError> {
        unless_lost(&self.lost, operation).await
    }

    /// Begins to consume a queue.
    pub(crate) async fn consume(
        &mut self,
        queue: ShortString,
        options: BasicConsumeOptions,
    ) -> Result<(), AmqpError> {
        let doing = format!("consume {queue}");
        // The broker chooses a tag.
        let tag = ShortString::default();
        let consumer = self.basic_consume(queue, tag, options, FieldTable::default());
        let consumer = consumer.await;
        let consumer = consumer.map_err(|error| AmqpError::broker(doing, error))?;
        if let Some(open) = &mut self.open {
            open.consumer = Some(consumer);
        }
        Ok(())
    }

    /// Waits for the next delivery. An error says why there are no further deliveries. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, String> {
        let consumer = self.open.as_mut().and_then(|open| open.consumer.as_mut());
        let Some(consumer) = consumer else {
            return Err("no consumer is open".into());
        };
        let next = tokio::select! {
            () = self.lost.cancelled() => return Err("connection lost".into()),
            next = consumer.next() => next,
        };
        match next {
            Some(Ok(delivery)) => Ok(delivery),
            Some(Err(error)) => Err(BrokerError::from(error).to_string()),
            None => Err(
                "cancelled by the broker: the queue was deleted or has moved, or a delivery was held for longer than the broker's consumer_timeout".into(),
            ),
        }
    }

    /// Closes the channel: unacknowledged deliveries go back to the queues.
    pub(crate) async fn close(mut self) {
        if let Some(open) = self.open.take() {
            close(open, self.lost.clone()).await;
        }
    }
}

impl Deref for OwnChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        let open = self.open.as_ref();
        &open
            .expect("it is open until it is closed or dropped")
            .channel
    }
}

impl Drop for OwnChannel {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.tasks.spawn(close(open, self.lost.clone()));
        }
    }
}

/// Runs an operation until the connection is lost: the library may leave an operation on a lost
/// connection pending for ever.
pub(crate) async fn unless_lost<T>(
    lost: &CancellationToken,
    operation: impl Future<Output = Result<T, AmqpError>>,
) -> Result<T, AmqpError> {
    tokio::select! {
        () = lost.cancelled() => Err(AmqpError::Lost),
        done = operation => done,
    }
}

async fn close(open: Open, lost: CancellationToken) {
    let closed = tokio::time::timeout(CLOSE_WITHIN, open.channel.close(200, "done".into()));
    tokio::select! {
        () = lost.cancelled() => {}
        // An error means that the broker has closed the channel, with the same result.
        _ = closed => {}
    }
}
