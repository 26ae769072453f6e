//! Entries for the targets in `fuzz/`; in no other build.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::message::DecodeIntoMessage;
use fe2o3_amqp_types::messaging::{Body, Message};
use serde_amqp::Value;
use serde_amqp::read::IoReader;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::amqp::frames::LARGEST_FRAME;
use crate::amqp::stream::HubStream;
use crate::amqp::{cbs, repair};
use crate::feedback::{receiver, record};
use crate::hub_message::HubMessage;
use crate::rest::ApiError;
use crate::{FeedbackRecord, UnreadableRecord};

/// What stands between a hub's bytes and the protocol library.
#[derive(Debug, Default)]
pub struct Gate(repair::Repair);

impl Gate {
    /// Takes bytes that the library has written.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.0.outgoing(bytes);
    }

    /// Takes bytes of the hub and appends what the library gets to `out`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let taken = self.0.incoming(bytes, out);
        taken.map_err(|malformed| malformed.to_string())
    }
}

/// A message as the gate lets it pass, decoded as the library does it. `None` where the gate replaces it.
#[must_use]
pub fn message(payload: &[u8]) -> Option<Result<Message<Body<Value>>, serde_amqp::Error>> {
    let decode = Body::<Value>::decode_message_from_reader;
    repair::is_message(payload).then(|| decode(IoReader::new(payload)))
}

/// The status and description of an answer to a token.
#[must_use]
pub fn status(answer: &Message<Body<Value>>) -> (Option<i32>, String) {
    cbs::status(answer)
}

/// The body of a feedback message, and when it was put into the queue.
#[must_use]
pub fn feedback(message: &Message<Body<Value>>) -> (Vec<u8>, Option<SystemTime>) {
    (receiver::body(message), receiver::enqueued_time(message))
}

/// The records of a feedback message's body.
///
/// # Errors
/// It is not an array.
pub fn records(
    body: &[u8],
) -> Result<(Vec<FeedbackRecord>, Vec<UnreadableRecord>), serde_json::Error> {
    record::read_records(body)
}

/// Everything that is made of an error text of the hub, in words: by itself, and as an answer over REST.
#[must_use]
pub fn refusal(text: &str) -> (String, String) {
    let message = HubMessage::parse(text);
    let error = ApiError::read(400, Some(text), text, None);
    (message.text, error.to_string())
}

/// Opens a connection over a stream, as the client does it but for the token: a session, a link for each direction, a
/// message sent, and messages received until the connection ends, for an hour at most.
pub async fn converse<S>(stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (stream, kill) = HubStream::new(stream, Duration::from_secs(60));
    tokio::select! {
        _ = open(stream) => {}
        () = kill.ended() => {}
        () = tokio::time::sleep(Duration::from_secs(3600)) => {}
    }
    kill.now();
}

async fn open<S>(stream: HubStream<S>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = Connection::builder()
        .container_id("fuzz")
        .hostname("hub")
        .scheme("amqp")
        .sasl_profile(SaslProfile::Anonymous)
        .max_frame_size(LARGEST_FRAME as u32)
        .idle_time_out(60_000_u32)
        .open_with_stream(stream)
        .await
        .ok()?;
    let mut session = Session::begin(&mut connection).await.ok()?;
    let receiver = Receiver::attach(&mut session, "receiver", "from").await;
    let sender = Sender::attach(&mut session, "sender", "to").await;
    let send = async {
        let mut sender = sender.ok()?;
        sender.send("hello").await.ok()
    };
    let receive = async {
        let mut receiver = receiver.ok()?;
        loop {
            let delivery = match receiver.recv::<Body<Value>>().await {
                Ok(delivery) => delivery.into_parts().0,
                Err(RecvError::MessageDecode(error)) => error.info,
                Err(_) => return Some(()),
            };
            receiver.accept(delivery).await.ok()?;
        }
    };
    tokio::join!(send, receive);
    Some(())
}
