//! AMQP 1.0 to a hub: one connection with one session, its token kept fresh, and a stream that repairs what the
//! protocol library and the hub's gateways disagree about.

pub(crate) mod cbs;
pub(crate) mod connection;
pub(crate) mod dial;
mod encoding;
pub(crate) mod frames;
mod mend;
pub(crate) mod reconnects;
pub(crate) mod repair;
pub(crate) mod stream;
pub(crate) mod supervise;
