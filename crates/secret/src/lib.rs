//! Secrets that are never shown, and the files that hold them.
//!
//! A [`Secret`] is text that no `Debug`, `Display` or error prints. A [`SecretSource`] says where one comes from: a
//! setting, or a file. Platforms that rotate secrets (the Secrets Store CSI driver, External Secrets, cert-manager)
//! replace the file of a mounted secret while the process runs, so a file is read again each time that its secret is
//! used for a new connection or a new token.

mod file;
mod secret;
mod source;

pub use file::{FileError, MAX_FILE_BYTES, NotText, read_text, text_of};
pub use secret::Secret;
pub use source::{SecretSource, SourceError};
