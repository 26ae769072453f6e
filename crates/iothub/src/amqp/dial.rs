//! The byte stream of an AMQP connection: TLS on the port of AMQP, or a WebSocket on the port of
//! HTTPS.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tracing::info;
use twincast_tunnel::WebSocketBytes;

use super::connection::Stage;
use crate::client::ClientInner;
use crate::connect_error::ConnectError;
use crate::options::Transport;

/// The hub's WebSocket path, and the subprotocol of AMQP (Microsoft's reference of IoT Hub
/// endpoints; all official SDKs).
const PATH: &str = "/$iothub/websocket";
const SUBPROTOCOL: &str = "AMQPWSB10";

/// Time limit of the first of two transports, before the other transport is tried: a firewall that
/// drops packets gives no error.
const FIRST_WITHIN: Duration = Duration::from_secs(8);

/// The connected transport below AMQP.
pub(crate) enum AmqpStream {
    Tls(Box<TlsStream<TcpStream>>),
    WebSocket(Box<WebSocketBytes<TlsStream<TcpStream>>>),
}

/// The latest successful transport, for a client free to use either.
#[derive(Debug, Default)]
pub(crate) struct LastTransport(Mutex<Option<Transport>>);

impl LastTransport {
    pub(crate) fn get(&self) -> Option<Transport> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the transport; returns `true` on a change.
    fn set(&self, transport: Transport) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.replace(transport) != Some(transport)
    }
}

/// Connects by the transport named in the options, or by the first of the two to reach the hub.
pub(super) async fn dial(client: &ClientInner, stage: &Stage) -> Result<AmqpStream, ConnectError> {
    let (first, second) = match (client.options.transport, client.last_transport.get()) {
        (Transport::Auto, Some(Transport::AmqpWs)) => (Transport::AmqpWs, Some(Transport::Amqp)),
        (Transport::Auto, _) => (Transport::Amqp, Some(Transport::AmqpWs)),
        (only, _) => (only, None),
    };
    let Some(second) = second else {
        return dial_transport(client, first, stage).await;
    };
    let within = FIRST_WITHIN.min(client.options.connect_timeout / 2);
    let failed = match timeout(within, dial_transport(client, first, stage)).await {
        Ok(Ok(stream)) => return Ok(record_transport(client, first, stream, None)),
        Ok(Err(error)) => error,
        Err(_) => ConnectError::Timeout {
            stage: stage.get(),
            limit: within,
        },
    };
    if !failed.another_port_may_help() {
        return Err(failed);
    }
    match dial_transport(client, second, stage).await {
        Ok(stream) => Ok(record_transport(client, second, stream, Some(&failed))),
        Err(other) => Err(ConnectError::Both {
            first: Box::new(failed),
            second: Box::new(other),
        }),
    }
}

/// Logs the transport in use, the first time and after every change.
fn record_transport(
    client: &ClientInner,
    transport: Transport,
    stream: AmqpStream,
    failed: Option<&ConnectError>,
) -> AmqpStream {
    if client.last_transport.set(transport) {
        let failed = failed.map(|error| super::connection::describe(error));
        info!(
            hub = %client.host_name,
            transport = transport.name(),
            address = %client.target(transport),
            other = failed,
            "AMQP transport chosen"
        );
    }
    stream
}

async fn dial_transport(
    client: &ClientInner,
    transport: Transport,
    stage: &Stage,
) -> Result<AmqpStream, ConnectError> {
    let target = client.target(transport);
    stage.set("connecting");
    let tcp = twincast_tunnel::connect(&target.host, target.port, &client.options.proxy);
    let tcp = tcp.await.map_err(ConnectError::from_dial)?;
    stage.set("performing the TLS handshake");
    let host = || client.host_name.clone();
    let name = ServerName::try_from(host()).map_err(|error| ConnectError::Tls {
        host: host(),
        source: Arc::new(io::Error::other(error)),
    })?;
    let tls = client
        .connector
        .connect(name, tcp)
        .await
        .map_err(|source| ConnectError::from_tls(host(), source))?;
    if transport != Transport::AmqpWs {
        return Ok(AmqpStream::Tls(Box::new(tls)));
    }
    stage.set("performing the WebSocket handshake");
    let authority = match target.port {
        443 => host(),
        port => format!("{}:{port}", client.host_name),
    };
    let opened = WebSocketBytes::open(tls, &authority, PATH, SUBPROTOCOL).await;
    let stream = opened.map_err(|source| ConnectError::WebSocket {
        host: host(),
        source: Arc::new(source),
    })?;
    Ok(AmqpStream::WebSocket(Box::new(stream)))
}

impl AsyncRead for AmqpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::WebSocket(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for AmqpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(context, data),
            Self::WebSocket(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::WebSocket(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::WebSocket(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
