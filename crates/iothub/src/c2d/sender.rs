//! The handle for sending messages. One task per sender does the work, see `engine`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::client::Client;

use super::engine::{Command, Engine};
use super::message::C2dMessage;
use super::outcome::{ConnectionFailure, NotSent, SendOutcome, UnknownCause};

/// The state of a long-lived link. Watched through [`C2dSender::state`] and
/// [`FeedbackReceiver::state`](crate::FeedbackReceiver::state).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LinkState {
    /// Attached and authorised.
    Connected,
    /// Not connected; attempts continue without limit.
    Reconnecting {
        /// Start of the outage.
        since: std::time::SystemTime,
        /// Failed attempts so far.
        attempts: u32,
        /// Why the last connection or attempt ended; `None` before the first attempt has ended.
        last_error: Option<Arc<ConnectionFailure>>,
    },
    /// Permanently failed: credentials or certificates are refused. A new sender or receiver is
    /// needed.
    Failed(Arc<ConnectionFailure>),
    /// Closed by the client.
    Closed,
}

/// The outcome of a send, and the hub's latency.
#[derive(Debug, Clone)]
#[must_use = "a send may have failed: handle the outcome"]
#[non_exhaustive]
pub struct SendReport {
    /// The outcome.
    pub outcome: SendOutcome,
    /// Time from handing the message to the link until the hub's answer; `None` if the message
    /// never left or was never answered. The hub queues before refusing, so a growing latency means
    /// an overloaded hub.
    pub hub_latency: Option<Duration>,
}

/// One long-lived C2D link to a hub, with many sends in flight.
///
/// A task of its own maintains the link: the task connects, renews tokens, reconnects with jitter,
/// and reports the outcome of every send. The hub throttles link opens, so keep one sender per hub
/// and process.
///
/// Dropping the sender closes the link in the background.
#[derive(Debug)]
pub struct C2dSender {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<LinkState>,
    send_timeout: Duration,
    leave_timeout: Duration,
    task: JoinHandle<()>,
}

impl C2dSender {
    /// Connects, and returns when the link is attached. Makes one attempt; the caller may retry.
    ///
    /// # Errors
    ///
    /// The reason of the failed connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the unfinished connection.
    pub async fn connect(client: &Client) -> Result<Self, ConnectionFailure> {
        let link = super::link::Link::open(&client.inner).await?;
        Ok(Self::spawn(client, Some(link)))
    }

    /// Starts without waiting: the first connection is opened in the background, with retries.
    /// Watch [`state`](Self::state).
    ///
    /// Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(client: &Client) -> Self {
        Self::spawn(client, None)
    }

    fn spawn(client: &Client, link: Option<super::link::Link>) -> Self {
        // The channel holds as many commands as may be in flight: enough to refill the link at
        // once, few enough to fail quickly.
        let (commands, received) = mpsc::channel(client.options().max_in_flight);
        let first = match link {
            Some(_) => LinkState::Connected,
            None => LinkState::Reconnecting {
                since: std::time::SystemTime::now(),
                attempts: 0,
                last_error: None,
            },
        };
        let (state_sender, state) = watch::channel(first);
        let clock = Arc::clone(&client.inner);
        let engine = Engine::new(Arc::clone(&client.inner), received, state_sender);
        Self {
            commands,
            state,
            send_timeout: client.options().send_timeout,
            leave_timeout: client.options().leave_timeout,
            task: tokio::spawn(async move {
                tokio::select! {
                    () = engine.run(link) => {}
                    never = clock.refresh_clock_forever() => match never {},
                }
            }),
        }
    }

    /// Sends one message and returns the outcome within the client's `send_timeout`. Every call
    /// ends with exactly one outcome.
    ///
    /// Call it from as many concurrent futures as there shall be sends in flight: each waits for a
    /// slot, the link's credit and the hub's answer. Messages leave in the order of the futures'
    /// first polls.
    ///
    /// Transient refusals are not retried: the caller knows its rate limits and decides. While the
    /// link reconnects, messages not yet handed over wait; messages already handed over become
    /// [`SendOutcome::Unknown`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the outcome unknown: the message may be sent at any later time or
    /// never.
    pub async fn send(&self, message: C2dMessage) -> SendOutcome {
        self.send_timed(message).await.outcome
    }

    /// Like [`send`](Self::send), plus the hub's latency.
    ///
    /// # Cancel safety
    ///
    /// As for [`send`](Self::send).
    pub async fn send_timed(&self, message: C2dMessage) -> SendReport {
        let now = Instant::now();
        let deadline = now + self.send_timeout;
        let leave_by = now + self.leave_timeout.min(self.send_timeout);
        let (reply, answer) = oneshot::channel();
        let command = Command {
            message,
            leave_by,
            deadline,
            reply,
        };
        // Only a send into a full channel needs a timer.
        let command = match self.commands.try_send(command) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(command)) => Some(command),
            Err(mpsc::error::TrySendError::Closed(_)) => return self.not_taken(),
        };
        if let Some(command) = command {
            match timeout_at(leave_by, self.commands.reserve()).await {
                Ok(Ok(permit)) => permit.send(command),
                Ok(Err(_)) => return self.not_taken(),
                Err(_) => {
                    let connection = self.last_error();
                    return SendReport::not_sent(NotSent::Timeout { connection });
                }
            }
        }
        // The task answers every command taken; if the task dies, the reply senders are dropped.
        answer.await.unwrap_or(SendReport {
            outcome: SendOutcome::Unknown(UnknownCause::Closed),
            hub_latency: None,
        })
    }

    /// Watches the link's state, beginning with the current one.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Closes the sender: refuses new messages, waits for the answers to deliveries in flight (at
    /// most `send_timeout`), closes the link.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets the close continue in the background.
    pub async fn close(self) {
        let Self { commands, task, .. } = self;
        drop(commands);
        let _ = task.await;
    }

    fn not_taken(&self) -> SendReport {
        SendReport::not_sent(match &*self.state.borrow() {
            LinkState::Failed(failure) => NotSent::Failed(Arc::clone(failure)),
            _ => NotSent::Closed,
        })
    }

    fn last_error(&self) -> Option<Arc<ConnectionFailure>> {
        match &*self.state.borrow() {
            LinkState::Reconnecting { last_error, .. } => last_error.clone(),
            LinkState::Failed(failure) => Some(Arc::clone(failure)),
            _ => None,
        }
    }
}

impl SendReport {
    pub(crate) fn not_sent(reason: NotSent) -> Self {
        Self {
            outcome: SendOutcome::NotSent(reason),
            hub_latency: None,
        }
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Reconnecting {
                attempts,
                last_error: Some(error),
                ..
            } => {
                write!(f, "reconnecting after {attempts} failed attempts: {error}")
            }
            Self::Reconnecting { .. } => f.write_str("connecting"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Closed => f.write_str("closed"),
        }
    }
}
