//! The state shared by the users of a connection to the broker, and the operations over the
//! connection.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::ports::Depth;

use crate::channel::OwnChannel;
use crate::error::{AmqpError, BrokerError};
use crate::message::{Message, Request, Verdict};
use crate::settings::Settings;
use crate::tasks::Tasks;
use crate::topology::{Names, QueueSpec, short};
use crate::transport::Transport;

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The connection is open, and the topology is declared.
    Connected,
    /// The connection is open, but the broker accepts no messages for now.
    Blocked {
        /// The broker's reason: `low on memory`, `low on disk`.
        reason: String,
    },
    /// There is no connection; the supervisor is connecting.
    Reconnecting {
        /// When the connection was lost.
        since: Instant,
        /// Why the last connection ended, or the last attempt failed. `None` before the first
        /// failure.
        last_error: Option<String>,
    },
    /// The connection is closed permanently.
    Closed,
}

/// State shared by the handle and the tasks.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) link: watch::Receiver<Option<Arc<Link>>>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: Tasks,
    pub(crate) requests: mpsc::Sender<Request>,
}

/// A connection, from the handshake to the loss.
pub(crate) struct Link {
    pub(crate) transport: Transport,
    /// The names of the queues declared over this connection.
    pub(crate) declared: Mutex<HashSet<String>>,
    /// Cancelled when the connection is lost.
    pub(crate) lost: CancellationToken,
}

impl Shared {
    /// Returns the current link; waits until there is a link.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, AmqpError> {
        let mut link = self.link.clone();
        tokio::select! {
            () = self.closing.cancelled() => Err(AmqpError::Closed),
            found = link.wait_for(Option::is_some) => {
                let found = found.map_err(|_| AmqpError::Closed)?;
                found.clone().ok_or(AmqpError::Closed)
            }
        }
    }

    /// Runs `doing`, which may wait for the connection, within the time limit of a publish.
    pub(crate) async fn in_time<T>(
        &self,
        doing: impl Future<Output = Result<T, AmqpError>>,
    ) -> Result<T, AmqpError> {
        let after = self.settings.publish_timeout;
        let done = tokio::time::timeout(after, doing).await;
        done.unwrap_or_else(|_| Err(timeout_error(&self.state.borrow(), after)))
    }

    /// Runs `doing` on a channel of its own.
    pub(crate) async fn on_channel<T>(
        &self,
        doing: impl AsyncFnOnce(&lapin::Channel) -> Result<T, AmqpError>,
    ) -> Result<T, AmqpError> {
        let link = self.link().await?;
        let channel = link.channel(&self.tasks).await?;
        let done = channel.unless_lost(doing(&channel)).await;
        channel.close().await;
        done
    }

    /// Publishes a message, and waits for the verdict without a time limit.
    pub(crate) async fn publish(&self, message: Message) -> Result<Verdict, AmqpError> {
        let (request, verdict) = Request::new(message);
        tokio::select! {
            () = self.closing.cancelled() => Err(AmqpError::Closed),
            sent = self.requests.send(request) => sent.map_err(|_| AmqpError::Closed),
        }?;
        verdict.await.unwrap_or(Err(AmqpError::Lost))
    }

    /// Publishes to a queue, declared first if needed. `Ok` means that the queue has the message.
    pub(crate) async fn send(&self, queue: &QueueSpec, message: Message) -> Result<(), AmqpError> {
        self.in_time(async {
            self.declare_once(queue).await?;
            let mut verdict = self.publish(message.clone()).await?;
            if verdict == Verdict::Returned {
                // The queue was deleted.
                self.link().await?.forget_declared(&queue.name);
                self.declare_once(queue).await?;
                verdict = self.publish(message).await?;
            }
            let queue = queue.name.clone();
            match verdict {
                Verdict::Kept => Ok(()),
                Verdict::Returned => Err(AmqpError::NoQueue { queue }),
                Verdict::Refused => Err(AmqpError::Full { queue }),
            }
        })
        .await
    }

    /// Declares a queue, unless declared over this connection before.
    async fn declare_once(&self, queue: &QueueSpec) -> Result<(), AmqpError> {
        let link = self.link().await?;
        // Concurrent first dispatches may each declare the queue, which is harmless. A lock held
        // while declaring would be held by a caller that is no longer polled.
        if !link.is_declared(&queue.name) {
            let channel = link.channel(&self.tasks).await?;
            let done = channel.unless_lost(queue.declare(&channel)).await;
            channel.close().await;
            done?;
            link.note_declared([queue.name.clone()]);
        }
        Ok(())
    }

    /// Returns the depth of a queue; zero for a missing queue. Does not create the queue. An error
    /// closes the channel, so the call uses a channel of its own.
    pub(crate) async fn depth(&self, queue: &str) -> Result<Depth, AmqpError> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = short("queue name", queue)?;
        let declared = self.on_channel(async |channel| {
            let declaration = channel.queue_declare(name, options, FieldTable::default());
            Ok(declaration.await.map_err(BrokerError::from))
        });
        match declared.await? {
            Ok(queue) => Ok(Depth {
                waiting: queue.message_count() as usize,
                consumers: queue.consumer_count() as usize,
            }),
            Err(error) if error.is_not_found() => Ok(Depth::default()),
            Err(error) => Err(AmqpError::broker(format!("inspect queue {queue}"), error)),
        }
    }
}

/// Converts a timeout to an error that names the state of the connection.
pub(crate) fn timeout_error(state: &State, after: Duration) -> AmqpError {
    match state {
        State::Connected => AmqpError::TimedOut { after },
        State::Blocked { reason } => AmqpError::Blocked {
            reason: reason.clone(),
        },
        State::Reconnecting { last_error, .. } => AmqpError::NotConnected {
            why: match last_error {
                Some(error) => error.clone(),
                None => "it has not answered yet".into(),
            },
        },
        State::Closed => AmqpError::Closed,
    }
}

impl Link {
    pub(crate) fn is_declared(&self, queue: &str) -> bool {
        self.declared().contains(queue)
    }

    pub(crate) fn note_declared(&self, queues: impl IntoIterator<Item = String>) {
        self.declared().extend(queues);
    }

    pub(crate) fn forget_declared(&self, queue: &str) {
        self.declared().remove(queue);
    }

    fn declared(&self) -> MutexGuard<'_, HashSet<String>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a channel that closes when dropped.
    pub(crate) async fn channel(&self, tasks: &Tasks) -> Result<OwnChannel, AmqpError> {
        let channel = tokio::select! {
            () = self.lost.cancelled() => return Err(AmqpError::Lost),
            channel = self.transport.connection.create_channel() => channel,
        };
        let channel = channel.map_err(|error| AmqpError::broker("open a channel", error))?;
        Ok(OwnChannel::new(channel, self.lost.clone(), tasks.clone()))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.transport.connection.status().connected()
    }
}
