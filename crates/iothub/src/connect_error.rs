//! Why a connection could not be established, classified so that an operator knows what to do.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use twincast_tunnel::{DialError, HandshakeError};

use crate::amqp::connection::describe;

/// The failed stage of connecting, and the cause. Cheap to clone: sources are shared.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host name has no address.
    #[error("failed to resolve {host}")]
    Dns {
        /// The name.
        host: String,
        /// The resolver's error.
        source: Arc<io::Error>,
    },
    /// Nothing listens at the address.
    #[error("connection to {address} was refused")]
    Refused {
        /// Host and port dialled.
        address: String,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// Another TCP failure: unreachable, reset.
    #[error("failed to connect to {address}")]
    Tcp {
        /// Host and port dialled.
        address: String,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// No trusted authority signed the certificate.
    #[error("certificate of {host} is signed by an unknown authority")]
    UnknownIssuer {
        /// The expected host name.
        host: String,
        /// The TLS library's error.
        source: Arc<io::Error>,
    },
    /// The certificate is for another name.
    #[error("certificate of {host} is for another host name")]
    WrongName {
        /// The expected host name.
        host: String,
        /// The TLS library's error; lists the certificate's names.
        source: Arc<io::Error>,
    },
    /// The certificate has expired or is not valid yet; this machine's clock may be wrong.
    #[error("certificate of {host} is not valid at this time")]
    CertificateDates {
        /// The expected host name.
        host: String,
        /// The TLS library's error.
        source: Arc<io::Error>,
    },
    /// Another failure of the TLS handshake.
    #[error("TLS handshake with {host} failed")]
    Tls {
        /// The expected host name.
        host: String,
        /// The TLS library's error.
        source: Arc<io::Error>,
    },
    /// The connection through the proxy failed.
    #[error("{0}")]
    Proxy(Arc<DialError>),
    /// The hub, or a server answering in the hub's place, did not open a WebSocket.
    #[error("failed to open a WebSocket to {host}")]
    WebSocket {
        /// The host name.
        host: String,
        /// The answer to the handshake.
        source: Arc<HandshakeError>,
    },
    /// Both transports failed.
    #[error(
        "{}; the other transport failed too: {}",
        describe(first),
        describe(second)
    )]
    Both {
        /// The error of the transport tried first.
        first: Box<ConnectError>,
        /// The error of the other transport.
        second: Box<ConnectError>,
    },
    /// A stage took too long.
    #[error("{stage} took longer than {limit:?}")]
    Timeout {
        /// The stage under way.
        stage: &'static str,
        /// The stage's time limit.
        limit: Duration,
    },
}

impl ConnectError {
    /// Whether a retry without any change can help. False for certificates of unknown issuers or
    /// for other names: an operator has to act.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::UnknownIssuer { .. } | Self::WrongName { .. } => false,
            Self::Both { first, second } => first.is_transient() && second.is_transient(),
            _ => true,
        }
    }

    /// Returns one sentence about the setting to check.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "check the HostName of the connection string and the DNS resolver",
            Self::Refused { .. } => {
                "check the port, and any firewall or proxy on the way to the hub"
            }
            Self::Tcp { .. } => "check the network between this machine and the hub",
            Self::UnknownIssuer { .. } => {
                "configure the certificate authority of the hub, or of the proxy on the way, as a custom root"
            }
            Self::WrongName { .. } => "use the host name in the certificate",
            Self::CertificateDates { .. } => {
                "check this machine's clock and the certificate's dates"
            }
            Self::Tls { .. } => "check that the port supports TLS 1.2 or 1.3",
            Self::Proxy(_) => {
                "check the proxy, its user and password, and that it allows tunnels to the hub's port; most proxies allow only port 443"
            }
            Self::WebSocket { .. } => "check that no proxy on the way blocks WebSockets",
            Self::Both { .. } => {
                "check the network: ports 5671 and 443 of the hub, and the proxy if there is one"
            }
            Self::Timeout { .. } => "check the network, or increase the time limit",
        }
    }

    /// Whether another port, or a proxy with another allowed port, may lead to the hub.
    pub(crate) fn another_port_may_help(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Tcp { .. }
            | Self::Tls { .. }
            | Self::Proxy(_)
            | Self::WebSocket { .. }
            | Self::Timeout { .. } => true,
            Self::Dns { .. }
            | Self::UnknownIssuer { .. }
            | Self::WrongName { .. }
            | Self::CertificateDates { .. }
            | Self::Both { .. } => false,
        }
    }

    /// Classifies a failure to open a TCP connection.
    pub(crate) fn from_dial(error: DialError) -> Self {
        match error {
            DialError::Dns { host, source } => Self::Dns {
                host,
                source: Arc::new(source),
            },
            DialError::Tcp { address, source } => Self::from_tcp(address, source),
            error => Self::Proxy(Arc::new(error)),
        }
    }

    /// Classifies a failure of `connect(2)`.
    pub(crate) fn from_tcp(address: String, source: io::Error) -> Self {
        let source = Arc::new(source);
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address, source },
            _ => Self::Tcp { address, source },
        }
    }

    /// Classifies a failure of the TLS handshake by the rustls error inside.
    pub(crate) fn from_tls(host: String, source: io::Error) -> Self {
        let source = Arc::new(source);
        match rustls_error(&source) {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                certificate_error(problem, host, source.clone())
            }
            _ => Self::Tls { host, source },
        }
    }
}

fn certificate_error(
    problem: &rustls::CertificateError,
    host: String,
    source: Arc<io::Error>,
) -> ConnectError {
    use rustls::CertificateError as E;
    match problem {
        // An authority with the right name and another key shows up as a bad signature.
        E::UnknownIssuer | E::BadSignature => ConnectError::UnknownIssuer { host, source },
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            ConnectError::WrongName { host, source }
        }
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            ConnectError::CertificateDates { host, source }
        }
        // webpki's error for a self-signed leaf outside of the trusted roots.
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            ConnectError::UnknownIssuer { host, source }
        }
        _ => ConnectError::Tls { host, source },
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns an error and its causes, in order. The `source` of an `io::Error` made from another
/// error skips the wrapped error; this iterator includes it.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_problems_are_distinguished() {
        use rustls::CertificateError as C;
        let classify = |problem| {
            let inner = io::Error::other(rustls::Error::InvalidCertificate(problem));
            ConnectError::from_tls("h".into(), io::Error::other(inner))
        };
        assert!(matches!(
            classify(C::UnknownIssuer),
            ConnectError::UnknownIssuer { .. }
        ));
        assert!(matches!(
            classify(C::NotValidForName),
            ConnectError::WrongName { .. }
        ));
        assert!(matches!(
            classify(C::Expired),
            ConnectError::CertificateDates { .. }
        ));
        assert!(matches!(
            classify(C::BadSignature),
            ConnectError::UnknownIssuer { .. }
        ));
        assert!(matches!(classify(C::Revoked), ConnectError::Tls { .. }));
        assert!(!classify(C::UnknownIssuer).is_transient());
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            ConnectError::from_tcp("h:1".into(), refused),
            ConnectError::Refused { .. }
        ));
    }
}
