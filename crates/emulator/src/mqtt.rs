//! The MQTT 3.1.1 server side, for devices: over TLS on a port of its own and over WebSockets.
//!
//! The codec is `mqtt-proto`'s. Sessions are the hub's own: what MQTT calls an unacknowledged publication is a message
//! that its device holds, and comes back from the queue. A PUBACK completes it; MQTT can neither reject nor abandon.

mod client;
mod io;
mod login;
mod registration;
mod serve;
mod topic;

pub(crate) use serve::serve;
