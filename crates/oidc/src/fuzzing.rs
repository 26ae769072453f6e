//! Entries for the targets in `fuzz/`; in no other build.

use std::time::SystemTime;

use crate::jws::Parts;
use crate::{Claims, Keys, Rejection};

/// Checks a token's form and signature, and gives what is signed.
///
/// # Errors
/// Why it is not good.
pub fn check(keys: &Keys, token: &str) -> Result<Vec<u8>, Rejection> {
    let parts = Parts::of(token)?;
    keys.check(&parts)?;
    Ok(parts.signed.to_vec())
}

/// Reads claims and checks them for the issuer `https://i` and the audience `us`.
///
/// # Errors
/// Why they are not good.
pub fn claims(text: &[u8], now: SystemTime) -> Result<Claims, Rejection> {
    let claims = Claims::read(text)?;
    claims.check("https://i", "us", now)?;
    Ok(claims)
}
