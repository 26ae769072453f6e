//! The transport of MQTT: TLS, or WebSockets over TLS; directly, or through an HTTP proxy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use twincast_tunnel::WebSocketBytes;

use super::ConnectionError;
use crate::config::{self, Transport};

/// The time limit of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection as a stream of bytes.
pub(super) enum MqttStream {
    Tls(Box<TlsStream<TcpStream>>),
    WebSocket(Box<WebSocketBytes<TlsStream<TcpStream>>>),
}

impl MqttStream {
    pub(super) async fn connect(
        settings: &config::Hub,
        host: &str,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Self, ConnectionError> {
        let port = settings.port.unwrap_or(match settings.transport {
            Transport::Mqtt => 8883,
            Transport::Websocket => 443,
        });
        let peer = format!("{host}:{port}");
        match tokio::time::timeout(
            CONNECT_TIMEOUT,
            Self::connect_to(settings, host, port, &peer, tls),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(ConnectionError::Silent {
                peer,
                what: "connecting",
            }),
        }
    }

    async fn connect_to(
        settings: &config::Hub,
        host: &str,
        port: u16,
        peer: &str,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Self, ConnectionError> {
        let failed = |source: io::Error| ConnectionError::Connect {
            peer: peer.to_owned(),
            source,
        };
        let stream = twincast_tunnel::connect(host, port, &settings.proxy())
            .await
            .map_err(|source| ConnectionError::Dial {
                peer: peer.to_owned(),
                source,
            })?;
        let name = rustls::pki_types::ServerName::try_from(host.to_owned())
            .map_err(io::Error::other)
            .map_err(failed)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await
            .map_err(failed)?;
        if settings.transport == Transport::Mqtt {
            return Ok(Self::Tls(Box::new(stream)));
        }
        let opened = WebSocketBytes::open(stream, peer, "/$iothub/websocket", "mqtt").await;
        let stream = opened.map_err(|source| ConnectionError::WebSocket {
            peer: peer.to_owned(),
            source,
        })?;
        Ok(Self::WebSocket(Box::new(stream)))
    }

    /// Appends received bytes to `buffer`, and returns the number of bytes: 0 at the end. Cancel
    /// safe.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tls(stream) => stream.read_buf(buffer).await,
            // The library answers pings with the next frame.
            Self::WebSocket(stream) => stream.read_buf(buffer).await,
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::WebSocket(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Closes the connection, waiting at most 2 s for the other side.
    pub(super) async fn close(&mut self) {
        let closed = async {
            match self {
                Self::Tls(stream) => stream.shutdown().await,
                Self::WebSocket(stream) => stream.shutdown().await,
            }
        };
        _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
    }
}
