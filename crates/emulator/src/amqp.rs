//! The AMQP 1.0 server: wire format, connections, sessions and the hub's link nodes.
//!
//! The codec is independent of the client's codec, so that a mistake in either shows up as a
//! disagreement. The hot path (one transfer) touches each byte once.

mod address;
pub(crate) mod cbs;
mod command;
pub(crate) mod connection;
mod decode;
mod device;
mod encode;
mod feedback;
mod frames;
mod incoming;
mod link;
mod links;
mod message;
mod outcome;
mod outgoing;
mod performative;
mod registration;
mod sasl;
mod session;
pub(crate) mod timer;

pub(crate) use connection::serve;
pub(crate) use feedback::FEEDBACK_CONTENT_TYPE;
pub(crate) use message::{SystemFields, application_properties, body_bytes, field_text};
pub(crate) use outcome::tracking_id;

/// The first bytes of a connection without a SASL layer.
pub(crate) const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
/// The first bytes of a connection with a SASL layer.
pub(crate) const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
