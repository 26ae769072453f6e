//! Devices with a real connection: the parts independent of a protocol.
//!
//! A device of the fleet is simulated until the first connection. From then on the device is real,
//! for as long as the identity exists: waiting messages stay until the device settles them, and
//! reported properties are kept.
//!
//! [`Hub::authenticate_device`] identifies the device of a connection. [`Hub::attach`] connects the
//! device, replaces an earlier connection, and returns a [`DeviceSession`]; dropping the session
//! disconnects the device. [`DeviceSession::next_event`] and [`DeviceSession::take`] return
//! everything the connection has to do, and a [`Notify`](tokio::sync::Notify) supplied by the
//! transport signals when to call them. No function here waits, except [`Hub::invoke`].

mod certificate;
mod connection;
mod identity;
mod method;
mod queue;
mod session;
#[cfg(test)]
mod tests;
mod twin;

pub(crate) use certificate::{ClientCertificate, DeviceAuthorities};
pub(crate) use connection::{DesiredPush, DeviceEvent, EndReason, Interest, MethodCall};
pub(crate) use identity::{AuthenticatedDevice, AuthenticationError, Proof};
pub(crate) use method::{Invocation, MethodAnswer};
pub use queue::SessionReport;
pub(crate) use queue::{Delivery, MessageSettlement, RealDevices};
pub(crate) use session::{DeviceSession, Subscriptions};
