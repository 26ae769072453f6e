//! The client: one hub, one set of credentials and one TLS configuration, shared by REST and AMQP.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::TlsConnector;
use twincast_tls::{RootsError, client_config};

use crate::amqp::dial::LastTransport;
use crate::c2d::ConnectionFailure;
use crate::clock::{ClockOffset, HubClock};
use crate::connection_string::{ConnectionString, HubAddress};
use crate::credentials::{Credentials, HubCredentials, Permission, SharedAccess};
use crate::options::{ClientOptions, Endpoint, OptionsError, Transport};
use crate::rest::transport::Http;

/// The port of AMQP over TLS on every hub.
const AMQPS_PORT: u16 = 5_671;

/// The port of the REST interface on every hub.
const HTTPS_PORT: u16 = 443;

/// A client of one IoT Hub. Cheap to clone; connections are dialled on first use.
///
/// `Debug` shows the host and the client's identity, never keys or tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {
    pub(crate) host_name: String,
    pub(crate) options: ClientOptions,
    pub(crate) clock: Arc<HubClock>,
    pub(crate) credentials: HubCredentials,
    pub(crate) connector: TlsConnector,
    pub(crate) amqp: Target,
    /// The transport of the latest AMQP connection.
    pub(crate) last_transport: LastTransport,
    pub(crate) http: Http,
}

/// The address to dial for one of the two protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why a client could not be created.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// An option is out of bounds.
    #[error("client options are not valid")]
    Options(#[from] OptionsError),
    /// The certificate authorities cannot be loaded.
    #[error("failed to load certificate authorities")]
    Roots(#[from] RootsError),
    /// The HTTP library cannot be set up.
    #[error("failed to set up the HTTP client")]
    Http(#[source] reqwest::Error),
}

impl Client {
    /// Checks the options and loads the certificate authorities. Does no network I/O.
    ///
    /// # Errors
    ///
    /// When an option is out of bounds or the authorities cannot be loaded.
    pub fn new(connection: &ConnectionString, options: ClientOptions) -> Result<Self, ClientError> {
        let keys = SharedAccess::from(connection.clone());
        Self::with_credentials(
            connection.address(),
            Credentials::SharedAccess(keys),
            options,
        )
    }

    /// Like [`new`](Self::new), with an address and credentials in place of a connection string.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_credentials(
        hub: &HubAddress,
        credentials: Credentials,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        options.validate()?;
        let tls = client_config(&options.roots)?;
        let dialled = hub.gateway_host_name().unwrap_or(hub.host_name());
        let https = Target::new(&options.https, dialled, hub.port().unwrap_or(HTTPS_PORT));
        let http = Http::new(hub.host_name(), https, &tls, &options).map_err(ClientError::Http)?;
        let clock = Arc::new(HubClock::default());
        Ok(Self {
            inner: Arc::new(ClientInner {
                host_name: hub.host_name().to_owned(),
                credentials: HubCredentials::new(
                    hub.host_name(),
                    credentials,
                    options.token_lifetime,
                    Arc::clone(&clock),
                ),
                clock,
                connector: TlsConnector::from(tls),
                amqp: Target::new(&options.amqp, dialled, hub.port().unwrap_or(AMQPS_PORT)),
                last_transport: LastTransport::default(),
                http,
                options,
            }),
        })
    }

    /// The hub's host name, in lower case.
    #[must_use]
    pub fn host_name(&self) -> &str {
        &self.inner.host_name
    }

    /// The client's options.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// The transport of the latest AMQP connection. `None` before the first connection, and when
    /// the options name a fixed transport.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.inner.last_transport.get()
    }

    /// The port that a transport dials. For [`Transport::Auto`], the port tried first.
    #[must_use]
    pub fn port(&self, transport: Transport) -> u16 {
        self.inner.target(transport).port
    }

    /// How far the hub's clock is ahead of this machine's, according to the `Date` headers of HTTP
    /// responses. `None` before the first response, and right after a step of this machine's clock.
    /// A sender requests the time when connecting, and every five minutes.
    #[must_use]
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        self.inner.clock.offset()
    }
}

impl ClientInner {
    /// The address that a transport dials. For [`Transport::Auto`], the address tried first.
    pub(crate) fn target(&self, transport: Transport) -> &Target {
        match transport {
            Transport::AmqpWs => self.http.target(),
            Transport::Auto | Transport::Amqp => &self.amqp,
        }
    }

    /// Adds the right missing from the credentials to the description of a link's refusal.
    pub(crate) fn with_missing_permission(
        &self,
        failure: ConnectionFailure,
        permission: Permission,
    ) -> ConnectionFailure {
        match failure {
            ConnectionFailure::Ended {
                scope,
                condition,
                description,
            } if condition == "amqp:unauthorized-access" => ConnectionFailure::Ended {
                scope,
                condition,
                description: format!(
                    "{description}; {}",
                    self.credentials.missing_permission(permission)
                ),
            },
            failure => failure,
        }
    }

    /// Adds this machine's clock error, if any, to a refusal of the credentials: a token signed
    /// before the error was known has the wrong expiry.
    pub(crate) fn with_clock(&self, failure: ConnectionFailure) -> ConnectionFailure {
        match (failure, self.clock.disagreement()) {
            (
                ConnectionFailure::Unauthorised {
                    identity,
                    status,
                    description,
                },
                Some(offset),
            ) => ConnectionFailure::Unauthorised {
                identity,
                status,
                description: format!("{description} (this machine's clock is {offset} the hub's)"),
            },
            (failure, _) => failure,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("host_name", &self.inner.host_name)
            .field("identity", &self.inner.credentials.identity())
            .finish_non_exhaustive()
    }
}

impl Target {
    fn new(endpoint: &Endpoint, host: &str, port: u16) -> Self {
        Self {
            host: endpoint.host.clone().unwrap_or_else(|| host.to_owned()),
            port: endpoint.port.unwrap_or(port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
