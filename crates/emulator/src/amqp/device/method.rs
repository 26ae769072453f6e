//! Direct methods over AMQP: the call carries a correlation id, and the answer repeats the id.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::super::decode::Reader;
use super::super::encode;
use super::super::message::{Message, body_bytes, field_text, value_in};
use crate::hub::{MethodAnswer, MethodCall, Refusal};

/// The application property with the method's name (`azure-iot-device-amqp`).
const NAME: &str = "IoThub-methodname";
/// The application property with the device's status.
const STATUS: &str = "IoThub-status";

/// Encodes a call.
pub(crate) fn encode_call(call: &MethodCall) -> BytesMut {
    let mut out = BytesMut::with_capacity(call.payload.len() + 128);
    encode::described(&mut out, 0x73, |items| {
        items.null().null().null().null().null();
        items.uuid(&correlation_of(call.id));
    });
    out.put_slice(&[0x00, 0x53, 0x74]);
    encode::map(&mut out, |items| {
        items.text(NAME).text(&call.name);
    });
    out.put_slice(&[0x00, 0x53, 0x75]);
    encode::binary(&mut out, &call.payload);
    out
}

/// Reads an answer and the id of the answered call.
pub(crate) fn read_answer(message: &Message<'_>) -> Result<(u64, MethodAnswer), Refusal> {
    let call = message
        .system
        .correlation_id
        .and_then(|raw| call_of(&field_text(raw)))
        .ok_or_else(|| Refusal::bad_argument("the correlation id is not the id of a call"))?;
    let status = value_in(message.application_properties, STATUS)
        .and_then(|raw| {
            let text = Reader::new(raw).text().ok().flatten();
            text.map_or_else(
                || Reader::new(raw).i64().ok().flatten(),
                |text| text.parse().ok(),
            )
        })
        .and_then(|status| i32::try_from(status).ok())
        .ok_or_else(|| Refusal::bad_argument(format!("the answer has no integer {STATUS}")))?;
    let payload = Bytes::from(body_bytes(message.body));
    Ok((call, MethodAnswer { status, payload }))
}

/// Returns a UUID with the call's number in the last six bytes. Version and variant are those of a
/// random UUID, since SDKs accept no other.
fn correlation_of(call: u64) -> Uuid {
    let [.., a, b, c, d, e, f] = call.to_be_bytes();
    uuid::Builder::from_random_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f]).into_uuid()
}

fn call_of(text: &str) -> Option<u64> {
    let uuid = Uuid::parse_str(text).ok()?;
    let [.., a, b, c, d, e, f] = *uuid.as_bytes();
    let call = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    (correlation_of(call) == uuid).then_some(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_id_identifies_the_call() {
        for call in [0, 1, 77, (1 << 48) - 1] {
            let uuid = correlation_of(call);
            assert_eq!(uuid.get_version_num(), 4, "{uuid}");
            assert_eq!(call_of(&uuid.to_string()), Some(call));
        }
        assert_eq!(call_of("5a1c8d2e-0000-4000-8000-00000000000f"), None);
        assert_eq!(call_of("nonsense"), None);
    }

    #[test]
    fn an_answer_is_read_with_every_integer_and_both_kinds_of_correlation() {
        let call = MethodCall {
            id: 77,
            name: "reboot".to_owned(),
            payload: Bytes::new(),
        };
        let uuid = correlation_of(call.id);
        let as_uuid = [&[0x98][..], uuid.as_bytes()].concat();
        let text = uuid.to_string();
        let as_text = [&[0xa1, 36][..], text.as_bytes()].concat();
        for correlation in [&as_uuid, &as_text] {
            for (status, expected) in [
                (&[0x71, 0, 0, 0, 200][..], Some(200)),
                (&[0x54, 0xff], Some(-1)),
                (&[0x70, 0, 0, 1, 0x90], Some(400)),
                (&[0x81, 0, 0, 0, 0, 0, 0, 0, 7], Some(7)),
                (&[0xa1, 3, b'2', b'0', b'4'], Some(204)),
                (&[0x40], None),
                (&[0x41], None),
            ] {
                let mut out = BytesMut::new();
                encode::described(&mut out, 0x73, |items| {
                    items.null().null().null().null().null();
                    items.raw(Some(correlation));
                });
                out.put_slice(&[0x00, 0x53, 0x74]);
                encode::map(&mut out, |items| {
                    items.text(STATUS).raw(Some(status));
                });
                let message = Message::read(&out).unwrap();
                let read = read_answer(&message).ok();
                assert_eq!(
                    read.map(|(call, answer)| (call, answer.status)),
                    expected.map(|it| (77, it)),
                    "{status:x?}"
                );
            }
        }
    }
}
