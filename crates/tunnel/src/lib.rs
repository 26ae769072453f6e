//! Connections to a hub where only port 443 or a proxy leads out.
//!
//! * [`Proxy`] says which HTTP proxy is used: the one of the environment (`HTTPS_PROXY`, `NO_PROXY`), a given one, or
//!   none.
//! * [`connect`] opens a TCP connection, through the proxy by `CONNECT` (RFC 9110, section 9.3.6) where there is one.
//! * [`WebSocketBytes`] is the byte stream of a WebSocket's binary frames, on either side.

mod dial;
mod proxy;
mod websocket;

pub use dial::{DialError, connect};
pub use proxy::{Proxy, ProxyUrlError};
pub use websocket::{FRAME_BYTES_MAX, HandshakeError, WebSocketBytes};
