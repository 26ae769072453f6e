//! The topics of devices and hub, in both directions.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::amqp::{SystemFields, application_properties, field_text};
use crate::fleet::iso_time;
use crate::hub::Delivery;

/// The characters encoded in a property bag: all except the unreserved characters of RFC 3986. A
/// slash must be encoded, since SDKs read the bag from the topic's last segment. A space is `%20`,
/// since SDKs do not read a plus sign as a space.
const BAG: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A subscription of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Messages,
    Methods,
    Twin,
    Desired,
}

impl Filter {
    /// Parses a topic filter. Returns `None` if a device may not subscribe to the filter.
    pub(crate) fn read(filter: &str, device_id: &str) -> Option<Self> {
        match filter {
            "$iothub/methods/POST/#" => Some(Self::Methods),
            "$iothub/twin/res/#" => Some(Self::Twin),
            "$iothub/twin/PATCH/properties/desired/#" => Some(Self::Desired),
            _ => {
                let rest = own(filter, device_id)?;
                (rest == "devicebound/#").then_some(Self::Messages)
            }
        }
    }
}

/// A publication of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published<'a> {
    /// A message from the device; only the size is used.
    Telemetry,
    TwinGet {
        rid: &'a str,
    },
    Report {
        rid: &'a str,
    },
    MethodAnswer {
        call: u64,
        status: i32,
    },
}

impl<'a> Published<'a> {
    /// Parses a topic. Returns `None` if a device may not publish to the topic.
    pub(crate) fn read(topic: &'a str, device_id: &str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("$iothub/twin/") {
            let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
            let rid = parameter(query, "$rid").unwrap_or_default();
            return match path.trim_end_matches('/') {
                "GET" => Some(Self::TwinGet { rid }),
                "PATCH/properties/reported" => Some(Self::Report { rid }),
                _ => None,
            };
        }
        if let Some(rest) = topic.strip_prefix("$iothub/methods/res/") {
            let (status, query) = rest.split_once('?')?;
            let status = status.trim_end_matches('/').parse().ok()?;
            // An answer with an unknown id matches no call, and is dropped like a late answer.
            let call = parameter(query, "$rid").and_then(|rid| u64::from_str_radix(rid, 16).ok());
            let call = call.unwrap_or(u64::MAX);
            return Some(Self::MethodAnswer { call, status });
        }
        let rest = own(topic, device_id)?.strip_prefix("events")?;
        (rest.is_empty() || rest.starts_with('/')).then_some(Self::Telemetry)
    }
}

/// Returns the part after `devices/{id}/messages/`.
fn own<'a>(topic: &'a str, device_id: &str) -> Option<&'a str> {
    let rest = topic.strip_prefix("devices/")?.strip_prefix(device_id)?;
    rest.strip_prefix("/messages/")
}

/// Returns the value of a parameter, without decoding.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// Whether a device's will may be published to `topic`.
pub(crate) fn is_will(topic: &str, device_id: &str) -> bool {
    Published::read(topic, device_id) == Some(Published::Telemetry)
}

/// Returns the topic for the delivery of a message. The topic contains the message's properties.
/// The expiry is left out if the time to live is `default_ttl_ms`.
pub(crate) fn of_delivery(delivery: &Delivery, device_id: &str, default_ttl_ms: u64) -> String {
    let mut bag = Bag(format!("devices/{device_id}/messages/devicebound/"), false);
    let to = format!("/devices/{device_id}/messages/deviceBound");
    bag.push("$.mid", &delivery.message_id);
    bag.push("$.to", &to);
    let system = SystemFields::decode(&delivery.system);
    for (name, value) in [
        ("$.cid", system.correlation_id),
        ("$.uid", system.user_id),
        ("$.ct", system.content_type),
        ("$.ce", system.content_encoding),
    ] {
        if let Some(value) = value {
            bag.push(name, &field_text(value));
        }
    }
    if delivery.expires_ms - delivery.enqueued_ms != default_ttl_ms {
        bag.push("$.exp", &iso_time(delivery.expires_ms));
    }
    for (name, value) in application_properties(&delivery.properties) {
        bag.push(&name, &value);
    }
    bag.0
}

struct Bag(String, bool);

impl Bag {
    fn push(&mut self, name: &str, value: &str) {
        if std::mem::replace(&mut self.1, true) {
            self.0.push('&');
        }
        self.0.extend(utf8_percent_encode(name, BAG));
        // The equals sign is needed for an empty value too: without it, some SDKs read "undefined".
        self.0.push('=');
        self.0.extend(utf8_percent_encode(value, BAG));
    }
}

pub(crate) fn of_method(name: &str, call: u64) -> String {
    format!("$iothub/methods/POST/{name}/?$rid={call:x}")
}

pub(crate) fn of_desired(version: u64) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

pub(crate) fn of_twin_answer(status: u32, rid: &str, version: Option<u64>) -> String {
    let version = version.map_or_else(String::new, |version| format!("&$version={version}"));
    format!("$iothub/twin/res/{status}/?$rid={rid}{version}")
}

/// Returns the content of a message's body sections.
pub(crate) fn payload(delivery: &Delivery) -> Bytes {
    crate::amqp::body_bytes(&delivery.body).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Ack;

    #[test]
    fn device_topics_and_filters_are_recognised() {
        use Published::{MethodAnswer, Report, Telemetry, TwinGet};
        for (topic, expected) in [
            ("devices/d/messages/events/", Some(Telemetry)),
            ("devices/d/messages/events", Some(Telemetry)),
            (
                "devices/d/messages/events/%24.ct=a%2Fb&x=1",
                Some(Telemetry),
            ),
            ("devices/d/messages/eventsx", None),
            ("devices/d/messages/devicebound/", None),
            ("devices/e/messages/events/", None),
            ("$iothub/twin/GET/?$rid=1f", Some(TwinGet { rid: "1f" })),
            (
                "$iothub/twin/GET/?a=b&$rid=q-1",
                Some(TwinGet { rid: "q-1" }),
            ),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=2&x=y",
                Some(Report { rid: "2" }),
            ),
            ("$iothub/twin/PATCH/properties/desired/?$rid=2", None),
            (
                "$iothub/methods/res/-7/?$rid=ff",
                Some(MethodAnswer {
                    call: 255,
                    status: -7,
                }),
            ),
            (
                "$iothub/methods/res/200/?$rid=zz",
                Some(MethodAnswer {
                    call: u64::MAX,
                    status: 200,
                }),
            ),
            ("$iothub/methods/res/ok/?$rid=1", None),
            ("$iothub/methods/POST/x/?$rid=1", None),
            ("other", None),
        ] {
            assert_eq!(Published::read(topic, "d"), expected, "{topic}");
        }
        for (filter, expected) in [
            ("devices/d/messages/devicebound/#", Some(Filter::Messages)),
            ("devices/e/messages/devicebound/#", None),
            ("devices/d/messages/events/#", None),
            ("$iothub/methods/POST/#", Some(Filter::Methods)),
            ("$iothub/twin/res/#", Some(Filter::Twin)),
            (
                "$iothub/twin/PATCH/properties/desired/#",
                Some(Filter::Desired),
            ),
            ("#", None),
        ] {
            assert_eq!(Filter::read(filter, "d"), expected, "{filter}");
        }
    }

    #[test]
    fn topic_contains_the_message_properties() {
        let mut properties = bytes::BytesMut::new();
        let text = |out: &mut bytes::BytesMut, text: &str| {
            out.extend_from_slice(&[0xa1, u8::try_from(text.len()).unwrap()]);
            out.extend_from_slice(text.as_bytes());
        };
        let mut items = bytes::BytesMut::new();
        for item in ["iothub-ack", "full", "a/b c", "ü+&=%", "empty", ""] {
            text(&mut items, item);
        }
        let size = u8::try_from(items.len() + 1).unwrap();
        properties.extend_from_slice(&[0xc1, size, 6]);
        properties.extend_from_slice(&items);
        let system = SystemFields {
            user_id: Some(b"\xa0\x02me"),
            correlation_id: Some(b"\x53\x07"),
            content_type: Some(b"\xa3\x0aapplic/son"),
            content_encoding: None,
        };
        let delivery = Delivery {
            number: 0,
            lock: None,
            message_id: "m 1".to_owned(),
            ack: Ack::Full,
            enqueued_ms: 1_000,
            expires_ms: 61_000,
            deliveries: 0,
            properties: properties.freeze(),
            system: system.encode().into(),
            body: Bytes::new(),
        };
        let system = "%24.cid=7&%24.uid=me&%24.ct=applic%2Fson";
        let own = "iothub-ack=full&a%2Fb%20c=%C3%BC%2B%26%3D%25&empty=";
        let start = "devices/d@1/messages/devicebound/%24.mid=m%201&%24.to=%2Fdevices%2Fd%401%2Fmessages%2FdeviceBound";
        assert_eq!(
            of_delivery(&delivery, "d@1", 60_000),
            format!("{start}&{system}&{own}")
        );
        let expiry = "%24.exp=1970-01-01T00%3A01%3A01.000Z";
        assert_eq!(
            of_delivery(&delivery, "d@1", 1),
            format!("{start}&{system}&{expiry}&{own}")
        );
    }
}
