//! The link that feedback comes over: one batch after the other, each settled when the caller says so.
//!
//! All applications of a hub share one feedback queue: a record can be eaten by another application, so feedback is an
//! addition to one's own time-outs and never the only path.

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
    HubConnection, attached, broken, ended, in_words, link_properties, receiver_attach_failure,
};
use crate::amqp::reconnects::Reconnects;
use crate::amqp::supervise::supervised;
use crate::c2d::{ConnectionFailure, LinkState};
use crate::client::{Client, ClientInner};
use crate::credentials::Right;
use crate::hub_message::cut;

use super::record::{FeedbackRecord, UnreadableRecord, read_records};

/// The hub's address for feedback.
const SOURCE: &str = "/messages/serviceBound/feedback";

/// Messages that are asked for at a time, each of up to 64 records. The queue is shared, and the hub locks a message for
/// the one it was handed to, so few are on their way that are not taken; over a link of 50 ms this is some 300 a second.
const CREDIT: u32 = 16;

/// How long the hub may take to answer a good-bye.
const FAREWELL: Duration = Duration::from_secs(2);

/// Receives feedback, reconnecting for as long as it takes.
pub struct FeedbackReceiver {
    client: Arc<ClientInner>,
    link: Option<FeedbackLink>,
    reconnects: Reconnects,
    attempts: u32,
    connections: u64,
    lost: Option<(SystemTime, Arc<ConnectionFailure>)>,
    wait: Duration,
    state: watch::Sender<LinkState>,
}

/// A message, or why it is none.
type Decoded = Result<Message<Body<Value>>, serde_amqp::Error>;

struct FeedbackLink {
    receiver: Receiver,
    connection: HubConnection,
    opened_at: Instant,
}

/// The records of one feedback message.
///
/// The hub keeps the message until [`complete`](Self::complete), and gives it to someone again after
/// [`release`](Self::release), or when neither is called before its lock is over (60 s unless configured).
#[derive(Debug)]
#[must_use = "the hub sends a batch again that is not completed"]
#[non_exhaustive]
pub struct FeedbackBatch {
    /// Its records.
    pub records: Vec<FeedbackRecord>,
    /// Elements that are not records.
    pub unreadable: Vec<UnreadableRecord>,
    /// When the hub has put the message into the feedback queue, if it says so.
    pub enqueued_time: Option<SystemTime>,
    settle: Settle,
}

/// A feedback message that is not an AMQP message with a JSON array.
#[derive(Debug, Error)]
#[error("feedback message is not an array of records")]
#[non_exhaustive]
pub struct UnparsableFeedback {
    /// Its body as text, cut to 1024 bytes.
    pub raw: String,
    /// What is wrong with it.
    pub source: Box<dyn std::error::Error + Send + Sync>,
    settle: Settle,
}

/// Why there is no batch.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FeedbackError {
    /// A message came that cannot be read. Settle it, then go on: the link is fine.
    #[error("failed to read a feedback message")]
    Unparsable(#[source] Box<UnparsableFeedback>),
    /// Credentials or certificates are refused: trying again is of no use.
    #[error("feedback link failed for good")]
    Failed(#[source] Arc<ConnectionFailure>),
}

/// Why a message could not be settled: its link is gone, and the hub will send it again.
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
    /// Why it could not be connected.
    pub async fn connect(client: &Client) -> Result<Self, ConnectionFailure> {
        let mut receiver = Self::new(client);
        receiver.link = Some(FeedbackLink::open(&receiver.client).await?);
        receiver.connections = 1;
        receiver.state.send_replace(LinkState::Connected);
        Ok(receiver)
    }

    /// A receiver that connects at the first call of [`next`](Self::next).
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
            reconnects: Reconnects::new(&client.options().reconnect),
            attempts: 0,
            connections: 0,
            lost: None,
            wait: Duration::ZERO,
            state: watch::channel(first).0,
        }
    }

    /// How the link is doing, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// The next batch. Waits for as long as none comes, reconnecting in between. A few messages
    /// may be on their way when it returns, see [`rest`](Self::rest).
    ///
    /// # Errors
    ///
    /// A message that cannot be read (call again after settling it), or refused credentials or certificates.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing for good: a message that was just arriving is sent again by the hub when its
    /// lock is over, and a connection that was being made is made again.
    pub async fn next(&mut self) -> Result<FeedbackBatch, FeedbackError> {
        loop {
            // Far longer than any connection lives.
            if let Some(batch) = self.next_within(Duration::from_secs(3600)).await? {
                return Ok(batch);
            }
        }
    }

    /// Like [`next`](Self::next), but `None` when the link was attached for all of `quiet` and the hub gave nothing: the
    /// queue was empty when this was called, as far as a message takes less than `quiet` to come from the hub.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    ///
    /// # Cancel safety
    ///
    /// As [`next`](Self::next).
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
                        self.reconnects.served();
                        self.reconnects.token_accepted();
                        return read(settle, message).map(Some);
                    }
                    Ok(Err(failure)) => {
                        warn!(hub = %self.client.host_name, error = %failure, "feedback link lost");
                        self.reconnects.lost(link.opened_at.elapsed());
                        self.link = None;
                        self.attempts = 0;
                        self.lost = None;
                        failure
                    }
                },
            };
            let gives_up = self.reconnects.gives_up(&failure, &self.client.credentials);
            let failure = Arc::new(failure);
            if gives_up {
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
            self.wait = self.reconnects.next_wait();
        }
    }

    /// How many connections it has had. With each new one, messages that were on their way over the one before are lost,
    /// and the hub hands them out again when its locks on them are over.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// Asks for no more messages until the next call of [`next`](Self::next). Those on their way come with that call.
    pub async fn rest(&mut self) {
        if let Some(link) = &mut self.link {
            // A link that is gone asks for nothing, which the next call finds out.
            _ = link.receiver.set_credit(0).await;
        }
    }

    /// Says good-bye, in the background. Batches that were settled stay settled; the others are sent again by the hub.
    ///
    /// Call it on the runtime; elsewhere the connection is cut.
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
                debug!(hub = %self.client.host_name, error = %failure, "feedback link not attached");
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
            client.with_needs(failure, Right::ReceiveFeedback)
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
        received.map_err(|failure| self.connection.explained(failure))
    }

    async fn receive_any(&mut self) -> Result<(Settle, Decoded), ConnectionFailure> {
        let receiver = &mut self.receiver;
        let received = async {
            // An absolute number: what an earlier call asked for and did not wait for is not asked for twice.
            let granted = receiver.set_credit(CREDIT).await;
            granted.map_err(|error| broken("asking for feedback", &error))?;
            let (delivery, message) = match receiver.recv::<Body<Value>>().await {
                Ok(delivery) => {
                    let (info, message) = delivery.into_parts();
                    (info, Ok(message))
                }
                // The message alone is at fault; the link goes on.
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

    /// Detaches, and waits for the hub to have seen that: it comes after what was settled last, which would be lost
    /// with the connection if that was cut at once.
    async fn close(self) {
        let Self {
            receiver,
            connection,
            ..
        } = self;
        let _ = tokio::time::timeout(FAREWELL, receiver.close()).await;
        connection.farewell();
    }
}

impl FeedbackBatch {
    /// Removes the message from the hub's feedback queue.
    ///
    /// # Errors
    ///
    /// When the link it came over is gone: the hub will send it again.
    pub async fn complete(self) -> Result<(), SettleError> {
        self.settle.complete().await
    }

    /// Puts the message back into the hub's feedback queue, for anyone.
    ///
    /// # Errors
    ///
    /// When the link it came over is gone: the hub will send it again anyway.
    pub async fn release(self) -> Result<(), SettleError> {
        self.settle.release().await
    }
}

impl UnparsableFeedback {
    /// Removes the message from the hub's feedback queue.
    ///
    /// # Errors
    ///
    /// When the link it came over is gone: the hub will send it again.
    pub async fn complete(self) -> Result<(), SettleError> {
        self.settle.complete().await
    }

    /// Puts the message back into the hub's feedback queue, for anyone.
    ///
    /// # Errors
    ///
    /// When the link it came over is gone: the hub will send it again anyway.
    pub async fn release(self) -> Result<(), SettleError> {
        self.settle.release().await
    }
}

impl Settle {
    async fn complete(self) -> Result<(), SettleError> {
        let settled = self.disposer.accept(self.delivery).await;
        settled.map_err(|error| SettleError(in_words(&error)))
    }

    async fn release(self) -> Result<(), SettleError> {
        let settled = self.disposer.release(self.delivery).await;
        settled.map_err(|error| SettleError(in_words(&error)))
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

/// The bytes of a body that is data, text or binary; else none.
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
    let explained = |what, error: &AmqpError| ended(what, error);
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
