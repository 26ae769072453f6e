//! The MQTT 3.1.1 server for devices: over TLS on a dedicated port, and over WebSockets.
//!
//! The codec is `mqtt-proto`'s. Sessions are the hub's: an unacknowledged MQTT publication is a
//! message held by the device, and returns to the queue. A PUBACK completes the message; MQTT can
//! neither reject nor abandon.

mod client;
mod io;
mod login;
mod registration;
mod serve;
mod topic;

pub(crate) use serve::serve;
