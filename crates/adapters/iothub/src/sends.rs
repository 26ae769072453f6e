//! Sends: converts messages to the client's form, and the client's outcomes to the port's.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use twincast_core::error::describe;
use twincast_core::message::{Ack, Content, Outbound};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{HubObstacle, HubTrouble, NotSent, SendResult};
use twincast_iothub::{
    Ack as HubAck, C2dMessage, C2dSender, C2dTemplate, DeviceReason, Disposition, Expiry,
    HubUnavailableReason, InvalidMessage, LinkState, NotSent as HubNotSent, SendOutcome,
};

use crate::IotHub;
use crate::classify::classify_link_failure;

/// The hub's code for a message with an expiry too far ahead (`InvalidMessageExpiryTime`).
const BAD_EXPIRY: u32 = 403_009;

/// Number of contents cached in the client's form.
const TEMPLATES: usize = 8;

/// A first connection attempt without an error counts as an obstacle after this time.
const FIRST_CONNECT_GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn send(hub: &IotHub, message: Outbound) -> SendResult {
    let invalid = |error: &InvalidMessage| SendResult::Final {
        outcome: Outcome::Refused,
        code: match error {
            InvalidMessage::TooLarge { .. } => 413_001,
            _ => 400_004,
        },
        detail: error.to_string(),
    };
    let template = match template(hub, &message.content) {
        Ok(template) => template,
        Err(error) => return invalid(&error),
    };
    let message = match C2dMessage::new(message.device.as_str(), message.id, template) {
        Ok(message) => message,
        Err(error) => return invalid(&error),
    };
    let sender = sender(hub);
    let outcome = sender.send(message).await;
    // The sender has failed permanently or its task has panicked; no other code closes the sender.
    if let SendOutcome::NotSent(HubNotSent::Failed(_) | HubNotSent::Closed) = &outcome {
        let mut current = hub.sender.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|current| Arc::ptr_eq(current, &sender));
    }
    match to_send_result(&outcome) {
        // The hub's clock is at fault rather than the device: all devices get the same expiry,
        // computed by the hub's clock as far as known.
        SendResult::Final { code, detail, .. } if code == BAD_EXPIRY => {
            let clock = match hub.client.clock_offset() {
                Some(offset) if offset.nearest() != 0 => {
                    format!("this machine's clock is {offset} the hub's")
                }
                Some(_) => "this machine's clock and the hub's agree".to_owned(),
                None => {
                    "the hub's clock is unknown: it is read over port 443 of the hub".to_owned()
                }
            };
            SendResult::HubUnavailable {
                retry_after: None,
                reason: format!("{detail}; {clock}"),
                trouble: HubTrouble::Clock,
            }
        }
        result => result,
    }
}

fn sender(hub: &IotHub) -> Arc<C2dSender> {
    let mut sender = hub.sender.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(sender.get_or_insert_with(|| Arc::new(C2dSender::start(&hub.client))))
}

/// Opens the link on the first call.
pub(crate) fn is_ready(hub: &IotHub) -> bool {
    // A permanently failed link counts as ready: the next send reports the failure.
    !matches!(
        *sender(hub).state().borrow(),
        LinkState::Reconnecting { .. }
    )
}

/// The state of the link; `None` before the first use.
fn state(hub: &IotHub) -> Option<LinkState> {
    let sender = hub.sender.lock().unwrap_or_else(PoisonError::into_inner);
    sender
        .as_ref()
        .map(|sender| sender.state().borrow().clone())
}

pub(crate) fn has_link(hub: &IotHub) -> Option<bool> {
    match state(hub)? {
        LinkState::Connected => Some(true),
        LinkState::Reconnecting {
            last_error: None, ..
        } => None,
        _ => Some(false),
    }
}

pub(crate) fn obstacle(hub: &IotHub) -> Option<HubObstacle> {
    match state(hub)? {
        LinkState::Reconnecting {
            since, last_error, ..
        } => {
            let lasting = since.elapsed().unwrap_or_default();
            match last_error {
                Some(error) => Some(HubObstacle {
                    trouble: classify_link_failure(&error),
                    lasting,
                    reason: describe(&*error),
                }),
                // Every connection takes a moment to open.
                None if lasting < FIRST_CONNECT_GRACE => None,
                None => Some(HubObstacle {
                    trouble: HubTrouble::Unreachable,
                    lasting,
                    reason: "the hub does not answer".to_owned(),
                }),
            }
        }
        _ => None,
    }
}

fn template(hub: &IotHub, content: &Arc<Content>) -> Result<Arc<C2dTemplate>, InvalidMessage> {
    let mut templates = hub.templates.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, template)) = templates
        .iter()
        .find(|(known, _)| Arc::ptr_eq(known, content))
    {
        return Ok(Arc::clone(template));
    }
    let mut builder = C2dTemplate::builder(content.body.clone()).ack(match content.ack {
        Ack::None => HubAck::None,
        Ack::Positive => HubAck::Positive,
        Ack::Negative => HubAck::Negative,
        Ack::Full => HubAck::Full,
    });
    if let Some(content_type) = &content.content_type {
        builder = builder.content_type(content_type);
    }
    if let Some(encoding) = &content.content_encoding {
        builder = builder.content_encoding(encoding);
    }
    for (key, value) in &content.properties {
        builder = builder.property(key, value);
    }
    if let Some(ttl) = content.ttl {
        builder = builder.expiry(Expiry::After(ttl));
    }
    let template = builder.build()?;
    if templates.len() >= TEMPLATES {
        templates.remove(0);
    }
    templates.push((Arc::clone(content), Arc::clone(&template)));
    Ok(template)
}

fn to_send_result(outcome: &SendOutcome) -> SendResult {
    let now = SystemTime::now();
    match outcome.disposition_at(now) {
        Disposition::Accepted => SendResult::Enqueued,
        Disposition::PermanentForDevice(reason) => {
            let (outcome_of, code) = match reason {
                DeviceReason::NotFound => (Outcome::NotFound, 0),
                DeviceReason::QueueFull => (Outcome::QueueFull, 0),
                DeviceReason::Refused { code, .. } => (Outcome::Refused, code.unwrap_or(0)),
            };
            SendResult::Final {
                outcome: outcome_of,
                code,
                detail: detail(outcome),
            }
        }
        Disposition::Retry => SendResult::NotSent {
            cause: cause(outcome),
            retry_after: None,
            detail: detail(outcome),
        },
        Disposition::SlowHubDown { retry_after } => SendResult::NotSent {
            cause: NotSent::Throttled,
            retry_after: Some(retry_after),
            detail: detail(outcome),
        },
        Disposition::HubUnavailable { reason, until } => SendResult::HubUnavailable {
            retry_after: until.and_then(|until| until.duration_since(now).ok()),
            reason: detail(outcome),
            trouble: match reason {
                HubUnavailableReason::Untrusted => untrusted(outcome),
                HubUnavailableReason::DailyQuota => HubTrouble::QuotaUsedUp,
                // No key can send through a hub of a basic tier.
                HubUnavailableReason::Unauthorised | HubUnavailableReason::NotInTier => {
                    HubTrouble::Unauthorized
                }
                HubUnavailableReason::NotFound => HubTrouble::Unreachable,
                _ => HubTrouble::Unavailable,
            },
        },
        Disposition::Unknown => SendResult::Unknown {
            detail: detail(outcome),
        },
    }
}

/// Classifies the fault of the hub's certificate.
fn untrusted(outcome: &SendOutcome) -> HubTrouble {
    match outcome {
        SendOutcome::NotSent(HubNotSent::Failed(failure)) => classify_link_failure(failure),
        _ => HubTrouble::Certificate,
    }
}

fn cause(outcome: &SendOutcome) -> NotSent {
    match outcome {
        SendOutcome::Refused(refusal) => NotSent::Refused(refusal.code.unwrap_or(0)),
        SendOutcome::NotSent(HubNotSent::Timeout { .. } | HubNotSent::Closed) => {
            NotSent::NoConnection
        }
        _ => NotSent::Refused(0),
    }
}

fn detail(outcome: &SendOutcome) -> String {
    outcome.to_string()
}
