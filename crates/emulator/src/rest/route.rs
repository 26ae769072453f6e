//! The routes of the service's REST interface: those that the emulator has, and those that only the hub has.

use http::Method;

use crate::entra::Action;
use crate::hub::Operation;

/// A route that the emulator has.
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
    /// The device and the lock.
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

/// Who may ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker<'a> {
    /// A service that may do this.
    Service(Action),
    /// The device of that id.
    Device(&'a str),
}

/// Where a request leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination<'a> {
    Here(Route<'a>),
    /// The hub has it, the emulator has not; what it belongs to.
    NotEmulated(&'static str),
    /// Another method would lead somewhere.
    OtherMethod,
    Nowhere,
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
    /// The destination of a request. Names in paths are compared without regard to case, as the hub does.
    pub(crate) fn find(method: &Method, segments: &[&'a str]) -> Self {
        let names: Vec<String> = segments
            .iter()
            .map(|segment| segment.to_ascii_lowercase())
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(route) = Route::find(method, &names, segments) {
            Self::Here(route)
        } else if let Some(what) = not_emulated(&names) {
            Self::NotEmulated(what)
        } else if METHODS
            .iter()
            .any(|method| Route::find(method, &names, segments).is_some())
        {
            Self::OtherMethod
        } else {
            Self::Nowhere
        }
    }
}

/// What a path belongs to that only the hub has, by its names in lower case.
fn not_emulated(names: &[&str]) -> Option<&'static str> {
    Some(match names {
        ["devices" | "twins", _, "modules", ..] => "modules",
        ["devices", _, "applyconfigurationcontent"] | ["configurations", ..] => "configurations",
        ["devices", _, "files", ..] => "uploads of files",
        ["jobs", ..] => "jobs",
        ["digitaltwins", ..] => "digital twins",
        ["messages", "devicebound"] => "messages to devices over HTTPS; AMQP has them",
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

    /// Who may ask.
    pub(crate) fn asker(self) -> Asker<'a> {
        Asker::Service(match self {
            Self::SendEvent(id)
            | Self::ReceiveMessage(id)
            | Self::CompleteMessage(id, _)
            | Self::AbandonMessage(id, _) => return Asker::Device(id),
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

    /// The throttle the route falls under; what counts devices, messages or bytes asks for its permits itself.
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
    fn requests_lead_where_the_hub_has_them() {
        use Destination::{Here, Nowhere, OtherMethod};
        let missing = |what| Destination::NotEmulated(what);
        for (method, path, expected) in [
            ("GET", "devices", Here(Route::ListDevices)),
            ("get", "devices", OtherMethod),
            (
                "PUT",
                "Devices/Fridge-1",
                Here(Route::PutDevice("Fridge-1")),
            ),
            ("POST", "devices/query", Here(Route::Query)),
            // A device may have that name.
            ("GET", "devices/query", Here(Route::GetDevice("query"))),
            ("PATCH", "devices/d", OtherMethod),
            (
                "DELETE",
                "devices/query",
                Here(Route::DeleteDevice("query")),
            ),
            ("DELETE", "devices/d/commands", Here(Route::Purge("d"))),
            ("GET", "devices/d/commands", OtherMethod),
            (
                "GET",
                "messages/serviceBound/feedback",
                Here(Route::ReceiveFeedback),
            ),
            (
                "DELETE",
                "messages/servicebound/feedback/T-1",
                Here(Route::CompleteFeedback("T-1")),
            ),
            (
                "POST",
                "messages/serviceBound/feedback/T-1/abandon",
                Here(Route::AbandonFeedback("T-1")),
            ),
            ("POST", "messages/serviceBound/feedback", OtherMethod),
            (
                "GET",
                "messages/serviceBound/filenotifications",
                Here(Route::ReceiveFileNotification),
            ),
            ("GET", "devices/d/modules", missing("modules")),
            ("PATCH", "twins/d/modules/m", missing("modules")),
            ("POST", "twins/d/modules/m/methods", missing("modules")),
            ("POST", "twins/d/methods", Here(Route::InvokeMethod("d"))),
            ("GET", "twins/d/methods", OtherMethod),
            ("POST", "devices/d/files", missing("uploads of files")),
            (
                "POST",
                "devices/d/files/notifications",
                missing("uploads of files"),
            ),
            (
                "GET",
                "devices/D/messages/deviceBound",
                Here(Route::ReceiveMessage("D")),
            ),
            (
                "DELETE",
                "devices/d/messages/devicebound/T-1",
                Here(Route::CompleteMessage("d", "T-1")),
            ),
            (
                "POST",
                "devices/d/messages/devicebound/T-1/abandon",
                Here(Route::AbandonMessage("d", "T-1")),
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
                Here(Route::SendEvent("d")),
            ),
            ("GET", "digitaltwins/d", missing("digital twins")),
            (
                "POST",
                "messages/deviceBound",
                missing("messages to devices over HTTPS; AMQP has them"),
            ),
            ("GET", "nonsense", Nowhere),
            ("GET", "", Nowhere),
            ("GET", "messages", Nowhere),
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
