//! `$cbs`: tokens are put as messages and answered with messages.

use bytes::{BufMut, BytesMut};

use super::decode::Reader;
use super::encode;
use super::message::{Message, application_properties, body_bytes};
use crate::hub::Hub;
use crate::sas::Grant;

/// The answer to a put-token.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The request's message id as encoded, so that the answer's correlation id has the same type.
    correlation_id: Option<Vec<u8>>,
    status: i32,
    description: String,
    /// What the token gave.
    pub(crate) grant: Option<Grant>,
}

/// Handles one request.
pub(crate) fn handle(payload: &[u8], hub: &Hub) -> Reply {
    let Ok(message) = Message::read(payload) else {
        return Reply {
            correlation_id: None,
            status: 400,
            description: "malformed message".to_owned(),
            grant: None,
        };
    };
    let (status, description, grant) = judge(&message, hub);
    match status {
        200 => hub.tallies.tokens_accepted.one(),
        _ => hub.tallies.tokens_refused.one(),
    }
    Reply {
        correlation_id: message.message_id.map(<[u8]>::to_vec),
        status,
        description,
        grant,
    }
}

fn judge(message: &Message<'_>, hub: &Hub) -> (i32, String, Option<Grant>) {
    let properties = application_properties(message.application_properties);
    let property = |name: &str| {
        properties
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    match property("operation") {
        Some("put-token") => {}
        Some("delete-token") => return (200, "OK".to_owned(), None),
        other => {
            return (
                400,
                format!("unknown operation '{}'", other.unwrap_or_default()),
                None,
            );
        }
    }
    match property("type") {
        Some("servicebus.windows.net:sastoken" | "azure-devices.net:sastoken") => {}
        other => {
            return (
                401,
                format!("unsupported token type '{}'", other.unwrap_or_default()),
                None,
            );
        }
    }
    if hub.faults.refuses_cbs() {
        return (401, "refused by a fault".to_owned(), None);
    }
    let token = String::from_utf8_lossy(&body_bytes(message.body)).into_owned();
    match hub.authenticate(&token) {
        Ok(grant) => (200, "OK".to_owned(), Some(grant)),
        Err(error) => (401, error.to_string(), None),
    }
}

impl Reply {
    /// The answer as an encoded message.
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
        // An empty string as the body: clients expect a value section and do not look into it.
        out.put_slice(&[0x00, 0x53, 0x77, 0xa1, 0x00]);
        debug_assert!(Reader::new(&out).skip().is_ok());
        out.to_vec()
    }
}
