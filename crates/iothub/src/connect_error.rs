//! Why a connection could not be made, told apart so that a person knows what to do.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use twincast_tunnel::{DialError, HandshakeError};

use crate::amqp::connection::in_words;

/// What stage of connecting failed, and why. Cheap to clone: sources are shared.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host name has no address.
    #[error("failed to resolve {host}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver says.
        source: Arc<io::Error>,
    },
    /// Nothing listens there.
    #[error("connection to {address} was refused")]
    Refused {
        /// Host and port that were dialled.
        address: String,
        /// What the operating system says.
        source: Arc<io::Error>,
    },
    /// Another failure of TCP: unreachable, reset.
    #[error("failed to connect to {address}")]
    Tcp {
        /// Host and port that were dialled.
        address: String,
        /// What the operating system says.
        source: Arc<io::Error>,
    },
    /// The certificate is not signed by an authority that we believe.
    #[error("certificate of {host} is signed by an unknown authority")]
    UnknownIssuer {
        /// The host name that was expected.
        host: String,
        /// What the TLS library says.
        source: Arc<io::Error>,
    },
    /// The certificate is for another name.
    #[error("certificate presented is not for {host}")]
    WrongName {
        /// The host name that was expected.
        host: String,
        /// What the TLS library says; it lists the certificate's names.
        source: Arc<io::Error>,
    },
    /// The certificate has expired or is not valid yet; our clock may be wrong.
    #[error("certificate of {host} is not valid at this time")]
    CertificateDates {
        /// The host name that was expected.
        host: String,
        /// What the TLS library says.
        source: Arc<io::Error>,
    },
    /// Another failure of the TLS handshake.
    #[error("TLS handshake with {host} failed")]
    Tls {
        /// The host name that was expected.
        host: String,
        /// What the TLS library says.
        source: Arc<io::Error>,
    },
    /// The proxy does not lead to the hub.
    #[error("{0}")]
    Proxy(Arc<DialError>),
    /// The hub, or what answers in its place, takes no WebSocket.
    #[error("WebSocket with {host} was not opened")]
    WebSocket {
        /// The host name.
        host: String,
        /// What was answered.
        source: Arc<HandshakeError>,
    },
    /// Neither transport leads to the hub.
    #[error(
        "{}; and by the other transport: {}",
        in_words(first),
        in_words(second)
    )]
    Both {
        /// Why the transport that was tried first does not.
        first: Box<ConnectError>,
        /// Why the other one does not.
        second: Box<ConnectError>,
    },
    /// A stage took too long.
    #[error("{stage} took longer than {limit:?}")]
    Timeout {
        /// What was under way.
        stage: &'static str,
        /// Its bound.
        limit: Duration,
    },
}

impl ConnectError {
    /// Whether trying again without changing anything can help. False for certificates of unknown issuers or other
    /// names: a person has to act.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::UnknownIssuer { .. } | Self::WrongName { .. } => false,
            Self::Both { first, second } => first.is_transient() && second.is_transient(),
            _ => true,
        }
    }

    /// One sentence that tells a person what to check.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "check the HostName of the connection string and the resolver",
            Self::Refused { .. } => "check the port and whether a firewall or proxy is in between",
            Self::Tcp { .. } => "check the network between here and the hub",
            Self::UnknownIssuer { .. } => {
                "give the certificate authority of the hub or of the proxy in between as a custom root"
            }
            Self::WrongName { .. } => "use the host name that the certificate is for",
            Self::CertificateDates { .. } => {
                "check this machine's clock and the certificate's dates"
            }
            Self::Tls { .. } => "check that the port speaks TLS 1.2 or 1.3",
            Self::Proxy(_) => {
                "check the proxy, its user and password, and that it opens tunnels to the hub's port; most allow 443 only"
            }
            Self::WebSocket { .. } => "check that a proxy in between lets WebSockets through",
            Self::Both { .. } => {
                "check the network: ports 5671 and 443 of the hub, and the proxy if there is one"
            }
            Self::Timeout { .. } => "check the network, or allow more time",
        }
    }

    /// Whether another port, or a proxy that allows another port, may lead to the hub.
    pub(crate) fn may_be_the_ports(&self) -> bool {
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

    /// Sorts a failure to open a TCP connection.
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

    /// Sorts a failure of `connect(2)`.
    pub(crate) fn from_tcp(address: String, source: io::Error) -> Self {
        let source = Arc::new(source);
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address, source },
            _ => Self::Tcp { address, source },
        }
    }

    /// Sorts a failure of the TLS handshake by the rustls error inside.
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
        // A bad signature is what an authority of the right name and another key looks like.
        E::UnknownIssuer | E::BadSignature => ConnectError::UnknownIssuer { host, source },
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            ConnectError::WrongName { host, source }
        }
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            ConnectError::CertificateDates { host, source }
        }
        // A self-signed leaf that is not a root of ours, as webpki reports it.
        E::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            ConnectError::UnknownIssuer { host, source }
        }
        _ => ConnectError::Tls { host, source },
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An error and what caused it, in order. An `io::Error` made from another error shows that one, too, which its
/// `source` skips.
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
    fn certificate_problems_are_told_apart() {
        use rustls::CertificateError as C;
        let sort = |problem| {
            let inner = io::Error::other(rustls::Error::InvalidCertificate(problem));
            ConnectError::from_tls("h".into(), io::Error::other(inner))
        };
        assert!(matches!(
            sort(C::UnknownIssuer),
            ConnectError::UnknownIssuer { .. }
        ));
        assert!(matches!(
            sort(C::NotValidForName),
            ConnectError::WrongName { .. }
        ));
        assert!(matches!(
            sort(C::Expired),
            ConnectError::CertificateDates { .. }
        ));
        assert!(matches!(
            sort(C::BadSignature),
            ConnectError::UnknownIssuer { .. }
        ));
        assert!(matches!(sort(C::Revoked), ConnectError::Tls { .. }));
        assert!(!sort(C::UnknownIssuer).is_transient());
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            ConnectError::from_tcp("h:1".into(), refused),
            ConnectError::Refused { .. }
        ));
    }
}
