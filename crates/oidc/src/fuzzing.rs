//! Entries for the targets in `fuzz/`; in no other build.

use twincast_core::time::Timestamp;

use crate::jws::Parts;
use crate::keys::KeySet;
use crate::{BadKeys, Claims, Rejection};

/// The keys of an issuer.
#[derive(Debug)]
pub struct Keys(KeySet);

impl Keys {
    /// Reads a set of keys.
    ///
    /// # Errors
    /// [`BadKeys`].
    pub fn read(document: &[u8]) -> Result<Self, BadKeys> {
        KeySet::read(document).map(Self)
    }

    /// Checks a token's form and signature, and gives what is signed.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn check(&self, token: &str) -> Result<Vec<u8>, Rejection> {
        let parts = Parts::of(token)?;
        self.0.check(&parts)?;
        Ok(parts.signed.to_vec())
    }
}

/// Reads claims and checks them for the issuer `https://i` and the audience `us`.
///
/// # Errors
/// Why they are not good.
pub fn claims(text: &[u8], now: Timestamp) -> Result<Claims, Rejection> {
    let claims = Claims::read(text)?;
    claims.check("https://i", "us", now)?;
    Ok(claims)
}
