//! The handle through which messages are sent. The work is done by one task per sender, see `engine`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::client::Client;

use super::engine::{Command, Engine};
use super::message::C2dMessage;
use super::outcome::{ConnectionFailure, Lost, NotSent, SendOutcome};

/// How a long-lived link is doing. Watched through [`C2dSender::state`] and
/// [`FeedbackReceiver::state`](crate::FeedbackReceiver::state).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LinkState {
    /// Attached and authorised.
    Connected,
    /// Not connected; trying again for as long as it takes.
    Reconnecting {
        /// Since when.
        since: std::time::SystemTime,
        /// Failed attempts so far.
        attempts: u32,
        /// Why the last connection or attempt ended; `None` before the first attempt has ended.
        last_error: Option<Arc<ConnectionFailure>>,
    },
    /// Given up: credentials or certificates are refused. A new sender or receiver is needed.
    Failed(Arc<ConnectionFailure>),
    /// Closed by us.
    Closed,
}

/// What became of a send, and how long the hub took.
#[derive(Debug, Clone)]
#[must_use = "a send that was not accepted must be dealt with"]
#[non_exhaustive]
pub struct SendReport {
    /// What became of it.
    pub outcome: SendOutcome,
    /// From handing the message to the link until the hub's answer; `None` if it never left or was never answered.
    /// The hub queues before it refuses: when this grows, it is being overrun.
    pub hub_latency: Option<Duration>,
}

/// One long-lived C2D link to a hub, with many sends in flight.
///
/// A task of its own keeps the link: it connects, renews tokens, reconnects with jitter, and tells every send its
/// outcome. Link opens are throttled by the hub, so keep one sender per hub and process.
///
/// Dropping it closes it in the background.
#[derive(Debug)]
pub struct C2dSender {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<LinkState>,
    send_timeout: Duration,
    leave_timeout: Duration,
    task: JoinHandle<()>,
}

impl C2dSender {
    /// Connects, and returns when the link is attached. One attempt: its failure is the caller's to show or retry.
    ///
    /// # Errors
    ///
    /// Why it could not be connected.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the half-made connection.
    pub async fn connect(client: &Client) -> Result<Self, ConnectionFailure> {
        let link = super::link::Link::open(&client.inner).await?;
        Ok(Self::spawn(client, Some(link)))
    }

    /// Starts without waiting: the first connection is made in the background, with retries. Watch [`state`](Self::state).
    ///
    /// Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(client: &Client) -> Self {
        Self::spawn(client, None)
    }

    fn spawn(client: &Client, link: Option<super::link::Link>) -> Self {
        // As many may wait as may be in flight: enough to refill the link at once, few enough to be told quickly.
        let (commands, received) = mpsc::channel(client.options().max_in_flight);
        let first = match link {
            Some(_) => LinkState::Connected,
            None => LinkState::Reconnecting {
                since: std::time::SystemTime::now(),
                attempts: 0,
                last_error: None,
            },
        };
        let (told, state) = watch::channel(first);
        let clock = Arc::clone(&client.inner);
        let engine = Engine::new(Arc::clone(&client.inner), received, told);
        Self {
            commands,
            state,
            send_timeout: client.options().send_timeout,
            leave_timeout: client.options().leave_timeout,
            task: tokio::spawn(async move {
                tokio::select! {
                    () = engine.run(link) => {}
                    never = clock.keep_looking_at_clock() => match never {},
                }
            }),
        }
    }

    /// Sends one message and tells what became of it, within the client's `send_timeout`. Exactly one outcome, never a
    /// hang.
    ///
    /// Call it from as many futures at once as are wanted in flight: each waits for a slot, the link's credit and the
    /// hub's answer. Order is kept between calls that were first polled in that order.
    ///
    /// Transient refusals are not retried here: that is the caller's, who knows its rate limits. While the link
    /// reconnects, messages that have not left wait; those that had left are [`SendOutcome::Unknown`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the outcome unknown: the message may be sent or not, then or later.
    pub async fn send(&self, message: C2dMessage) -> SendOutcome {
        self.send_timed(message).await.outcome
    }

    /// Like [`send`](Self::send), and also tells how long the hub took.
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
        // Only a send that finds the channel full pays for a timer.
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
        // The task answers every command that it has taken, and if it should die, so do its replies.
        answer.await.unwrap_or(SendReport {
            outcome: SendOutcome::Unknown(Lost::Closed),
            hub_latency: None,
        })
    }

    /// How the link is doing, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Closes: takes nothing more, waits for the answers to what is in flight (at most `send_timeout`), says good-bye.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets the closing go on in the background.
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
