//! From an address to a stream: look-up, TCP, TLS.
//!
//! The client library can do this itself. It is done here because each step then has an error and
//! a time limit of its own, a private authority can stand alone (the library fails on a system
//! that has none), and a handshake that hangs can be ended: the library's thread for it would
//! otherwise wait as long as the silent peer does.

use std::io;
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use lapin::runtime::default_runtime;
use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use socket2::{SockRef, Socket};
use tokio::time::{Instant, timeout_at};

use crate::error::{ConnectError, handshake};
use crate::settings::Settings;

/// How long closing in good order may take. The broker notices a closed socket just as well.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Whom to trust.
#[derive(Clone)]
pub(crate) struct Trust(Option<RustlsConnector>);

impl Trust {
    /// Reads the authorities once; nothing for a connection without TLS.
    pub(crate) async fn load(settings: &Settings) -> Result<Self, ConnectError> {
        if !settings.url.is_tls() {
            return Ok(Self(None));
        }
        let config = match &settings.ca_file {
            Some(path) => private_authorities(path).await?,
            None => RustlsConnectorConfig::new_with_native_certs()
                .map_err(|source| tls_error(settings, source))?,
        };
        let connector = config.connector_with_no_client_auth();
        let connector = connector.map_err(|source| tls_error(settings, source))?;
        Ok(Self(Some(connector)))
    }
}

async fn private_authorities(path: &Path) -> Result<RustlsConnectorConfig, ConnectError> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::CaFile {
        path: path.to_owned(),
        source,
    };
    let pem = tokio::fs::read(path).await;
    let pem = pem.map_err(|error| unusable(error.into()))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| unusable(error.into()))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate in PEM".into()));
    }
    Ok(RustlsConnectorConfig::default().with_parsable_certificates(certificates))
}

/// A connection, and a way to end it that does not ask anybody.
pub(crate) struct Line {
    pub(crate) connection: Connection,
    plug: Plug,
}

/// Another handle of a connection's socket.
struct Plug(Option<Socket>);

impl Plug {
    fn pull(&self) {
        if let Some(socket) = &self.0 {
            // Fails when the peer has just ended it.
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Line {
    /// Closes the connection; in good order if that does not take long. The library writes
    /// nothing, not even this, while the broker blocks us.
    pub(crate) async fn hang_up(&self) {
        let closed = self.connection.close(200, "goodbye".into());
        if tokio::time::timeout(CLOSE_WITHIN, closed).await.is_err() {
            self.plug.pull();
        }
    }
}

/// Connects and goes through the handshakes, once, until `deadline`.
pub(crate) async fn connect(
    settings: &Settings,
    trust: &Trust,
    deadline: Instant,
) -> Result<Line, ConnectError> {
    let url = &settings.url;
    let late = |doing| ConnectError::TimedOut {
        broker: broker(settings),
        doing,
        after: settings.connect_timeout,
    };
    let unreachable = |source| ConnectError::Unreachable {
        broker: broker(settings),
        source,
    };
    let runtime = default_runtime().map_err(|error| unreachable(io::Error::other(error)))?;

    let found = timeout_at(deadline, tokio::net::lookup_host((url.host(), url.port()))).await;
    let found = found.map_err(|_| late("looking up its name"))?;
    let addresses: Vec<_> = found.map_err(unreachable)?.collect();
    let stream = AsyncTcpStream::connect(&runtime, addresses.as_slice());
    let stream = timeout_at(deadline, stream).await;
    let stream = stream.map_err(|_| late("connecting"))?;
    let mut stream = stream.map_err(unreachable)?;
    let plug = Plug(match &stream {
        AsyncTcpStream::Plain(tcp) => SockRef::from(tcp.get_ref()).try_clone().ok(),
        _ => None,
    });

    if let Some(connector) = &trust.0 {
        let secured = timeout_at(deadline, stream.into_rustls(connector, url.host())).await;
        let secured = secured.map_err(|_| late("securing the connection"))?;
        stream = secured.map_err(|source| tls_error(settings, source))?;
    }

    let properties = ConnectionProperties::default()
        .with_connection_name(settings.connection_name.as_str().into())
        .with_client_property("product".into(), "twincast".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    // Asked for once: the library is told neither to retry nor to recover.
    let stream = std::sync::Mutex::new(Some(stream));
    let connection = Connection::connector(
        settings.uri(),
        runtime,
        async move |_, _| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            Ok(stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?)
        },
        properties,
    );
    match timeout_at(deadline, connection).await {
        Ok(Ok(connection)) => Ok(Line { connection, plug }),
        Ok(Err(error)) => Err(handshake(broker(settings), url.user(), url.vhost(), error)),
        Err(_) => {
            plug.pull();
            Err(late("greeting it"))
        }
    }
}

/// `HOST:PORT`, for errors.
pub(crate) fn broker(settings: &Settings) -> String {
    format!("{}:{}", settings.url.host(), settings.url.port())
}

fn tls_error(settings: &Settings, source: io::Error) -> ConnectError {
    ConnectError::Tls {
        broker: broker(settings),
        source,
    }
}
