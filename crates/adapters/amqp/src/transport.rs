//! From an address to a stream: look-up, TCP, TLS.
//!
//! The client library can do this itself. It is done here because each step then has an error and
//! a time limit of its own, a private authority can stand alone (the library fails on a system
//! that has none), and a handshake that hangs can be ended: the library's thread for it would
//! otherwise wait as long as the silent peer does.

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

/// How long closing in good order may take. The broker notices a closed socket just as well.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Whom to trust. Nothing for a connection without TLS.
#[derive(Clone)]
pub(crate) struct Trust(Option<RustlsConnector>);

impl Trust {
    /// Reads the current authorities.
    pub(crate) fn load(settings: &Settings, urls: &BrokerUrls) -> Result<Self, ConnectError> {
        if !urls.is_tls() {
            return Ok(Self(None));
        }
        let ca_file = settings.ca_file.clone();
        let config = twincast_tls::client_config(&ca_file.map_or(Roots::System, Roots::OnlyFile))?;
        Ok(Self(Some(ClientConfig::clone(&config).into())))
    }
}

/// A connection, and a way to end it that does not ask anybody.
pub(crate) struct Line {
    pub(crate) connection: Connection,
    /// The address of the peer.
    pub(crate) url: BrokerUrl,
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
    url: &BrokerUrl,
    trust: &Trust,
    deadline: Instant,
) -> Result<Line, ConnectError> {
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
        stream = secured.map_err(|source| ConnectError::Tls {
            broker: url.address(),
            source,
        })?;
    }

    let properties = ConnectionProperties::default()
        .with_connection_name(settings.connection_name.as_str().into())
        .with_client_property("product".into(), "twincast".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    // Asked for once: the library is told neither to retry nor to recover.
    let stream = std::sync::Mutex::new(Some(stream));
    let connection = Connection::connector(
        settings.uri(url),
        runtime,
        async move |_, _| {
            quieten();
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            Ok(stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?)
        },
        properties,
    );
    match timeout_at(deadline, connection).await {
        Ok(Ok(connection)) => Ok(Line {
            connection,
            url: url.clone(),
            plug,
        }),
        Ok(Err(error)) => Err(handshake(url, error)),
        Err(_) => {
            plug.pull();
            Err(late("greeting it"))
        }
    }
}

/// Silences the current thread, which is the library's own for one connection. It logs every frame
/// as a trace, the one with the password among them, and as an error what is none, such as asking
/// for a queue that is not there. What matters comes back as errors and events, and we tell.
fn quieten() {
    let silence = tracing::dispatcher::set_default(&tracing::Dispatch::none());
    // For as long as the thread lasts.
    std::mem::forget(silence);
}
