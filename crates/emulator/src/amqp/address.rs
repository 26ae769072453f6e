//! The node addresses of the hub, in all spellings used by the SDKs.

use percent_encoding::percent_decode_str;

/// A node of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`, the node for tokens.
    Cbs,
    /// `/messages/devicebound`, the node for cloud-to-device messages.
    Commands,
    /// `/messages/servicebound/feedback`, the source of feedback.
    Feedback,
    /// `/messages/servicebound/filenotifications`, the source of notifications of file uploads. The
    /// emulator takes no files and sends no notification.
    FileNotifications,
    /// An endpoint of a device, by the device's slot in the connection.
    Device(usize, DeviceEndpoint),
    /// A registration at the Device Provisioning Service, by the registration's slot in the
    /// connection.
    Registration(usize),
}

/// An endpoint of a device (`azure-iot-common`, `endpoint.ts`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceEndpoint {
    /// `/devices/{id}/messages/events`: messages from the device.
    Telemetry,
    /// `/devices/{id}/messages/devicebound`: messages to the device.
    Messages,
    /// `/devices/{id}/methods/devicebound`: calls in one direction, answers in the other.
    Methods,
    /// `/devices/{id}/twin`: requests and answers.
    Twin,
}

impl Node {
    /// Whether the peer may receive from the node, and whether the peer may send to the node.
    pub(crate) fn directions(self) -> (bool, bool) {
        match self {
            Self::Feedback
            | Self::FileNotifications
            | Self::Device(_, DeviceEndpoint::Messages) => (true, false),
            Self::Commands | Self::Device(_, DeviceEndpoint::Telemetry) => (false, true),
            Self::Cbs
            | Self::Device(_, DeviceEndpoint::Methods | DeviceEndpoint::Twin)
            | Self::Registration(_) => (true, true),
        }
    }

    /// Whether a receiver may settle after the hub.
    pub(crate) fn may_settle_second(self) -> bool {
        matches!(self, Self::Device(_, DeviceEndpoint::Messages))
    }
}

/// Returns the percent-decoded device id and the endpoint at `address`.
pub(crate) fn device_node(address: &str) -> Option<(String, DeviceEndpoint)> {
    let path = path(address);
    let mut parts = path.split('/');
    let (devices, id) = (parts.next()?, parts.next()?);
    if !devices.eq_ignore_ascii_case("devices") || id.is_empty() {
        return None;
    }
    let rest: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let endpoint = match rest[..] {
        ["messages", "events"] => DeviceEndpoint::Telemetry,
        ["messages", "devicebound"] => DeviceEndpoint::Messages,
        ["methods", "devicebound"] => DeviceEndpoint::Methods,
        ["twin"] => DeviceEndpoint::Twin,
        _ => return None,
    };
    let id = percent_decode_str(id).decode_utf8().ok()?;
    Some((id.into_owned(), endpoint))
}

/// Returns the id scope and registration id at `address`:
/// `{idScope}/registrations/{registrationId}`.
pub(crate) fn registration_node(address: &str) -> Option<(&str, &str)> {
    let mut parts = path(address).split('/');
    let found = (parts.next()?, parts.next()?, parts.next()?, parts.next());
    match found {
        (scope, middle, id, None) if middle.eq_ignore_ascii_case("registrations") => {
            Some((scope, id))
        }
        _ => None,
    }
}

/// Returns the node at `address`: relative or absolute, in any case.
pub(crate) fn node(address: &str) -> Option<Node> {
    let path = path(address).to_ascii_lowercase();
    Some(match path.as_str() {
        "$cbs" => Node::Cbs,
        "messages/devicebound" => Node::Commands,
        "messages/servicebound/feedback" => Node::Feedback,
        "messages/servicebound/filenotifications" => Node::FileNotifications,
        _ => return None,
    })
}

/// Returns the feature at an address of the real hub missing in the emulator. Returns `None` for an
/// address unknown to the real hub.
pub(crate) fn not_emulated(address: &str) -> Option<&'static str> {
    let path = path(address).to_ascii_lowercase();
    let segments: Vec<&str> = path.split('/').collect();
    match segments[..] {
        ["messages", "events", ..] => Some("device-to-cloud messages"),
        ["messages", "operationsmonitoringevents", ..] => Some("operations monitoring"),
        ["devices", _, "modules", ..] => Some("modules"),
        [
            "devices",
            _,
            "messages" | "methods" | "twin" | "streams",
            ..,
        ] => Some("this device endpoint"),
        _ => None,
    }
}

/// Returns the path of an address, relative or absolute, without surrounding slashes.
fn path(address: &str) -> &str {
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address,
    };
    path.trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_the_sdks_are_known() {
        for (address, expected) in [
            ("$cbs", Some(Node::Cbs)),
            ("/messages/devicebound", Some(Node::Commands)),
            (
                "amqps://localhost/messages/devicebound",
                Some(Node::Commands),
            ),
            (
                "amqps://localhost:5671/messages/deviceBound",
                Some(Node::Commands),
            ),
            ("/messages/serviceBound/feedback", Some(Node::Feedback)),
            ("messages/servicebound/feedback/", Some(Node::Feedback)),
            (
                "/messages/serviceBound/filenotifications",
                Some(Node::FileNotifications),
            ),
            ("/messages/events", None),
            ("amqps://localhost", None),
            ("", None),
        ] {
            assert_eq!(node(address), expected, "{address}");
        }
    }

    #[test]
    fn endpoints_of_devices_are_known() {
        use DeviceEndpoint::{Messages, Methods, Telemetry, Twin};
        for (address, expected) in [
            ("/devices/d-1/messages/events", Some(("d-1", Telemetry))),
            (
                "amqps://hub/devices/d%401/messages/deviceBound",
                Some(("d@1", Messages)),
            ),
            ("/devices/d-1/methods/devicebound", Some(("d-1", Methods))),
            ("/Devices/D-1/Twin/", Some(("D-1", Twin))),
            ("/devices/d/modules/m/messages/events", None),
            ("/devices/d", None),
            ("/devices//twin", None),
        ] {
            let expected = expected.map(|(id, endpoint)| (id.to_owned(), endpoint));
            assert_eq!(device_node(address), expected, "{address}");
        }
    }

    #[test]
    fn registrations_are_known() {
        for (address, expected) in [
            ("0ne1/registrations/d-1", Some(("0ne1", "d-1"))),
            ("/0ne1/registrations/d-1/", Some(("0ne1", "d-1"))),
            ("0ne1/registrations", None),
            ("0ne1/registrations/d/register", None),
        ] {
            assert_eq!(registration_node(address), expected, "{address}");
        }
    }

    #[test]
    fn unemulated_addresses_are_recognised() {
        for (address, known) in [
            (
                "/messages/events/ConsumerGroups/$Default/Partitions/0",
                true,
            ),
            ("/devices/d-1/streams", true),
            ("/devices/d-1/modules/m/twin", true),
            ("/messages/nonsense", false),
            ("/devices", false),
            ("", false),
        ] {
            assert_eq!(not_emulated(address).is_some(), known, "{address}");
        }
    }
}
