//! Devices that really connect: everything about them that has nothing to do with a protocol.
//!
//! A device of the fleet is simulated until it connects for the first time. From then on it is a real one, for as long as
//! its identity exists: what waits for it stays until the device itself settles it, and what it reports is kept.
//!
//! A connection goes this way: [`Hub::authenticate_device`] says which device it is, [`Hub::attach`] takes the device's
//! place and gives a [`DeviceSession`], and dropping that disconnects the device. All that happens to the device comes
//! through [`DeviceSession::next_event`] and [`DeviceSession::take`]; a [`Notify`](tokio::sync::Notify) that the
//! transport brings along says when to look. Nothing here waits, with the exception of [`Hub::invoke`].

mod certificate;
mod identity;
mod line;
mod method;
mod queue;
mod session;
#[cfg(test)]
mod tests;
mod twin;

pub(crate) use certificate::{ClientCertificate, DeviceAuthorities};
pub(crate) use identity::{Denial, DevicePass, Proof};
pub(crate) use line::{DesiredPush, DeviceEvent, Ended, Interest, MethodCall};
pub(crate) use method::{Invocation, MethodAnswer};
pub use queue::SessionReport;
pub(crate) use queue::{Delivery, RealDevices, Settling};
pub(crate) use session::{DeviceSession, Subscriptions};
