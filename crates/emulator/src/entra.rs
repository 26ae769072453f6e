//! The parts of Microsoft Entra ID used by a hub and the clients: a directory of principals, a
//! token endpoint with signing keys, and the metadata endpoint of virtual machines.
//!
//! ```text
//!  client ── secret, certificate, federated token ──▶ token endpoint ─┐
//!  client ── no proof but the machine (IMDS) ───────▶ metadata        ├─▶ token ──▶ hub: signature, times, audience, role
//! ```

mod access;
mod directory;
mod http;
mod issuer;

pub use directory::{Directory, DirectoryError};

pub(crate) use access::{Action, Role};
pub(crate) use directory::Principal;
pub(crate) use http::{answer, metadata, path_of};
pub(crate) use issuer::Issuer;
