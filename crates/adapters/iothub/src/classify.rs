//! Classifies failed connections for the engine. Queries, sends and feedback share these rules.

use twincast_core::ports::HubTrouble;
use twincast_iothub::{ConnectError, ConnectionFailure, CredentialsError};

/// Classifies a failed connection.
pub(crate) fn classify_connect_error(error: &ConnectError) -> HubTrouble {
    match error {
        ConnectError::UnknownIssuer { .. } => HubTrouble::Certificate,
        ConnectError::WrongName { .. } => HubTrouble::CertificateName,
        ConnectError::CertificateDates { .. } => HubTrouble::CertificateDates,
        ConnectError::Tls { .. } => HubTrouble::Tls,
        _ => HubTrouble::Unreachable,
    }
}

/// Classifies missing credentials.
pub(crate) fn classify_credentials_error(error: &CredentialsError) -> HubTrouble {
    if error.is_transient() {
        HubTrouble::Unreachable
    } else {
        HubTrouble::Unauthorized
    }
}

/// Classifies the failure of an AMQP link.
#[must_use]
pub fn classify_link_failure(failure: &ConnectionFailure) -> HubTrouble {
    match failure {
        ConnectionFailure::Connect(error) => classify_connect_error(error),
        ConnectionFailure::NoToken(error) => classify_credentials_error(error),
        ConnectionFailure::Unauthorised { .. } => HubTrouble::Unauthorized,
        ConnectionFailure::Ended { condition, .. } => match condition.as_str() {
            "amqp:unauthorized-access" => HubTrouble::Unauthorized,
            "com.microsoft:iot-hub-suspended" => HubTrouble::Unavailable,
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
    fn connection_failures_map_to_hub_troubles() {
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
            assert_eq!(
                classify_link_failure(&ConnectionFailure::Connect(error)),
                trouble
            );
        }
        let busy = ConnectionFailure::TokenNotTaken {
            status: Some(429),
            description: String::new(),
        };
        assert_eq!(classify_link_failure(&busy), HubTrouble::Unreachable);
        let stalled = ConnectionFailure::Stalled(Duration::ZERO);
        assert_eq!(classify_link_failure(&stalled), HubTrouble::Unreachable);
    }
}
