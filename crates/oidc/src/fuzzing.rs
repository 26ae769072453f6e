//! Entry points of the targets in `fuzz/`; compiled only for fuzzing.

use std::time::SystemTime;

use crate::jws::Parts;
use crate::{Claims, Keys, Rejection};

/// Checks a token's form and signature, and returns the signed bytes.
///
/// # Errors
/// The reason of the rejection.
pub fn check(keys: &Keys, token: &str) -> Result<Vec<u8>, Rejection> {
    let parts = Parts::parse(token)?;
    keys.check(&parts)?;
    Ok(parts.signed.to_vec())
}

/// Parses claims and checks them for the issuer `https://i` and the audience `us`.
///
/// # Errors
/// The reason of the rejection.
pub fn claims(text: &[u8], now: SystemTime) -> Result<Claims, Rejection> {
    let claims = Claims::read(text)?;
    claims.check("https://i", "us", now)?;
    Ok(claims)
}
