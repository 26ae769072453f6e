//! The client: one hub, one set of credentials, one TLS configuration, shared by REST and AMQP.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::TlsConnector;

use crate::amqp::dial::Remembered;
use crate::c2d::ConnectionFailure;
use crate::clock::{ClockOffset, HubClock};
use crate::connection_string::{ConnectionString, HubAddress};
use crate::credentials::{Credentials, Right, SharedAccess, Shown};
use crate::options::{ClientOptions, Endpoint, OptionsError, Transport};
use crate::rest::transport::Http;

/// The port of AMQP over TLS on every hub.
const AMQPS_PORT: u16 = 5_671;

/// The port of the REST interface on every hub.
const HTTPS_PORT: u16 = 443;

/// A client of one IoT Hub. Cheap to clone; nothing is dialled before it is needed.
///
/// `Debug` shows the host and who the client is, never keys or tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {
    pub(crate) host_name: String,
    pub(crate) options: ClientOptions,
    pub(crate) clock: Arc<HubClock>,
    pub(crate) credentials: Shown,
    pub(crate) connector: TlsConnector,
    pub(crate) amqp: Target,
    /// Which transport AMQP took last.
    pub(crate) remembered: Remembered,
    pub(crate) http: Http,
}

/// What is dialled for one of the two protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why a client could not be made.
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
    /// Checks the options, loads the certificate authorities, and is ready. Does no network.
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

    /// As [`new`](Self::new), for a hub that is shown these credentials.
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
                credentials: Shown::new(
                    hub.host_name(),
                    credentials,
                    options.token_lifetime,
                    Arc::clone(&clock),
                ),
                clock,
                connector: TlsConnector::from(tls),
                amqp: Target::new(&options.amqp, dialled, hub.port().unwrap_or(AMQPS_PORT)),
                remembered: Remembered::default(),
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

    /// The options that it was made with.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// Which transport AMQP took last; `None` before the first connection, and where the options name one.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.inner.remembered.get()
    }

    /// How far the hub's clock is ahead of this machine's, as its HTTP responses have told. `None` before the first
    /// one, and right after this machine's clock was set. A sender asks for it when it connects, and every five
    /// minutes.
    #[must_use]
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        self.inner.clock.offset()
    }
}

impl ClientInner {
    /// Adds to a link's refusal what the credentials lack.
    pub(crate) fn with_needs(&self, failure: ConnectionFailure, right: Right) -> ConnectionFailure {
        match failure {
            ConnectionFailure::Ended {
                what,
                condition,
                description,
            } if condition == "amqp:unauthorized-access" => ConnectionFailure::Ended {
                what,
                condition,
                description: format!("{description}; {}", self.credentials.needs(right)),
            },
            failure => failure,
        }
    }

    /// Adds to a refusal of the credentials that this machine's clock is wrong, where it is: a token that was signed
    /// before that was known has the wrong expiry.
    pub(crate) fn with_clock(&self, failure: ConnectionFailure) -> ConnectionFailure {
        match (failure, self.clock.wrong()) {
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
