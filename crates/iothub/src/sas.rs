//! Shared access signature tokens: signing, and renewal in time.
//!
//! A token is `SharedAccessSignature sr={R}&sig={S}&se={E}&skn={P}`: `R` is the percent-encoded
//! resource (for a service the bare host name), `E` the expiry in Unix seconds, `P` the policy, and
//! `S` the percent-encoded base64 of HMAC-SHA256 over `R`, a newline and `E`, keyed with the
//! base64-decoded policy key (Microsoft's documentation of IoT Hub access control).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rand::RngExt as _;
use sha2::Sha256;
use twincast_secret::Secret;
use zeroize::Zeroizing;

use crate::connection_string::ConnectionString;

/// Encodes all but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Share of a token's life after which the token is renewed; the exact share is drawn once per
/// token.
const RENEW_BETWEEN: (f64, f64) = (0.75, 0.85);

/// A token is replaced when the hub's clock proves to be at least this far from the time assumed at
/// signing.
const OFFSET_TOLERANCE: Duration = Duration::from_secs(60);

/// The `type` of a put-token request with a SAS token.
pub const SAS_TOKEN_TYPE: &str = "servicebus.windows.net:sastoken";

/// A signed token with its renewal and expiry times. `Debug` does not show the token.
#[derive(Debug, Clone)]
pub(crate) struct SasToken {
    token: Secret,
    renew_at: SystemTime,
    expires_at: SystemTime,
    /// The intended end of the token's life, on this machine's clock.
    intended_expiry: SystemTime,
}

/// Signs tokens with one key. Tokens are due for renewal at 75–85 % of their life; the jitter keeps
/// many workers from renewing at once.
pub(crate) struct Signer {
    resource: String,
    key_name: String,
    key: Secret,
    decoded: Zeroizing<Vec<u8>>,
    lifetime: Duration,
}

impl SasToken {
    /// The whole token, `SharedAccessSignature …`.
    pub(crate) fn token(&self) -> &Secret {
        &self.token
    }

    /// When to replace the token, on this machine's clock.
    pub(crate) fn renew_at(&self) -> SystemTime {
        self.renew_at
    }

    /// When the hub begins to refuse the token, on the hub's own clock.
    pub(crate) fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Whether the token is fresh at `now`, when the hub's clock shows `hub_now`.
    ///
    /// Two kinds of token are stale despite a later `renew_at`. A token expiring more than one
    /// `lifetime` ahead was signed before this machine's clock went back. A token whose expiry on
    /// the hub's clock differs from the intended moment was signed before the hub's clock was
    /// known.
    pub(crate) fn is_fresh(
        &self,
        lifetime: Duration,
        now: SystemTime,
        hub_now: SystemTime,
    ) -> bool {
        let lifetime = lifetime.max(Duration::from_secs(60));
        now < self.renew_at
            && self.intended_expiry <= now + lifetime
            && self.matches_clock(now, hub_now)
    }

    /// Whether the expiry on the hub's clock is within [`OFFSET_TOLERANCE`] of the intended expiry.
    fn matches_clock(&self, now: SystemTime, hub_now: SystemTime) -> bool {
        let left = |until: SystemTime, now| match until.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        let (meant, seen) = (
            left(self.intended_expiry, now),
            left(self.expires_at, hub_now),
        );
        (meant - seen).abs() < OFFSET_TOLERANCE.as_secs_f64()
    }
}

impl Signer {
    /// Creates a signer for the host of `connection` with tokens of `lifetime`, raised to one
    /// minute if shorter, so that clock skew of a few seconds is harmless.
    pub(crate) fn new(connection: &ConnectionString, lifetime: Duration) -> Self {
        let decoded = STANDARD
            .decode(connection.key().expose())
            .expect("a connection string's key was checked to be base64 when it was made");
        Self {
            resource: connection.host_name().to_owned(),
            key_name: connection.key_name().to_owned(),
            key: connection.key().clone(),
            decoded: Zeroizing::new(decoded),
            lifetime: lifetime.max(Duration::from_secs(60)),
        }
    }

    pub(crate) fn key_name(&self) -> &str {
        &self.key_name
    }

    pub(crate) fn key(&self) -> &Secret {
        &self.key
    }

    /// Signs a new token at `now` on this machine's clock, when the hub's clock shows `hub_now`.
    pub(crate) fn sign(&self, now: SystemTime, hub_now: SystemTime) -> SasToken {
        let expiry = hub_now.duration_since(UNIX_EPOCH).unwrap_or_default() + self.lifetime;
        let share = rand::rng().random_range(RENEW_BETWEEN.0..RENEW_BETWEEN.1);
        let (resource, name) = (&self.resource, &self.key_name);
        SasToken {
            token: sign(resource, name, &self.decoded, expiry.as_secs()),
            renew_at: now + self.lifetime.mul_f64(share),
            expires_at: UNIX_EPOCH + Duration::from_secs(expiry.as_secs()),
            intended_expiry: now + self.lifetime,
        }
    }
}

/// Signs a token for `resource` (not yet encoded), valid until `expiry` (Unix seconds), with the
/// decoded `key` of policy `key_name`.
#[must_use]
pub fn sign(resource: &str, key_name: &str, key: &[u8], expiry: u64) -> Secret {
    let resource = utf8_percent_encode(resource, ENCODED).to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(resource.as_bytes());
    mac.update(b"\n");
    mac.update(expiry.to_string().as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    Secret::new(format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expiry}&skn={}",
        utf8_percent_encode(&signature, ENCODED),
        utf8_percent_encode(key_name, ENCODED),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(1_000);

    fn signer() -> Signer {
        let connection =
            ConnectionString::new("Hub.Example.Net", "service", Secret::new("c2VjcmV0")).unwrap();
        Signer::new(&connection, LIFETIME)
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_matches_the_openssl_signature() {
        // HMAC-SHA256("secret", "hub.example.net\n1700003600"), computed with OpenSSL.
        let token = sign("hub.example.net", "service", b"secret", 1_700_003_600);
        assert_eq!(
            token.expose(),
            "SharedAccessSignature sr=hub.example.net&sig=08zz39IWfGwPMZQSfBVvTjSGXGNnGZUy4WK%2FxeRfYVo%3D&se=1700003600&skn=service"
        );
    }

    #[test]
    fn a_device_resource_is_percent_encoded() {
        let token = sign("h/devices/a b", "p", b"k", 1);
        assert!(
            token.expose().contains("sr=h%2Fdevices%2Fa%20b&"),
            "{}",
            token.expose()
        );
    }

    #[test]
    fn a_token_serves_until_three_quarters_and_not_after_85_percent() {
        let token = signer().sign(at(5_000), at(5_000));
        assert_eq!(token.expires_at(), at(6_000));
        assert!(token.is_fresh(LIFETIME, at(5_749), at(5_749)));
        assert!(!token.is_fresh(LIFETIME, at(5_850), at(5_850)));
    }

    #[test]
    fn a_token_is_replaced_after_a_backward_clock_step() {
        let token = signer().sign(at(50_000), at(50_000));
        assert!(!token.is_fresh(LIFETIME, at(10_000), at(10_000)));
    }

    #[test]
    fn expiry_uses_the_hub_clock_and_renewal_the_local_clock() {
        let signer = signer();
        // The hub's clock is unknown at first, then found to be a quarter of an hour ahead.
        let first = signer.sign(at(5_000), at(5_000));
        assert!(!first.is_fresh(LIFETIME, at(5_010), at(5_910)));
        let second = signer.sign(at(5_010), at(5_910));
        assert_eq!(second.expires_at(), at(6_910));
        assert!((at(5_760)..at(5_861)).contains(&second.renew_at()));
        // One second of difference between two observations does not replace the token.
        assert!(second.is_fresh(LIFETIME, at(5_020), at(5_921)));
        assert!(!second.is_fresh(LIFETIME, at(5_030), at(1_000)));
    }

    #[test]
    fn debug_does_not_show_the_token() {
        let text = format!("{:?}", signer().sign(at(5_000), at(5_000)));
        assert!(!text.contains("sig="), "{text}");
    }
}
