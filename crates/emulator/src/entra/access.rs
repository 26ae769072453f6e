//! Operations of a hub, and the Azure roles that allow them.

use serde::Deserialize;

use crate::policy::Permissions;

/// The prefix of a hub's data actions in Azure.
const PREFIX: &str = "Microsoft.Devices/IotHubs/";

/// An operation of a hub subject to authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    SendToDevices,
    ReceiveFeedback,
    PurgeQueue,
    ReceiveFileNotifications,
    ReadTwins,
    WriteTwins,
    ReadDevices,
    WriteDevices,
    DeleteDevices,
    InvokeMethods,
    ReadStatistics,
}

impl Action {
    /// Returns the name of the operation's data action in Azure, below `Microsoft.Devices/IotHubs/`
    /// (learn.microsoft.com, "Control access to IoT Hub by using Microsoft Entra ID").
    fn name(self) -> &'static str {
        match self {
            Self::SendToDevices => "cloudToDeviceMessages/send/action",
            Self::ReceiveFeedback => "cloudToDeviceMessages/feedback/action",
            Self::PurgeQueue => "cloudToDeviceMessages/queue/purge/action",
            Self::ReceiveFileNotifications => "fileUpload/notifications/action",
            Self::ReadTwins => "twins/read",
            Self::WriteTwins => "twins/write",
            Self::ReadDevices => "devices/read",
            Self::WriteDevices => "devices/write",
            Self::DeleteDevices => "devices/delete",
            Self::InvokeMethods => "directMethods/invoke/action",
            Self::ReadStatistics => "statistics/read",
        }
    }
}

impl Permissions {
    /// Whether a shared access policy with these permissions allows `action`.
    pub(crate) fn allow(self, action: Action) -> bool {
        self.include(match action {
            Action::SendToDevices
            | Action::ReceiveFeedback
            | Action::PurgeQueue
            | Action::ReceiveFileNotifications
            | Action::ReadTwins
            | Action::WriteTwins
            | Action::InvokeMethods => Self::SERVICE,
            Action::ReadDevices | Action::ReadStatistics => Self::REGISTRY_READ,
            Action::WriteDevices | Action::DeleteDevices => Self::REGISTRY_READ_WRITE,
        })
    }
}

/// A role: the name of a built-in Azure role, or a data action, in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Role(String);

impl TryFrom<String> for Role {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if actions(&name).is_empty() {
            return Err(format!(
                "{name:?} is neither a built-in role (IoT Hub Data Contributor, IoT Hub Data Reader, IoT Hub Registry Contributor, \
                 IoT Hub Twin Contributor) nor a data action {PREFIX}..."
            ));
        }
        Ok(Self(name))
    }
}

impl Role {
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn allows(&self, action: Action) -> bool {
        let allowed = actions(&self.0);
        allowed
            .iter()
            .any(|pattern| matches(pattern, action.name()))
    }
}

/// Returns the data actions allowed by a role, below the prefix.
fn actions(role: &str) -> Vec<&str> {
    match role {
        "IoT Hub Data Contributor" => vec!["*"],
        "IoT Hub Data Reader" => vec!["*/read", "fileUpload/notifications/action"],
        "IoT Hub Registry Contributor" => vec!["devices/*"],
        "IoT Hub Twin Contributor" => vec!["twins/*"],
        action => action.strip_prefix(PREFIX).into_iter().collect(),
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(text),
        Some((start, end)) => {
            let (text, start, end) = (
                text.to_ascii_lowercase(),
                start.to_ascii_lowercase(),
                end.to_ascii_lowercase(),
            );
            text.len() >= start.len() + end.len()
                && text.starts_with(&start)
                && text.ends_with(&end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_allow_their_actions() {
        use Action as A;
        for (role, allowed, refused) in [
            (
                "IoT Hub Data Contributor",
                &[A::SendToDevices, A::ReadStatistics][..],
                &[][..],
            ),
            (
                "IoT Hub Data Reader",
                &[A::ReadTwins, A::ReadDevices, A::ReceiveFileNotifications],
                &[A::SendToDevices, A::WriteTwins, A::ReceiveFeedback],
            ),
            (
                "IoT Hub Registry Contributor",
                &[A::WriteDevices],
                &[A::ReadTwins],
            ),
            (
                "IoT Hub Twin Contributor",
                &[A::ReadTwins, A::WriteTwins],
                &[A::ReadDevices],
            ),
            (
                "Microsoft.Devices/IotHubs/cloudToDeviceMessages/*",
                &[A::SendToDevices, A::ReceiveFeedback, A::PurgeQueue],
                &[A::ReadTwins],
            ),
            (
                "Microsoft.Devices/IotHubs/Twins/Read",
                &[A::ReadTwins],
                &[A::WriteTwins],
            ),
        ] {
            let role = Role::try_from(role.to_owned()).unwrap();
            for action in allowed {
                assert!(role.allows(*action), "{role:?} {action:?}");
            }
            for action in refused {
                assert!(!role.allows(*action), "{role:?} {action:?}");
            }
        }
        assert!(Role::try_from("Owner".to_owned()).is_err());
    }
}
