//! Connections to a hub from networks with only port 443 or a proxy open.
//!
//! * [`Proxy`] selects the HTTP proxy: named by the environment (`HTTPS_PROXY`, `NO_PROXY`), given
//!   explicitly, or none.
//! * [`connect`] opens a TCP connection, through the selected proxy by `CONNECT` (RFC 9110, section
//!   9.3.6).
//! * [`WebSocketBytes`] is the byte stream of a WebSocket's binary frames, on either side.

mod dial;
mod proxy;
mod websocket;

pub use dial::{DialError, connect};
pub use proxy::{Proxy, ProxyUrlError};
pub use websocket::{FRAME_BYTES_MAX, HandshakeError, WebSocketBytes};
