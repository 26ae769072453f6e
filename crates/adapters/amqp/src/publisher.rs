//! The publisher: many messages in flight, each confirmed.
//!
//! A single task owns the channel, for two reasons. The broker numbers publishes in order of
//! arrival, and the library numbers publishes in order of the calls: two concurrent threads could
//! each receive the verdict on the other's message. And the library attaches a returned message to
//! the next confirmation, possibly of another message; the task looks at all received confirmations
//! together, and matches returned messages by routing key and message id.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::mpsc;
use tracing::warn;

use crate::channel::OwnChannel;
use crate::error::AmqpError;
use crate::link::{Shared, State};
use crate::message::{Answer, Message, Request, Verdict};

/// The most unconfirmed publishes. Enough to keep the broker busy (20,000 a second at 10 ms each),
/// and few enough that a broker without confirmations does not fill the memory.
const MAX_IN_FLIGHT: usize = 256;
/// The pause between attempts to open the channel on an open connection.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Publishes requested messages over successive connections. Requests made without a connection
/// wait for the next connection, unless the caller has given up.
pub(crate) async fn run(shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>) {
    while let Ok(link) = shared.link().await {
        match open(&shared).await {
            Ok(channel) => serve(&shared, &channel, &mut requests).await,
            // The caller that closed the connection needs no report.
            Err(_) if shared.closing.is_cancelled() => return,
            Err(error) => {
                let why = twincast_core::error::describe(&error);
                warn!(why, "cannot open the channel for publishing");
                tokio::select! {
                    () = link.lost.cancelled() => {}
                    () = shared.closing.cancelled() => {}
                    () = tokio::time::sleep(REOPEN_AFTER) => {}
                }
            }
        }
    }
}

/// Opens a channel with publisher confirms.
pub(crate) async fn open(shared: &Shared) -> Result<OwnChannel, AmqpError> {
    let channel = shared.link().await?.channel(&shared.tasks).await?;
    let confirm = async {
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        let confirm = confirm.await;
        confirm.map_err(|error| AmqpError::broker("enable publisher confirms", error))
    };
    channel.unless_lost(confirm).await?;
    Ok(channel)
}

/// Publishes until the channel is lost or the connection is being closed. Messages in flight are
/// then dropped, and their callers receive [`AmqpError::Lost`].
async fn serve(shared: &Shared, channel: &OwnChannel, requests: &mut mpsc::Receiver<Request>) {
    let mut state = shared.state.clone();
    let mut in_flight = FuturesUnordered::new();
    let mut pending_returns = HashSet::new();
    loop {
        // The library would buffer messages without limit while the broker is blocked.
        let blocked = matches!(*state.borrow_and_update(), State::Blocked { .. });
        let has_room = !blocked && in_flight.len() < MAX_IN_FLIGHT;
        // Every arm is cancel-safe.
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = channel.lost().cancelled() => return,
            _ = state.changed() => {}
            Some(first) = in_flight.next() => {
                let mut completed: Vec<Completed> = vec![first];
                // A confirmation that carried the return of another message came before that
                // message's own confirmation.
                while let Some(Some(next)) = in_flight.next().now_or_never() {
                    completed.push(next);
                }
                complete(completed, &mut pending_returns);
                if !channel.status().connected() {
                    return;
                }
            }
            Some(request) = requests.recv(), if has_room => {
                if !request.answer.is_closed() {
                    in_flight.push(publish_confirmed((**channel).clone(), request));
                }
            }
        }
    }
}

/// Publishes on a channel with publisher confirms and without another publish in flight.
pub(crate) async fn publish_alone(
    channel: &Channel,
    message: Message,
) -> Result<Verdict, AmqpError> {
    let outcome = send(channel, message).await;
    let returned = matches!(
        outcome,
        Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))
    );
    verdict(outcome, returned)
}

async fn send(channel: &Channel, message: Message) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions {
        mandatory: message.mandatory,
        immediate: false,
    };
    let sent = channel.basic_publish(
        message.exchange,
        message.routing_key,
        options,
        &message.body,
        message.properties,
    );
    sent.await?.await
}

/// A publish with a known result.
struct Completed {
    key: Key,
    answer: Answer,
    outcome: lapin::Result<Confirmation>,
}

/// Identifies a returned message. Two messages with the same key go to the same queue, so both are
/// returned or neither.
type Key = (ShortString, Option<ShortString>);

fn publish_confirmed(
    channel: Channel,
    request: Request,
) -> Pin<Box<dyn Future<Output = Completed> + Send>> {
    let Request { message, answer } = request;
    let key = (
        message.routing_key.clone(),
        message.properties.message_id().clone(),
    );
    Box::pin(async move {
        let outcome = send(&channel, message).await;
        Completed {
            key,
            answer,
            outcome,
        }
    })
}

/// Answers completed publishes. Keeps returns in `pending_returns` until the message's own
/// confirmation comes.
fn complete(completed: Vec<Completed>, pending_returns: &mut HashSet<Key>) {
    for one in &completed {
        if let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = &one.outcome {
            let id = back.properties.message_id().clone();
            pending_returns.insert((back.routing_key.clone(), id));
        }
    }
    for one in completed {
        let returned = pending_returns.remove(&one.key);
        // The caller may have given up.
        let _ = one.answer.send(verdict(one.outcome, returned));
    }
}

fn verdict(outcome: lapin::Result<Confirmation>, returned: bool) -> Result<Verdict, AmqpError> {
    match outcome {
        Ok(_) if returned => Ok(Verdict::Returned),
        Ok(Confirmation::Ack(_) | Confirmation::NotRequested) => Ok(Verdict::Kept),
        Ok(Confirmation::Nack(_)) => Ok(Verdict::Refused),
        Err(error) => Err(AmqpError::broker("publish a message", error)),
    }
}
