//! Sends: messages to the client's form, its outcomes to ours.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use twincast_core::error::in_words;
use twincast_core::message::{Ack, Content, Outbound};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Hindrance, HubTrouble, NotSent, SendResult};
use twincast_iothub::{
    Ack as HubAck, C2dMessage, C2dSender, C2dTemplate, DeviceReason, Disposition, Expiry,
    HubShutReason, InvalidMessage, LinkState, NotSent as HubNotSent, SendOutcome,
};

use crate::{IotHub, trouble};

/// The hub's code for a message that expires too late (`InvalidMessageExpiryTime`).
const BAD_EXPIRY: u32 = 403_009;

/// How many contents are kept in the client's form.
const TEMPLATES: usize = 8;

/// How long a first connection may take before it counts as one that does not come.
const MOMENT: Duration = Duration::from_secs(1);

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
    // It has failed for good, or met a defect: nobody else closes it.
    if let SendOutcome::NotSent(HubNotSent::Failed(_) | HubNotSent::Closed) = &outcome {
        let mut current = hub.sender.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|current| Arc::ptr_eq(current, &sender));
    }
    match in_our_words(&outcome) {
        // The expiry is the same for all devices, and made by the hub's clock as far as that is known.
        SendResult::Final { code, detail, .. } if code == BAD_EXPIRY => {
            let clock = match hub.client.clock_offset() {
                Some(offset) if offset.nearest() != 0 => {
                    format!("this machine's clock is {offset} the hub's")
                }
                Some(_) => "this machine's clock and the hub's agree".to_owned(),
                None => "the hub's clock is not known: port 443 of the hub tells it".to_owned(),
            };
            SendResult::HubShut {
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

/// Also opens the link, the first time.
pub(crate) fn is_ready(hub: &IotHub) -> bool {
    // A link that has failed for good is for the next send to find out.
    !matches!(
        *sender(hub).state().borrow(),
        LinkState::Reconnecting { .. }
    )
}

/// The state of the link, if one was needed so far.
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

pub(crate) fn hindrance(hub: &IotHub) -> Option<Hindrance> {
    match state(hub)? {
        LinkState::Reconnecting {
            since, last_error, ..
        } => {
            let lasting = since.elapsed().unwrap_or_default();
            match last_error {
                Some(error) => Some(Hindrance {
                    trouble: trouble::of_link(&error),
                    lasting,
                    reason: in_words(&*error),
                }),
                // Every connection takes a moment.
                None if lasting < MOMENT => None,
                None => Some(Hindrance {
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

fn in_our_words(outcome: &SendOutcome) -> SendResult {
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
        Disposition::HubShut { reason, until } => SendResult::HubShut {
            retry_after: until.and_then(|until| until.duration_since(now).ok()),
            reason: detail(outcome),
            trouble: match reason {
                HubShutReason::Untrusted => untrusted(outcome),
                HubShutReason::DailyQuota => HubTrouble::QuotaUsedUp,
                // No key sends through a hub of a basic tier.
                HubShutReason::Unauthorised | HubShutReason::NotInTier => HubTrouble::Unauthorized,
                HubShutReason::NotFound => HubTrouble::Unreachable,
                _ => HubTrouble::Shut,
            },
        },
        Disposition::Unknown => SendResult::Unknown {
            detail: detail(outcome),
        },
    }
}

/// What is wrong with the hub's certificate.
fn untrusted(outcome: &SendOutcome) -> HubTrouble {
    match outcome {
        SendOutcome::NotSent(HubNotSent::Failed(failure)) => trouble::of_link(failure),
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
