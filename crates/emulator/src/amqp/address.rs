//! The node addresses that the hub knows, in all the spellings the SDKs use.

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
        [
            "devices",
            _,
            "messages" | "methods" | "twin" | "modules",
            ..,
        ] => Some("endpoints for devices"),
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
    fn what_is_not_emulated_is_known() {
        for (address, known) in [
            (
                "/messages/events/ConsumerGroups/$Default/Partitions/0",
                true,
            ),
            ("amqps://localhost/devices/d-1/messages/deviceBound", true),
            ("/devices/d-1/modules/m/twin", true),
            ("/messages/nonsense", false),
            ("/devices", false),
            ("", false),
        ] {
            assert_eq!(not_emulated(address).is_some(), known, "{address}");
        }
    }
}
