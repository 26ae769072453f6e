//! Entry points of the targets in `fuzz/`; compiled only for fuzzing.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::message::DecodeIntoMessage;
use fe2o3_amqp_types::messaging::{Body, Message};
use serde_amqp::Value;
use serde_amqp::read::IoReader;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::amqp::frames::MAX_FRAME_BYTES;
use crate::amqp::stream::HubStream;
use crate::amqp::{cbs, filter};
use crate::feedback::{receiver, record};
use crate::hub_message::HubMessage;
use crate::rest::ApiError;
use crate::{FeedbackRecord, UnreadableRecord};

/// The filter between a hub's bytes and the protocol library.
#[derive(Debug, Default)]
pub struct FrameFilter(filter::FrameFilter);

impl FrameFilter {
    /// Passes bytes written by the library.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.0.outgoing(bytes);
    }

    /// Passes bytes of the hub, and appends the resulting bytes for the library to `out`.
    ///
    /// # Errors
    /// A description of malformed input.
    pub fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let taken = self.0.incoming(bytes, out);
        taken.map_err(|malformed| malformed.to_string())
    }
}

/// Decodes a message accepted by the filter the way the library does. `None` for a message replaced
/// by the filter.
#[must_use]
pub fn message(payload: &[u8]) -> Option<Result<Message<Body<Value>>, serde_amqp::Error>> {
    let decode = Body::<Value>::decode_message_from_reader;
    filter::is_message(payload).then(|| decode(IoReader::new(payload)))
}

/// Returns the status and description of an answer to a put-token.
#[must_use]
pub fn status(answer: &Message<Body<Value>>) -> (Option<i32>, String) {
    cbs::status(answer)
}

/// Returns the body of a feedback message and the time of its enqueueing.
#[must_use]
pub fn feedback(message: &Message<Body<Value>>) -> (Vec<u8>, Option<SystemTime>) {
    (receiver::body(message), receiver::enqueued_time(message))
}

/// Parses the records of a feedback message's body.
///
/// # Errors
/// The body is not an array.
pub fn records(
    body: &[u8],
) -> Result<(Vec<FeedbackRecord>, Vec<UnreadableRecord>), serde_json::Error> {
    record::read_records(body)
}

/// Returns all descriptions derived from an error text of the hub: of the text alone, and of a REST
/// answer with the text.
#[must_use]
pub fn refusal(text: &str) -> (String, String) {
    let message = HubMessage::parse(text);
    let error = ApiError::read(400, Some(text), text, None);
    (message.text, error.to_string())
}

/// Opens a connection over a stream like the client, but without a token: a session, a link for
/// each direction, one message sent, and messages received until the connection ends, for an hour
/// at most.
pub async fn run_client<S>(stream: S)
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
        .max_frame_size(MAX_FRAME_BYTES as u32)
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
