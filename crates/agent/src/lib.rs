//! A device agent for Azure IoT Hub that a product team starts from: it takes signed updates, installs them, and says what
//! became of them.
//!
//! [`Agent`] is the whole of it: it connects over MQTT, stores each message before it acknowledges it, checks and fetches
//! what the message names, installs it by the device's own [hooks](config::Hooks) or in [two folders](config::Slots), sees whether
//! the new version works, rolls back if not, and answers with the reported property `update`. `docs/devices.md` is its guide.
//!
//! [`update`] decides, and does nothing else: a state machine without I/O whose state stands on disk. Everything around it is
//! thin: [`config`], identity, connection, download, hooks. A crash anywhere costs time.

mod agent;
mod backoff;
mod clock;
pub mod config;
mod download;
pub mod envelope;
mod hooks;
mod identity;
mod link;
pub mod manifest;
pub mod report;
mod sas;
mod slots;
mod store;
mod tls;
pub mod update;
pub mod version;

pub use agent::{Agent, AgentError};
pub use identity::IdentityError;
pub use tls::TlsError;

/// An error and its causes in one line.
#[must_use]
pub fn words(error: &dyn std::error::Error) -> String {
    link::chain(error)
}

/// The SHA-256 of what a reader gives, in hex, as a manifest has it.
///
/// # Errors
/// What the reader says.
pub fn sha256(reader: &mut impl std::io::Read) -> std::io::Result<String> {
    download::sha256(reader)
}
