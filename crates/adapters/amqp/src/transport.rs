//! From an address to a stream: look-up, TCP, TLS.
//!
//! The client library can do all of this, too. This module replaces the library's code for three
//! reasons: each step has an error and a time limit of its own; a private authority can stand alone
//! (the library fails on a system without authorities); and a hanging handshake can be ended (the
//! library's thread would wait for as long as the peer is silent).

use std::io;
use std::net::Shutdown;
use std::time::Duration;

use lapin::runtime::default_runtime;
use lapin::tcp::RustlsConnector;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls::ClientConfig;
use socket2::{SockRef, Socket};
use tokio::time::{Instant, timeout_at};
use twincast_tls::Roots;

use crate::error::{ConnectError, handshake};
use crate::settings::{BrokerUrl, BrokerUrls, Settings};

/// The time limit for an orderly close. The broker notices a closed socket just as well.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The trusted authorities; `None` for connections without TLS.
#[derive(Clone)]
pub(crate) struct Trust(Option<RustlsConnector>);

impl Trust {
    /// Loads the current authorities.
    pub(crate) fn load(settings: &Settings, urls: &BrokerUrls) -> Result<Self, ConnectError> {
        if !urls.is_tls() {
            return Ok(Self(None));
        }
        let ca_file = settings.ca_file.clone();
        let config = twincast_tls::client_config(&ca_file.map_or(Roots::System, Roots::OnlyFile))?;
        Ok(Self(Some(ClientConfig::clone(&config).into())))
    }
}

/// A connection, and a way to end the connection without the library.
pub(crate) struct Transport {
    pub(crate) connection: Connection,
    /// The address of the peer.
    pub(crate) url: BrokerUrl,
    socket: SocketHandle,
}

/// A second handle of a connection's socket.
struct SocketHandle(Option<Socket>);

impl SocketHandle {
    fn shut_down(&self) {
        if let Some(socket) = &self.0 {
            // Fails when the peer has just closed the connection.
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Transport {
    /// Closes the connection, in good order if possible within [`CLOSE_WITHIN`]. While the broker
    /// blocks the connection, the library writes nothing, not even the close.
    pub(crate) async fn close(&self) {
        let closed = self.connection.close(200, "goodbye".into());
        if tokio::time::timeout(CLOSE_WITHIN, closed).await.is_err() {
            self.socket.shut_down();
        }
    }
}

/// Connects and performs the handshakes, without retries, until `deadline`.
pub(crate) async fn connect(
    settings: &Settings,
    url: &BrokerUrl,
    trust: &Trust,
    deadline: Instant,
) -> Result<Transport, ConnectError> {
    let late = |doing| ConnectError::TimedOut {
        broker: url.address(),
        doing,
        after: settings.connect_timeout,
    };
    let unreachable = |source| ConnectError::Unreachable {
        broker: url.address(),
        source,
    };
    let runtime = default_runtime().map_err(|error| unreachable(io::Error::other(error)))?;

    let found = timeout_at(deadline, tokio::net::lookup_host((url.host(), url.port()))).await;
    let found = found.map_err(|_| late("resolving its name"))?;
    let addresses: Vec<_> = found.map_err(unreachable)?.collect();
    let stream = AsyncTcpStream::connect(&runtime, addresses.as_slice());
    let stream = timeout_at(deadline, stream).await;
    let stream = stream.map_err(|_| late("connecting"))?;
    let mut stream = stream.map_err(unreachable)?;
    let socket = SocketHandle(match &stream {
        AsyncTcpStream::Plain(tcp) => SockRef::from(tcp.get_ref()).try_clone().ok(),
        _ => None,
    });

    if let Some(connector) = &trust.0 {
        let secured = timeout_at(deadline, stream.into_rustls(connector, url.host())).await;
        let secured = secured.map_err(|_| late("doing the TLS handshake"))?;
        stream = secured.map_err(|source| ConnectError::Tls {
            broker: url.address(),
            source,
        })?;
    }

    let properties = ConnectionProperties::default()
        .with_connection_name(settings.connection_name.as_str().into())
        .with_client_property("product".into(), "twincast".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    // Called only once, because the library is configured neither to retry nor to recover.
    let stream = std::sync::Mutex::new(Some(stream));
    let connection = Connection::connector(
        settings.uri(url),
        runtime,
        async move |_, _| {
            silence_library_logs();
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            Ok(stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?)
        },
        properties,
    );
    match timeout_at(deadline, connection).await {
        Ok(Ok(connection)) => Ok(Transport {
            connection,
            url: url.clone(),
            socket,
        }),
        Ok(Err(error)) => Err(handshake(url, error)),
        Err(_) => {
            socket.shut_down();
            Err(late("doing the AMQP handshake"))
        }
    }
}

/// Silences logs of the current thread, the library's own thread for a connection. The library logs
/// every frame at trace level, including the frame with the password, and logs harmless events as
/// errors, such as a query for a missing queue. All relevant conditions come back as errors and
/// events, and are logged by this crate.
fn silence_library_logs() {
    let silence = tracing::dispatcher::set_default(&tracing::Dispatch::none());
    // For the lifetime of the thread.
    std::mem::forget(silence);
}
