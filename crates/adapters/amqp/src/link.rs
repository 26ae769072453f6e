//! One connection to the broker as its users see it: what is shared, and what is done over it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twincast_core::ports::Depth;

use crate::channel::OwnChannel;
use crate::error::{AmqpError, BrokerSaid};
use crate::message::{Message, Request, Verdict};
use crate::settings::Settings;
use crate::tasks::Tasks;
use crate::topology::{Names, QueueSpec, short};
use crate::transport::Line;

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is one, and the topology is in place.
    Connected,
    /// There is one, but the broker takes no messages for now.
    Blocked {
        /// What it said: `low on memory`, `low on disk`.
        reason: String,
    },
    /// There is none, and it is being seen to.
    Reconnecting {
        /// Since when.
        since: Instant,
        /// What ended the last one, or why the last attempt failed. None before the first.
        last_error: Option<String>,
    },
    /// There is none, and will be none.
    Closed,
}

/// What the handle and the tasks share.
pub(crate) struct Wires {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) link: watch::Receiver<Option<Arc<Link>>>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: Tasks,
    pub(crate) requests: mpsc::Sender<Request>,
}

/// One connection, from its handshake to its loss.
pub(crate) struct Link {
    pub(crate) line: Line,
    /// The queues that were found right over this connection, by name.
    pub(crate) declared: tokio::sync::Mutex<HashSet<String>>,
    /// The connection is gone.
    pub(crate) lost: CancellationToken,
}

impl Wires {
    /// The current link; waits for one.
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

    /// Does something, which may wait for the connection, in the time that a publish may take.
    pub(crate) async fn in_time<T>(
        &self,
        doing: impl Future<Output = Result<T, AmqpError>>,
    ) -> Result<T, AmqpError> {
        let after = self.settings.publish_timeout;
        let done = tokio::time::timeout(after, doing).await;
        done.unwrap_or_else(|_| Err(too_late(&self.state.borrow(), after)))
    }

    /// Does something on a channel of its own.
    pub(crate) async fn on_channel<T>(
        &self,
        doing: impl AsyncFnOnce(&lapin::Channel) -> Result<T, AmqpError>,
    ) -> Result<T, AmqpError> {
        let link = self.link().await?;
        let channel = link.channel(&self.tasks).await?;
        let done = doing(&channel).await;
        channel.close().await;
        done
    }

    /// Publishes a message and waits for what becomes of it, for as long as the caller does.
    pub(crate) async fn publish(&self, message: Message) -> Result<Verdict, AmqpError> {
        let (request, verdict) = Request::new(message);
        tokio::select! {
            () = self.closing.cancelled() => Err(AmqpError::Closed),
            sent = self.requests.send(request) => sent.map_err(|_| AmqpError::Closed),
        }?;
        verdict.await.unwrap_or(Err(AmqpError::Lost))
    }

    /// Publishes to a queue that is declared if need be. `Ok` means that the queue has it.
    pub(crate) async fn send(&self, queue: &QueueSpec, message: Message) -> Result<(), AmqpError> {
        self.in_time(async {
            self.declare_once(queue).await?;
            let mut verdict = self.publish(message.clone()).await?;
            if verdict == Verdict::Returned {
                // Somebody has deleted it.
                self.link().await?.declared.lock().await.remove(&queue.name);
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

    /// Declares a queue unless this connection has seen it.
    async fn declare_once(&self, queue: &QueueSpec) -> Result<(), AmqpError> {
        let link = self.link().await?;
        // Held while declaring, so that a hundred first dispatches declare it once.
        let mut declared = link.declared.lock().await;
        if !declared.contains(&queue.name) {
            let channel = link.channel(&self.tasks).await?;
            let done = queue.declare(&channel).await;
            channel.close().await;
            done?;
            declared.insert(queue.name.clone());
        }
        Ok(())
    }

    /// How a queue stands; that of a queue that is not there is zero. Asks without making the queue: an error closes the
    /// channel, so it is one for this alone.
    pub(crate) async fn depth(&self, queue: &str) -> Result<Depth, AmqpError> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = short("queue name", queue)?;
        let asked = self.on_channel(async |channel| {
            let asked = channel.queue_declare(name, options, FieldTable::default());
            Ok(asked.await.map_err(BrokerSaid::from))
        });
        match asked.await? {
            Ok(queue) => Ok(Depth {
                waiting: queue.message_count() as usize,
                consumers: queue.consumer_count() as usize,
            }),
            Err(said) if said.is_not_found() => Ok(Depth::default()),
            Err(said) => Err(AmqpError::broker(format!("look at queue {queue}"), said)),
        }
    }
}

/// Why something was not done in time, by how the connection is.
pub(crate) fn too_late(state: &State, after: Duration) -> AmqpError {
    match state {
        State::Connected => AmqpError::TimedOut { after },
        State::Blocked { reason } => AmqpError::Blocked {
            reason: reason.clone(),
        },
        State::Reconnecting { last_error, .. } => AmqpError::Away {
            why: match last_error {
                Some(error) => error.clone(),
                None => "it has not answered yet".into(),
            },
        },
        State::Closed => AmqpError::Closed,
    }
}

impl Link {
    /// A new channel, which closes when it is dropped.
    pub(crate) async fn channel(&self, tasks: &Tasks) -> Result<OwnChannel, AmqpError> {
        let channel = tokio::select! {
            () = self.lost.cancelled() => return Err(AmqpError::Lost),
            channel = self.line.connection.create_channel() => channel,
        };
        let channel = channel.map_err(|error| AmqpError::broker("open a channel", error))?;
        Ok(OwnChannel::new(channel, self.lost.clone(), tasks.clone()))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.line.connection.status().connected()
    }
}
