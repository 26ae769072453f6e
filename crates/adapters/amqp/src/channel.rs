//! A channel that is closed in good order, whatever happens.

use std::ops::Deref;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use crate::error::{AmqpError, BrokerSaid};
use crate::tasks::Tasks;

/// How long the broker may take to close a channel. Nothing depends on it.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A channel with one user, and at most one consumer.
///
/// The library closes a channel by itself when the last handle is dropped, but takes it for an
/// error of the whole connection when the broker closes the channel at the same time, or when a
/// consumer is still being cancelled. So this closes it explicitly, in a task if it is dropped,
/// and keeps the consumer until then.
pub(crate) struct OwnChannel {
    /// None once it is closed.
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

    /// The connection that it belongs to is gone.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Begins to consume a queue.
    pub(crate) async fn consume(
        &mut self,
        queue: ShortString,
        options: BasicConsumeOptions,
    ) -> Result<(), AmqpError> {
        let doing = format!("consume {queue}");
        // The broker finds a tag.
        let tag = ShortString::default();
        let consumer = self.basic_consume(queue, tag, options, FieldTable::default());
        let consumer = consumer.await;
        let consumer = consumer.map_err(|error| AmqpError::broker(doing, error))?;
        if let Some(open) = &mut self.open {
            open.consumer = Some(consumer);
        }
        Ok(())
    }

    /// The next delivery; an error when there will be none, with why. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, String> {
        let consumer = self.open.as_mut().and_then(|open| open.consumer.as_mut());
        let Some(consumer) = consumer else {
            return Err("nothing is consumed".into());
        };
        let next = tokio::select! {
            () = self.lost.cancelled() => return Err("connection lost".into()),
            next = consumer.next() => next,
        };
        match next {
            Some(Ok(delivery)) => Ok(delivery),
            Some(Err(error)) => Err(BrokerSaid::from(error).to_string()),
            None => Err(
                "cancelled by the broker: the queue was deleted or has moved, or a delivery was held for longer than the broker's consumer_timeout".into(),
            ),
        }
    }

    /// Closes it: what it was handed and has not acked goes back to the queues.
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

async fn close(open: Open, lost: CancellationToken) {
    let closed = tokio::time::timeout(CLOSE_WITHIN, open.channel.close(200, "done".into()));
    tokio::select! {
        () = lost.cancelled() => {}
        // Fails when the broker has closed it, which is as good.
        _ = closed => {}
    }
}
