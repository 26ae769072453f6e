//! `/$iothub/websocket`: MQTT and AMQP over WebSockets, on the port of everything else.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{Sink as _, Stream as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::error::{ApiError, empty_response};

/// The largest frame that is taken: more than the largest packet of a device.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// How much is read at once: what most devices ever send fits.
const READ_BYTES: usize = 4096;

/// What goes over a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subprotocol {
    Mqtt,
    Amqp,
}

impl Subprotocol {
    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Amqp => "AMQPWSB10",
        }
    }
}

/// Judges a handshake: what is to be spoken, and the answer.
pub(crate) fn handshake(
    headers: &HeaderMap,
) -> Result<(Subprotocol, Response<Full<Bytes>>), ApiError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_upgrade = text(UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let key = text(SEC_WEBSOCKET_KEY).filter(|_| is_upgrade);
    let key = key.ok_or_else(|| ApiError::bad_request("the request is no WebSocket handshake"))?;
    let asked = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let asked: Vec<&str> = asked
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let known = [Subprotocol::Mqtt, Subprotocol::Amqp];
    let found = known.into_iter().find(|known| {
        let mut asked = asked.iter();
        asked.any(|name| name.eq_ignore_ascii_case(known.name()))
    });
    let subprotocol = found.ok_or_else(|| {
        ApiError::bad_request(format!(
            "the Sec-WebSocket-Protocol {asked:?} has neither mqtt nor AMQPWSB10"
        ))
    })?;
    let mut response = empty_response(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(subprotocol.name()),
    );
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((subprotocol, response))
}

/// The bytes of a WebSocket's binary frames as one stream: where a frame ends means nothing.
#[derive(Debug)]
pub(crate) struct FrameBytes<S> {
    frames: WebSocketStream<S>,
    read: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameBytes<S> {
    pub(crate) async fn new(stream: S) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        Self {
            frames: WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await,
            read: Bytes::new(),
        }
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameBytes<S> {
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
                    let text = "a frame of text, which neither protocol has";
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameBytes<S> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_names_what_is_to_be_spoken() {
        let headers = |pairs: &[(&str, &str)]| -> HeaderMap {
            let pairs = pairs.iter().map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            });
            pairs.collect()
        };
        // The example of RFC 6455, section 1.3.
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let upgrade = ("upgrade", "WebSocket");
        for (protocol, expected) in [
            ("mqtt", Subprotocol::Mqtt),
            ("soap, MQTT", Subprotocol::Mqtt),
            ("AMQPWSB10", Subprotocol::Amqp),
        ] {
            let asked = headers(&[key, upgrade, ("sec-websocket-protocol", protocol)]);
            let (found, response) = handshake(&asked).unwrap();
            assert_eq!(found, expected);
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            let accept = &response.headers()[SEC_WEBSOCKET_ACCEPT];
            assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            let spoken = &response.headers()[SEC_WEBSOCKET_PROTOCOL];
            assert_eq!(spoken, expected.name());
        }
        for bad in [
            &[upgrade, ("sec-websocket-protocol", "mqtt")][..],
            &[key, ("sec-websocket-protocol", "mqtt")],
            &[key, upgrade],
            &[key, upgrade, ("sec-websocket-protocol", "soap")],
        ] {
            assert!(handshake(&headers(bad)).is_err());
        }
    }
}
