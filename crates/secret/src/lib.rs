//! Secrets that are never printed, and the files holding them.
//!
//! A [`Secret`] is text hidden from every `Debug`, `Display` and error. A [`SecretSource`] is the
//! origin of a secret: a setting, or a file. Platforms with secret rotation (the Secrets Store CSI
//! driver, External Secrets, cert-manager) replace the file of a mounted secret while the process
//! runs. So a file is read again each time its secret is used for a new connection or a new token.

mod file;
mod secret;
mod source;

pub use file::{FileError, MAX_FILE_BYTES, NotText, read_text, text_of};
pub use secret::Secret;
pub use source::{SecretSource, SourceError};
