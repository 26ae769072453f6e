//! The node addresses that the hub knows, in all the spellings the SDKs use.

use percent_encoding::percent_decode_str;

/// A node of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`, where tokens are put.
    Cbs,
    /// `/messages/devicebound`, where cloud-to-device messages go.
    Commands,
    /// `/messages/servicebound/feedback`, where feedback comes from.
    Feedback,
    /// `/messages/servicebound/filenotifications`, where notifications of files would come from that devices
    /// send. The emulator takes no files, so that none ever comes.
    FileNotifications,
    /// An endpoint of a device, by the device's place in the connection.
    Device(usize, DeviceEnd),
    /// A registration at the Device Provisioning Service, by its place in the connection.
    Registration(usize),
}

/// An endpoint of a device (`azure-iot-common`, `endpoint.ts`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceEnd {
    /// `/devices/{id}/messages/events`: what the device sends.
    Telemetry,
    /// `/devices/{id}/messages/devicebound`: what it is sent.
    Messages,
    /// `/devices/{id}/methods/devicebound`: calls in one direction, answers in the other.
    Methods,
    /// `/devices/{id}/twin`: requests and answers.
    Twin,
}

impl Node {
    /// Whether the peer may receive here, and whether it may send.
    pub(crate) fn directions(self) -> (bool, bool) {
        match self {
            Self::Feedback | Self::FileNotifications | Self::Device(_, DeviceEnd::Messages) => {
                (true, false)
            }
            Self::Commands | Self::Device(_, DeviceEnd::Telemetry) => (false, true),
            Self::Cbs
            | Self::Device(_, DeviceEnd::Methods | DeviceEnd::Twin)
            | Self::Registration(_) => (true, true),
        }
    }

    /// Whether a receiver may settle after the hub has.
    pub(crate) fn may_settle_second(self) -> bool {
        matches!(self, Self::Device(_, DeviceEnd::Messages))
    }
}

/// The endpoint of a device at `address`, and the device's id, which is percent-encoded there.
pub(crate) fn device_node(address: &str) -> Option<(String, DeviceEnd)> {
    let path = path(address);
    let mut parts = path.split('/');
    let (devices, id) = (parts.next()?, parts.next()?);
    if !devices.eq_ignore_ascii_case("devices") || id.is_empty() {
        return None;
    }
    let rest: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let end = match rest[..] {
        ["messages", "events"] => DeviceEnd::Telemetry,
        ["messages", "devicebound"] => DeviceEnd::Messages,
        ["methods", "devicebound"] => DeviceEnd::Methods,
        ["twin"] => DeviceEnd::Twin,
        _ => return None,
    };
    let id = percent_decode_str(id).decode_utf8().ok()?;
    Some((id.into_owned(), end))
}

/// The id scope and registration id at `address`: `{idScope}/registrations/{registrationId}`.
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

/// The node at `address`: relative or absolute, in any case.
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

/// What stands at an address that the hub has and the emulator has not; none if the hub has no such address.
pub(crate) fn not_emulated(address: &str) -> Option<&'static str> {
    let path = path(address).to_ascii_lowercase();
    let segments: Vec<&str> = path.split('/').collect();
    match segments[..] {
        ["messages", "events", ..] => Some("messages of devices"),
        ["messages", "operationsmonitoringevents", ..] => Some("operations monitoring"),
        ["devices", _, "modules", ..] => Some("modules"),
        [
            "devices",
            _,
            "messages" | "methods" | "twin" | "streams",
            ..,
        ] => Some("such endpoints for devices"),
        _ => None,
    }
}

/// The path of an address, relative or absolute, without slashes around it.
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
        use DeviceEnd::{Messages, Methods, Telemetry, Twin};
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
            let expected = expected.map(|(id, end)| (id.to_owned(), end));
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
    fn what_is_not_emulated_is_known() {
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
