//! The routes of the hub's REST interface, emulated or not.

use http::Method;

use crate::entra::Action;
use crate::hub::Operation;

/// An emulated route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Query,
    Bulk,
    ListDevices,
    GetDevice(&'a str),
    PutDevice(&'a str),
    DeleteDevice(&'a str),
    Purge(&'a str),
    GetTwin(&'a str),
    PatchTwin(&'a str),
    PutTwin(&'a str),
    InvokeMethod(&'a str),
    SendEvent(&'a str),
    ReceiveMessage(&'a str),
    /// The device and the lock token.
    CompleteMessage(&'a str, &'a str),
    AbandonMessage(&'a str, &'a str),
    DeviceStatistics,
    ServiceStatistics,
    ReceiveFeedback,
    CompleteFeedback(&'a str),
    AbandonFeedback(&'a str),
    ReceiveFileNotification,
    SettleFileNotification(&'a str),
}

/// The caller a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller<'a> {
    /// A service with permission for the action.
    Service(Action),
    /// The device with this id.
    Device(&'a str),
}

/// The result of routing a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination<'a> {
    Emulated(Route<'a>),
    /// A route of the real hub missing in the emulator, with the name of the feature.
    NotEmulated(&'static str),
    /// The path exists with another method.
    OtherMethod,
    NotFound,
}

/// The methods of the hub's interface.
const METHODS: [Method; 5] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

impl<'a> Destination<'a> {
    /// Finds the destination of a request. Path names are case-insensitive, as on the hub.
    pub(crate) fn find(method: &Method, segments: &[&'a str]) -> Self {
        let names: Vec<String> = segments
            .iter()
            .map(|segment| segment.to_ascii_lowercase())
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(route) = Route::find(method, &names, segments) {
            Self::Emulated(route)
        } else if let Some(what) = not_emulated(&names) {
            Self::NotEmulated(what)
        } else if METHODS
            .iter()
            .any(|method| Route::find(method, &names, segments).is_some())
        {
            Self::OtherMethod
        } else {
            Self::NotFound
        }
    }
}

/// Returns the feature of a route of the real hub missing in the emulator. `names` are the path
/// segments in lower case.
fn not_emulated(names: &[&str]) -> Option<&'static str> {
    Some(match names {
        ["devices" | "twins", _, "modules", ..] => "modules",
        ["devices", _, "applyconfigurationcontent"] | ["configurations", ..] => "configurations",
        ["devices", _, "files", ..] => "file uploads",
        ["jobs", ..] => "jobs",
        ["digitaltwins", ..] => "digital twins",
        ["messages", "devicebound"] => "messages to devices over HTTPS; use AMQP",
        _ => return None,
    })
}

impl<'a> Route<'a> {
    /// `names` are the segments in lower case.
    fn find(method: &Method, names: &[&str], segments: &[&'a str]) -> Option<Self> {
        let at = |index: usize| segments.get(index).copied().unwrap_or_default();
        Some(match (method.as_str(), names) {
            ("POST", ["devices", "query"]) => Self::Query,
            ("POST", ["devices"]) => Self::Bulk,
            ("GET", ["devices"]) => Self::ListDevices,
            ("GET", ["devices", _]) => Self::GetDevice(at(1)),
            ("PUT", ["devices", _]) => Self::PutDevice(at(1)),
            ("DELETE", ["devices", _]) => Self::DeleteDevice(at(1)),
            ("DELETE", ["devices", _, "commands"]) => Self::Purge(at(1)),
            ("GET", ["twins", _]) => Self::GetTwin(at(1)),
            ("PATCH", ["twins", _]) => Self::PatchTwin(at(1)),
            ("PUT", ["twins", _]) => Self::PutTwin(at(1)),
            ("POST", ["twins", _, "methods"]) => Self::InvokeMethod(at(1)),
            ("POST", ["devices", _, "messages", "events"]) => Self::SendEvent(at(1)),
            (method, ["devices", _, "messages", "devicebound", rest @ ..]) => {
                match (method, rest) {
                    ("GET", []) => Self::ReceiveMessage(at(1)),
                    ("DELETE", [_]) => Self::CompleteMessage(at(1), at(4)),
                    ("POST", [_, "abandon"]) => Self::AbandonMessage(at(1), at(4)),
                    _ => return None,
                }
            }
            ("GET", ["statistics", "devices"]) => Self::DeviceStatistics,
            ("GET", ["statistics", "service"]) => Self::ServiceStatistics,
            (method, ["messages", "servicebound", "feedback", rest @ ..]) => match (method, rest) {
                ("GET", []) => Self::ReceiveFeedback,
                ("DELETE", [_]) => Self::CompleteFeedback(at(3)),
                ("POST", [_, "abandon"]) => Self::AbandonFeedback(at(3)),
                _ => return None,
            },
            (method, ["messages", "servicebound", "filenotifications", rest @ ..]) => {
                match (method, rest) {
                    ("GET", []) => Self::ReceiveFileNotification,
                    ("DELETE", [_]) | ("POST", [_, "abandon"]) => {
                        Self::SettleFileNotification(at(3))
                    }
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// Returns the caller the route is for.
    pub(crate) fn caller(self) -> Caller<'a> {
        Caller::Service(match self {
            Self::SendEvent(id)
            | Self::ReceiveMessage(id)
            | Self::CompleteMessage(id, _)
            | Self::AbandonMessage(id, _) => return Caller::Device(id),
            Self::Query | Self::GetTwin(_) => Action::ReadTwins,
            Self::PatchTwin(_) | Self::PutTwin(_) => Action::WriteTwins,
            Self::Purge(_) => Action::PurgeQueue,
            Self::ReceiveFeedback | Self::CompleteFeedback(_) | Self::AbandonFeedback(_) => {
                Action::ReceiveFeedback
            }
            Self::ReceiveFileNotification | Self::SettleFileNotification(_) => {
                Action::ReceiveFileNotifications
            }
            Self::InvokeMethod(_) => Action::InvokeMethods,
            Self::ListDevices | Self::GetDevice(_) => Action::ReadDevices,
            Self::DeviceStatistics | Self::ServiceStatistics => Action::ReadStatistics,
            Self::Bulk | Self::PutDevice(_) => Action::WriteDevices,
            Self::DeleteDevice(_) => Action::DeleteDevices,
        })
    }

    /// Returns the throttle of the route. Routes metered by devices, messages or bytes return
    /// `None` and ask for permits in the handler.
    pub(crate) fn operation(self) -> Option<Operation> {
        match self {
            Self::Query => Some(Operation::Query),
            Self::GetTwin(_) => Some(Operation::TwinRead),
            Self::PatchTwin(_) | Self::PutTwin(_) => Some(Operation::TwinUpdate),
            Self::Bulk
            | Self::ReceiveFeedback
            | Self::CompleteFeedback(_)
            | Self::AbandonFeedback(_)
            | Self::ReceiveFileNotification
            | Self::SettleFileNotification(_)
            | Self::InvokeMethod(_)
            | Self::SendEvent(_)
            | Self::CompleteMessage(..)
            | Self::AbandonMessage(..) => None,
            Self::ReceiveMessage(_) => Some(Operation::DeviceReceive),
            Self::ListDevices
            | Self::GetDevice(_)
            | Self::PutDevice(_)
            | Self::DeleteDevice(_)
            | Self::Purge(_)
            | Self::DeviceStatistics
            | Self::ServiceStatistics => Some(Operation::Registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_map_to_the_routes_of_the_hub() {
        use Destination::{Emulated, NotFound, OtherMethod};
        let missing = |what| Destination::NotEmulated(what);
        for (method, path, expected) in [
            ("GET", "devices", Emulated(Route::ListDevices)),
            ("get", "devices", OtherMethod),
            (
                "PUT",
                "Devices/Fridge-1",
                Emulated(Route::PutDevice("Fridge-1")),
            ),
            ("POST", "devices/query", Emulated(Route::Query)),
            // A device may have this name.
            ("GET", "devices/query", Emulated(Route::GetDevice("query"))),
            ("PATCH", "devices/d", OtherMethod),
            (
                "DELETE",
                "devices/query",
                Emulated(Route::DeleteDevice("query")),
            ),
            ("DELETE", "devices/d/commands", Emulated(Route::Purge("d"))),
            ("GET", "devices/d/commands", OtherMethod),
            (
                "GET",
                "messages/serviceBound/feedback",
                Emulated(Route::ReceiveFeedback),
            ),
            (
                "DELETE",
                "messages/servicebound/feedback/T-1",
                Emulated(Route::CompleteFeedback("T-1")),
            ),
            (
                "POST",
                "messages/serviceBound/feedback/T-1/abandon",
                Emulated(Route::AbandonFeedback("T-1")),
            ),
            ("POST", "messages/serviceBound/feedback", OtherMethod),
            (
                "GET",
                "messages/serviceBound/filenotifications",
                Emulated(Route::ReceiveFileNotification),
            ),
            ("GET", "devices/d/modules", missing("modules")),
            ("PATCH", "twins/d/modules/m", missing("modules")),
            ("POST", "twins/d/modules/m/methods", missing("modules")),
            (
                "POST",
                "twins/d/methods",
                Emulated(Route::InvokeMethod("d")),
            ),
            ("GET", "twins/d/methods", OtherMethod),
            ("POST", "devices/d/files", missing("file uploads")),
            (
                "POST",
                "devices/d/files/notifications",
                missing("file uploads"),
            ),
            (
                "GET",
                "devices/D/messages/deviceBound",
                Emulated(Route::ReceiveMessage("D")),
            ),
            (
                "DELETE",
                "devices/d/messages/devicebound/T-1",
                Emulated(Route::CompleteMessage("d", "T-1")),
            ),
            (
                "POST",
                "devices/d/messages/devicebound/T-1/abandon",
                Emulated(Route::AbandonMessage("d", "T-1")),
            ),
            ("PUT", "jobs/v2/j", missing("jobs")),
            ("GET", "jobs/v2/query", missing("jobs")),
            ("POST", "jobs/create", missing("jobs")),
            ("GET", "configurations", missing("configurations")),
            (
                "POST",
                "devices/d/applyConfigurationContent",
                missing("configurations"),
            ),
            (
                "POST",
                "devices/d/messages/events",
                Emulated(Route::SendEvent("d")),
            ),
            ("GET", "digitaltwins/d", missing("digital twins")),
            (
                "POST",
                "messages/deviceBound",
                missing("messages to devices over HTTPS; use AMQP"),
            ),
            ("GET", "nonsense", NotFound),
            ("GET", "", NotFound),
            ("GET", "messages", NotFound),
        ] {
            let segments: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(
                Destination::find(&method, &segments),
                expected,
                "{method} {path}"
            );
        }
    }
}
