//! AMQP 1.0 to a hub: one connection with one session, token renewal, and a stream that repairs
//! disagreements between the protocol library and the hub's gateways.

pub(crate) mod cbs;
pub(crate) mod connection;
pub(crate) mod dial;
mod encoding;
pub(crate) mod filter;
pub(crate) mod frames;
pub(crate) mod reconnect_backoff;
mod sanitize;
pub(crate) mod stream;
pub(crate) mod supervise;
