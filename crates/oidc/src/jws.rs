//! A signed token: compact form (RFC 7515), and the accepted algorithms (RFC 7518, 8037).

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, VerificationAlgorithm};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::claims::Claims;
use crate::rejection::Rejection;

/// The longest accepted token. Tokens of real issuers have a few KiB, and HTTP headers are limited
/// not far above.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The longest accepted key id. Key ids may appear in the log.
const MAX_KID_BYTES: usize = 256;

/// The accepted signature algorithms: public-key algorithms only, so a verifier cannot forge
/// tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// Parses the name in a token's header or in a key. Rejects `none` and algorithms with a shared
    /// secret.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    /// Returns the algorithm's parameters for RSA keys.
    pub(crate) fn of_rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::EdDsa => return None,
        })
    }

    /// Returns the algorithm's verification for elliptic curve keys.
    pub(crate) fn of_curve(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            Self::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::EdDsa => &signature::ED25519,
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => {
                return None;
            }
        })
    }
}

/// A token in its parts. No part is trustworthy before the check of the signature.
pub(crate) struct Parts<'a> {
    pub(crate) algorithm: Algorithm,
    /// The id of the signing key.
    pub(crate) kid: Option<String>,
    /// The signed bytes.
    pub(crate) signed: &'a [u8],
    pub(crate) signature: Vec<u8>,
    pub(crate) claims: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Parts<'a> {
    /// Returns the claims for this issuer and audience. The caller must check the signature first.
    pub(crate) fn claims_for(
        &self,
        issuer: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<Claims, Rejection> {
        let claims = Claims::read(&self.claims)?;
        claims.check(issuer, audience, now)?;
        Ok(claims)
    }

    /// Splits a token into its parts.
    pub(crate) fn parse(token: &'a str) -> Result<Self, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::Unreadable("longer than 16 KiB"));
        }
        let unreadable = || Rejection::Unreadable("not three parts in base64url");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(unreadable)?;
        let (header, claims) = signed.split_once('.').ok_or_else(unreadable)?;
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| unreadable());
        let header: Header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| Rejection::Unreadable("the header is not a valid JWS header"))?;
        let algorithm = Algorithm::named(&header.alg).ok_or_else(|| Rejection::Algorithm {
            found: header.alg.chars().take(20).collect(),
        })?;
        if header
            .kid
            .as_ref()
            .is_some_and(|kid| kid.len() > MAX_KID_BYTES)
        {
            return Err(Rejection::Unreadable("the kid is longer than 256 bytes"));
        }
        if header.crit.is_some() {
            return Err(Rejection::Unreadable("the header has a crit extension"));
        }
        if !header.typ.as_deref().is_none_or(is_for_access) {
            return Err(Rejection::Unreadable("the typ is neither JWT nor at+jwt"));
        }
        Ok(Self {
            algorithm,
            kid: header.kid,
            signed: signed.as_bytes(),
            signature: decode(signature)?,
            claims: decode(claims)?,
        })
    }
}

/// Other types serve other purposes, such as logging a user out.
fn is_for_access(typ: &str) -> bool {
    ["JWT", "at+jwt", "application/at+jwt"]
        .iter()
        .any(|known| typ.eq_ignore_ascii_case(known))
}
