//! Microsoft Entra ID, as far as a hub and its clients meet it: a directory of principals, a token endpoint with its
//! keys, and the metadata endpoint of virtual machines.
//!
//! ```text
//!  client ── secret, certificate, federated token ──▶ token endpoint ─┐
//!  client ── nothing but its place (IMDS) ──────────▶ metadata        ├─▶ token ──▶ hub: signature, times, audience, role
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
