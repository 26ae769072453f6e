//! The one who publishes: many messages in flight, each confirmed.
//!
//! One task owns the channel, for two reasons. The broker numbers publishes in the order of their
//! arrival, and so does the library in the order of the calls: two threads that call it at once
//! can each be told what became of the other's message. And the library hands a returned message
//! to whichever confirmation is next, which need not be its own; here all that have come in are
//! looked at together, and matched by what they say.

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
use crate::link::{State, Wires};
use crate::message::{Answer, Message, Request, Verdict};

/// Publishes that the broker has not confirmed. Enough to keep it busy (twenty thousand a second
/// at ten milliseconds each), few enough that a broker that stops confirming does not fill us up.
const IN_FLIGHT: usize = 256;
/// Between attempts to open the channel on a connection that is there.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Publishes what is requested, over one connection after the other. Requests that wait while
/// there is none are taken up by the next one, unless who made them has given up.
pub(crate) async fn run(wires: Arc<Wires>, mut requests: mpsc::Receiver<Request>) {
    while let Ok(link) = wires.link().await {
        match open(&wires).await {
            Ok(channel) => serve(&wires, &channel, &mut requests).await,
            // Whoever closed it before the channel was open knows.
            Err(_) if wires.closing.is_cancelled() => return,
            Err(error) => {
                let why = twincast_core::error::in_words(&error);
                warn!(why, "cannot open the channel for publishing");
                tokio::select! {
                    () = link.lost.cancelled() => {}
                    () = wires.closing.cancelled() => {}
                    () = tokio::time::sleep(REOPEN_AFTER) => {}
                }
            }
        }
    }
}

/// A channel that has publishes confirmed.
pub(crate) async fn open(wires: &Wires) -> Result<OwnChannel, AmqpError> {
    let channel = wires.link().await?.channel(&wires.tasks).await?;
    let confirm = channel.confirm_select(ConfirmSelectOptions::default());
    let confirm = tokio::select! {
        () = channel.lost().cancelled() => return Err(AmqpError::Lost),
        confirm = confirm => confirm,
    };
    confirm.map_err(|error| AmqpError::broker("have publishes confirmed", error))?;
    Ok(channel)
}

/// Publishes until the channel is gone or we close. What is in flight then is dropped, and who
/// waits for it learns that it is lost.
async fn serve(wires: &Wires, channel: &OwnChannel, requests: &mut mpsc::Receiver<Request>) {
    let mut state = wires.state.clone();
    let mut flights = FuturesUnordered::new();
    let mut strays = HashSet::new();
    loop {
        // The library would queue up what the broker does not take.
        let blocked = matches!(*state.borrow_and_update(), State::Blocked { .. });
        let has_room = !blocked && flights.len() < IN_FLIGHT;
        // No arm loses anything when another one is first.
        tokio::select! {
            () = wires.closing.cancelled() => return,
            () = channel.lost().cancelled() => return,
            _ = state.changed() => {}
            Some(first) = flights.next() => {
                let mut landed: Vec<Landed> = vec![first];
                // A confirmation that bore another's return came before that other's own.
                while let Some(Some(next)) = flights.next().now_or_never() {
                    landed.push(next);
                }
                settle(landed, &mut strays);
                if !channel.status().connected() {
                    return;
                }
            }
            Some(request) = requests.recv(), if has_room => {
                if !request.answer.is_closed() {
                    flights.push(fly((**channel).clone(), request));
                }
            }
        }
    }
}

/// Publishes on a channel that has no other publish in flight, and has publishes confirmed.
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

/// A publish whose fate is known.
struct Landed {
    key: Key,
    answer: Answer,
    outcome: lapin::Result<Confirmation>,
}

/// What a returned message is recognised by. Two messages that agree in both are for the same
/// queue, so if one is returned the other one is as well.
type Key = (ShortString, Option<ShortString>);

fn fly(channel: Channel, request: Request) -> Pin<Box<dyn Future<Output = Landed> + Send>> {
    let Request { message, answer } = request;
    let key = (
        message.routing_key.clone(),
        message.properties.message_id().clone(),
    );
    Box::pin(async move {
        let outcome = send(&channel, message).await;
        Landed {
            key,
            answer,
            outcome,
        }
    })
}

/// Answers for what has landed. Returns whose own confirmation is still to come are remembered.
fn settle(landed: Vec<Landed>, strays: &mut HashSet<Key>) {
    for one in &landed {
        if let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = &one.outcome {
            let id = back.properties.message_id().clone();
            strays.insert((back.routing_key.clone(), id));
        }
    }
    for one in landed {
        let returned = strays.remove(&one.key);
        // Nobody may be waiting any more.
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
