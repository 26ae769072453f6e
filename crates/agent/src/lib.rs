//! A device agent for Azure IoT Hub, meant as a starting point for product teams. The agent
//! receives signed updates, installs them, and reports the results.
//!
//! [`Agent`] connects over MQTT and stores each message before acknowledging it. The agent checks
//! the message, downloads the artefact, and installs it with the device's own
//! [hooks](config::Hooks) or in [two folders](config::Slots). A health check tests the new version;
//! a failed check leads to a rollback. The agent reports the progress in the reported property
//! `update`. The guide is `docs/how-to/devices.md`.
//!
//! [`update`] makes all decisions and does nothing else: a state machine without I/O, with the
//! state stored on disk. All other modules are thin: [`config`], identity, connection, download,
//! hooks. A crash anywhere only costs time.

mod agent;
mod backoff;
mod clock;
pub mod config;
mod download;
pub mod envelope;
mod hooks;
mod hub_connection;
mod identity;
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

/// Returns an error and all causes in a single line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    hub_connection::error_chain(error)
}

/// Returns the SHA-256 of a reader's content, in hex, as used in a manifest.
///
/// # Errors
/// The error of the reader.
pub fn sha256(reader: &mut impl std::io::Read) -> std::io::Result<String> {
    download::sha256(reader)
}
