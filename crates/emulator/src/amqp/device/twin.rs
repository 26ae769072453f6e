//! Twins over AMQP: requests, answers with the same correlation id, and changes without a
//! correlation id.

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::super::encode;
use super::super::message::{Message, text_in};
use super::super::outcome::AmqpError;
use crate::hub::{DesiredPush, DeviceSession, Interest, Refusal};

/// The resource of the reported properties (`azure-iot-device-amqp`).
const REPORTED: &str = "/properties/reported";
/// The resource of the changes of the desired properties.
const DESIRED: &str = "/notifications/twin/properties/desired";

/// The result of a request: the status, the new version if any, and a body.
struct Outcome {
    status: i32,
    version: Option<u64>,
    body: Vec<u8>,
}

/// Performs a request and encodes the answer.
pub(crate) fn answer(session: &DeviceSession, request: &Message<'_>, body: &[u8]) -> Vec<u8> {
    let outcome = perform(session, request, body).unwrap_or_else(|refusal| Outcome {
        // An error code begins with the HTTP status.
        status: i32::try_from(refusal.code / 1000).unwrap_or(500),
        version: None,
        body: AmqpError::from(&refusal).description.into_bytes(),
    });
    let mut out = BytesMut::with_capacity(outcome.body.len() + 128);
    out.put_slice(&[0x00, 0x53, 0x72]);
    encode::map(&mut out, |items| {
        items.symbol("status").i32(outcome.status);
        if let Some(version) = outcome.version {
            items.symbol("version").i64(version.cast_signed());
        }
    });
    encode::described(&mut out, 0x73, |items| {
        items.null().null().null().null().null();
        items.raw(request.system.correlation_id);
    });
    out.put_slice(&[0x00, 0x53, 0x75]);
    encode::binary(&mut out, &outcome.body);
    out.to_vec()
}

fn perform(
    session: &DeviceSession,
    request: &Message<'_>,
    body: &[u8],
) -> Result<Outcome, Refusal> {
    let operation = text_in(request.annotations, "operation").unwrap_or_default();
    let resource = text_in(request.annotations, "resource").unwrap_or_default();
    let done = |status, version, body| {
        Ok(Outcome {
            status,
            version,
            body,
        })
    };
    match (operation, resource) {
        ("GET", "" | "/") => done(200, None, session.twin()?.to_string().into_bytes()),
        ("PATCH", REPORTED) => done(204, Some(session.report(body)?), Vec::new()),
        ("PUT", DESIRED) => {
            session.set_interest(Interest::Desired, true);
            done(200, None, Vec::new())
        }
        ("DELETE", DESIRED) => {
            session.set_interest(Interest::Desired, false);
            done(200, None, Vec::new())
        }
        _ => Err(Refusal::bad_operation(format!(
            "unknown operation '{operation}' of the resource '{resource}'; allowed: GET, PATCH of {REPORTED}, PUT and \
             DELETE of {DESIRED}"
        ))),
    }
}

/// Encodes a change of the desired properties. A missing correlation id distinguishes the change
/// from an answer.
pub(crate) fn encode_push(push: &DesiredPush) -> BytesMut {
    let mut patch = push.patch.clone();
    patch.insert("$version".to_owned(), push.version.into());
    let body = Value::Object(patch).to_string();
    let mut out = BytesMut::with_capacity(body.len() + 128);
    out.put_slice(&[0x00, 0x53, 0x72]);
    encode::map(&mut out, |items| {
        items.symbol("resource").text(DESIRED);
        items.symbol("version").i64(push.version.cast_signed());
    });
    out.put_slice(&[0x00, 0x53, 0x75]);
    encode::binary(&mut out, body.as_bytes());
    out
}
