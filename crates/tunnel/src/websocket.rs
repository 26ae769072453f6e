//! WebSockets as byte streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{Sink as _, Stream as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest accepted frame in bytes: above a hub's largest AMQP and MQTT frames.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Why a server did not open a WebSocket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server answered the handshake with a status other than 101.
    #[error("server answers {status} to the WebSocket handshake")]
    Status {
        /// The status.
        status: u16,
    },
    /// The server chose another subprotocol, or none.
    #[error("server does not accept the WebSocket subprotocol {offered}")]
    Subprotocol {
        /// The only subprotocol offered.
        offered: &'static str,
    },
    /// The handshake failed for another reason.
    #[error("WebSocket handshake failed")]
    Failed(#[source] Box<Error>),
}

/// The bytes of a WebSocket's binary frames as one stream: frame boundaries have no meaning.
#[derive(Debug)]
pub struct WebSocketBytes<S> {
    frames: WebSocketStream<S>,
    read: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// Opens a WebSocket over `stream` at `authority` (host and port) and `path`, with one
    /// subprotocol.
    ///
    /// Has no time-out of its own.
    ///
    /// # Errors
    ///
    /// The server refused, or the connection failed.
    pub async fn open(
        stream: S,
        authority: &str,
        path: &str,
        subprotocol: &'static str,
    ) -> Result<Self, HandshakeError> {
        let failed = |error| match error {
            Error::Http(response) => HandshakeError::Status {
                status: response.status().as_u16(),
            },
            error => HandshakeError::Failed(Box::new(error)),
        };
        let request = format!("wss://{authority}{path}").into_client_request();
        let mut request = request.map_err(failed)?;
        let header = HeaderValue::from_static(subprotocol);
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, header);
        let opened =
            tokio_tungstenite::client_async_with_config(request, stream, Some(bounds())).await;
        let (frames, response) = match opened {
            // The library checks the subprotocol itself.
            Err(Error::Protocol(
                tokio_tungstenite::tungstenite::error::ProtocolError::SecWebSocketSubProtocolError(
                    _,
                ),
            )) => {
                return Err(HandshakeError::Subprotocol {
                    offered: subprotocol,
                });
            }
            opened => opened.map_err(failed)?,
        };
        let chosen = response.headers().get(SEC_WEBSOCKET_PROTOCOL);
        let is_offered = |value: &HeaderValue| {
            value
                .as_bytes()
                .eq_ignore_ascii_case(subprotocol.as_bytes())
        };
        if !chosen.is_some_and(is_offered) {
            return Err(HandshakeError::Subprotocol {
                offered: subprotocol,
            });
        }
        Ok(Self {
            frames,
            read: Bytes::new(),
        })
    }

    /// Wraps the server's side of a WebSocket after the handshake.
    pub async fn accepted(stream: S) -> Self {
        let frames = WebSocketStream::from_raw_socket(stream, Role::Server, Some(bounds()));
        Self {
            frames: frames.await,
            read: Bytes::new(),
        }
    }
}

fn bounds() -> WebSocketConfig {
    WebSocketConfig::default()
        // Fits everything most devices ever send; longer input is still read.
        .read_buffer_size(4096)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(Pin::new(&mut self.frames).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.read = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let text = "received a WebSocket text frame; AMQP and MQTT use binary frames";
                    return Poll::Ready(Err(io::Error::other(text)));
                }
                None
                | Some(
                    Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed),
                ) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.frames).poll_ready(context)).map_err(io_error)?;
        let frame = Message::Binary(Bytes::copy_from_slice(data));
        Pin::new(&mut self.frames)
            .start_send(frame)
            .map_err(io_error)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames)
            .poll_flush(context)
            .map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames)
            .poll_close(context)
            .map_err(io_error)
    }
}
