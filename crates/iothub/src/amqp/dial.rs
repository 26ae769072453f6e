//! The byte stream of an AMQP connection: TLS on the port of AMQP, or a WebSocket on the port of HTTPS.

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
use crate::client::{ClientInner, Target};
use crate::connect_error::ConnectError;
use crate::options::Transport;

/// Where a hub takes WebSockets, and the subprotocol of AMQP (Microsoft's reference of IoT Hub endpoints; all official
/// SDKs).
const PATH: &str = "/$iothub/websocket";
const SUBPROTOCOL: &str = "AMQPWSB10";

/// How long the first of two transports may take to connect, before the other one is tried: a firewall that drops packets
/// says nothing.
const FIRST_WITHIN: Duration = Duration::from_secs(8);

/// What carries AMQP.
pub(crate) enum Wire {
    Tls(Box<TlsStream<TcpStream>>),
    WebSocket(Box<WebSocketBytes<TlsStream<TcpStream>>>),
}

/// Which transport led to the hub last, for a client that may use either.
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<Option<Transport>>);

impl Remembered {
    pub(crate) fn get(&self) -> Option<Transport> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `true` if it is news.
    fn set(&self, transport: Transport) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.replace(transport) != Some(transport)
    }
}

/// Connects by the transport that the options name, or by the first of both that leads to the hub.
pub(super) async fn dial(client: &ClientInner, stage: &Stage) -> Result<Wire, ConnectError> {
    let (first, second) = match (client.options.transport, client.remembered.get()) {
        (Transport::Auto, Some(Transport::AmqpWs)) => (Transport::AmqpWs, Some(Transport::Amqp)),
        (Transport::Auto, _) => (Transport::Amqp, Some(Transport::AmqpWs)),
        (only, _) => (only, None),
    };
    let Some(second) = second else {
        return by(client, first, stage).await;
    };
    let within = FIRST_WITHIN.min(client.options.connect_timeout / 2);
    let failed = match timeout(within, by(client, first, stage)).await {
        Ok(Ok(wire)) => return Ok(remember(client, first, wire, None)),
        Ok(Err(error)) => error,
        Err(_) => ConnectError::Timeout {
            stage: stage.get(),
            limit: within,
        },
    };
    if !failed.may_be_the_ports() {
        return Err(failed);
    }
    match by(client, second, stage).await {
        Ok(wire) => Ok(remember(client, second, wire, Some(&failed))),
        Err(other) => Err(ConnectError::Both {
            first: Box::new(failed),
            second: Box::new(other),
        }),
    }
}

/// Tells which transport is used, the first time and when it changes.
fn remember(
    client: &ClientInner,
    transport: Transport,
    wire: Wire,
    failed: Option<&ConnectError>,
) -> Wire {
    if client.remembered.set(transport) {
        let failed = failed.map(|error| super::connection::in_words(error));
        info!(
            hub = %client.host_name,
            transport = transport.name(),
            address = %target(client, transport),
            other = failed,
            "AMQP transport chosen"
        );
    }
    wire
}

fn target(client: &ClientInner, transport: Transport) -> &Target {
    match transport {
        Transport::AmqpWs => client.http.target(),
        Transport::Auto | Transport::Amqp => &client.amqp,
    }
}

async fn by(
    client: &ClientInner,
    transport: Transport,
    stage: &Stage,
) -> Result<Wire, ConnectError> {
    let target = target(client, transport);
    stage.set("connecting");
    let tcp = twincast_tunnel::connect(&target.host, target.port, &client.options.proxy);
    let tcp = tcp.await.map_err(ConnectError::from_dial)?;
    stage.set("the TLS handshake");
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
        return Ok(Wire::Tls(Box::new(tls)));
    }
    stage.set("the WebSocket handshake");
    let authority = match target.port {
        443 => host(),
        port => format!("{}:{port}", client.host_name),
    };
    let opened = WebSocketBytes::open(tls, &authority, PATH, SUBPROTOCOL).await;
    let stream = opened.map_err(|source| ConnectError::WebSocket {
        host: host(),
        source: Arc::new(source),
    })?;
    Ok(Wire::WebSocket(Box::new(stream)))
}

impl AsyncRead for Wire {
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

impl AsyncWrite for Wire {
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
