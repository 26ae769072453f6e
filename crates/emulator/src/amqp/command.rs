//! Cloud-to-device messages: from the bytes of a transfer to the hub's verdict.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::message::Message;
use super::outcome::Verdict;
use crate::faults::SendFault;
use crate::hub::{Ack, Hub, IncomingMessage, Refusal};

/// Enqueues the message in `payload` and returns the verdict for the sender. With `faults`, a fault
/// may replace the verdict.
pub(crate) fn send(hub: &Hub, payload: &[u8], faults: bool) -> Verdict {
    let fault = if faults { hub.send_fault() } else { None };
    match fault {
        Some(SendFault::Released) => {
            hub.counters.released.one();
            return Verdict::Released;
        }
        Some(SendFault::Modified) => {
            hub.counters.modified.one();
            return Verdict::Modified;
        }
        Some(SendFault::InternalError) => return refuse(hub, Refusal::internal()),
        Some(SendFault::Throttled) => return refuse(hub, Refusal::throttled("SendCommand")),
        Some(SendFault::TimedOutYetEnqueued | SendFault::DispositionLost) | None => {}
    }
    let verdict = match submit(hub, payload) {
        Ok(()) => Verdict::Accepted,
        Err(refusal) => Verdict::Rejected(Box::new(refusal)),
    };
    match fault {
        Some(SendFault::TimedOutYetEnqueued) => refuse(hub, Refusal::timeout()),
        Some(SendFault::DispositionLost) => {
            hub.counters.lost_dispositions.one();
            Verdict::Silent
        }
        _ => verdict,
    }
}

/// Counts a refusal decided outside the hub's rules, and returns the verdict.
pub(crate) fn refuse(hub: &Hub, refusal: Refusal) -> Verdict {
    hub.counters.refusal(&refusal);
    Verdict::Rejected(Box::new(refusal))
}

fn submit(hub: &Hub, payload: &[u8]) -> Result<(), Refusal> {
    let count = |refusal: Refusal| {
        hub.counters.refusal(&refusal);
        refusal
    };
    let message = Message::read(payload).map_err(|error| {
        count(Refusal::bad_argument(format!(
            "the message cannot be read: {error}"
        )))
    })?;
    let device_id = device_of(message.to).map_err(count)?;
    let ack = match message.ack {
        _ if message.ack_not_text => None,
        None => Some(Ack::None),
        Some(text) => Ack::parse(text),
    };
    let ack = ack.ok_or_else(|| {
        let text = "iothub-ack is none of 'none', 'positive', 'negative' and 'full'";
        count(Refusal::bad_argument(text))
    })?;
    hub.submit(&IncomingMessage {
        device_id: &device_id,
        message_id: &message.message_id_text(),
        ack,
        expiry_ms: message.expiry_ms,
        system: &message.system.encode(),
        properties: message.application_properties,
        body: message.body,
        size: payload.len(),
    })
}

/// Returns the device id in `to`: `/devices/{id}/messages/devicebound`, with or without
/// percent-encoding of the id.
fn device_of(to: Option<&str>) -> Result<Cow<'_, str>, Refusal> {
    let wrong = || {
        let to = to.unwrap_or_default();
        Refusal::bad_operation(format!(
            "'to' is '{to}', not '/devices/{{id}}/messages/devicebound'"
        ))
    };
    let path = to.ok_or_else(wrong)?;
    let path = path.strip_prefix('/').unwrap_or(path);
    let (devices, rest) = path.split_once('/').ok_or_else(wrong)?;
    let (id, rest) = rest.split_once('/').ok_or_else(wrong)?;
    if !devices.eq_ignore_ascii_case("devices") || id.is_empty() {
        return Err(wrong());
    }
    let rest = rest.trim_end_matches('/');
    if !rest.eq_ignore_ascii_case("messages/devicebound") {
        let mut parts = rest.split('/');
        let is_module = parts
            .next()
            .is_some_and(|part| part.eq_ignore_ascii_case("modules"));
        return match parts.next() {
            Some(module) if is_module => Err(Refusal::module_not_found(&format!("{id}/{module}"))),
            _ => Err(wrong()),
        };
    }
    percent_decode_str(id).decode_utf8().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_found_in_every_spelling() {
        for (to, expected) in [
            ("/devices/a/messages/devicebound", "a"),
            ("/devices/dev%401%20x/messages/deviceBound", "dev@1 x"),
            ("/Devices/A/Messages/DeviceBound", "A"),
            ("devices/a/messages/devicebound/", "a"),
        ] {
            assert_eq!(device_of(Some(to)).unwrap(), expected, "{to}");
        }
    }

    #[test]
    fn addresses_without_a_device_are_refused() {
        for (to, code) in [
            (None, 400_003),
            (Some(""), 400_003),
            (Some("/devices/a"), 400_003),
            (Some("/devices//messages/devicebound"), 400_003),
            (Some("/devices/a/messages/events"), 400_003),
            (Some("/devices/a/modules/m/messages/deviceBound"), 404_010),
        ] {
            assert_eq!(device_of(to).unwrap_err().code, code, "{to:?}");
        }
    }
}
