//! `$cbs`: clients put tokens as messages, and the hub answers with messages.

use bytes::{BufMut, BytesMut};
use percent_encoding::percent_decode_str;

use super::decode::Reader;
use super::encode;
use super::message::{Message, body_bytes, text_in};
use crate::hub::{AuthenticatedDevice, Hub, Proof, Refusal};
use crate::sas::Grant;

/// The answer to a put-token request.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The request's message id as encoded, so that the answer's correlation id has the same type.
    correlation_id: Option<Vec<u8>>,
    status: i32,
    description: String,
    /// The rights granted by the token of a policy or principal.
    pub(crate) grant: Option<Grant>,
    /// The device authenticated by the token of a device.
    pub(crate) device: Option<AuthenticatedDevice>,
}

/// Handles one request.
pub(crate) fn handle(payload: &[u8], hub: &Hub) -> Reply {
    let Ok(message) = Message::read(payload) else {
        return Reply {
            correlation_id: None,
            status: 400,
            description: "malformed message".to_owned(),
            grant: None,
            device: None,
        };
    };
    let checked = check(&message, hub);
    match checked {
        Ok(_) => hub.counters.tokens_accepted.one(),
        Err(_) => hub.counters.tokens_refused.one(),
    }
    let (status, description, (grant, device)) = match checked {
        Ok(given) => (200, "OK".to_owned(), given),
        Err((status, text)) => (status, text, (None, None)),
    };
    Reply {
        correlation_id: message.message_id.map(<[u8]>::to_vec),
        status,
        description,
        grant,
        device,
    }
}

/// The rights or the device granted by a token, or the status and the text of the refusal.
type Checked = Result<(Option<Grant>, Option<AuthenticatedDevice>), (i32, String)>;

fn check(message: &Message<'_>, hub: &Hub) -> Checked {
    let properties = message.application_properties;
    match text_in(properties, "operation") {
        Some("put-token") => {}
        Some("delete-token") => return Ok((None, None)),
        other => {
            let other = other.unwrap_or_default();
            return Err((400, format!("unknown operation '{other}'")));
        }
    }
    match text_in(properties, "type") {
        // The Node SDK sends bearer tokens under the first type (see `Hub::authenticate`); Python,
        // .NET and Java use the others.
        Some(
            "servicebus.windows.net:sastoken"
            | "azure-devices.net:sastoken"
            | "bearer"
            | "Bearer"
            | "jwt",
        ) => {}
        other => {
            let other = other.unwrap_or_default();
            return Err((401, format!("unsupported token type '{other}'")));
        }
    }
    if hub.faults.refuses_cbs() {
        return Err((401, "refused by a fault".to_owned()));
    }
    let token = String::from_utf8_lossy(&body_bytes(message.body)).into_owned();
    if let Some(device) = text_in(properties, "name").and_then(device_of) {
        let device = hub.authenticate_device(&device, Proof::Token(&token));
        let device = device.map_err(|error| of_refusal(&Refusal::from(&error)))?;
        return Ok((None, Some(device)));
    }
    match hub.authenticate(&token) {
        Ok(grant) => Ok((Some(grant), None)),
        Err(error) => Err((401, error.to_string())),
    }
}

fn of_refusal(refusal: &Refusal) -> (i32, String) {
    // An error code begins with the HTTP status.
    let status = i32::try_from(refusal.code / 1000).unwrap_or(401);
    (status, refusal.text.clone())
}

/// Returns the device id of an audience such as `{host}/devices/{id}`, with or without
/// percent-encoding of the whole audience. The .NET SDK prefixes a scheme.
fn device_of(audience: &str) -> Option<String> {
    let audience = percent_decode_str(audience).decode_utf8().ok()?;
    let audience = audience
        .split_once("://")
        .map_or(&*audience, |(_, rest)| rest);
    let mut parts = audience.trim_end_matches('/').split('/').skip(1);
    let devices = parts.next()?;
    let id = parts.next().filter(|id| !id.is_empty())?;
    (devices.eq_ignore_ascii_case("devices") && parts.next().is_none()).then(|| id.to_owned())
}

impl Reply {
    /// Turns the answer into a refusal.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        (self.status, self.description) = of_refusal(refusal);
    }

    /// Returns the answer as an encoded message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(128);
        encode::described(&mut out, 0x73, |items| {
            items
                .null()
                .null()
                .null()
                .null()
                .null()
                .raw(self.correlation_id.as_deref());
        });
        out.put_slice(&[0x00, 0x53, 0x74]);
        encode::map(&mut out, |items| {
            items.text("status-code").i32(self.status);
            items.text("status-description").text(&self.description);
        });
        // The body is an empty string: clients expect a value section and ignore the content.
        out.put_slice(&[0x00, 0x53, 0x77, 0xa1, 0x00]);
        debug_assert!(Reader::new(&out).skip().is_ok());
        out.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_an_audience_is_found() {
        for (audience, expected) in [
            ("hub/devices/d-1", Some("d-1")),
            ("hub%2Fdevices%2Fd-1", Some("d-1")),
            ("amqps://hub/devices/d@1/", Some("d@1")),
            ("hub/devices/d/modules/m", None),
            ("hub/devices", None),
            ("hub", None),
            ("amqps://hub/messages/devicebound", None),
        ] {
            assert_eq!(device_of(audience).as_deref(), expected, "{audience}");
        }
    }
}
