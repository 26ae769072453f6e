//! What MQTT travels in: TLS, or WebSockets over TLS; straight, or through an HTTP proxy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use url::Url;

use super::LinkError;
use crate::config::{self, Transport};

/// How long it may take until a connection is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest frame that is taken: a message of 64 KB with its properties, and room.
const FRAME_MAX: usize = 1 << 20;

/// The longest answer of a proxy.
const PROXY_ANSWER_MAX: usize = 8 << 10;

/// A connection that carries bytes.
pub(super) enum Wire {
    Tls(Box<TlsStream<TcpStream>>),
    WebSocket(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

impl Wire {
    pub(super) async fn connect(
        settings: &config::Hub,
        host: &str,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Self, LinkError> {
        let port = settings.port.unwrap_or(match settings.transport {
            Transport::Mqtt => 8883,
            Transport::Websocket => 443,
        });
        let peer = format!("{host}:{port}");
        match tokio::time::timeout(PATIENCE, Self::connect_to(settings, host, port, &peer, tls))
            .await
        {
            Ok(result) => result,
            Err(_) => Err(LinkError::Silent {
                peer,
                what: "the connection",
            }),
        }
    }

    async fn connect_to(
        settings: &config::Hub,
        host: &str,
        port: u16,
        peer: &str,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Self, LinkError> {
        let failed = |source: io::Error| LinkError::Connect {
            peer: peer.to_owned(),
            source,
        };
        let stream = match &settings.proxy {
            None => TcpStream::connect((host, port)).await.map_err(failed)?,
            Some(proxy) => through(proxy, peer).await?,
        };
        stream.set_nodelay(true).map_err(failed)?;
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
        let failed = |source| LinkError::WebSocket {
            peer: peer.to_owned(),
            source: Box::new(source),
        };
        let mut request = format!("wss://{peer}/$iothub/websocket")
            .into_client_request()
            .map_err(failed)?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
        let bounds = WebSocketConfig::default()
            .max_message_size(Some(FRAME_MAX))
            .max_frame_size(Some(FRAME_MAX));
        let opened =
            tokio_tungstenite::client_async_with_config(request, stream, Some(bounds)).await;
        let (stream, _) = opened.map_err(failed)?;
        Ok(Self::WebSocket(Box::new(stream)))
    }

    /// Appends what comes to `buffer`; 0 at the end. Cancel safe.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tls(stream) => stream.read_buf(buffer).await,
            Self::WebSocket(stream) => loop {
                match stream.next().await {
                    None | Some(Ok(Message::Close(_))) => return Ok(0),
                    Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => {
                        buffer.extend_from_slice(&bytes);
                        return Ok(bytes.len());
                    }
                    // Pings are answered by the library with the next frame.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(io::Error::other(error)),
                }
            },
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::WebSocket(stream) => {
                let frame = Message::Binary(Bytes::copy_from_slice(bytes));
                stream.send(frame).await.map_err(io::Error::other)
            }
        }
    }

    /// Says good-bye, as far as the other side takes it.
    pub(super) async fn close(&mut self) {
        let closed = async {
            match self {
                Self::Tls(stream) => stream.shutdown().await.is_ok(),
                Self::WebSocket(stream) => stream.close().await.is_ok(),
            }
        };
        _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
    }
}

/// A connection through an HTTP proxy (RFC 9110 §9.3.6).
async fn through(proxy: &str, peer: &str) -> Result<TcpStream, LinkError> {
    let url = Url::parse(proxy).map_err(|error| LinkError::Connect {
        peer: "the proxy".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })?;
    let (host, port) = (
        url.host_str().unwrap_or_default(),
        url.port_or_known_default().unwrap_or(80),
    );
    let failed = |source: io::Error| LinkError::Connect {
        peer: format!("proxy {host}:{port}"),
        source,
    };
    let mut stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    let authorization = match url.username() {
        "" => String::new(),
        user => {
            let text = |text: &str| {
                percent_encoding::percent_decode_str(text)
                    .decode_utf8_lossy()
                    .into_owned()
            };
            let user = format!(
                "{}:{}",
                text(user),
                text(url.password().unwrap_or_default())
            );
            let user = base64::engine::general_purpose::STANDARD.encode(user);
            format!("Proxy-Authorization: Basic {user}\r\n")
        }
    };
    let request = format!("CONNECT {peer} HTTP/1.1\r\nHost: {peer}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to the peer.
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < PROXY_ANSWER_MAX {
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    let line = String::from_utf8_lossy(&answer)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    match line.split(' ').nth(1) {
        Some(status) if status.starts_with('2') && answer.ends_with(b"\r\n\r\n") => Ok(stream),
        _ => Err(LinkError::Proxy {
            peer: format!("{host}:{port}"),
            answer: line.chars().take(100).collect(),
        }),
    }
}
