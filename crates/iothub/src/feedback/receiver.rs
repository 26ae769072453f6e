//! The feedback link: receives batches one after the other; the caller settles each batch
//! explicitly.
//!
//! All applications of a hub share one feedback queue, and another application may consume a
//! record. So feedback supplements the application's own time-outs and never replaces them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::{CreditMode, Receiver, ReceiverDisposer, RecvError};
use fe2o3_amqp_types::definitions::Error as AmqpError;
use fe2o3_amqp_types::messaging::{Body, Message};
use fe2o3_amqp_types::primitives::Symbol;
use futures::TryFutureExt as _;
use serde_amqp::Value;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::amqp::connection::{
    HubConnection, attached, broken, describe, ended, link_properties, receiver_attach_failure,
};
use crate::amqp::reconnect_backoff::ReconnectBackoff;
use crate::amqp::supervise::supervised;
use crate::c2d::{ConnectionFailure, LinkState};
use crate::client::{Client, ClientInner};
use crate::credentials::Permission;
use crate::hub_message::cut;

use super::record::{FeedbackRecord, UnreadableRecord, read_records};

/// The hub's address for feedback.
const SOURCE: &str = "/messages/serviceBound/feedback";

/// The link's credit in messages, each with up to 64 records. The queue is shared, and the hub
/// locks a message for its recipient, so only few untaken messages should be in transit. Over a
/// link with 50 ms latency this credit allows some 300 messages a second.
const CREDIT: u32 = 16;

/// Time limit of the hub's answer to a detach.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Receives feedback, and reconnects without limit.
pub struct FeedbackReceiver {
    client: Arc<ClientInner>,
    link: Option<FeedbackLink>,
    backoff: ReconnectBackoff,
    attempts: u32,
    connections: u64,
    lost: Option<(SystemTime, Arc<ConnectionFailure>)>,
    wait: Duration,
    state: watch::Sender<LinkState>,
}

/// A message, or the decoding error.
type Decoded = Result<Message<Body<Value>>, serde_amqp::Error>;

struct FeedbackLink {
    receiver: Receiver,
    connection: HubConnection,
    opened_at: Instant,
}

/// The records of one feedback message.
///
/// The hub keeps the message until [`complete`](Self::complete). The hub hands it out again after
/// [`release`](Self::release), or when the lock expires (60 s unless configured) with neither call
/// made.
#[derive(Debug)]
#[must_use = "the hub sends the batch again unless it is completed"]
#[non_exhaustive]
pub struct FeedbackBatch {
    /// The batch's records.
    pub records: Vec<FeedbackRecord>,
    /// Elements that are not records.
    pub unreadable: Vec<UnreadableRecord>,
    /// When the hub put the message into the feedback queue, if stated.
    pub enqueued_time: Option<SystemTime>,
    settle: Settle,
}

/// A feedback message in any form other than an AMQP message with a JSON array.
#[derive(Debug, Error)]
#[error("feedback message is not an array of records")]
#[non_exhaustive]
pub struct UnparsableFeedback {
    /// The body as text, cut to 1024 bytes.
    pub raw: String,
    /// The decoding error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
    settle: Settle,
}

/// Why no batch could be returned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FeedbackError {
    /// A message is unreadable. Settle it, then go on: the link is fine.
    #[error("failed to read a feedback message")]
    Unparsable(#[source] Box<UnparsableFeedback>),
    /// Credentials or certificates are refused: a retry is useless.
    #[error("feedback link failed permanently")]
    Failed(#[source] Arc<ConnectionFailure>),
}

/// Why a message could not be settled: its link is gone, and the hub will send the message again.
#[derive(Debug, Error)]
#[error("failed to settle a feedback message: {0}")]
pub struct SettleError(String);

#[derive(Clone)]
struct Settle {
    disposer: ReceiverDisposer,
    delivery: DeliveryInfo,
}

impl FeedbackReceiver {
    /// Connects, and returns when the link is attached. One attempt.
    ///
    /// # Errors
    ///
    /// The reason of the failed connection.
    pub async fn connect(client: &Client) -> Result<Self, ConnectionFailure> {
        let mut receiver = Self::new(client);
        receiver.link = Some(FeedbackLink::open(&receiver.client).await?);
        receiver.connections = 1;
        receiver.state.send_replace(LinkState::Connected);
        Ok(receiver)
    }

    /// Creates a receiver. The first call of [`next`](Self::next) connects.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        let since = SystemTime::now();
        let first = LinkState::Reconnecting {
            since,
            attempts: 0,
            last_error: None,
        };
        Self {
            client: Arc::clone(&client.inner),
            link: None,
            backoff: ReconnectBackoff::new(&client.options().reconnect),
            attempts: 0,
            connections: 0,
            lost: None,
            wait: Duration::ZERO,
            state: watch::channel(first).0,
        }
    }

    /// Watches the link's state, beginning with the current one.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Returns the next batch. Waits without limit, reconnecting if necessary. A few messages may
    /// still be in transit when the call returns, see [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// An unreadable message (call again after settling it), or refused credentials or
    /// certificates.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no message permanently: the hub sends an arriving message again
    /// when its lock expires, and the next call restarts an interrupted connection attempt.
    pub async fn next(&mut self) -> Result<FeedbackBatch, FeedbackError> {
        loop {
            // Far longer than the life of any connection.
            if let Some(batch) = self.next_within(Duration::from_secs(3600)).await? {
                return Ok(batch);
            }
        }
    }

    /// Like [`next`](Self::next), but returns `None` when the link was attached for all of `quiet`
    /// and the hub sent no message. The queue was then empty at the time of the call, provided that
    /// a message takes less than `quiet` to arrive from the hub.
    ///
    /// # Errors
    ///
    /// Like [`next`](Self::next).
    ///
    /// # Cancel safety
    ///
    /// Like [`next`](Self::next).
    pub async fn next_within(
        &mut self,
        quiet: Duration,
    ) -> Result<Option<FeedbackBatch>, FeedbackError> {
        loop {
            let failure = match &mut self.link {
                None => match self.open().await {
                    Ok(()) => continue,
                    Err(failure) => failure,
                },
                Some(link) => match tokio::time::timeout(quiet, link.receive()).await {
                    Err(_) => return Ok(None),
                    Ok(Ok((settle, message))) => {
                        self.backoff.record_service();
                        self.backoff.token_accepted();
                        return read(settle, message).map(Some);
                    }
                    Ok(Err(failure)) => {
                        warn!(hub = %self.client.host_name, error = %failure, "feedback link lost");
                        self.backoff.record_loss(link.opened_at.elapsed());
                        self.link = None;
                        self.attempts = 0;
                        self.lost = None;
                        failure
                    }
                },
            };
            let should_give_up = self
                .backoff
                .should_give_up(&failure, &self.client.credentials);
            let failure = Arc::new(failure);
            if should_give_up {
                self.state
                    .send_replace(LinkState::Failed(Arc::clone(&failure)));
                return Err(FeedbackError::Failed(failure));
            }
            let since = self
                .lost
                .take()
                .map_or_else(SystemTime::now, |(since, _)| since);
            let last_error = Some(Arc::clone(&failure));
            self.lost = Some((since, failure));
            let attempts = self.attempts;
            self.state.send_replace(LinkState::Reconnecting {
                since,
                attempts,
                last_error,
            });
            self.wait = self.backoff.next_delay();
        }
    }

    /// The number of connections so far. A new connection loses the messages in transit over the
    /// previous one; the hub hands them out again when their locks expire.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// Requests no more messages until the next call of [`next`](Self::next), which also returns
    /// messages in transit.
    pub async fn pause(&mut self) {
        if let Some(link) = &mut self.link {
            // A lost link delivers no messages anyway; the next call detects the loss.
            _ = link.receiver.set_credit(0).await;
        }
    }

    /// Closes the link in the background. Settled batches stay settled; the hub sends all others
    /// again.
    ///
    /// Must be called on the runtime; elsewhere the connection is cut.
    pub fn close(mut self) {
        if let (Some(link), Ok(runtime)) = (self.link.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(link.close());
        }
        self.state.send_replace(LinkState::Closed);
    }

    async fn open(&mut self) -> Result<(), ConnectionFailure> {
        tokio::time::sleep(self.wait).await;
        match FeedbackLink::open(&self.client).await {
            Ok(link) => {
                info!(hub = %self.client.host_name, attempts = self.attempts, "feedback link attached");
                self.link = Some(link);
                self.connections += 1;
                self.lost = None;
                self.attempts = 0;
                self.wait = Duration::ZERO;
                self.state.send_replace(LinkState::Connected);
                Ok(())
            }
            Err(failure) => {
                debug!(hub = %self.client.host_name, error = %failure, "failed to attach the feedback link");
                self.attempts += 1;
                Err(failure)
            }
        }
    }
}

impl FeedbackLink {
    async fn open(client: &Arc<ClientInner>) -> Result<Self, ConnectionFailure> {
        supervised("opening the feedback link", Self::open_any(client)).await
    }

    async fn open_any(client: &Arc<ClientInner>) -> Result<Self, ConnectionFailure> {
        let mut connection = HubConnection::open(client, "feedback").await?;
        let id = uuid::Uuid::new_v4().simple();
        let kill = connection.kill();
        let attach = Receiver::builder()
            .name(format!("{}-feedback-{id}", client.options.application))
            .source(SOURCE)
            .credit_mode(CreditMode::Manual)
            .properties(link_properties(client))
            .attach(&mut connection.session);
        let (stage, limit) = (
            "attaching the feedback link",
            client.options.connect_timeout,
        );
        let attach = attach.map_err(|error| {
            let failure = receiver_attach_failure(stage, &error);
            client.with_missing_permission(failure, Permission::ReceiveFeedback)
        });
        let receiver = attached(&kill, stage, limit, attach).await?;
        Ok(Self {
            receiver,
            connection,
            opened_at: Instant::now(),
        })
    }

    async fn receive(&mut self) -> Result<(Settle, Decoded), ConnectionFailure> {
        let received = supervised("receiving feedback", self.receive_any()).await;
        received.map_err(|failure| self.connection.with_fault(failure))
    }

    async fn receive_any(&mut self) -> Result<(Settle, Decoded), ConnectionFailure> {
        let receiver = &mut self.receiver;
        let received = async {
            // An absolute number, so an earlier call's unused credit is not granted twice.
            let granted = receiver.set_credit(CREDIT).await;
            granted.map_err(|error| broken("requesting feedback", &error))?;
            let (delivery, message) = match receiver.recv::<Body<Value>>().await {
                Ok(delivery) => {
                    let (info, message) = delivery.into_parts();
                    (info, Ok(message))
                }
                // Only the message is at fault; the link stays usable.
                Err(RecvError::MessageDecode(error)) => (error.info, Err(error.source)),
                Err(error) => return Err(receive_failure(&error)),
            };
            let disposer = receiver.disposer();
            Ok((Settle { disposer, delivery }, message))
        };
        tokio::select! {
            received = received => received,
            failure = self.connection.ended() => Err(failure),
        }
    }

    /// Detaches, and waits for the hub's confirmation. The detach follows the last settlements on
    /// the wire; cutting the connection at once would lose these settlements.
    async fn close(self) {
        let Self {
            receiver,
            connection,
            ..
        } = self;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, receiver.close()).await;
        connection.close_in_background();
    }
}

impl FeedbackBatch {
    /// Removes the message from the hub's feedback queue.
    ///
    /// # Errors
    ///
    /// When the message's link is gone: the hub will send the message again.
    pub async fn complete(self) -> Result<(), SettleError> {
        self.settle.complete().await
    }

    /// Puts the message back into the hub's feedback queue, for any receiver.
    ///
    /// # Errors
    ///
    /// When the message's link is gone: the hub will send the message again anyway.
    pub async fn release(self) -> Result<(), SettleError> {
        self.settle.release().await
    }
}

impl UnparsableFeedback {
    /// Removes the message from the hub's feedback queue.
    ///
    /// # Errors
    ///
    /// When the message's link is gone: the hub will send the message again.
    pub async fn complete(self) -> Result<(), SettleError> {
        self.settle.complete().await
    }

    /// Puts the message back into the hub's feedback queue, for any receiver.
    ///
    /// # Errors
    ///
    /// When the message's link is gone: the hub will send the message again anyway.
    pub async fn release(self) -> Result<(), SettleError> {
        self.settle.release().await
    }
}

impl Settle {
    async fn complete(self) -> Result<(), SettleError> {
        let settled = self.disposer.accept(self.delivery).await;
        settled.map_err(|error| SettleError(describe(&error)))
    }

    async fn release(self) -> Result<(), SettleError> {
        let settled = self.disposer.release(self.delivery).await;
        settled.map_err(|error| SettleError(describe(&error)))
    }
}

fn read(settle: Settle, message: Decoded) -> Result<FeedbackBatch, FeedbackError> {
    let unparsable = |raw, source, settle| {
        FeedbackError::Unparsable(Box::new(UnparsableFeedback {
            raw,
            source,
            settle,
        }))
    };
    let message = match message {
        Ok(message) => message,
        Err(error) => return Err(unparsable(String::new(), error.into(), settle)),
    };
    let body = body(&message);
    match read_records(&body) {
        Ok((records, unreadable)) => {
            let enqueued_time = enqueued_time(&message);
            Ok(FeedbackBatch {
                records,
                unreadable,
                enqueued_time,
                settle,
            })
        }
        Err(source) => {
            let raw = cut(&String::from_utf8_lossy(&body));
            Err(unparsable(raw, source.into(), settle))
        }
    }
}

/// Returns the bytes of a data, text or binary body; empty for other bodies.
pub(crate) fn body(message: &Message<Body<Value>>) -> Vec<u8> {
    match &message.body {
        Body::Data(sections) => sections
            .iter()
            .flat_map(|data| data.0.iter().copied())
            .collect(),
        Body::Value(value) => match &value.0 {
            Value::String(text) => text.clone().into_bytes(),
            Value::Binary(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

pub(crate) fn enqueued_time(message: &Message<Body<Value>>) -> Option<SystemTime> {
    let annotations = message.message_annotations.as_ref()?;
    match annotations.0.get(&Symbol::from("iothub-enqueuedtime")
        as &dyn fe2o3_amqp_types::messaging::annotations::AnnotationKey)?
    {
        Value::Timestamp(stamp) => {
            let millis = u64::try_from(stamp.milliseconds()).ok()?;
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
        }
        _ => None,
    }
}

fn receive_failure(error: &RecvError) -> ConnectionFailure {
    use fe2o3_amqp::link::LinkStateError as L;
    let explained = |scope, error: &AmqpError| ended(scope, error);
    match error {
        RecvError::LinkStateError(
            L::RemoteDetachedWithError(error) | L::RemoteClosedWithError(error),
        ) => explained("link", error),
        error => broken("receiving feedback", error),
    }
}

impl fmt::Debug for Settle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settle")
    }
}

impl fmt::Debug for FeedbackReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedbackReceiver")
            .field("hub", &self.client.host_name)
            .field("connected", &self.link.is_some())
            .finish_non_exhaustive()
    }
}
