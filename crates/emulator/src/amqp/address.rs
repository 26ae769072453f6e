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
}

/// The node at `address`: relative or absolute, in any case.
pub(crate) fn node(address: &str) -> Option<Node> {
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address,
    };
    let path = path.trim_matches('/');
    if path.eq_ignore_ascii_case("$cbs") {
        Some(Node::Cbs)
    } else if path.eq_ignore_ascii_case("messages/devicebound") {
        Some(Node::Commands)
    } else if path.eq_ignore_ascii_case("messages/servicebound/feedback") {
        Some(Node::Feedback)
    } else {
        None
    }
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
            ("/messages/events", None),
            ("amqps://localhost", None),
            ("", None),
        ] {
            assert_eq!(node(address), expected, "{address}");
        }
    }
}
