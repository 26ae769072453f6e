//! The topics of Azure IoT Hub for MQTT 3.1.1 devices, and the message properties in a topic.

use percent_encoding::percent_decode_str;

/// The kind of a publication, parsed from the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topic {
    /// A cloud-to-device message with its properties.
    Message(Vec<(String, String)>),
    /// A call of a direct method.
    Method { name: String, rid: String },
    /// The answer to a request to the twin.
    Twin { status: u16, rid: String },
    /// A change of desired properties.
    Desired,
    /// Something else.
    Other,
}

/// Returns the topic filters of a device, each with the quality of service.
pub(super) fn subscriptions(device_id: &str) -> [(String, u8); 4] {
    [
        (format!("devices/{device_id}/messages/devicebound/#"), 1),
        ("$iothub/methods/POST/#".to_owned(), 0),
        ("$iothub/twin/res/#".to_owned(), 0),
        ("$iothub/twin/PATCH/properties/desired/#".to_owned(), 0),
    ]
}

/// Parses a topic of a device.
pub(super) fn parse(topic: &str, device_id: &str) -> Topic {
    let own = topic
        .strip_prefix("devices/")
        .and_then(|rest| rest.strip_prefix(device_id));
    if let Some(bag) = own.and_then(|rest| rest.strip_prefix("/messages/devicebound/")) {
        return Topic::Message(bag_of(bag));
    }
    if topic.starts_with("$iothub/twin/PATCH/properties/desired/") {
        return Topic::Desired;
    }
    if let Some((name, query)) = topic
        .strip_prefix("$iothub/methods/POST/")
        .and_then(|rest| rest.split_once("/?"))
    {
        return Topic::Method {
            name: name.to_owned(),
            rid: parameter(query, "$rid"),
        };
    }
    if let Some((status, query)) = topic
        .strip_prefix("$iothub/twin/res/")
        .and_then(|rest| rest.split_once("/?"))
        && let Ok(status) = status.parse()
    {
        return Topic::Twin {
            status,
            rid: parameter(query, "$rid"),
        };
    }
    Topic::Other
}

/// Parses percent-encoded properties: `key=value&key=value`.
fn bag_of(bag: &str) -> Vec<(String, String)> {
    let text = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = bag
        .trim_start_matches('?')
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (text(key), text(value))
        })
        .collect()
}

fn parameter(query: &str, name: &str) -> String {
    let pair = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name);
    pair.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

pub(super) fn twin_get(rid: u32) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

pub(super) fn reported(rid: u32) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

pub(super) fn answer(status: u16, rid: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics() {
        let bag = |pairs: &[(&str, &str)]| {
            Topic::Message(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            )
        };
        for (topic, means) in [
            ("devices/d/messages/devicebound/", bag(&[])),
            (
                "devices/d/messages/devicebound/%24.mid=fw.1%2F2&%24.to=%2Fdevices%2Fd&kind=update&a%20b=&c",
                bag(&[
                    ("$.mid", "fw.1/2"),
                    ("$.to", "/devices/d"),
                    ("kind", "update"),
                    ("a b", ""),
                    ("c", ""),
                ]),
            ),
            ("devices/dd/messages/devicebound/x", Topic::Other),
            (
                "$iothub/methods/POST/update.status/?$rid=a1",
                Topic::Method {
                    name: "update.status".into(),
                    rid: "a1".into(),
                },
            ),
            (
                "$iothub/twin/res/204/?$rid=7&$version=9",
                Topic::Twin {
                    status: 204,
                    rid: "7".into(),
                },
            ),
            (
                "$iothub/twin/res/200/?$version=9&$rid=7",
                Topic::Twin {
                    status: 200,
                    rid: "7".into(),
                },
            ),
            ("$iothub/twin/res/x/?$rid=7", Topic::Other),
            (
                "$iothub/twin/PATCH/properties/desired/?$version=3",
                Topic::Desired,
            ),
            ("", Topic::Other),
        ] {
            assert_eq!(parse(topic, "d"), means, "{topic}");
        }
    }
}
