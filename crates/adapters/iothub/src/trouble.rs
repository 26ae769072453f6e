//! A failed connection in the engine's words. One rule for queries, sends and feedback.

use twincast_core::ports::HubTrouble;
use twincast_iothub::{ConnectError, ConnectionFailure, CredentialsError};

/// What stands in the way of a connection.
pub(crate) fn of_connect(error: &ConnectError) -> HubTrouble {
    match error {
        ConnectError::UnknownIssuer { .. } => HubTrouble::Certificate,
        ConnectError::WrongName { .. } => HubTrouble::CertificateName,
        ConnectError::CertificateDates { .. } => HubTrouble::CertificateDates,
        ConnectError::Tls { .. } => HubTrouble::Tls,
        _ => HubTrouble::Unreachable,
    }
}

/// What it means that there is nothing to show to the hub.
pub(crate) fn of_credentials(error: &CredentialsError) -> HubTrouble {
    if error.is_transient() {
        HubTrouble::Unreachable
    } else {
        HubTrouble::Unauthorized
    }
}

/// What stands in the way of an AMQP link.
#[must_use]
pub fn of_link(failure: &ConnectionFailure) -> HubTrouble {
    match failure {
        ConnectionFailure::Connect(error) => of_connect(error),
        ConnectionFailure::NoToken(error) => of_credentials(error),
        ConnectionFailure::Unauthorised { .. } => HubTrouble::Unauthorized,
        ConnectionFailure::Ended { condition, .. } => match condition.as_str() {
            "amqp:unauthorized-access" => HubTrouble::Unauthorized,
            "com.microsoft:iot-hub-suspended" => HubTrouble::Shut,
            _ => HubTrouble::Unreachable,
        },
        _ => HubTrouble::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_failure_has_its_own_trouble() {
        let source = || Arc::new(io::Error::other("why"));
        let host = || "h".to_owned();
        let connect = [
            (
                ConnectError::Dns {
                    host: host(),
                    source: source(),
                },
                HubTrouble::Unreachable,
            ),
            (
                ConnectError::UnknownIssuer {
                    host: host(),
                    source: source(),
                },
                HubTrouble::Certificate,
            ),
            (
                ConnectError::WrongName {
                    host: host(),
                    source: source(),
                },
                HubTrouble::CertificateName,
            ),
            (
                ConnectError::CertificateDates {
                    host: host(),
                    source: source(),
                },
                HubTrouble::CertificateDates,
            ),
            (
                ConnectError::Tls {
                    host: host(),
                    source: source(),
                },
                HubTrouble::Tls,
            ),
        ];
        for (error, trouble) in connect {
            assert_eq!(of_link(&ConnectionFailure::Connect(error)), trouble);
        }
        let busy = ConnectionFailure::TokenNotTaken {
            status: Some(429),
            description: String::new(),
        };
        assert_eq!(of_link(&busy), HubTrouble::Unreachable);
        let stalled = ConnectionFailure::Stalled(Duration::ZERO);
        assert_eq!(of_link(&stalled), HubTrouble::Unreachable);
    }
}
