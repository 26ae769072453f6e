//! Messages in the form for devices.

use bytes::{BufMut, BytesMut};

use super::super::encode;
use super::super::message::SystemFields;
use crate::hub::Delivery;

/// Encodes a message for the device `id`: the service's properties and body unchanged, and the
/// hub's annotations.
pub(crate) fn encode(id: &str, delivery: &Delivery) -> BytesMut {
    let system = SystemFields::decode(&delivery.system);
    let size = delivery.properties.len() + delivery.body.len() + 512;
    let mut out = BytesMut::with_capacity(size);
    out.put_slice(&[0x00, 0x53, 0x72]);
    encode::map(&mut out, |items| {
        items
            .symbol("iothub-deliverycount")
            .u32(delivery.deliveries)
            .symbol("iothub-enqueuedtime")
            .timestamp(delivery.enqueued_ms.cast_signed())
            .symbol("x-opt-sequence-number")
            .i64(i64::from(delivery.number));
        if let Some(lock) = &delivery.lock {
            items.symbol("x-opt-lock-token").uuid(lock);
        }
    });
    encode::described(&mut out, 0x73, |items| {
        if delivery.message_id.is_empty() {
            items.null();
        } else {
            items.text(&delivery.message_id);
        }
        items
            .raw(system.user_id)
            .text(&format!("/devices/{id}/messages/devicebound"))
            .null()
            .null()
            .raw(system.correlation_id)
            .raw(system.content_type)
            .raw(system.content_encoding)
            .timestamp(delivery.expires_ms.cast_signed());
    });
    if !delivery.properties.is_empty() {
        out.put_slice(&[0x00, 0x53, 0x74]);
        out.put_slice(&delivery.properties);
    }
    out.put_slice(&delivery.body);
    out
}
